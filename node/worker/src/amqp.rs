//! The connection to the active broker: declares what this worker consumes, hands over what arrives, publishes replies.
//!
//! TLS with the cluster's authorities only. One connection at a time; when the active broker changes or the connection
//! breaks, the next is opened. Whoever publishes waits for a connection and for the broker's confirmation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amq_protocol_tcp::OwnedTLSConfig;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::journal::Address;
use crate::settings::AmqpAccess;

/// Name of the management workers' queue and exchange.
pub(crate) const MANAGEMENT: &str = "cloudify.management";
const MANAGEMENT_SERVICE: &str = "cloudify-mgmtworker-service";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const HEARTBEAT_SECONDS: u16 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Service messages are small and quick; so many are taken at one time.
const SERVICE_PREFETCH: u16 = 20;

/// The names this worker declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    exchange: String,
    operations: String,
    service_exchange: String,
    service_is_fanout: bool,
    services: String,
    prefetch: u16,
}

impl Topology {
    /// Management workers compete for one operation queue and each have a service queue of their own, named by
    /// `instance`, behind a fanout; an agent's queues are all named by it.
    pub(crate) fn new(name: &str, instance: &str, prefetch: u16) -> Self {
        let is_management = name == MANAGEMENT;
        let (service_exchange, services) = if is_management {
            (MANAGEMENT_SERVICE.to_owned(), format!("{MANAGEMENT_SERVICE}-{instance}_service"))
        } else {
            (name.to_owned(), format!("{name}_service"))
        };
        Self {
            exchange: name.to_owned(),
            operations: format!("{name}_operation"),
            service_exchange,
            service_is_fanout: is_management,
            services,
            prefetch,
        }
    }
}

/// One message, not yet acknowledged. No `Debug`: bodies carry tokens.
pub(crate) struct Arrival {
    pub(crate) body: Vec<u8>,
    /// Where a reply is wanted.
    pub(crate) address: Option<Address>,
    pub(crate) receipt: Receipt,
}

/// Acknowledges one delivery on the connection it came by.
pub(crate) struct Receipt(Acker);

impl Receipt {
    /// On a connection that is gone this does nothing: its broker delivers the message again.
    pub(crate) async fn ack(self) {
        if let Err(error) = self.0.ack(BasicAckOptions::default()).await {
            tracing::debug!(%error, "acknowledge on a closed connection");
        }
    }

    /// Puts the message back into its queue, for whoever takes it next.
    pub(crate) async fn give_back(self) {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        if let Err(error) = self.0.nack(options).await {
            tracing::debug!(%error, "give back on a closed connection");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("publish a reply")]
    Broker(#[source] lapin::Error),
    #[error("the broker refused a reply")]
    Nack,
    #[error("the broker did not confirm a reply in {CONFIRM_TIMEOUT:?}")]
    TimedOut,
}

/// What became of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Stored,
    /// No queue is bound for it.
    Unroutable,
}

/// A living connection; cheap to clone.
#[derive(Clone)]
pub(crate) struct Session {
    connection: Arc<Connection>,
}

impl Session {
    /// Publishes durably and waits for the broker's word. A channel of its own each time: an error closes the channel
    /// it happens on, and replies are rare.
    pub(crate) async fn publish(&self, to: &Address, body: &[u8]) -> Result<Published, PublishError> {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(id) = &to.correlation_id {
            properties = properties.with_correlation_id(id.as_str().into());
        }
        // A queue that is missing on a fresh broker would else swallow the reply: the broker confirms and drops it.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let confirmation = channel
                .basic_publish(to.exchange.as_str().into(), to.routing_key.as_str().into(), options, body, properties)
                .await?
                .await?;
            close(&channel).await;
            Ok(confirmation)
        };
        match timeout(CONFIRM_TIMEOUT, confirmed).await {
            Err(_) => Err(PublishError::TimedOut),
            Ok(Err(error)) => Err(PublishError::Broker(error)),
            Ok(Ok(Confirmation::Ack(None))) => Ok(Published::Stored),
            Ok(Ok(Confirmation::Ack(Some(_)))) => Ok(Published::Unroutable),
            Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => Err(PublishError::Nack),
        }
    }

    /// Deletes a reply queue if it is empty and nobody consumes it.
    pub(crate) async fn delete_queue(&self, queue: &str) {
        let options = QueueDeleteOptions { if_empty: true, if_unused: true, ..QueueDeleteOptions::default() };
        let deleted = async {
            let channel = self.connection.create_channel().await?;
            channel.queue_delete(queue.into(), options).await?;
            close(&channel).await;
            Ok::<(), lapin::Error>(())
        };
        match timeout(CONFIRM_TIMEOUT, deleted).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, queue, "delete the reply queue of a cancelled operation"),
            Err(_) => tracing::debug!(queue, "the broker did not answer the deletion of a reply queue"),
        }
    }
}

/// Keeps the connection, until stopped.
pub(crate) struct Link {
    access: AmqpAccess,
    topology: Topology,
    session: watch::Sender<Option<Session>>,
}

struct Open {
    session: Session,
    operations: Consumer,
    services: Consumer,
}

impl Link {
    pub(crate) fn new(access: AmqpAccess, topology: Topology) -> (Self, watch::Receiver<Option<Session>>) {
        let (session, seen) = watch::channel(None);
        (Self { access, topology, session }, seen)
    }

    /// Connects and serves until `stop`; `arrived` must not block.
    pub(crate) async fn run(self, arrived: Arc<dyn Fn(Arrival) + Send + Sync>, stop: CancellationToken) {
        let mut pause = PAUSE_MIN;
        let mut active = self.access.active.clone();
        while !stop.is_cancelled() {
            let Some(address) = *active.borrow_and_update() else {
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = active.changed() => {
                        if changed.is_err() {
                            // Nobody will ever name a broker; there is nothing left to do but to be stopped.
                            stop.cancelled().await;
                        }
                    }
                }
                continue;
            };
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                // A new active broker cuts the attempt to reach the old one.
                Ok(()) = active.changed() => { pause = PAUSE_MIN; continue }
                opened = timeout(CONNECT_TIMEOUT, self.open(address)) => opened,
            };
            match opened {
                Ok(Ok(open)) => {
                    tracing::info!(broker = %address, queue = self.topology.operations, "consuming");
                    pause = PAUSE_MIN;
                    self.session.send_replace(Some(open.session.clone()));
                    serve(address, &mut active, open, arrived.as_ref(), &stop).await;
                    self.session.send_replace(None);
                }
                Ok(Err(error)) => {
                    tracing::warn!(broker = %address, error = &error as &dyn std::error::Error, "connect to the broker");
                }
                Err(_) => tracing::warn!(broker = %address, "no connection to the broker in {CONNECT_TIMEOUT:?}"),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = active.changed() => pause = PAUSE_MIN,
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
        self.session.send_replace(None);
    }

    async fn open(&self, address: SocketAddr) -> Result<Open, lapin::Error> {
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQPS,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.access.user.clone(), password: self.access.password.clone() },
                host: address.ip().to_string(),
                port: address.port(),
            },
            vhost: self.access.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT_SECONDS), ..AMQPQueryString::default() },
        };
        let tls = OwnedTLSConfig { identity: None, cert_chain: Some(self.access.ca_pem.clone()) };
        let properties = ConnectionProperties::default().with_connection_name(self.topology.operations.as_str().into());
        let connection =
            Connection::connect_uri_with_config(uri, properties, tls, lapin::runtime::default_runtime()?).await?;
        let channel = connection.create_channel().await?;
        let topology = &self.topology;
        declare(&channel, &topology.exchange, false, &topology.operations, "operation").await?;
        declare(&channel, &topology.service_exchange, topology.service_is_fanout, &topology.services, "service")
            .await?;
        channel.basic_qos(topology.prefetch, BasicQosOptions::default()).await?;
        let operations = consume(&channel, &topology.operations).await?;
        channel.basic_qos(SERVICE_PREFETCH, BasicQosOptions::default()).await?;
        let services = consume(&channel, &topology.services).await?;
        Ok(Open { session: Session { connection: Arc::new(connection) }, operations, services })
    }
}

/// Hands over what arrives until the connection breaks, another broker is active, or `stop`.
async fn serve(
    address: SocketAddr,
    active: &mut watch::Receiver<Option<SocketAddr>>,
    mut open: Open,
    arrived: &(dyn Fn(Arrival) + Send + Sync),
    stop: &CancellationToken,
) {
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = active.changed() => {
                if *active.borrow_and_update() != Some(address) {
                    tracing::info!(broker = %address, "the active broker changed");
                    active.mark_changed();
                    break;
                }
                continue;
            }
            delivery = open.operations.next() => delivery,
            delivery = open.services.next() => delivery,
        };
        match delivery {
            Some(Ok(delivery)) => {
                let address = delivery.properties.reply_to().as_ref().map(|reply_to| Address {
                    // Through the fanout a reply would reach every worker and not the one who asked.
                    exchange: match delivery.exchange.as_str() {
                        MANAGEMENT_SERVICE => String::new(),
                        other => other.to_owned(),
                    },
                    routing_key: reply_to.to_string(),
                    correlation_id: delivery.properties.correlation_id().as_ref().map(ToString::to_string),
                });
                arrived(Arrival { body: delivery.data, address, receipt: Receipt(delivery.acker) });
            }
            Some(Err(error)) => {
                tracing::warn!(broker = %address, %error, "the connection to the broker broke");
                break;
            }
            None => {
                tracing::warn!(broker = %address, "the broker ended a consumer");
                break;
            }
        }
    }
    let closing = open.session.connection.close(200, "bye".into());
    if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!(broker = %address, "the broker did not answer the close");
    }
}

async fn close(channel: &Channel) {
    if let Err(error) = channel.close(200, "bye".into()).await {
        tracing::debug!(%error, "close a channel");
    }
}

/// Declarations must equal everybody else's exactly, else the broker closes the channel.
async fn declare(
    channel: &Channel,
    exchange: &str,
    is_fanout: bool,
    queue: &str,
    key: &str,
) -> Result<(), lapin::Error> {
    let kind = if is_fanout { ExchangeKind::Fanout } else { ExchangeKind::Direct };
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    channel
        .queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default())
        .await
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, lapin::Error> {
    channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn management_workers_share_operations_and_have_services_of_their_own() {
        let topology = Topology::new(MANAGEMENT, "n1", 4);
        assert_eq!(topology.operations, "cloudify.management_operation");
        assert_eq!(topology.service_exchange, "cloudify-mgmtworker-service");
        assert_eq!(topology.services, "cloudify-mgmtworker-service-n1_service");
        assert!(topology.service_is_fanout);
    }

    #[test]
    fn an_agent_has_one_exchange() {
        let topology = Topology::new("web_host_x1", "ignored", 4);
        assert_eq!((topology.exchange.as_str(), topology.service_exchange.as_str()), ("web_host_x1", "web_host_x1"));
        assert_eq!(topology.services, "web_host_x1_service");
        assert!(!topology.service_is_fanout);
    }
}
