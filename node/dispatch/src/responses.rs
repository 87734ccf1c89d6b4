//! Takes replies.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Connection, Consumer};
use serde_json::Value;

use crate::link::{AmqpTarget, LinkError};
use crate::outcome::Outcome;
use crate::topology::{RESPONSES_QUEUE, declare_responses};

/// Replies handed out and not acknowledged; the broker holds back the others.
const UNACKED_MAX: u16 = 64;
/// Opening the channel and the consumer.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// A worker's reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The operation it is for.
    pub task_id: String,
    /// How that ended.
    pub outcome: Outcome,
}

/// A reply that the broker keeps until it is acknowledged. Dropped without that, it comes again after a reconnect.
pub struct Received {
    /// What was said.
    pub reply: Reply,
    /// It may have been handed out before.
    pub redelivered: bool,
    acker: Acker,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("task_id", &self.reply.task_id)
            .field("redelivered", &self.redelivered)
            .finish()
    }
}

/// Why there is no next reply.
#[derive(Debug, thiserror::Error)]
pub enum ResponsesError {
    /// [`Responses::connect`] was not called, or an error came since.
    #[error("take replies without a connection to the broker")]
    NotConnected,
    /// The connection is gone: connect again. What was not acknowledged comes again.
    #[error("the connection that brings replies broke")]
    Lost(#[source] Box<dyn Error + Send + Sync>),
}

/// Takes the replies to everything this manager sends in one virtual host. There is one taker at a time: two would share
/// the replies.
#[derive(Debug)]
pub struct Responses {
    target: AmqpTarget,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    consumer: Consumer,
    // Dropped after the consumer, which cancels itself over it.
    _connection: Connection,
}

impl Responses {
    /// A taker that is not connected.
    #[must_use]
    pub fn new(target: AmqpTarget) -> Self {
        Self { target, open: None }
    }

    /// Connects, declares the queue and starts to take replies. Before the first send: a worker's reply needs the queue.
    /// Called again, it starts anew, and what was not acknowledged comes again.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub async fn connect(&mut self) -> Result<(), LinkError> {
        self.open = None;
        let connection = self.target.connect("quorate responses").await?;
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(UNACKED_MAX, BasicQosOptions::default()).await?;
            declare_responses(&channel).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(RESPONSES_QUEUE.into(), "".into(), options, FieldTable::default()).await
        };
        let consumer = match tokio::time::timeout(OPEN_LIMIT, opening).await {
            Ok(opened) => opened.map_err(|error| self.target.refused(error))?,
            Err(_) => return Err(LinkError::TooSlow { address: self.target.address, limit: OPEN_LIMIT }),
        };
        self.open = Some(Open { consumer, _connection: connection });
        Ok(())
    }

    /// The next reply. It may be cancelled without losing one.
    ///
    /// # Errors
    /// When the connection is gone; then [`Self::connect`] again.
    pub async fn next(&mut self) -> Result<Received, ResponsesError> {
        loop {
            let open = self.open.as_mut().ok_or(ResponsesError::NotConnected)?;
            let delivery = match open.consumer.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => {
                    self.open = None;
                    return Err(ResponsesError::Lost(error.into()));
                }
                None => {
                    self.open = None;
                    return Err(ResponsesError::Lost("the broker ended it".into()));
                }
            };
            let task_id = delivery.properties.correlation_id().as_ref().map(|id| id.as_str().to_owned());
            match (task_id, serde_json::from_slice::<Value>(&delivery.data)) {
                (Some(task_id), Ok(body)) => {
                    let reply = Reply { task_id, outcome: Outcome::from_wire(&body) };
                    return Ok(Received { reply, redelivered: delivery.redelivered, acker: delivery.acker });
                }
                (task_id, body) => {
                    // It would come again for ever. Its operation is sent again when its time is up.
                    let bytes = delivery.data.len();
                    tracing::warn!(?task_id, json = body.is_ok(), bytes, "a reply that cannot be read is dropped");
                    acknowledge(&delivery.acker).await?;
                }
            }
        }
    }
}

impl Received {
    /// Tells the broker that the reply is recorded and may go.
    ///
    /// # Errors
    /// [`ResponsesError::Lost`]: the reply comes again.
    pub async fn ack(self) -> Result<(), ResponsesError> {
        acknowledge(&self.acker).await
    }
}

async fn acknowledge(acker: &Acker) -> Result<(), ResponsesError> {
    match acker.ack(BasicAckOptions::default()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ResponsesError::Lost("it can be acknowledged no more".into())),
        Err(error) => Err(ResponsesError::Lost(error.into())),
    }
}
