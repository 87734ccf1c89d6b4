//! The election rule: from whom must be heard, and who is the furthest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use quorate_types::{ClusterState, Epoch, NodeId};

use super::Position;

/// Who has promised the next epoch.
pub struct Ballot<'a> {
    /// The Raft leader; it wins ties, because control and data then sit together.
    pub leader: NodeId,
    /// Reports of nodes that promised the next epoch and follow nobody.
    pub frozen: &'a BTreeMap<NodeId, Position>,
}

/// The rule does not allow a grant yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Reports of the synchronous set.
    pub have: usize,
    /// How many are needed when the last holder is not among them.
    pub need: usize,
}

/// The node that may get the next epoch.
///
/// # Errors
/// [`Missing`] when an acknowledged commit could be on none of the reporters.
pub fn elect(state: &ClusterState, ballot: &Ballot<'_>) -> Result<NodeId, Missing> {
    let opened = state.last_opened();
    let lineage = opened.map_or(Epoch(0), |record| record.epoch);
    let holder = opened.map(|record| record.holder);
    let candidates: BTreeMap<NodeId, Position> = ballot
        .frozen
        .iter()
        .filter(|(node, position)| state.members.contains_key(node) && on_the_line(state, lineage, position.lineage))
        .map(|(node, position)| (*node, *position))
        .collect();
    let has_all = |position: &Position| position.lineage == lineage || state.descends_from(position.lineage, lineage);
    let holder_reported = holder.is_some_and(|holder| candidates.get(&holder).is_some_and(has_all));
    let others = || state.sync.members.iter().filter(|node| Some(**node) != holder);
    // Whoever stands on a dead branch never had a commit of the last opened epoch. It may have an older one, which it
    // cannot bring back: it counts only where a reporter of that epoch, and so everything older, is there to win.
    let has_last_epoch = candidates.values().any(has_all);
    let counts = |node: &&NodeId| {
        if has_last_epoch { ballot.frozen.contains_key(node) } else { candidates.contains_key(node) }
    };
    let have = others().filter(counts).count();
    let need = needed(others().count(), state.sync.num_sync, holder.is_some());
    if !holder_reported && have < need {
        return Err(Missing { have, need });
    }
    let rank = |node: NodeId, position: Position| {
        (
            position.lineage,
            position.lsn,
            state.sync.members.contains(&node),
            state.switchover_to == Some(node),
            node == ballot.leader,
            Reverse(node),
        )
    };
    candidates
        .into_iter()
        .max_by_key(|(node, position)| rank(*node, *position))
        .map(|(node, _)| node)
        .ok_or(Missing { have, need })
}

/// Whether the rule could be met if every reachable node reported.
pub(super) fn could_succeed(
    state: &ClusterState,
    reachable: &BTreeSet<NodeId>,
    frozen: &BTreeMap<NodeId, Position>,
) -> bool {
    let opened = state.last_opened();
    let lineage = opened.map_or(Epoch(0), |record| record.epoch);
    let holder = opened.map(|record| record.holder);
    let has_all = |position: &Position| position.lineage == lineage || state.descends_from(position.lineage, lineage);
    // Somebody who has not reported yet may turn out to be of the last opened epoch.
    let may_have_last_epoch = frozen.values().any(has_all) || reachable.iter().any(|node| !frozen.contains_key(node));
    let hears = |node: &NodeId| match frozen.get(node) {
        Some(position) => may_have_last_epoch || on_the_line(state, lineage, position.lineage),
        None => reachable.contains(node),
    };
    if holder.as_ref().is_some_and(hears) {
        return true;
    }
    let others = || state.sync.members.iter().filter(|node| Some(**node) != holder);
    others().filter(|node| hears(node)).count() >= needed(others().count(), state.sync.num_sync, holder.is_some())
}

/// `|V| − k + 1`; before the first epoch everybody in the set, because nobody held it.
fn needed(others: usize, num_sync: usize, had_holder: bool) -> usize {
    if had_holder { (others + 1).saturating_sub(num_sync) } else { others }
}

/// Whether data of this lineage can be continued: it is a part of the line that ends in the last opened epoch, or
/// continues it.
fn on_the_line(state: &ClusterState, last_opened: Epoch, lineage: Epoch) -> bool {
    lineage == last_opened || state.descends_from(last_opened, lineage) || state.descends_from(lineage, last_opened)
}
