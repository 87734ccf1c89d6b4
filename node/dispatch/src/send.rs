//! Sends, and says how sure it is.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::link::{AmqpTarget, LinkError};
use crate::message::{OperationMessage, cancel_operation};
use crate::topology::{RESPONSES_QUEUE, Route};

/// Sends under way at once. Each has a channel of its own: a broker that returns a message does not say with which
/// confirm, so on one channel there may be one unconfirmed message only.
const LANES: usize = 16;
/// Opening a channel, or declaring.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);
/// From publishing to the broker's word.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one message: what the broker takes.
const BODY_LIMIT: usize = 16 * 1024 * 1024;
/// AMQP's `delivery_mode` of messages that survive the broker.
const PERSISTENT: u8 = 2;

/// Why a message was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no usable connection. Surely not kept.
    #[error("send without a connection to the broker")]
    Link(#[source] LinkError),
    /// Nobody has a queue for it: the worker was never connected to this broker. Surely not kept.
    #[error("the worker `{worker}` has no queue on the broker")]
    Unroutable {
        /// The worker.
        worker: String,
    },
    /// The broker or a limit forbids it. Surely not kept.
    #[error("the message for `{worker}` was refused: {why}")]
    Refused {
        /// The worker.
        worker: String,
        /// Who says so and why.
        why: String,
    },
    /// The connection broke before the broker's word. May have been kept.
    #[error("the connection broke before the broker confirmed")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
    /// The broker did not say in time. May have been kept.
    #[error("the broker did not confirm within {0:?}")]
    Late(Duration),
}

impl SendError {
    /// Whether the worker may get the message all the same.
    #[must_use]
    pub fn may_have_been_kept(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Late(_))
    }
}

/// Sends to the workers of one virtual host. It connects when it has to; shared by reference, it sends
/// [a few](LANES) messages at once.
#[derive(Debug)]
pub struct Sender {
    target: AmqpTarget,
    line: tokio::sync::Mutex<Option<Arc<Line>>>,
    lanes: Semaphore,
}

/// A connection and its channels that are free.
#[derive(Debug)]
struct Line {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
}

impl Sender {
    /// A sender that has not connected yet.
    #[must_use]
    pub fn new(target: AmqpTarget) -> Self {
        Self { target, line: tokio::sync::Mutex::default(), lanes: Semaphore::new(LANES) }
    }

    /// Hands an operation to a worker: an agent's name in its tenant's virtual host, or [`crate::MANAGEMENT`] in `/`.
    /// The reply comes to [`crate::Responses`] of the same virtual host.
    ///
    /// `Ok` means that the broker has it on disk in the worker's queue. Cancelled, it may have been kept.
    ///
    /// # Errors
    /// See [`SendError::may_have_been_kept`].
    pub async fn send_operation(&self, worker: &str, message: &OperationMessage) -> Result<(), SendError> {
        let refused = |why: String| SendError::Refused { worker: worker.to_owned(), why };
        let route = Route::operation(worker).map_err(|error| refused(error.to_string()))?;
        let task_id = ShortString::try_new(message.task_id.clone()).map_err(|error| refused(error.to_string()))?;
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_correlation_id(task_id)
            .with_reply_to(RESPONSES_QUEUE.into());
        self.send(worker, &route, &message.to_wire(), properties).await
    }

    /// Tells a worker, or all management workers, to end an execution's operations. There is no reply.
    ///
    /// # Errors
    /// See [`SendError::may_have_been_kept`]. [`SendError::Unroutable`]: nobody is there to be told.
    pub async fn cancel_operation(&self, worker: &str, execution_id: &str) -> Result<(), SendError> {
        let route = Route::service(worker)
            .map_err(|error| SendError::Refused { worker: worker.to_owned(), why: error.to_string() })?;
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        self.send(worker, &route, &cancel_operation(execution_id), properties).await
    }

    async fn send(
        &self,
        worker: &str,
        route: &Route,
        body: &Value,
        properties: BasicProperties,
    ) -> Result<(), SendError> {
        let body = body.to_string();
        if body.len() > BODY_LIMIT {
            let why = format!("it has {} bytes, {BODY_LIMIT} are allowed", body.len());
            return Err(SendError::Refused { worker: worker.to_owned(), why });
        }
        // Never closed, so a permit always comes.
        let _permit = self.lanes.acquire().await;
        let line = self.line().await.map_err(SendError::Link)?;
        let result = match self.lane(&line).await {
            // Taken out of the line: dropped with an unknown end, it is closed and never used again.
            Ok(lane) => {
                self.send_on(&line, &lane, worker, route, &body, properties).await.map(|()| line.give_back(lane))
            }
            Err(error) => Err(SendError::Link(error)),
        };
        if matches!(result, Err(SendError::Link(_) | SendError::Unknown(_) | SendError::Late(_))) {
            self.leave(&line).await;
        }
        result
    }

    async fn send_on(
        &self,
        line: &Line,
        lane: &Channel,
        worker: &str,
        route: &Route,
        body: &str,
        properties: BasicProperties,
    ) -> Result<(), SendError> {
        // Declared before every message: a Python worker deletes the response queue, and with it its bindings, when an
        // operation was killed. Looked for, although `mandatory` would tell: the client library logs what a broker
        // returns, and an operation holds tokens.
        let prepare = async {
            route.declare(lane).await?;
            route.look(lane).await
        };
        match tokio::time::timeout(PREPARE_LIMIT, prepare).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(said_no(worker, &error).unwrap_or_else(|| SendError::Link(self.target.refused(error))));
            }
            Err(_) => return Err(SendError::Link(self.too_slow())),
        }
        if line.connection.status().blocked() {
            // Publishing now would wait for as long as the broker is short of memory or disk.
            let why = "the broker is short of memory or disk".to_owned();
            return Err(SendError::Refused { worker: worker.to_owned(), why });
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = async {
            lane.basic_publish(route.exchange.clone(), route.key.clone(), options, body.as_bytes(), properties)
                .await?
                .await
        };
        match tokio::time::timeout(CONFIRM_LIMIT, publish).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)))) => Err(SendError::Unroutable { worker: worker.to_owned() }),
            Ok(Ok(Confirmation::Nack(_))) => {
                Err(SendError::Refused { worker: worker.to_owned(), why: "the broker could not keep it".to_owned() })
            }
            Ok(Ok(Confirmation::NotRequested)) => Err(SendError::Unknown("confirms are off".into())),
            // The only message on this channel: if the broker closes it, that is about this one.
            Ok(Err(error)) => Err(said_no(worker, &error).unwrap_or_else(|| SendError::Unknown(error.into()))),
            Err(_) => Err(SendError::Late(CONFIRM_LIMIT)),
        }
    }

    /// The connection, made anew when there is none that works.
    async fn line(&self) -> Result<Arc<Line>, LinkError> {
        let mut current = self.line.lock().await;
        if let Some(line) = current.as_ref().filter(|line| line.connection.status().connected()) {
            return Ok(Arc::clone(line));
        }
        *current = None;
        let connection = self.target.connect("quorate sender").await?;
        let line = Arc::new(Line { connection, idle: Mutex::default() });
        *current = Some(Arc::clone(&line));
        Ok(line)
    }

    async fn lane(&self, line: &Line) -> Result<Channel, LinkError> {
        let idle = line.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(lane) = idle.filter(|lane| lane.status().connected()) {
            return Ok(lane);
        }
        let open = async {
            let lane = line.connection.create_channel().await?;
            lane.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(lane)
        };
        match tokio::time::timeout(PREPARE_LIMIT, open).await {
            Ok(opened) => opened.map_err(|error: lapin::Error| self.target.refused(error)),
            Err(_) => Err(self.too_slow()),
        }
    }

    /// The next send connects anew; those under way on this connection end as they may.
    async fn leave(&self, line: &Arc<Line>) {
        let mut current = self.line.lock().await;
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, line)) {
            *current = None;
        }
    }

    fn too_slow(&self) -> LinkError {
        LinkError::TooSlow { address: self.target.address, limit: PREPARE_LIMIT }
    }
}

impl Line {
    fn give_back(&self, lane: Channel) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
    }
}

/// What the broker's own refusal means, `None` if it is none.
fn said_no(worker: &str, error: &lapin::Error) -> Option<SendError> {
    let ErrorKind::ProtocolError(refusal) = error.kind() else { return None };
    match refusal.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Some(SendError::Unroutable { worker: worker.to_owned() }),
        AMQPErrorKind::Soft(_) => {
            Some(SendError::Refused { worker: worker.to_owned(), why: refusal.get_message().to_string() })
        }
        AMQPErrorKind::Hard(_) => None,
    }
}
