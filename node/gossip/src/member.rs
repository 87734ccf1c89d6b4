//! What others see of the members.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use foca::{Member, State};
use quorate_types::NodeId;

use crate::identity::Identity;
use crate::load::{Load, Loads};

/// Whether a member answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// It answers, directly or through another member.
    Alive,
    /// It did not answer, and may still contradict.
    Suspect,
    /// It did not contradict in time, or said goodbye.
    Down,
}

/// One member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHint {
    /// Who.
    pub node: NodeId,
    /// How it calls itself; for people.
    pub name: String,
    /// Where it gossips.
    pub address: SocketAddr,
    /// Whether it answers.
    pub state: MemberState,
    /// When this node began to see it in this state.
    pub since: Instant,
    /// The last it said about itself; all empty before it said anything.
    pub load: Load,
}

/// All members, this node included, ordered by id.
pub type Members = Arc<[MemberHint]>;

/// Builds the view anew; `since` is kept from `before` where nothing changed.
pub(crate) fn view<'a>(
    before: &Members,
    own: &Identity,
    members: impl Iterator<Item = &'a Member<Identity>>,
    loads: &Loads,
    now: Instant,
) -> Members {
    let mut latest: BTreeMap<NodeId, (&Identity, MemberState)> = BTreeMap::new();
    for member in members {
        let state = match member.state() {
            State::Alive => MemberState::Alive,
            State::Suspect => MemberState::Suspect,
            State::Down => MemberState::Down,
        };
        // A node that moved to another address is known under both for a while: its latest life counts.
        let id = member.id();
        if latest.get(&id.node).is_none_or(|(other, _)| other.stamp < id.stamp) {
            latest.insert(id.node, (id, state));
        }
    }
    latest.insert(own.node, (own, MemberState::Alive));
    latest
        .into_values()
        .map(|(id, state)| {
            let same = before.iter().find(|hint| hint.node == id.node && hint.state == state);
            MemberHint {
                node: id.node,
                name: id.name.clone(),
                address: id.address,
                state,
                since: same.map_or(now, |hint| hint.since),
                load: loads.of(id.node).map(|news| news.load.clone()).unwrap_or_default(),
            }
        })
        .collect()
}
