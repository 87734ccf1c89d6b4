//! The worker: takes operations from the active broker, runs them, and answers.
//!
//! One program is both the management worker of a node (`cloudify.management`) and the agent of a host. Messages,
//! replies and the `ctx` command are those of cloudify-common 7.
//!
//! Invariants: a task is begun only after that is on disk, and its result is told only after it is on disk, so a task
//! that is delivered again is answered, not run again; an operation does not end because a broker or manager does;
//! tokens and inputs are in no log line, error or argument of a process.
//!
//! Absent on purpose: the workflow engine, the broker's users and queues of others, installing plugins.

mod amqp;
mod context;
mod ctx;
mod home;
mod journal;
mod logs;
mod process;
mod python_text;
mod resources;
mod rest;
mod run;
mod settings;
mod tasks;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use ctx::client::ctx_main;
pub use home::HomeError;
pub use settings::{AmqpAccess, RestTarget, WorkerSettings};

use amqp::{Link, MANAGEMENT, Topology};
use home::Home;
use journal::Journal;
use logs::Runner;
use rest::Rest;
use run::Shared;
use tasks::{Tasks, end_all_leftovers};

/// Time a stopping worker's operations have to end.
const FINISH: Duration = Duration::from_secs(20);

/// Why a worker did not start. Once started it goes on until stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its directory.
    #[error("take the worker's directory")]
    Home(#[source] HomeError),
    /// The record of its tasks.
    #[error("open the worker's journal")]
    Journal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The REST target.
    #[error("prepare the REST client")]
    Rest(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The worker.
pub struct Worker;

impl Worker {
    /// Runs until `stop`. Operations that run then are ended; they begin anew when their task is delivered again.
    /// Installs ring as the process's TLS provider unless there is one.
    ///
    /// # Errors
    /// [`WorkerError`] when it cannot start; a broker or manager that is away is no error.
    pub async fn run(settings: WorkerSettings, stop: CancellationToken) -> Result<(), WorkerError> {
        // lapin takes the process's provider; one that is there already serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let home = Home::open(&settings.dir, &settings.exe, &settings.rest.ca_pem).map_err(WorkerError::Home)?;
        let (journal, left) = Journal::open(&home.journal()).map_err(|error| WorkerError::Journal(error.into()))?;
        let rest = Rest::new(&settings.rest).map_err(|error| WorkerError::Rest(error.into()))?;
        end_all_leftovers(&left.interrupted).await;
        home.clear_scratch().map_err(WorkerError::Home)?;

        let is_management = settings.name == MANAGEMENT;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let runner = Runner {
            manager_name: is_management.then_some(host),
            agent_name: (!is_management).then(|| settings.name.clone()),
        };
        let topology = Topology::new(&settings.name, &home.instance, settings.operations_max.max(1));
        let (link, session) = Link::new(settings.amqp, topology);
        let shared = Shared {
            home: Arc::new(home),
            rest: Arc::new(rest),
            rest_target: settings.rest,
            journal,
            runner,
            stop: stop.clone(),
        };
        let tasks = Tasks::new(shared, session, settings.operations_max);
        for entry in left.unsettled {
            tasks.settle_later(entry);
        }
        let taker = tasks.clone();
        link.run(Arc::new(move |arrival| taker.arrived(arrival)), stop).await;
        if tokio::time::timeout(FINISH, tasks.finish()).await.is_err() {
            tracing::error!("operations did not end in {FINISH:?}");
        }
        Ok(())
    }
}
