//! How a node's data gets onto the line of the current epoch.

use quorate_types::{ClusterState, Epoch};

use crate::failover::Position;

/// What has to happen before the node can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Its data is a prefix of the line: stream what is missing.
    Follow,
    /// It has WAL that the line does not: rewind to where they part.
    Rewind,
    /// It stands on a branch that nobody continued, or on one that is forgotten: copy everything anew.
    Clone,
}

/// How a node whose data reaches `position` comes to follow `epoch`, which must be open.
///
/// A dead branch is never rewound: PostgreSQL may have given the same timeline number to both branches, and would then
/// take foreign WAL for its own.
#[must_use]
pub fn how_to_return(state: &ClusterState, epoch: Epoch, position: Position) -> Return {
    if position.lineage == epoch {
        return Return::Follow;
    }
    if !state.descends_from(epoch, position.lineage) {
        return Return::Clone;
    }
    // The first epoch after the node's lineage on the way to `epoch`: where it began is where the line goes on.
    let mut at = epoch;
    loop {
        let Some(record) = state.epochs.get(&at) else { return Return::Clone };
        if record.parent == position.lineage {
            return match record.opened {
                Some(opened) if position.lsn <= opened.start => Return::Follow,
                _ => Return::Rewind,
            };
        }
        at = record.parent;
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::cluster::Opened;
    use quorate_types::{EpochRecord, Lsn, NodeId, TimelineId};

    use super::*;

    fn line(records: &[(u64, u64, Option<u64>)]) -> ClusterState {
        let record = |&(epoch, parent, start): &(u64, u64, Option<u64>)| {
            let opened = start.map(|lsn| Opened { timeline: TimelineId(9), start: Lsn(lsn) });
            let record = EpochRecord {
                epoch: Epoch(epoch),
                holder: NodeId(1),
                parent: Epoch(parent),
                reason: String::new(),
                opened,
            };
            (Epoch(epoch), record)
        };
        ClusterState { epochs: records.iter().map(record).collect(), ..ClusterState::default() }
    }

    fn at(lineage: u64, lsn: u64) -> Position {
        Position { lineage: Epoch(lineage), lsn: Lsn(lsn), timeline: TimelineId(1) }
    }

    #[test]
    fn follows_from_before_the_fork_and_rewinds_from_behind_it() {
        let state = line(&[(1, 0, Some(10)), (2, 1, Some(100)), (3, 2, Some(200))]);
        assert_eq!(how_to_return(&state, Epoch(3), at(3, 900)), Return::Follow);
        assert_eq!(how_to_return(&state, Epoch(3), at(1, 100)), Return::Follow);
        assert_eq!(how_to_return(&state, Epoch(3), at(1, 101)), Return::Rewind);
        assert_eq!(how_to_return(&state, Epoch(3), at(2, 150)), Return::Follow);
    }

    #[test]
    fn a_branch_that_nobody_continued_is_copied_anew() {
        let state = line(&[(1, 0, Some(10)), (2, 1, None), (3, 1, Some(100))]);
        assert_eq!(how_to_return(&state, Epoch(3), at(2, 101)), Return::Clone);
        assert_eq!(how_to_return(&state, Epoch(3), at(0, 5)), Return::Follow);
        let forgotten = line(&[(300, 299, Some(10))]);
        assert_eq!(how_to_return(&forgotten, Epoch(300), at(7, 5)), Return::Clone);
    }
}
