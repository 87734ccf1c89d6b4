//! The way to workers over RabbitMQ: the cluster's own in one virtual host, agents in that of their tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use quorate_core::workflow::{Failure, FailureKind, TaskOutcome};
use quorate_dispatch::{AmqpTarget, OperationMessage, Outcome, Received, Responses, Sender, TaskError};
use quorate_store::{Store, tenants};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Address, Reply, SendFailure, Transport};

/// Replies taken from the broker and not yet asked for; each virtual host holds back more.
const REPLIES_MAX: usize = 64;
/// Between tries to connect for replies.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Hands operations to workers through the active node's broker. Connections end when it is dropped.
pub struct AmqpTransport {
    own: AmqpTarget,
    store: Store,
    /// By tenant; `None`: the cluster's own.
    hosts: tokio::sync::Mutex<HashMap<Option<String>, Arc<Sender>>>,
    readers: Mutex<JoinSet<()>>,
    found: mpsc::Sender<Reply>,
    replies: tokio::sync::Mutex<mpsc::Receiver<Reply>>,
}

impl AmqpTransport {
    /// `own`: the broker of this node and the virtual host of the cluster's workers. Takes replies from now on;
    /// connects again as often as it has to. Accounts of tenants are read from the database.
    #[must_use]
    pub fn start(own: AmqpTarget, store: Store) -> Self {
        let (found, replies) = mpsc::channel(REPLIES_MAX);
        let mut readers = JoinSet::new();
        readers.spawn(read(own.clone(), found.clone()));
        let sender = Arc::new(Sender::new(own.clone()));
        Self {
            own,
            store,
            hosts: tokio::sync::Mutex::new(HashMap::from([(None, sender)])),
            readers: Mutex::new(readers),
            found,
            replies: tokio::sync::Mutex::new(replies),
        }
    }

    async fn sender(&self, tenant: Option<&String>) -> Result<Arc<Sender>, SendFailure> {
        let mut hosts = self.hosts.lock().await;
        if let Some(known) = hosts.get(&tenant.cloned()) {
            return Ok(known.clone());
        }
        let name = tenant.map(String::as_str).unwrap_or_default();
        let not_sent = |error: quorate_store::StoreError| SendFailure::NotSent(error.into());
        let mut reader = self.store.read().await.map_err(not_sent)?;
        let row = tenants::find(&mut reader, name).await.map_err(not_sent)?;
        let row = row.ok_or_else(|| SendFailure::NotSent(format!("there is no tenant {name}").into()))?;
        let target = AmqpTarget {
            user: format!("rabbitmq_user_{name}"),
            password: row.rabbitmq_password,
            vhost: format!("rabbitmq_vhost_{name}"),
            ..self.own.clone()
        };
        let readers = &mut self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.spawn(read(target.clone(), self.found.clone()));
        let sender = Arc::new(Sender::new(target));
        hosts.insert(tenant.cloned(), sender.clone());
        Ok(sender)
    }
}

#[async_trait]
impl Transport for AmqpTransport {
    async fn send(&self, to: &Address, message: &OperationMessage) -> Result<(), SendFailure> {
        let sender = self.sender(to.tenant.as_ref()).await?;
        sender.send_operation(&to.worker, message).await.map_err(|error| {
            let kept = error.may_have_been_kept();
            if kept { SendFailure::MaybeSent(error.into()) } else { SendFailure::NotSent(error.into()) }
        })
    }

    async fn cancel(&self, to: &Address, execution_id: &str) {
        let told = match self.sender(to.tenant.as_ref()).await {
            Ok(sender) => sender
                .cancel_operation(&to.worker, execution_id)
                .await
                .map_err(|error| SendFailure::NotSent(error.into())),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = told {
            let error = &failure as &dyn std::error::Error;
            tracing::warn!(error, worker = to.worker, execution = execution_id, "tell a worker to end operations");
        }
    }

    async fn next_reply(&self) -> Reply {
        match self.replies.lock().await.recv().await {
            Some(reply) => reply,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

/// Takes the replies of one virtual host.
async fn read(target: AmqpTarget, found: mpsc::Sender<Reply>) {
    let mut responses = Responses::new(target);
    let mut pause = PAUSE_MIN;
    loop {
        let error = match responses.connect().await {
            Ok(()) => {
                pause = PAUSE_MIN;
                loop {
                    match responses.next().await {
                        Ok(received) => {
                            if found.send(reply(received)).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => break Box::new(error) as Box<dyn std::error::Error + Send + Sync>,
                    }
                }
            }
            Err(error) => error.into(),
        };
        tracing::warn!(error = &*error as &dyn std::error::Error, "take replies, tried again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn reply(received: Received) -> Reply {
    let task_id = received.reply.task_id.clone();
    let outcome = outcome(received.reply.outcome.clone());
    let ack = || {
        let acknowledge = async move {
            if let Err(error) = received.ack().await {
                // It comes again, and is dropped as one that is recorded.
                tracing::debug!(error = &error as &dyn std::error::Error, "acknowledge a reply");
            }
        };
        Box::pin(acknowledge) as futures::future::BoxFuture<'static, ()>
    };
    Reply { task_id, outcome, ack: Box::new(ack) }
}

/// A reply as the engine takes it.
fn outcome(outcome: Outcome) -> TaskOutcome {
    let failed = |error: TaskError, kind: FailureKind| {
        TaskOutcome::Failed(Failure {
            kind,
            exception_type: error.exception_type,
            message: error.message,
            causes: Value::Array(error.causes),
        })
    };
    match outcome {
        Outcome::Succeeded(result) => TaskOutcome::Succeeded(result),
        Outcome::Failed { recoverable: false, error } => failed(error, FailureKind::NonRecoverable),
        Outcome::Failed { recoverable: true, error } => {
            let retry_after = error.retry_after;
            failed(error, FailureKind::Recoverable { retry_after })
        }
        Outcome::Rescheduled(error) => {
            let retry_after = error.retry_after;
            failed(error, FailureKind::Reschedule { retry_after })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replies_mean_the_same_by_either_reading() {
        let error = |known: &str, args: Value| {
            json!({"ok": false, "error": {"exception_type": known, "message": "m", "known_exception_type": known,
                "known_exception_type_args": args, "known_exception_type_kwargs": {"causes": [{"type": "T"}]}}})
        };
        for body in [
            json!({"ok": true, "result": [1]}),
            error("RecoverableError", json!([3])),
            error("OperationRetry", json!([2.5])),
            error("NonRecoverableError", json!([])),
            error("HttpException", json!(["u", 404])),
            error("StopAgent", json!([])),
            json!({"ok": false, "error": "boom"}),
        ] {
            assert_eq!(outcome(Outcome::from_wire(&body)), TaskOutcome::from_reply(&body), "{body}");
        }
    }
}
