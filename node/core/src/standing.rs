//! What a node may do with its PostgreSQL, from what was agreed and what it has promised.
//!
//! *Invariants*: a node promotes only in an epoch that it holds, that nobody has opened and that it has not promised
//! to leave behind; a standby follows only an opened epoch.

use quorate_types::{ClusterState, Epoch, NodeId};

/// What the node should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Run as a standby that follows nobody, until the next epoch.
    Wait,
    /// Promote and open this epoch.
    Promote { epoch: Epoch },
    /// Go on serving this epoch.
    Serve { epoch: Epoch },
    /// Follow the holder of this epoch.
    Follow { epoch: Epoch, holder: NodeId },
}

/// The standing of a node. `promised`: its durable promise. `serving`: the epoch it has opened since it started.
#[must_use]
pub fn standing(state: &ClusterState, me: NodeId, promised: Epoch, serving: Option<Epoch>) -> Standing {
    let Some(current) = state.current() else { return Standing::Wait };
    let epoch = current.epoch;
    // Who promised more takes part in nothing older.
    if promised > epoch || !state.members.contains_key(&me) {
        return Standing::Wait;
    }
    match (current.holder == me, current.opened.is_some()) {
        (true, _) if serving == Some(epoch) => Standing::Serve { epoch },
        (true, false) => Standing::Promote { epoch },
        // It opened this epoch in an earlier life. Every start of a primary is a new epoch.
        (true, true) => Standing::Wait,
        (false, true) => Standing::Follow { epoch, holder: current.holder },
        (false, false) => Standing::Wait,
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::cluster::Opened;
    use quorate_types::{EpochRecord, Lsn, Member, TimelineId};

    use super::*;

    fn state(holder: u64, open: bool) -> ClusterState {
        let opened = open.then_some(Opened { timeline: TimelineId(2), start: Lsn(1) });
        let record =
            EpochRecord { epoch: Epoch(4), holder: NodeId(holder), parent: Epoch(3), reason: String::new(), opened };
        let member = |id: u64| Member {
            id: NodeId(id),
            name: String::new(),
            address: [10, 0, 0, 1].into(),
            public_key_sha256: String::new(),
            voter: true,
        };
        ClusterState {
            epochs: [(Epoch(4), record)].into(),
            members: (1..=2).map(|id| (NodeId(id), member(id))).collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn only_the_holder_promotes_and_only_once() {
        let epoch = Epoch(4);
        assert_eq!(standing(&state(1, false), NodeId(1), epoch, None), Standing::Promote { epoch });
        assert_eq!(standing(&state(1, false), NodeId(2), epoch, None), Standing::Wait);
        assert_eq!(standing(&state(1, true), NodeId(1), epoch, Some(epoch)), Standing::Serve { epoch });
        assert_eq!(standing(&state(1, true), NodeId(1), epoch, None), Standing::Wait, "it restarted");
        assert_eq!(standing(&state(1, true), NodeId(1), epoch, Some(Epoch(3))), Standing::Wait);
    }

    #[test]
    fn a_promise_ends_everything_older() {
        assert_eq!(standing(&state(1, false), NodeId(1), Epoch(5), None), Standing::Wait);
        assert_eq!(standing(&state(1, true), NodeId(2), Epoch(5), None), Standing::Wait);
        let follow = Standing::Follow { epoch: Epoch(4), holder: NodeId(1) };
        assert_eq!(standing(&state(1, true), NodeId(2), Epoch(4), None), follow);
        assert_eq!(standing(&state(1, true), NodeId(3), Epoch(4), None), Standing::Wait, "no member any more");
    }
}
