//! Raft as a register: one leader at a time can commit, and only with a majority. Whoever led before may still believe.

use std::rc::Rc;

use quorate_core::invariants::Fact;
use quorate_types::{ClusterState, EpochRecord, Member, NodeId, SyncSet};

use super::events::{Answer, Command, Ms, Msg, What};
use super::loops::Leading;
use super::world::World;

const HEARTBEAT: Ms = 50;
const ELECTION_MIN: Ms = 400;
const ELECTION_MAX: Ms = 700;
const PROPOSE_DEADLINE: Ms = 5000;
const LEADER_PAUSE: Ms = 50;

pub struct Raft {
    /// Every committed state, in order.
    pub log: Vec<Rc<ClusterState>>,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Entries that the leader has and a majority may lack.
    pub pending: Vec<Entry>,
}

#[derive(Clone)]
pub struct Entry {
    pub command: Command,
    pub origin: NodeId,
    pub id: u64,
}

/// What a proposer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Grant,
    Open,
    Sync,
    Other,
}

pub struct Proposal {
    pub command: Command,
    pub purpose: Purpose,
    pub deadline: Ms,
    /// When to try again; `None` while an answer is awaited.
    pub next_try: Option<Ms>,
}

/// What a node knows of Raft.
pub struct Voter {
    pub applied: usize,
    pub term: u64,
    pub leads: bool,
    pub hint: Option<NodeId>,
    pub heard: Ms,
    pub timeout: Ms,
    pub beat: Ms,
}

impl World {
    pub fn latest(&self) -> Rc<ClusterState> {
        self.raft.log[self.raft.log.len() - 1].clone()
    }

    pub fn known(&self, id: NodeId) -> Rc<ClusterState> {
        self.raft.log[self.nodes[&id].voter.applied].clone()
    }

    pub fn has_majority(&self, leader: NodeId) -> bool {
        let state = self.latest();
        let voters: Vec<NodeId> = state.members.values().filter(|m| m.voter).map(|m| m.id).collect();
        let heard = voters.iter().filter(|v| **v == leader || self.both_ways(leader, **v)).count();
        heard > voters.len() / 2
    }

    pub fn propose(&mut self, id: NodeId, command: Command, purpose: Purpose) {
        let proposal = self.fresh();
        let now = self.now;
        let deadline = now + PROPOSE_DEADLINE;
        self.n(id).proposals.insert(proposal, Proposal { command, purpose, deadline, next_try: None });
        self.try_propose(id, proposal);
    }

    fn try_propose(&mut self, id: NodeId, proposal: u64) {
        let node = &self.nodes[&id];
        let Some(command) = node.proposals.get(&proposal).map(|p| p.command.clone()) else { return };
        if node.voter.leads {
            self.append(id, Entry { command, origin: id, id: proposal });
        } else if let Some(leader) = node.voter.hint {
            self.send(id, leader, Msg::Propose { id: proposal, command });
        } else {
            let next = self.now + LEADER_PAUSE;
            if let Some(p) = self.n(id).proposals.get_mut(&proposal) {
                p.next_try = Some(next);
            }
        }
    }

    /// A node that believes to lead takes an entry; nothing comes of it if it is wrong.
    pub fn append(&mut self, id: NodeId, entry: Entry) {
        if self.raft.leader == Some(id) {
            self.raft.pending.push(entry);
            let (after, term) = (self.rng.range(2, 12), self.raft.term);
            self.after(after, id, What::Commit { term });
        }
    }

    pub fn on_propose(&mut self, id: NodeId, from: NodeId, proposal: u64, command: Command) {
        if self.nodes[&id].voter.leads {
            self.append(id, Entry { command, origin: from, id: proposal });
        } else {
            self.send(id, from, Msg::Proposed { id: proposal, answer: Answer::NotLeader });
        }
    }

    pub fn on_proposed(&mut self, id: NodeId, proposal: u64, answer: Answer) {
        let next = self.now + LEADER_PAUSE;
        let Some(waiting) = self.n(id).proposals.get_mut(&proposal) else { return };
        if answer == Answer::NotLeader {
            waiting.next_try = Some(next);
            return;
        }
        let purpose = waiting.purpose;
        self.n(id).proposals.remove(&proposal);
        self.proposal_ended(id, purpose, answer);
    }

    pub fn on_commit(&mut self, id: NodeId, term: u64) {
        if self.raft.leader != Some(id) || self.raft.term != term || self.raft.pending.is_empty() {
            return;
        }
        if !self.has_majority(id) {
            self.after(50, id, What::Commit { term });
            return;
        }
        for entry in std::mem::take(&mut self.raft.pending) {
            let answer = self.apply(&entry.command);
            self.trace(|| format!("raft commits {:?} for {}: {answer:?}", entry.command, entry.origin));
            if let Command::Barrier = entry.command {
                let state = self.raft.log.len() - 1;
                self.learn(id, state);
                if entry.origin == id && self.nodes[&id].voter.leads {
                    let now = self.now;
                    self.n(id).leading = Some(Leading::new(now));
                }
            } else if entry.origin == id {
                self.learn(id, self.raft.log.len() - 1);
                self.on_proposed(id, entry.id, answer);
            } else {
                self.send(id, entry.origin, Msg::Proposed { id: entry.id, answer });
            }
        }
        self.learn(id, self.raft.log.len() - 1);
        self.beat(id);
    }

    fn beat(&mut self, id: NodeId) {
        let (term, commit) = (self.nodes[&id].voter.term, self.nodes[&id].voter.applied);
        for peer in self.peers_of(id) {
            self.send(id, peer, Msg::Heartbeat { term, commit });
        }
    }

    pub fn on_heartbeat(&mut self, id: NodeId, from: NodeId, term: u64, commit: usize) {
        let now = self.now;
        let node = self.n(id);
        if term < node.voter.term {
            let term = node.voter.term;
            self.send(id, from, Msg::Newer { term });
            return;
        }
        node.voter.term = term;
        node.voter.heard = now;
        node.voter.hint = Some(from);
        self.step_down(id);
        self.learn(id, commit);
    }

    pub fn on_newer(&mut self, id: NodeId, term: u64) {
        if term > self.nodes[&id].voter.term {
            self.n(id).voter.term = term;
            self.step_down(id);
        }
    }

    fn step_down(&mut self, id: NodeId) {
        let node = self.n(id);
        if node.voter.leads {
            node.voter.leads = false;
            node.leading = None;
        }
    }

    fn learn(&mut self, id: NodeId, index: usize) {
        if index > self.nodes[&id].voter.applied {
            self.n(id).voter.applied = index;
            self.step(id);
            self.round(id);
        }
    }

    pub fn raft_tick(&mut self, id: NodeId) {
        let now = self.now;
        let voter = &self.nodes[&id].voter;
        if voter.leads {
            if now >= voter.beat {
                self.n(id).voter.beat = now + HEARTBEAT;
                self.hear_majority(id);
                self.beat(id);
            }
        } else if now > voter.heard + voter.timeout {
            self.stand(id);
        }
        let due: Vec<(u64, bool)> = self.nodes[&id]
            .proposals
            .iter()
            .filter(|(_, p)| now >= p.deadline || p.next_try.is_some_and(|at| now >= at))
            .map(|(proposal, p)| (*proposal, now >= p.deadline))
            .collect();
        for (proposal, over) in due {
            if over {
                self.on_proposed(id, proposal, Answer::Unknown);
            } else {
                if let Some(p) = self.n(id).proposals.get_mut(&proposal) {
                    p.next_try = None;
                }
                self.try_propose(id, proposal);
            }
        }
    }

    /// Stands for election; votes are given at once by whoever can be reached.
    fn stand(&mut self, id: NodeId) {
        let (now, timeout) = (self.now, self.rng.range(ELECTION_MIN, ELECTION_MAX));
        self.n(id).voter.heard = now;
        self.n(id).voter.timeout = timeout;
        let state = self.latest();
        let voters: Vec<NodeId> = state.members.values().filter(|m| m.voter).map(|m| m.id).collect();
        if !voters.contains(&id) {
            return;
        }
        let grants = |world: &Self, v: NodeId| {
            if !world.nodes.contains_key(&v) {
                return false;
            }
            let voter = &world.nodes[&v].voter;
            v == id || (world.both_ways(id, v) && !voter.leads && now >= voter.heard + ELECTION_MIN)
                // An old leader without a majority gives way to a newer term.
                || (world.both_ways(id, v) && voter.leads && world.raft.leader != Some(v))
        };
        let given: Vec<NodeId> = voters.iter().copied().filter(|v| grants(self, *v)).collect();
        if given.len() <= voters.len() / 2 {
            return;
        }
        let term = self.raft.term + 1;
        self.trace(|| format!("{id} leads raft in term {term}"));
        for voter in given {
            let node = self.n(voter);
            node.voter.term = term;
            node.voter.heard = now;
            node.voter.hint = Some(id);
            self.step_down(voter);
        }
        // Some of what the old leader had appended is on the new one, and will be committed with its first entry.
        let kept = self.rng.range(0, self.raft.pending.len() as u64) as usize;
        self.raft.pending.truncate(kept);
        self.raft.term = term;
        self.raft.leader = Some(id);
        self.n(id).voter.leads = true;
        self.append(id, Entry { command: Command::Barrier, origin: id, id: 0 });
        self.beat(id);
    }

    /// As `quorate_consensus::machine`.
    fn apply(&mut self, command: &Command) -> Answer {
        let mut state = (*self.latest()).clone();
        let current = state.current().map(|record| record.epoch).unwrap_or_default();
        match command {
            Command::Barrier => {}
            Command::Grant { epoch, holder, parent, counted } => {
                let in_turn = *epoch == current.next() && parent < epoch && state.members.contains_key(holder);
                if !in_turn || *counted != state.sync {
                    return Answer::Refused;
                }
                let (epoch, holder, parent) = (*epoch, *holder, *parent);
                let record = EpochRecord { epoch, holder, parent, reason: String::new(), opened: None };
                state.epochs.insert(epoch, record);
                self.fact(Fact::Granted { epoch, holder });
            }
            Command::Open { epoch, holder, opened } => {
                let Some(record) = state.epochs.get_mut(epoch).filter(|r| *epoch == current && r.holder == *holder)
                else {
                    return Answer::Refused;
                };
                if record.opened.is_some_and(|before| before != *opened) {
                    return Answer::Refused;
                }
                record.opened = Some(*opened);
                state.switchover_to = None;
                let writes = self.opened_with.get(epoch).cloned().unwrap_or_default();
                self.fact(Fact::Opened { epoch: *epoch, writes });
            }
            Command::SetSync { epoch, expected, sync } => {
                let known = |node: &NodeId| state.members.contains_key(node) || expected.members.contains(node);
                let sound = sync.num_sync < sync.members.len() && sync.members.iter().all(known);
                if *epoch != current || state.sync != *expected || !sound {
                    return Answer::Refused;
                }
                state.sync = sync.clone();
                self.fact(Fact::SyncAgreed { sync: sync.clone() });
            }
            Command::SetVoter(id) => match state.members.get_mut(id) {
                Some(member) => member.voter = true,
                None => return Answer::Refused,
            },
            Command::RemoveMember(id) => {
                if state.current().is_some_and(|record| record.holder == *id) || state.members.remove(id).is_none() {
                    return Answer::Refused;
                }
                if state.switchover_to == Some(*id) {
                    state.switchover_to = None;
                }
            }
            Command::Admit { id, address } => {
                state.members.insert(*id, member(*id, *address, false));
            }
            Command::SetSwitchover(to) => {
                if !state.members.contains_key(to) {
                    return Answer::Refused;
                }
                state.switchover_to = Some(*to);
            }
        }
        self.raft.log.push(Rc::new(state));
        Answer::Done
    }
}

pub fn member(id: NodeId, address: std::net::IpAddr, voter: bool) -> Member {
    Member { id, name: id.to_string(), address, public_key_sha256: String::new(), voter }
}

pub fn full_set(ids: impl Iterator<Item = NodeId>) -> SyncSet {
    let members: std::collections::BTreeSet<NodeId> = ids.collect();
    SyncSet { num_sync: quorate_core::membership::num_sync(members.len()), members }
}
