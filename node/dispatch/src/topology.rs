//! Names of exchanges and queues. Declarations must agree in every property with those of Python workers: durable, not
//! deleted by themselves, no arguments.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

/// The exchange of the management workers, in the virtual host `/`: central operations.
pub const MANAGEMENT: &str = "cloudify.management";
/// The fan-out exchange that every management worker hears, in the virtual host `/`.
pub const MANAGEMENT_SERVICE: &str = "cloudify-mgmtworker-service";
/// Routing key of operations.
pub const OPERATION_KEY: &str = "operation";
/// Routing key of service tasks.
pub const SERVICE_KEY: &str = "service";
/// Where replies to this manager's operations go, in each virtual host it sends to. Other senders (custom workflows)
/// use `execution_responses_<execution id>`.
pub const RESPONSES_QUEUE: &str = "execution_responses_quorate";

/// The queue a worker takes operations from. `worker` is its name, which is also its exchange.
#[must_use]
pub fn operation_queue(worker: &str) -> String {
    format!("{worker}_operation")
}

/// The queue a worker takes service tasks from.
#[must_use]
pub fn service_queue(worker: &str) -> String {
    format!("{worker}_service")
}

/// Where a message goes.
pub(crate) struct Route {
    pub exchange: ShortString,
    pub kind: ExchangeKind,
    pub key: ShortString,
    /// The queue that must be there. `None`: any will do.
    pub queue: Option<ShortString>,
    /// Whether replies come back through the exchange.
    pub replies: bool,
}

/// A name longer than AMQP's 255 bytes.
#[derive(Debug, thiserror::Error)]
#[error("the worker's name is longer than AMQP allows")]
pub(crate) struct NameTooLong;

impl Route {
    pub(crate) fn operation(worker: &str) -> Result<Self, NameTooLong> {
        Ok(Self {
            exchange: short(worker)?,
            kind: ExchangeKind::Direct,
            key: OPERATION_KEY.into(),
            queue: Some(short(&operation_queue(worker))?),
            replies: true,
        })
    }

    pub(crate) fn service(worker: &str) -> Result<Self, NameTooLong> {
        if worker == MANAGEMENT {
            return Ok(Self {
                exchange: MANAGEMENT_SERVICE.into(),
                kind: ExchangeKind::Fanout,
                key: SERVICE_KEY.into(),
                queue: None,
                replies: false,
            });
        }
        Ok(Self {
            exchange: short(worker)?,
            kind: ExchangeKind::Direct,
            key: SERVICE_KEY.into(),
            queue: Some(short(&service_queue(worker))?),
            replies: false,
        })
    }

    /// Makes what the sender's side needs.
    pub(crate) async fn declare(&self, channel: &Channel) -> lapin::Result<()> {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(self.exchange.clone(), self.kind.clone(), durable, FieldTable::default()).await?;
        if self.replies {
            declare_responses(channel).await?;
            let queue = ShortString::from(RESPONSES_QUEUE);
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.clone(), self.exchange.clone(), queue, options, FieldTable::default()).await?;
        }
        Ok(())
    }

    /// Sees whether the worker has made its queue; the broker closes the channel if not.
    ///
    /// The queue is the worker's: made here it would collect operations for a worker that never existed.
    pub(crate) async fn look(&self, channel: &Channel) -> lapin::Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let look = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        channel.queue_declare(queue.clone(), look, FieldTable::default()).await.map(drop)
    }
}

pub(crate) async fn declare_responses(channel: &Channel) -> lapin::Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(RESPONSES_QUEUE.into(), durable, FieldTable::default()).await.map(drop)
}

fn short(name: &str) -> Result<ShortString, NameTooLong> {
    ShortString::try_new(name.to_owned()).map_err(|_| NameTooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_worker() {
        let route = Route::operation("web_host_x1").expect("a route");
        assert_eq!((route.exchange.as_str(), route.key.as_str()), ("web_host_x1", "operation"));
        assert_eq!(route.queue.expect("a queue").as_str(), "web_host_x1_operation");
        let route = Route::service("web_host_x1").expect("a route");
        assert_eq!(route.queue.expect("a queue").as_str(), "web_host_x1_service");
        assert!(Route::operation(&"x".repeat(250)).is_err());
    }

    #[test]
    fn all_management_workers_hear_service_tasks() {
        let route = Route::service(MANAGEMENT).expect("a route");
        assert_eq!(route.exchange.as_str(), MANAGEMENT_SERVICE);
        assert_eq!(route.kind, ExchangeKind::Fanout);
    }
}
