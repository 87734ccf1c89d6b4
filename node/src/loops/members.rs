//! Membership, on the Raft leader: Raft's own membership follows the agreed one; a node that was joined anew replaces
//! its old self.

use std::time::Duration;

use quorate_consensus::{Command, Consensus};
use quorate_types::{ClusterState, NodeId};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::local::chain;

/// How often the loop looks.
const PERIOD: Duration = Duration::from_millis(300);

/// Runs until the token ends.
pub async fn run(consensus: Consensus, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        // A leader that is cut off goes on believing that it leads; its proposals would only wait.
        if consensus.known_leader() != Some(consensus.node()) {
            continue;
        }
        match consensus.reconcile_membership().await {
            Ok(Some(done)) => info!(done, "membership"),
            Ok(None) => {}
            Err(error) => warn!(error = chain(&error), "raft's membership did not change, trying again"),
        }
        let state = consensus.cluster().borrow().clone();
        if let Some(command) = next(&state) {
            info!(?command, "membership");
            if let Err(error) = consensus.propose(command).await {
                warn!(error = chain(&error), "the membership did not change, trying again");
            }
        }
    }
}

/// The next change of the agreed membership.
fn next(state: &ClusterState) -> Option<Command> {
    // Who takes part in acknowledging commits also votes.
    let voter = state.members.values().find(|member| !member.voter && state.sync.members.contains(&member.id));
    if let Some(member) = voter {
        return Some(Command::SetVoter { id: member.id, voter: true });
    }
    replaced(state).map(|id| Command::RemoveMember { id })
}

/// A member whose address belongs to a newer one: it was wiped and joined anew.
fn replaced(state: &ClusterState) -> Option<NodeId> {
    let holder = state.current().map(|record| record.holder);
    state
        .members
        .values()
        .filter(|old| Some(old.id) != holder)
        .find(|old| state.members.values().any(|new| new.id > old.id && new.address == old.address))
        .map(|old| old.id)
}

#[cfg(test)]
mod tests {
    use quorate_types::{Member, SyncSet};

    use super::*;

    fn member(id: u64, address: u8, voter: bool) -> (NodeId, Member) {
        let id = NodeId(id);
        let address = [10, 0, 0, address].into();
        (id, Member { id, name: id.to_string(), address, public_key_sha256: String::new(), voter })
    }

    #[test]
    fn a_wiped_node_that_joined_again_replaces_its_old_self() {
        let mut state = ClusterState {
            members: [member(1, 1, true), member(2, 2, true), member(3, 3, true), member(4, 3, false)].into(),
            sync: SyncSet { num_sync: 1, members: [NodeId(1), NodeId(2), NodeId(3)].into() },
            ..ClusterState::default()
        };
        assert_eq!(next(&state), Some(Command::RemoveMember { id: NodeId(3) }));
        state.members.remove(&NodeId(3));
        assert_eq!(next(&state), None, "it votes when commits wait for it, not before");
        state.sync.members = [NodeId(1), NodeId(2), NodeId(4)].into();
        assert_eq!(next(&state), Some(Command::SetVoter { id: NodeId(4), voter: true }));
    }
}
