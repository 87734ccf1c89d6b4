//! Keeps this node's resources directory in step with the other members'.

use std::sync::Arc;
use std::time::Duration;

use quorate_resources::Resources;
use quorate_types::ClusterState;
use quorate_types::NodeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the directories are compared; a comparison of equal directories is one small answer a peer.
const PERIOD: Duration = Duration::from_secs(5);
/// While something is missing.
const PERIOD_BEHIND: Duration = Duration::from_millis(500);

/// Runs until the token ends.
///
/// The holder of the newest epoch does not repair: it takes over, and that must not wait for a round that waits for a
/// node which is cut off.
pub async fn run(
    resources: Resources,
    me: NodeId,
    mut cluster: watch::Receiver<Arc<ClusterState>>,
    stop: CancellationToken,
) {
    let is_holder = move |state: &Arc<ClusterState>| state.current().is_some_and(|record| record.holder == me);
    let mut granted = cluster.clone();
    let mut said = String::new();
    loop {
        let peers: Vec<NodeId> =
            cluster.borrow_and_update().members.keys().copied().filter(|node| *node != me).collect();
        let repaired = tokio::select! {
            () = stop.cancelled() => return,
            granted = granted.wait_for(is_holder) => {
                if granted.is_err() {
                    return;
                }
                None
            }
            repaired = resources.repair(&peers) => Some(repaired),
        };
        let Some(repaired) = repaired else {
            tokio::select! {
                () = stop.cancelled() => return,
                over = cluster.wait_for(|state| !is_holder(state)) => if over.is_err() { return },
            }
            continue;
        };
        if repaired.pulled + repaired.removed + repaired.dropped > 0 {
            let (pulled, removed, dropped) = (repaired.pulled, repaired.removed, repaired.dropped);
            info!(pulled, removed, dropped, "the resources directory follows the others");
        }
        let failures = repaired.failures.join("; ");
        if failures != said {
            if !failures.is_empty() {
                warn!(failed = repaired.failed, failures, "some resources are not here yet, trying again");
            }
            said = failures;
        }
        let behind = repaired.failed > 0 || !resources.status().await.complete;
        let pause = if behind { PERIOD_BEHIND } else { PERIOD };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = cluster.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}
