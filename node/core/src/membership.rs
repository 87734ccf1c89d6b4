//! In which order the synchronous set changes.
//!
//! Two places hold it: PostgreSQL (what commits wait for) and the agreed state (what elections count with). A commit is
//! on `k` of PostgreSQL's set; an election hears `|V| − k + 1` of the agreed one. Between the two steps of a change
//! those must still meet, so more demanding comes first: PostgreSQL first when commits will wait for more, or for
//! fewer nodes of the same number; the agreed state first otherwise. One node at a time (ADR 0002).

use std::collections::BTreeSet;

use quorate_types::{ClusterState, NodeId, SyncSet};

/// What to do next; the active node carries it out and looks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make PostgreSQL wait for this set, and go on when that is in effect.
    SetPostgres(SyncSet),
    /// Agree on this set.
    Agree(SyncSet),
}

/// Standbys that a commit waits for in a set of `members`: the most that still lets any minority fail.
#[must_use]
pub const fn num_sync(members: usize) -> usize {
    members / 2
}

/// The next step towards a set of every member that follows.
///
/// `in_effect`: what PostgreSQL waits for now, as it was read back. `caught_up`: standbys that stream and are close.
/// A node that is away stays in the set: the others carry the commits, and it loses nothing by it. Only a node that is
/// no member any more leaves.
#[must_use]
pub fn next_step(state: &ClusterState, me: NodeId, in_effect: &SyncSet, caught_up: &BTreeSet<NodeId>) -> Option<Step> {
    let agreed = &state.sync;
    // First finish what was begun.
    if in_effect != agreed {
        return Some(finish(state, in_effect));
    }
    let next = |members: BTreeSet<NodeId>| SyncSet { num_sync: num_sync(members.len()), members };
    let leaver = agreed.members.iter().find(|node| !state.members.contains_key(node) && **node != me);
    if let Some(leaver) = leaver {
        let members = agreed.members.iter().copied().filter(|node| node != leaver).collect();
        return Some(first_half(agreed, next(members)));
    }
    let joiner = state
        .members
        .keys()
        .find(|node| !agreed.members.contains(node) && (**node == me || caught_up.contains(node)))?;
    let members = agreed.members.iter().copied().chain([*joiner]).collect();
    Some(first_half(agreed, next(members)))
}

fn first_half(agreed: &SyncSet, next: SyncSet) -> Step {
    let grows = next.members.len() > agreed.members.len();
    if next.num_sync > agreed.num_sync || (!grows && next.num_sync == agreed.num_sync) {
        Step::SetPostgres(next)
    } else {
        Step::Agree(next)
    }
}

/// PostgreSQL and the agreed state differ: which of the two goes on.
///
/// Nothing is taken back because a joiner vanished: the agreement may have been reached already without this node
/// knowing it. Only its removal ends the matter, because no agreement on it can follow that.
fn finish(state: &ClusterState, in_effect: &SyncSet) -> Step {
    let agreed = &state.sync;
    let mut joining = in_effect.members.difference(&agreed.members);
    let mut leaving = agreed.members.difference(&in_effect.members);
    let postgres_was_first = match (joining.next(), leaving.next()) {
        (Some(node), None) => state.members.contains_key(node),
        (None, Some(node)) => !state.members.contains_key(node),
        _ => false,
    };
    let one_apart = joining.next().is_none() && leaving.next().is_none();
    if postgres_was_first && one_apart && in_effect.num_sync == num_sync(in_effect.members.len()) {
        Step::Agree(in_effect.clone())
    } else {
        // The agreed state is ahead, or a beginning was abandoned: PostgreSQL follows what elections count with.
        Step::SetPostgres(agreed.clone())
    }
}

/// Whether every commit that waits for `postgres` is on a node that every election under `agreed` hears.
///
/// The invariant `SYNC_SETS_MEET`, for tests and simulation.
#[must_use]
pub fn sets_meet(agreed: &SyncSet, postgres: &SyncSet, holder: NodeId) -> bool {
    let agreed_others: BTreeSet<NodeId> = agreed.members.iter().copied().filter(|node| *node != holder).collect();
    let postgres_others: BTreeSet<NodeId> = postgres.members.iter().copied().filter(|node| *node != holder).collect();
    // The fewest acknowledgements that can fall inside the agreed set.
    let outside = postgres_others.difference(&agreed_others).count();
    let inside = postgres.num_sync.saturating_sub(outside);
    inside >= agreed.num_sync
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_types::Member;

    use super::*;

    fn members(ids: &[u64]) -> BTreeMap<NodeId, Member> {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: id.to_string(),
            address: [10, 0, 0, 1].into(),
            public_key_sha256: String::new(),
            voter: true,
        };
        ids.iter().map(|id| (NodeId(*id), member(*id))).collect()
    }

    fn set(num_sync: usize, ids: &[u64]) -> SyncSet {
        SyncSet { num_sync, members: ids.iter().copied().map(NodeId).collect() }
    }

    /// Walks from one membership to another and checks that the two sets meet at every step.
    fn walk(from: &[u64], to: &[u64]) -> Vec<Step> {
        let mut state =
            ClusterState { members: members(to), sync: set(num_sync(from.len()), from), ..Default::default() };
        let mut in_effect = state.sync.clone();
        let caught_up: BTreeSet<NodeId> = to.iter().copied().map(NodeId).collect();
        let mut steps = Vec::new();
        while let Some(step) = next_step(&state, NodeId(1), &in_effect, &caught_up) {
            match &step {
                Step::SetPostgres(next) => in_effect = next.clone(),
                Step::Agree(next) => state.sync = next.clone(),
            }
            assert!(sets_meet(&state.sync, &in_effect, NodeId(1)), "after {step:?}: {:?} {in_effect:?}", state.sync);
            steps.push(step);
            assert!(steps.len() < 50, "it goes in circles: {steps:?}");
        }
        assert_eq!(state.sync, in_effect);
        assert_eq!(state.sync.members, to.iter().copied().map(NodeId).collect());
        steps
    }

    #[test]
    fn the_first_standby_must_be_waited_for_before_elections_count_on_it() {
        let steps = walk(&[1], &[1, 2]);
        assert_eq!(steps, [Step::SetPostgres(set(1, &[1, 2])), Step::Agree(set(1, &[1, 2]))]);
    }

    #[test]
    fn the_second_standby_is_counted_before_its_word_suffices() {
        let steps = walk(&[1, 2], &[1, 2, 3]);
        assert_eq!(steps, [Step::Agree(set(1, &[1, 2, 3])), Step::SetPostgres(set(1, &[1, 2, 3]))]);
    }

    #[test]
    fn every_walk_keeps_the_sets_meeting() {
        walk(&[1], &[1, 2, 3, 4, 5]);
        walk(&[1, 2, 3, 4, 5], &[1]);
        walk(&[1, 2, 3], &[1, 3, 4]);
        walk(&[1, 2], &[1]);
    }

    #[test]
    fn a_beginning_that_was_abandoned_goes_back_to_the_agreed_set() {
        let begun = set(1, &[1, 2]);
        let mut state = ClusterState { members: members(&[1, 2]), sync: set(0, &[1]), ..Default::default() };
        let step = next_step(&state, NodeId(1), &begun, &BTreeSet::new());
        assert_eq!(step, Some(Step::Agree(begun.clone())), "n2 vanished, but may have been agreed on already");
        state.members = members(&[1]);
        let step = next_step(&state, NodeId(1), &begun, &BTreeSet::new());
        assert_eq!(step, Some(Step::SetPostgres(set(0, &[1]))), "n2 is no member any more");
    }
}
