//! What only the active node runs: the application, the executor, the cluster address, the broker's accounts.
//!
//! A *reign* begins when this node has opened an epoch and ends when it no longer serves it. Everything of a reign hangs
//! on one token: when it ends, connections of the cluster address are reset, the executor stops, and what still runs
//! cannot write, because the database has learned the next epoch or is gone.

pub mod accounts;
pub mod cluster_view;
pub mod content;
pub mod front;
pub mod reign;
mod workers;

use std::net::SocketAddr;
use std::time::Duration;

use quorate_core::failover::Role;
use quorate_types::{ClusterState, Epoch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use reign::Manager;

use crate::edge::Serving;

/// How long a successor may take to open its epoch while clients wait here.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(10);
/// How long clients that keep connections have to end them, once the successor serves.
const GOODBYE: Duration = Duration::from_millis(100);
/// How long their last answers may take after that.
const ANSWERED_LIMIT: Duration = Duration::from_secs(3);
/// Between two attempts to begin a reign.
const BEGIN_AGAIN: Duration = Duration::from_millis(100);

impl Manager {
    /// Runs until the token ends, and tells the edge who serves.
    pub async fn run(self, serving: watch::Sender<Serving>, stop: CancellationToken) {
        let mut epochs = self.local.serving();
        let mut cluster = self.consensus.cluster();
        loop {
            let epoch = *epochs.borrow_and_update();
            let Some(epoch) = epoch else {
                let elsewhere = self.elsewhere(&cluster.borrow_and_update());
                serving.send_if_modified(|now| replace(now, elsewhere));
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = epochs.changed() => if changed.is_err() { return },
                    changed = cluster.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let (reign, doors) = (stop.child_token(), Doorkeeper::new(&stop));
            tokio::select! {
                () = stop.cancelled() => {}
                changed = epochs.changed() => if changed.is_err() { return },
                () = self.reign(epoch, &serving, &reign, &doors) => {}
            }
            // First nobody is let in any more, then what runs is ended.
            serving.send_replace(Serving::Nobody);
            reign.cancel();
            if self.local.status().borrow().role == Role::Resigned {
                // Nobody may have taken over: then this node is granted the next epoch itself and must not wait here.
                let mut again = self.local.serving();
                tokio::select! {
                    () = self.let_clients_go(&serving, &doors) => {}
                    _ = again.wait_for(Option::is_some) => {}
                }
            } else {
                doors.stop.cancel();
            }
            self.end_reign(epoch).await;
            doors.stop.cancel();
        }
    }

    async fn reign(
        &self,
        epoch: Epoch,
        serving: &watch::Sender<Serving>,
        reign: &CancellationToken,
        doors: &Doorkeeper,
    ) {
        // What arrives on the cluster address waits at the edge until the application is ready.
        tokio::join!(self.hold_cluster_address(doors), self.serve(epoch, serving, reign));
        reign.cancelled().await;
    }

    async fn serve(&self, epoch: Epoch, serving: &watch::Sender<Serving>, reign: &CancellationToken) {
        loop {
            match self.begin(epoch, reign).await {
                Ok(router) => {
                    serving.send_replace(Serving::Here(router, reign.clone()));
                    info!(%epoch, "this node serves");
                    return;
                }
                Err(error) => {
                    warn!(%epoch, error = format!("{error:#}"), "this node cannot serve yet, trying again");
                    tokio::time::sleep(BEGIN_AGAIN).await;
                }
            }
        }
    }

    /// After handing over in order: requests that wait on the cluster address are answered by the successor through
    /// this node, then every connection is ended as HTTP ends one.
    async fn let_clients_go(&self, serving: &watch::Sender<Serving>, doors: &Doorkeeper) {
        let mut cluster = self.consensus.cluster();
        let followed = cluster.wait_for(|state| matches!(self.elsewhere(state), Serving::There(..)));
        let successor = tokio::select! {
            followed = tokio::time::timeout(SUCCESSOR_LIMIT, followed) => match followed {
                Ok(Ok(state)) => self.elsewhere(&state),
                _ => return,
            },
            () = doors.stop.cancelled() => return,
        };
        serving.send_replace(successor);
        doors.finish.cancel();
        tokio::time::sleep(GOODBYE).await;
        if !self.edge.answered(ANSWERED_LIMIT).await {
            warn!("some requests were still without an answer when this node gave the cluster address away");
        }
    }

    /// Who serves when this node does not.
    fn elsewhere(&self, state: &ClusterState) -> Serving {
        let holder = state.current().filter(|record| record.opened.is_some()).map(|record| record.holder);
        match holder.and_then(|node| state.members.get(&node)) {
            Some(member) if member.id != self.local.me() => {
                Serving::There(member.id, SocketAddr::new(member.address, self.config.ports.https))
            }
            _ => Serving::Nobody,
        }
    }
}

/// The doors of the cluster address in one reign.
struct Doorkeeper {
    /// Closes them.
    stop: CancellationToken,
    /// Lets everybody go who is in.
    finish: CancellationToken,
}

impl Doorkeeper {
    fn new(stop: &CancellationToken) -> Self {
        Self { stop: stop.child_token(), finish: CancellationToken::new() }
    }
}

fn replace(now: &mut Serving, new: Serving) -> bool {
    let same = match (&*now, &new) {
        (Serving::Nobody, Serving::Nobody) => true,
        (Serving::There(node, at), Serving::There(other, there)) => (node, at) == (other, there),
        _ => false,
    };
    *now = new;
    !same
}
