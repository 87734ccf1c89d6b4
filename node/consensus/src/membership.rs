//! Keeps Raft's own membership equal to the agreed members: new ones as learners, voters by joint consensus.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{BasicNode, ChangeMembers};
use quorate_types::NodeId;

use crate::{Consensus, ProposeError};

/// Entries that a learner may be behind when it becomes a voter.
const VOTER_LAG_MAX: u64 = 64;

impl Consensus {
    /// One step towards the agreed membership; the leader calls it every round. Returns what it did, for the log.
    ///
    /// # Errors
    /// When the leader lost its majority; the next round tries again.
    pub async fn reconcile_membership(&self) -> Result<Option<String>, ProposeError> {
        if !self.leadership.borrow().is_self {
            return Ok(None);
        }
        let members = self.cluster().borrow().members.clone();
        if members.is_empty() {
            return Ok(None);
        }
        let (nodes, voters, in_progress): (BTreeMap<u64, BasicNode>, BTreeSet<u64>, bool) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let membership = metrics.membership_config.membership();
            let nodes = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
            (nodes, membership.voter_ids().collect(), membership.get_joint_config().len() > 1)
        };
        if in_progress {
            return Ok(None);
        }
        let unknown = |error: &dyn std::error::Error| ProposeError::Unknown(error.to_string());
        for member in members.values() {
            if !nodes.contains_key(&member.id.0) {
                let node = BasicNode::new(member.address);
                self.raft.add_learner(member.id.0, node, false).await.map_err(|error| unknown(&error))?;
                return Ok(Some(format!("{} follows raft as a learner", member.id)));
            }
        }
        let wanted: BTreeSet<u64> =
            members.values().filter(|m| m.voter && self.is_close(m.id, &voters)).map(|m| m.id.0).collect();
        if !wanted.is_empty() && wanted != voters {
            self.raft.change_membership(wanted.clone(), true).await.map_err(|error| unknown(&error))?;
            let names: Vec<String> = wanted.iter().map(|id| NodeId(*id).to_string()).collect();
            return Ok(Some(format!("raft's voters are now {}", names.join(", "))));
        }
        let gone: BTreeSet<u64> = nodes.keys().filter(|id| !members.contains_key(&NodeId(**id))).copied().collect();
        if !gone.is_empty() {
            let change = ChangeMembers::RemoveNodes(gone);
            self.raft.change_membership(change, false).await.map_err(|error| unknown(&error))?;
            return Ok(Some("raft dropped nodes that are no members".into()));
        }
        let moved: BTreeMap<u64, BasicNode> = members
            .values()
            .map(|member| (member.id.0, BasicNode::new(member.address)))
            .filter(|(id, node)| nodes.get(id).is_some_and(|before| before != node))
            .collect();
        if !moved.is_empty() {
            let change = ChangeMembers::SetNodes(moved);
            self.raft.change_membership(change, true).await.map_err(|error| unknown(&error))?;
            return Ok(Some("raft learned a member's new address".into()));
        }
        Ok(None)
    }

    /// Whether a member may vote without making the majority wait for its log.
    fn is_close(&self, node: NodeId, voters: &BTreeSet<u64>) -> bool {
        if voters.contains(&node.0) {
            return true;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&node.0)).copied().flatten();
        matched.is_some_and(|id| id.index + VOTER_LAG_MAX >= last)
    }
}
