//! Who becomes active next, and why.
//!
//! The rule (ADR 0002): let `o` be the newest opened epoch, `h` its holder, `V` the synchronous set without `h` and `k`
//! its `num_sync`. Every acknowledged commit of `o` is on `h` and on at least `k` of `V`. So the next epoch may be
//! granted once every reporter has promised it, and either `h` itself has reported, or `|V| − k + 1` members of `V`
//! have: any `k` of `V` meet any `|V| − k + 1` of `V`. The furthest reporter whose data can be continued gets it. When none
//! of those is of epoch `o`, reporters on dead branches do not count: a commit that is only there and on `h` would be
//! passed over.
//!
//! *Invariants*: `NO_ACKED_COMMIT_LOST`, `ONE_HOLDER_PER_EPOCH`. Neither depends on a clock: the ages below only decide
//! when it is worth starting.

mod election;
mod reason;

pub use election::{Ballot, elect};
pub use reason::Reason;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_types::{ClusterState, Epoch, EpochRecord, Lsn, NodeId, SyncSet, TimelineId};

/// How patient the loop is.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// How long the holder may be silent before it counts as lost.
    pub silence: Duration,
    /// How long a holder may take to open its epoch.
    pub promotion: Duration,
}

/// How far a node's data reaches. Ordered: a newer lineage wins, then more WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The newest epoch whose WAL the data contains.
    pub lineage: Epoch,
    /// The end of its WAL.
    pub lsn: Lsn,
    /// PostgreSQL's timeline, for operators.
    pub timeline: TimelineId,
}

/// What a node says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is starting, and follows nobody yet.
    Starting,
    /// It follows the holder of its epoch, or waits for one.
    Standby,
    /// It was granted its epoch and promotes.
    Promoting,
    /// It serves its epoch.
    Active,
    /// It was active and has handed over on purpose.
    Resigned,
    /// It was active and has fenced itself.
    Fenced,
    /// It copies its data from another node.
    Cloning,
    /// It cannot go on without help.
    Failed,
}

/// One node as the Raft leader sees it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Since its last answer; measured by the caller.
    pub silent_for: Duration,
    /// Its host refuses connections: the process is not running.
    pub refused: bool,
    /// What it does.
    pub role: Role,
    /// The epoch in which it does it.
    pub epoch: Epoch,
    /// The newest epoch it promised not to fall behind.
    pub promised: Epoch,
    /// Since the holder last asked it for its lease. `None`: never in this epoch.
    pub holder_heard: Option<Duration>,
}

/// One round of looking.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Who looks: the Raft leader.
    pub leader: NodeId,
    /// Everybody who has answered at least once.
    pub nodes: BTreeMap<NodeId, Seen>,
    /// Since the leader learned of the current epoch.
    pub since_grant: Duration,
    /// Who has promised the next epoch, and how far their data reaches.
    pub frozen: BTreeMap<NodeId, Position>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask these nodes to promise `epoch` and to report.
    Freeze { epoch: Epoch, nodes: BTreeSet<NodeId> },
    /// Propose the grant. `counted`: the synchronous set that the election was counted with; it must still be agreed.
    Grant { epoch: Epoch, holder: NodeId, parent: Epoch, counted: SyncSet, reason: String },
    /// Ask the active node to hand over.
    Resign { node: NodeId, epoch: Epoch },
}

/// What to do about what was seen, and why.
#[must_use]
pub fn decide(state: &ClusterState, seen: &Observation, policy: &Policy) -> (Reason, Vec<Action>) {
    if state.members.is_empty() {
        return (Reason::NoCluster, Vec::new());
    }
    let Some(current) = state.current() else {
        return go_forward(state, seen, policy, Epoch(0), Reason::FirstEpoch);
    };
    match judge(state, current, seen, policy) {
        Judgement::Fine(reason) => (reason, Vec::new()),
        Judgement::HandOver(to) => {
            let action = Action::Resign { node: current.holder, epoch: current.epoch };
            (Reason::Switchover { from: current.holder, to }, vec![action])
        }
        Judgement::Replace(reason) => go_forward(state, seen, policy, current.epoch, reason),
    }
}

enum Judgement {
    Fine(Reason),
    HandOver(NodeId),
    Replace(Reason),
}

fn judge(state: &ClusterState, current: &EpochRecord, seen: &Observation, policy: &Policy) -> Judgement {
    let holder = current.holder;
    // Somebody who promised a newer epoch follows nobody in this one: the only way is on.
    let promised =
        seen.nodes.iter().find(|(node, seen)| state.members.contains_key(node) && seen.promised > current.epoch);
    if let Some((&node, _)) = promised {
        let resigned = seen.nodes.get(&holder).is_some_and(|seen| seen.role == Role::Resigned);
        return Judgement::Replace(match state.switchover_to {
            Some(to) if resigned => Reason::Switchover { from: holder, to },
            _ => Reason::PromiseGiven { node, epoch: current.epoch.next() },
        });
    }
    let Some(view) = seen.nodes.get(&holder) else {
        // A new leader has not heard from anybody yet; it gives the holder its chance.
        return if seen.since_grant < policy.silence {
            Judgement::Fine(Reason::Waiting { node: holder })
        } else {
            Judgement::Replace(Reason::HolderSilent { node: holder, silent_for: seen.since_grant })
        };
    };
    if view.refused {
        return Judgement::Replace(Reason::HolderDown { node: holder });
    }
    if view.silent_for >= policy.silence {
        let heard = seen.nodes.values().filter_map(|seen| seen.holder_heard.map(|age| age + seen.silent_for)).min();
        // The leader may be the one who is cut off from it: then its lease still reaches the others.
        return match heard {
            Some(age) if age < policy.silence && current.opened.is_some() => {
                Judgement::Fine(Reason::HolderHeardByOthers { node: holder })
            }
            _ => Judgement::Replace(Reason::HolderSilent { node: holder, silent_for: view.silent_for }),
        };
    }
    // What it said before it learned of its grant says nothing about this epoch.
    let outdated = view.epoch != current.epoch && seen.since_grant < policy.silence;
    if current.opened.is_none() {
        return match view.role {
            _ if outdated => Judgement::Fine(Reason::Promoting { node: holder, epoch: current.epoch }),
            Role::Failed | Role::Fenced | Role::Resigned => Judgement::Replace(Reason::HolderGaveUp { node: holder }),
            _ if seen.since_grant >= policy.promotion => Judgement::Replace(Reason::PromotionHangs { node: holder }),
            _ => Judgement::Fine(Reason::Promoting { node: holder, epoch: current.epoch }),
        };
    }
    match view.role {
        Role::Active | Role::Promoting if view.epoch == current.epoch => match state.switchover_to {
            Some(to) if to != holder => match seen.nodes.get(&to) {
                Some(target) if is_ready(state, to, target, current.epoch, policy) => Judgement::HandOver(to),
                _ => Judgement::Fine(Reason::TargetNotReady { node: to }),
            },
            _ => Judgement::Fine(Reason::Healthy { node: holder, epoch: current.epoch }),
        },
        _ if outdated => Judgement::Fine(Reason::Waiting { node: holder }),
        Role::Resigned => Judgement::Replace(match state.switchover_to {
            Some(to) => Reason::Switchover { from: holder, to },
            None => Reason::HolderGaveUp { node: holder },
        }),
        _ => Judgement::Replace(Reason::HolderGaveUp { node: holder }),
    }
}

fn is_ready(state: &ClusterState, node: NodeId, seen: &Seen, epoch: Epoch, policy: &Policy) -> bool {
    state.sync.members.contains(&node)
        && seen.role == Role::Standby
        && seen.epoch == epoch
        && seen.silent_for < policy.silence
        && !seen.refused
}

/// Freezes whom it can reach and grants the next epoch as soon as the rule allows it.
fn go_forward(
    state: &ClusterState,
    seen: &Observation,
    policy: &Policy,
    current: Epoch,
    why: Reason,
) -> (Reason, Vec<Action>) {
    let next = current.next();
    let ballot = Ballot { leader: seen.leader, frozen: &seen.frozen };
    match elect(state, &ballot) {
        Ok(winner) => {
            let parent = seen.frozen[&winner].lineage;
            let counted = state.sync.clone();
            let grant = Action::Grant { epoch: next, holder: winner, parent, counted, reason: why.to_string() };
            (why, vec![grant])
        }
        Err(missing) => {
            let is_reachable = |node: &NodeId| {
                seen.nodes.get(node).is_some_and(|seen| !seen.refused && seen.silent_for < policy.silence)
            };
            let reachable: BTreeSet<NodeId> = state.members.keys().copied().filter(is_reachable).collect();
            // A promise cannot be taken back: nobody is frozen while the election could not succeed.
            if !election::could_succeed(state, &reachable, &seen.frozen) {
                return (Reason::TooFew { cause: Box::new(why), have: missing.have, need: missing.need }, Vec::new());
            }
            let nodes: BTreeSet<NodeId> =
                reachable.into_iter().filter(|node| !seen.frozen.contains_key(node)).collect();
            let actions = if nodes.is_empty() { Vec::new() } else { vec![Action::Freeze { epoch: next, nodes }] };
            (Reason::Freezing { cause: Box::new(why), epoch: next }, actions)
        }
    }
}

#[cfg(test)]
mod tests;
