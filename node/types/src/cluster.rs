//! What the cluster agreed on: the part of Raft's state that failover and membership decide from.
//!
//! Words: an epoch is *granted* when Raft commits its record, and *opened* when its holder has promoted its PostgreSQL
//! and Raft knows the new timeline. Standbys follow only opened epochs, so an epoch that was never opened has
//! acknowledged nothing. A node's *lineage* is the newest epoch whose WAL its data directory contains.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Epoch, Lsn, NodeId, TimelineId};

/// How many epoch records are kept. A node whose lineage is older than all of them is cloned anew.
pub const EPOCHS_KEPT: usize = 256;

/// A node that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number, never used again.
    pub id: NodeId,
    /// Its host name as operators know it.
    pub name: String,
    /// The address at which all its ports are reached, without a port.
    pub address: std::net::IpAddr,
    /// SHA-256 of its certificate's public key (SubjectPublicKeyInfo), hex.
    pub public_key_sha256: String,
    /// Whether it votes in Raft; a learner only follows.
    pub voter: bool,
}

/// Who must have a commit before it is acknowledged: on the holder's disk and on `num_sync` of the other members'.
///
/// `synchronous_standby_names = 'ANY num_sync (members)'`; the holder never connects to itself, so it may stand in the
/// list. `num_sync` is 0 only while the cluster has a single member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct SyncSet {
    /// Standbys that must have flushed a commit, `0..members.len()`.
    pub num_sync: usize,
    /// The nodes that take part, the holder among them.
    pub members: BTreeSet<NodeId>,
}

/// One reign of one active node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its number.
    pub epoch: Epoch,
    /// The only node that may promote in it.
    pub holder: NodeId,
    /// The lineage of the holder's data when the epoch was granted.
    pub parent: Epoch,
    /// Why it was granted, one line for operators.
    pub reason: String,
    /// `Some` once the holder has promoted: the epoch is open.
    pub opened: Option<Opened>,
}

/// Where an epoch's WAL begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The timeline that the promotion started.
    pub timeline: TimelineId,
    /// Where it left its parent.
    pub start: Lsn,
}

/// A copy of the committed state that decisions need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ClusterState {
    /// Random, made once by `cluster init`; empty before.
    pub cluster_id: String,
    /// Everybody who belongs.
    pub members: BTreeMap<NodeId, Member>,
    /// The newest [`EPOCHS_KEPT`] epochs.
    pub epochs: BTreeMap<Epoch, EpochRecord>,
    /// The synchronous set that elections count with.
    pub sync: SyncSet,
    /// Where the operator wants the active node, until it is there.
    pub switchover_to: Option<NodeId>,
}

impl ClusterState {
    /// The newest granted epoch, open or not.
    #[must_use]
    pub fn current(&self) -> Option<&EpochRecord> {
        self.epochs.values().next_back()
    }

    /// The newest epoch in which anything can have been acknowledged.
    #[must_use]
    pub fn last_opened(&self) -> Option<&EpochRecord> {
        self.epochs.values().rev().find(|record| record.opened.is_some())
    }

    /// The epochs that `epoch` continues, itself included, with the timelines of those that were opened.
    #[must_use]
    pub fn line(&self, epoch: Epoch) -> BTreeMap<Epoch, Option<TimelineId>> {
        let mut line = BTreeMap::new();
        let mut at = epoch;
        while let Some(record) = self.epochs.get(&at) {
            line.insert(at, record.opened.map(|opened| opened.timeline));
            if record.parent >= at {
                break;
            }
            at = record.parent;
        }
        line
    }

    /// Whether data of `lineage` is a part of the history that `epoch` continues.
    ///
    /// `false` means a dead branch: its data must be cloned anew, never rewound, because PostgreSQL may have given the
    /// same timeline number to both branches.
    #[must_use]
    pub fn descends_from(&self, epoch: Epoch, lineage: Epoch) -> bool {
        let mut at = epoch;
        loop {
            if at == lineage {
                return true;
            }
            match self.epochs.get(&at) {
                Some(record) if record.parent < at => at = record.parent,
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(records: &[(u64, u64)]) -> ClusterState {
        let epochs = records.iter().map(|&(epoch, parent)| {
            let record = EpochRecord {
                epoch: Epoch(epoch),
                holder: NodeId(1),
                parent: Epoch(parent),
                reason: String::new(),
                opened: None,
            };
            (Epoch(epoch), record)
        });
        ClusterState { epochs: epochs.collect(), ..ClusterState::default() }
    }

    #[test]
    fn a_branch_that_nobody_continued_is_no_ancestor() {
        let state = state(&[(1, 0), (2, 1), (3, 1), (4, 3)]);
        assert!(state.descends_from(Epoch(4), Epoch(3)));
        assert!(state.descends_from(Epoch(4), Epoch(1)));
        assert!(!state.descends_from(Epoch(4), Epoch(2)));
        assert!(!state.descends_from(Epoch(3), Epoch(4)));
    }
}
