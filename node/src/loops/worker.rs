//! This node's worker: takes operations from the active node's broker, whichever that is. It runs on standbys too, and
//! what it runs survives the death of the active node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_config::Config;
use quorate_types::{ClusterState, NodeId};
use quorate_worker::{AmqpAccess, RestTarget, Worker, WorkerSettings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::local::chain;
use crate::manager::accounts::{self, BROKER_WORKER, VHOST};
use crate::pki::Identity;

/// How long a worker's call waits for a manager: far longer than any failover.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two attempts to start the worker.
const START_AGAIN: Duration = Duration::from_secs(5);

/// The queue of a node's worker.
pub fn name(node: NodeId) -> String {
    format!("mgmtworker.{node}")
}

/// Where the active node's broker is, and its changes.
pub fn active_broker(
    mut cluster: watch::Receiver<Arc<ClusterState>>,
    port: u16,
    stop: CancellationToken,
) -> watch::Receiver<Option<SocketAddr>> {
    let read = move |state: &ClusterState| {
        let record = state.current().filter(|record| record.opened.is_some())?;
        Some(SocketAddr::new(state.members.get(&record.holder)?.address, port))
    };
    let (sender, receiver) = watch::channel(read(&cluster.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = cluster.changed() => if changed.is_err() { return },
            }
            let now = read(&cluster.borrow_and_update());
            sender.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    });
    receiver
}

/// Runs until the token ends.
pub async fn run(
    config: Arc<Config>,
    identity: Arc<Identity>,
    active: watch::Receiver<Option<SocketAddr>>,
    stop: CancellationToken,
) {
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => {
            error!(%error, "this program's own file is not known: no worker runs here");
            return;
        }
    };
    let ca_pem = identity.authority.certificate_pem().to_owned();
    loop {
        let settings = WorkerSettings {
            name: name(identity.node),
            dir: config.data_dir.join("worker"),
            exe: exe.clone(),
            amqp: AmqpAccess {
                active: active.clone(),
                ca_pem: ca_pem.clone(),
                user: BROKER_WORKER.into(),
                password: accounts::derived(&identity, BROKER_WORKER),
                vhost: VHOST.into(),
            },
            // The own edge passes calls on to the active node, and holds them while there is none.
            rest: RestTarget {
                hosts: vec![config.address.node.to_string()],
                port: config.ports.agents,
                ca_pem: ca_pem.clone(),
                patience: PATIENCE,
            },
            operations_max: u16::try_from(config.worker_operations_max).unwrap_or(u16::MAX),
        };
        match Worker::run(settings, stop.clone()).await {
            Ok(()) => return,
            Err(failure) => error!(error = chain(&failure), "the worker does not run, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(START_AGAIN) => {}
        }
    }
}
