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

use quorate_types::{ClusterState, Epoch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use reign::Manager;

use crate::edge::Serving;

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
            let reign = stop.child_token();
            tokio::select! {
                () = stop.cancelled() => {}
                changed = epochs.changed() => if changed.is_err() { return },
                () = self.reign(epoch, &serving, &reign) => {}
            }
            // First nobody is let in any more, then what runs is ended.
            serving.send_replace(Serving::Nobody);
            reign.cancel();
            self.end_reign(epoch).await;
        }
    }

    async fn reign(&self, epoch: Epoch, serving: &watch::Sender<Serving>, reign: &CancellationToken) {
        self.hold_cluster_address(reign).await;
        loop {
            match self.begin(epoch, reign).await {
                Ok(router) => {
                    serving.send_replace(Serving::Here(router, reign.clone()));
                    info!(%epoch, "this node serves");
                    return reign.cancelled().await;
                }
                Err(error) => {
                    warn!(%epoch, error = format!("{error:#}"), "this node cannot serve yet, trying again");
                    tokio::time::sleep(BEGIN_AGAIN).await;
                }
            }
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

fn replace(now: &mut Serving, new: Serving) -> bool {
    let same = match (&*now, &new) {
        (Serving::Nobody, Serving::Nobody) => true,
        (Serving::There(node, at), Serving::There(other, there)) => (node, at) == (other, there),
        _ => false,
    };
    *now = new;
    !same
}
