//! What a worker is told at its start, and the limits it keeps.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

/// Seconds between SIGTERM and SIGKILL when an operation is ended before its time.
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often one task is begun on this worker when the worker itself dies in it; a task that takes the worker down
/// with it must not do so for ever.
pub(crate) const ATTEMPTS_MAX: u32 = 3;
/// How long a management worker hands a task on that another one has begun, before it takes that one for dead.
pub(crate) const FOREIGN_FOR: Duration = Duration::from_secs(10);
/// Tasks of others remembered for that; beyond, they are simply begun.
pub(crate) const FOREIGN_MAX: usize = 1000;
/// Bytes of one task message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of one result; a larger one fails the operation.
pub(crate) const RESULT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a script's output, per stream, kept for the text of a failure.
pub(crate) const OUTPUT_TAIL_BYTES: usize = 64 << 10;
/// Bytes of one line of output; longer lines are cut there.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 10;
/// Log lines of one operation that wait for a manager; further ones are counted and dropped.
pub(crate) const LOG_LINES_MAX: usize = 10_000;
/// Bytes of one downloaded resource.
pub(crate) const RESOURCE_BYTES_MAX: u64 = 512 << 20;
/// Bytes of one resource that is rendered as a template.
pub(crate) const TEMPLATE_BYTES_MAX: u64 = 8 << 20;
/// Steps a template may take.
pub(crate) const TEMPLATE_FUEL: u64 = 10_000_000;
/// Bytes of one answer of the REST service.
pub(crate) const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How often runtime properties are merged with somebody else's before the operation is failed as recoverable.
pub(crate) const MERGES_MAX: u32 = 5;
/// How long a result is offered to a broker that has no queue for it, before it is kept in the journal only.
pub(crate) const UNROUTABLE_MAX: Duration = Duration::from_secs(3600);

/// Everything a worker needs. No `Debug`: it holds the broker's password.
#[derive(Clone)]
pub struct WorkerSettings {
    /// The queue's name: `cloudify.management` for a management worker, else the agent's name.
    pub name: String,
    /// The worker's own directory: journal, scratch, `bin/ctx`, and `venv` (optional: a Python environment with
    /// cloudify-common, in which Python plugins run). Created with mode 0700. One worker at a time.
    pub dir: PathBuf,
    /// This program; scripts find it as `ctx`. It must call [`crate::ctx_main`] when its `argv[0]` ends with `ctx`.
    pub exe: PathBuf,
    /// Where tasks come from.
    pub amqp: AmqpAccess,
    /// Where state is kept.
    pub rest: RestTarget,
    /// Operations run at one time, `1..`.
    pub operations_max: u16,
}

/// The broker. TLS always. No `Debug`: it holds the password.
#[derive(Clone)]
pub struct AmqpAccess {
    /// The active node's broker; `None` while there is none. A change closes the connection and opens the next.
    pub active: watch::Receiver<Option<SocketAddr>>,
    /// The only authorities trusted, PEM, one or more.
    pub ca_pem: String,
    /// Broker user.
    pub user: String,
    /// Its password.
    pub password: String,
    /// `/` for management workers, the tenant's for agents.
    pub vhost: String,
}

/// The managers' REST service and file server. TLS always.
#[derive(Clone, Debug)]
pub struct RestTarget {
    /// Names or addresses, tried in turn; the one that answered last is tried first. An IPv6 address without brackets.
    pub hosts: Vec<String>,
    /// Port of all of them.
    pub port: u16,
    /// The only authorities trusted, PEM, one or more.
    pub ca_pem: String,
    /// How long one call is repeated while no manager answers it.
    pub patience: Duration,
}
