//! What must never happen, as named checks over a history of facts.
//!
//! The simulation of failover and the histories of real clusters are judged by the same functions. A history is in the
//! order in which things happened, on one clock; a recorder may leave out kinds of facts that it cannot see, and the
//! checks that need them then say nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use quorate_types::{Epoch, NodeId, SyncSet};

use crate::membership::sets_meet;

/// How long two nodes may hold the cluster address: an old holder that hears nobody learns of its end from its lease,
/// which is 600 ms by default, and then has to act.
pub const ADDRESS_OVERLAP_MAX: Duration = Duration::from_millis(800);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fact {
    /// The cluster agreed that `holder` gets `epoch`.
    Granted { epoch: Epoch, holder: NodeId },
    /// The promise is on the node's disk.
    Promised { node: NodeId, epoch: Epoch },
    /// The node's PostgreSQL became a primary.
    Promoted { node: NodeId, epoch: Epoch },
    /// A standby took WAL from the primary of `epoch`.
    Followed { node: NodeId, epoch: Epoch },
    /// The node calls itself active.
    ServiceBegan { node: NodeId, epoch: Epoch },
    /// It does so no more, or died.
    ServiceEnded { node: NodeId, epoch: Epoch },
    /// A client sent a write.
    WriteBegan { write: u64 },
    /// A client was told that its write is safe, by the active node of `epoch`.
    Acknowledged { write: u64, epoch: Epoch },
    /// All writes in the data from which the holder of `epoch` promoted; when the cluster agreed that it is open.
    Opened { epoch: Epoch, writes: BTreeSet<u64> },
    /// All writes that the active node of `epoch` showed to a reader.
    Shown { epoch: Epoch, writes: BTreeSet<u64> },
    /// The node has the cluster address.
    AddressTaken { node: NodeId },
    /// The node no longer has it.
    AddressLeft { node: NodeId },
    /// Every process of the node was stopped: it does nothing, and cannot give up anything either.
    Stopped { node: NodeId },
    /// They go on.
    Woke { node: NodeId },
    /// Elections count with this set from now on.
    SyncAgreed { sync: SyncSet },
    /// The primary of `epoch` begins to acknowledge by this set.
    SyncInEffect { epoch: Epoch, sync: SyncSet },
}

/// A fact and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Since the history began; never falls.
    pub at: Duration,
    /// What.
    pub fact: Fact,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// When it was seen to be broken.
    pub at: Duration,
    /// How, one line.
    pub story: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken at {} ms: {}", self.invariant, self.at.as_millis(), self.story)
    }
}

/// A named check.
pub struct Invariant {
    /// As it is called in documents and reports.
    pub name: &'static str,
    broken: fn(&[Event]) -> Option<(Duration, String)>,
}

impl Invariant {
    /// Judges a whole history.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check(&self, history: &[Event]) -> Result<(), Violation> {
        match (self.broken)(history) {
            None => Ok(()),
            Some((at, story)) => Err(Violation { invariant: self.name, at, story }),
        }
    }
}

/// Whatever a client was told is safe is in the data of every later epoch, also when it was told so late. This is what
/// the cluster is for.
pub const NO_ACKED_COMMIT_LOST: Invariant = Invariant { name: "NO_ACKED_COMMIT_LOST", broken: acked_commit_lost };

/// An epoch is granted to one node, once; at most that node is active in it, and not again after it stopped. The epoch
/// is the fencing token of every effect: two nodes, or two lives of one, must not share it.
pub const ONE_ACTIVE_PER_EPOCH: Invariant = Invariant { name: "ONE_ACTIVE_PER_EPOCH", broken: two_active };

/// PostgreSQL becomes a primary only on the node to which the epoch was granted before. Anybody else would begin a second
/// history. It may do so twice when it died before the epoch was open: nobody followed the first time.
pub const ONLY_HOLDER_PROMOTES: Invariant = Invariant { name: "ONLY_HOLDER_PROMOTES", broken: other_promotes };

/// A write that was sent after an epoch was granted is never acknowledged by an older one: from the freeze on, the old
/// primary cannot reach enough standbys. An acknowledgement that was under way is no offence, and
/// [`NO_ACKED_COMMIT_LOST`] sees to its write.
pub const OLD_EPOCH_ACKNOWLEDGES_NOTHING: Invariant =
    Invariant { name: "OLD_EPOCH_ACKNOWLEDGES_NOTHING", broken: old_epoch_acknowledges };

/// A node that promised an epoch takes no WAL of an older one and serves none; nor does its promise fall. Elections
/// count on it.
pub const NO_EFFECT_AFTER_FREEZE: Invariant = Invariant { name: "NO_EFFECT_AFTER_FREEZE", broken: effect_after_freeze };

/// Whatever acknowledges a commit meets whatever is heard by an election, at every moment of a change of either.
pub const SYNC_SETS_MEET: Invariant = Invariant { name: "SYNC_SETS_MEET", broken: sets_part };

/// Two running nodes hold the cluster address for no longer than [`ADDRESS_OVERLAP_MAX`]. No write depends on it;
/// clients would reach the wrong node. A stopped node cannot give it up: that time is not counted.
pub const VIP_HELD_BY_ONE: Invariant = Invariant { name: "VIP_HELD_BY_ONE", broken: address_held_twice };

/// All of them.
pub const ALL: [&Invariant; 7] = [
    &NO_ACKED_COMMIT_LOST,
    &ONE_ACTIVE_PER_EPOCH,
    &ONLY_HOLDER_PROMOTES,
    &OLD_EPOCH_ACKNOWLEDGES_NOTHING,
    &NO_EFFECT_AFTER_FREEZE,
    &SYNC_SETS_MEET,
    &VIP_HELD_BY_ONE,
];

/// Judges a whole history by every invariant.
#[must_use]
pub fn violations(history: &[Event]) -> Vec<Violation> {
    ALL.iter().filter_map(|invariant| invariant.check(history).err()).collect()
}

fn acked_commit_lost(history: &[Event]) -> Option<(Duration, String)> {
    let mut acked = Vec::new();
    let mut shown: Vec<(Epoch, &BTreeSet<u64>)> = Vec::new();
    let lost = |write: &u64, by: &Epoch, epoch: &Epoch| {
        format!("write {write}, acknowledged in epoch {by}, is not in epoch {epoch}")
    };
    for Event { at, fact } in history {
        match fact {
            Fact::Acknowledged { write, epoch } => {
                if let Some((later, _)) = shown.iter().find(|(later, data)| later > epoch && !data.contains(write)) {
                    return Some((*at, lost(write, epoch, later)));
                }
                acked.push((write, epoch));
            }
            Fact::Opened { epoch, writes } | Fact::Shown { epoch, writes } => {
                let read = matches!(fact, Fact::Shown { .. });
                let expected = |by: &Epoch| by < epoch || (read && by == epoch);
                if let Some((write, by)) = acked.iter().find(|(write, by)| expected(by) && !writes.contains(write)) {
                    return Some((*at, lost(write, by, epoch)));
                }
                shown.push((*epoch, writes));
            }
            _ => {}
        }
    }
    None
}

fn two_active(history: &[Event]) -> Option<(Duration, String)> {
    let mut granted: BTreeMap<Epoch, NodeId> = BTreeMap::new();
    let mut active: BTreeMap<Epoch, NodeId> = BTreeMap::new();
    for Event { at, fact } in history {
        match fact {
            Fact::Granted { epoch, holder } => {
                if let Some(before) = granted.insert(*epoch, *holder) {
                    return Some((*at, format!("epoch {epoch} was granted to {before} and again to {holder}")));
                }
            }
            Fact::ServiceBegan { node, epoch } => {
                if let Some(before) = active.insert(*epoch, *node) {
                    return Some((*at, format!("epoch {epoch} was served by {before} and again by {node}")));
                }
            }
            _ => {}
        }
    }
    None
}

fn other_promotes(history: &[Event]) -> Option<(Duration, String)> {
    let mut granted: BTreeMap<Epoch, NodeId> = BTreeMap::new();
    for Event { at, fact } in history {
        match fact {
            Fact::Granted { epoch, holder } => {
                granted.entry(*epoch).or_insert(*holder);
            }
            Fact::Promoted { node, epoch } => match granted.get(epoch) {
                Some(holder) if holder != node => {
                    return Some((*at, format!("{node} promoted in epoch {epoch} of {holder}")));
                }
                None => return Some((*at, format!("{node} promoted in epoch {epoch}, which nobody was granted"))),
                _ => {}
            },
            _ => {}
        }
    }
    None
}

fn old_epoch_acknowledges(history: &[Event]) -> Option<(Duration, String)> {
    let mut newest = Epoch(0);
    // The newest granted epoch when each write was sent.
    let mut began: BTreeMap<u64, Epoch> = BTreeMap::new();
    for Event { at, fact } in history {
        match fact {
            Fact::Granted { epoch, .. } => newest = newest.max(*epoch),
            Fact::WriteBegan { write } => {
                began.insert(*write, newest);
            }
            Fact::Acknowledged { write, epoch } => {
                if let Some(newer) = began.get(write).filter(|newer| *newer > epoch) {
                    return Some((
                        *at,
                        format!("write {write} was sent in epoch {newer} and acknowledged by epoch {epoch}"),
                    ));
                }
            }
            _ => {}
        }
    }
    None
}

fn effect_after_freeze(history: &[Event]) -> Option<(Duration, String)> {
    let mut promised: BTreeMap<NodeId, Epoch> = BTreeMap::new();
    for Event { at, fact } in history {
        let (node, epoch, what) = match fact {
            Fact::Promised { node, epoch } => (node, epoch, "promised"),
            Fact::Followed { node, epoch } => (node, epoch, "took WAL of"),
            Fact::ServiceBegan { node, epoch } => (node, epoch, "began to serve"),
            _ => continue,
        };
        if let Some(newer) = promised.get(node).filter(|newer| *newer > epoch) {
            return Some((*at, format!("{node} {what} epoch {epoch} after it promised {newer}")));
        }
        if matches!(fact, Fact::Promised { .. }) {
            promised.insert(*node, *epoch);
        }
    }
    None
}

fn sets_part(history: &[Event]) -> Option<(Duration, String)> {
    let mut agreed: Option<&SyncSet> = None;
    let mut current: Option<(Epoch, NodeId)> = None;
    let mut in_effect: Option<&SyncSet> = None;
    for Event { at, fact } in history {
        match fact {
            Fact::Granted { epoch, holder } => {
                current = Some((*epoch, *holder));
                in_effect = None;
            }
            Fact::SyncAgreed { sync } => agreed = Some(sync),
            Fact::SyncInEffect { epoch, sync } if current.is_some_and(|(current, _)| current == *epoch) => {
                in_effect = Some(sync);
            }
            _ => continue,
        }
        let (Some(agreed), Some((epoch, holder)), Some(in_effect)) = (agreed, current, in_effect) else { continue };
        if !sets_meet(agreed, in_effect, holder) {
            let story = format!("epoch {epoch} of {holder} acknowledges by {in_effect:?}, elections count {agreed:?}");
            return Some((*at, story));
        }
    }
    None
}

fn address_held_twice(history: &[Event]) -> Option<(Duration, String)> {
    let mut holders: BTreeSet<NodeId> = BTreeSet::new();
    let mut stopped: BTreeSet<NodeId> = BTreeSet::new();
    let mut since: Option<(Duration, Vec<NodeId>)> = None;
    for Event { at, fact } in history {
        if let Some((began, nodes)) = since.as_ref().filter(|(began, _)| *at > *began + ADDRESS_OVERLAP_MAX) {
            return Some((*began + ADDRESS_OVERLAP_MAX, format!("{nodes:?} have had the cluster address together")));
        }
        match fact {
            Fact::AddressTaken { node } => holders.insert(*node),
            Fact::AddressLeft { node } => holders.remove(node),
            Fact::Stopped { node } => stopped.insert(*node),
            Fact::Woke { node } => stopped.remove(node),
            _ => continue,
        };
        let running: Vec<NodeId> = holders.difference(&stopped).copied().collect();
        match &since {
            _ if running.len() < 2 => since = None,
            Some((_, before)) if *before == running => {}
            _ => since = Some((*at, running)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);
    const ONE: Epoch = Epoch(1);
    const TWO: Epoch = Epoch(2);

    /// One fact each 100 ms.
    fn history(facts: &[Fact]) -> Vec<Event> {
        let at = |index: usize| Duration::from_millis(100 * index as u64);
        facts.iter().enumerate().map(|(index, fact)| Event { at: at(index), fact: fact.clone() }).collect()
    }

    fn broken(facts: &[Fact]) -> Vec<&'static str> {
        violations(&history(facts)).iter().map(|violation| violation.invariant).collect()
    }

    fn granted() -> Vec<Fact> {
        vec![Fact::Granted { epoch: ONE, holder: N1 }, Fact::Granted { epoch: TWO, holder: N2 }]
    }

    fn and(mut facts: Vec<Fact>, more: &[Fact]) -> Vec<Fact> {
        facts.extend_from_slice(more);
        facts
    }

    #[test]
    fn an_acknowledged_write_must_be_in_every_later_epoch_however_late_the_word_comes() {
        let acked = Fact::Acknowledged { write: 7, epoch: ONE };
        let with = Fact::Opened { epoch: TWO, writes: [7, 8].into() };
        let without = Fact::Shown { epoch: TWO, writes: [8].into() };
        let own = Fact::Acknowledged { write: 9, epoch: TWO };
        assert_eq!(broken(&[own.clone(), with.clone()]), Vec::<&str>::new());
        assert_eq!(broken(&[own, without.clone()]), ["NO_ACKED_COMMIT_LOST"]);
        assert_eq!(broken(&[acked.clone(), with.clone()]), Vec::<&str>::new());
        assert_eq!(broken(&[with, acked.clone()]), Vec::<&str>::new());
        assert_eq!(broken(&[acked.clone(), without.clone()]), ["NO_ACKED_COMMIT_LOST"]);
        assert_eq!(broken(&[without, acked]), ["NO_ACKED_COMMIT_LOST"]);
    }

    #[test]
    fn an_epoch_has_one_active_node_once() {
        let began = |node| Fact::ServiceBegan { node, epoch: ONE };
        let ended = Fact::ServiceEnded { node: N1, epoch: ONE };
        assert_eq!(broken(&and(granted(), &[began(N1), ended.clone()])), Vec::<&str>::new());
        assert_eq!(broken(&and(granted(), &[began(N1), ended, began(N1)])), ["ONE_ACTIVE_PER_EPOCH"]);
        assert_eq!(broken(&and(granted(), &[Fact::Granted { epoch: TWO, holder: N1 }])), ["ONE_ACTIVE_PER_EPOCH"]);
    }

    #[test]
    fn nobody_promotes_without_a_grant() {
        let promoted = |node, epoch| Fact::Promoted { node, epoch };
        assert_eq!(broken(&and(granted(), &[promoted(N2, TWO)])), Vec::<&str>::new());
        assert_eq!(broken(&and(granted(), &[promoted(N1, TWO)])), ["ONLY_HOLDER_PROMOTES"]);
        assert_eq!(broken(&and(granted(), &[promoted(N1, Epoch(3))])), ["ONLY_HOLDER_PROMOTES"]);
    }

    #[test]
    fn an_old_epoch_may_finish_an_answer_but_takes_nothing_new() {
        let began = Fact::WriteBegan { write: 7 };
        let acked = Fact::Acknowledged { write: 7, epoch: ONE };
        assert_eq!(
            broken(&and(and(vec![began.clone()], &granted()), std::slice::from_ref(&acked))),
            Vec::<&str>::new()
        );
        assert_eq!(broken(&and(granted(), &[began, acked])), ["OLD_EPOCH_ACKNOWLEDGES_NOTHING"]);
    }

    #[test]
    fn a_promise_ends_what_is_older() {
        let promised = Fact::Promised { node: N2, epoch: TWO };
        let followed = |epoch| Fact::Followed { node: N2, epoch };
        assert_eq!(broken(&[followed(ONE), promised.clone(), followed(TWO)]), Vec::<&str>::new());
        assert_eq!(broken(&[promised, followed(ONE)]), ["NO_EFFECT_AFTER_FREEZE"]);
    }

    #[test]
    fn the_two_sets_meet_while_one_epoch_changes_them() {
        let set =
            |num_sync: usize, ids: &[u64]| SyncSet { num_sync, members: ids.iter().copied().map(NodeId).collect() };
        let begin = [
            Fact::SyncAgreed { sync: set(0, &[1]) },
            Fact::Granted { epoch: ONE, holder: N1 },
            Fact::SyncInEffect { epoch: ONE, sync: set(0, &[1]) },
        ];
        let agree = Fact::SyncAgreed { sync: set(1, &[1, 2]) };
        let wait = Fact::SyncInEffect { epoch: ONE, sync: set(1, &[1, 2]) };
        assert_eq!(broken(&and(begin.to_vec(), &[wait, agree.clone()])), Vec::<&str>::new());
        assert_eq!(broken(&and(begin.to_vec(), &[agree])), ["SYNC_SETS_MEET"]);
    }

    #[test]
    fn two_running_nodes_do_not_keep_the_address() {
        let taken = |node| Fact::AddressTaken { node };
        let idle = vec![Fact::WriteBegan { write: 1 }; 10];
        let overlap = and(vec![taken(N1), taken(N2)], &idle);
        assert_eq!(broken(&overlap), ["VIP_HELD_BY_ONE"]);
        let stopped = and(vec![taken(N1), Fact::Stopped { node: N1 }, taken(N2)], &idle);
        assert_eq!(broken(&stopped), Vec::<&str>::new());
        let short = and(vec![taken(N1), taken(N2), Fact::AddressLeft { node: N1 }], &idle);
        assert_eq!(broken(&short), Vec::<&str>::new());
    }
}
