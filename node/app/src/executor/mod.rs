//! Carries out executions: on the active node, within one epoch.
//!
//! The database is the truth; everything here can be thrown away at any moment and read again. One task looks for
//! work, one takes replies, one per execution keeps its [`Run`](quorate_core::workflow::Run), and one per operation
//! sees to it that a worker gets it.
//!
//! *Invariants*: an operation is handed to a worker only after the row says so in a committed transaction
//! (`ASSIGNED_FIRST`); a reply is acknowledged only after its result is committed (`RECORDED_ONCE`); an operation goes
//! to another worker only when its own is lost for [`Limits::worker_lost_after`], and then the first one may not begin
//! it any more. Workers answer a task that they know from their journal, so sending again under the same id is safe.

mod amqp;
pub(crate) mod changes;
mod flight;
mod look;
mod open;
mod pool;
mod replies;
mod run;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use quorate_core::workflow::{CancelKind, TaskOutcome};
use quorate_dispatch::OperationMessage;
use quorate_store::StoreError;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use amqp::AmqpTransport;

use crate::App;
use pool::Pool;

/// Replies that one execution has waiting; the transport hands out fewer before they are acknowledged.
const INBOX_MAX: usize = 1024;
/// How long the executor's tasks may take to end what they are at when it is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Who runs an operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// `None`: a worker of the cluster; else the tenant of an agent.
    pub tenant: Option<String>,
    /// The worker's name.
    pub worker: String,
}

/// A message was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum SendFailure {
    /// The worker may get it all the same.
    #[error("it is not known whether the message was kept")]
    MaybeSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Surely not kept.
    #[error("the message was not kept")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A result, kept by the transport until it is acknowledged.
pub struct Reply {
    /// The operation's id.
    pub task_id: String,
    /// How it ended.
    pub outcome: TaskOutcome,
    /// Acknowledges it. Dropped without that, the reply comes again some time.
    pub ack: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>,
}

/// The way to workers and back.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Hands an operation to a worker; `Ok`: it is kept for it durably.
    ///
    /// # Errors
    /// See [`SendFailure`].
    async fn send(&self, to: &Address, message: &OperationMessage) -> Result<(), SendFailure>;

    /// Tells a worker to end an execution's operations; as well as it can.
    async fn cancel(&self, to: &Address, execution_id: &str);

    /// The next result; waits, and connects again, as long as it takes. May be cancelled without losing one.
    async fn next_reply(&self) -> Reply;
}

/// Which workers of the cluster there are.
pub trait Workers: Send + Sync {
    /// Names of those that are alive, by the newest picture. Never waits.
    fn alive(&self) -> Vec<String>;
}

/// Limits and periods.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Executions at work at once, `1..`; more wait.
    pub executions_max: usize,
    /// Operations given to one worker at once, `1..`; more wait.
    pub operations_per_worker_max: usize,
    /// A worker that is away for longer loses its operations to others.
    pub worker_lost_after: Duration,
    /// How often to look for work that nobody told of, and at the workers.
    pub look_every: Duration,
    /// An operation without a result is sent again to the same worker this often: messages can be lost with a broker.
    pub resend_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            executions_max: usize::try_from(crate::config::CONCURRENT_WORKFLOWS_MAX).unwrap_or(20),
            operations_per_worker_max: 64,
            worker_lost_after: Duration::from_secs(30),
            look_every: Duration::from_secs(1),
            resend_after: Duration::from_secs(120),
        }
    }
}

/// What an executor needs.
pub struct ExecutorSettings {
    /// The use cases of the epoch.
    pub app: App,
    /// The way to workers.
    pub transport: Arc<dyn Transport>,
    /// Who they are.
    pub workers: Arc<dyn Workers>,
    /// Told when there is work; the same as [`crate::Ports::executor`].
    pub wake: Arc<Notify>,
    /// Addresses of the REST API for operations.
    pub rest_hosts: Vec<String>,
    /// Its port for agents.
    pub rest_port: u16,
    /// Limits.
    pub limits: Limits,
}

/// Starts an executor. It ends when `stop` is cancelled, or by itself when its epoch is over; aborting the task ends
/// everything at once, which does no harm but to whoever waits for a commit.
#[must_use]
pub fn start(settings: ExecutorSettings, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        // Of its own, for an executor whose epoch is over stops nobody else.
        let stop = stop.child_token();
        let pool = Pool::new(settings.workers.clone(), &settings.limits);
        let shared = Arc::new(Shared { settings, pool, runs: Mutex::default(), stop: stop.clone() });
        let mut tasks = JoinSet::new();
        tasks.spawn(pool::watch(shared.clone()));
        tasks.spawn(look::look(shared.clone()));
        tasks.spawn(replies::take(shared.clone()));
        stop.cancelled().await;
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::warn!("the executor's tasks are cut off");
        }
    })
}

/// What the executor's tasks share.
struct Shared {
    settings: ExecutorSettings,
    pool: Arc<Pool>,
    /// By execution.
    runs: Mutex<HashMap<i64, mpsc::Sender<Input>>>,
    stop: CancellationToken,
}

/// What reaches a run from outside.
enum Input {
    Reply(Reply),
    Cancel(CancelKind),
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, HashMap<i64, mpsc::Sender<Input>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a failure of the database means that this executor's time is over; then it has ended it.
    fn is_over(&self, error: &StoreError) -> bool {
        let over = matches!(error, StoreError::Fenced);
        if over {
            tracing::info!("another epoch is open, the executor ends");
            self.stop.cancel();
        }
        over
    }

    /// Waits, but not longer than the executor lives. `false`: it ends.
    async fn pause(&self, length: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(length) => true,
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    i64::try_from(now).unwrap_or(i64::MAX)
}
