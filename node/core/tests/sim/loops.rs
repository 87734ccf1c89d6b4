//! The loops of the daemon, as `node/src/loops`.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::failover::{Action, Observation, Policy, Position, Role, Seen, decide};
use quorate_core::lease::Lease;
use quorate_core::membership::{Step, next_step};
use quorate_types::{ClusterState, Epoch, NodeId, SyncSet};

use super::events::{Answer, Command, Ms, Msg, What};
use super::local::Kind;
use super::postgres::Mode;
use super::raft::Purpose;
use super::world::World;

const POLICY: Policy = Policy { silence: Duration::from_millis(600), promotion: Duration::from_secs(5) };
const LEASE: Duration = Duration::from_millis(600);
const OBSERVE: Ms = 100;
const OBSERVE_DEADLINE: Ms = 300;
const ROUND: Ms = 100;
const SYNC: Ms = 250;
const MEMBERS: Ms = 300;
/// A leader that no majority answered for so long is cut off.
const CUT_OFF: Ms = 700;
const FREEZE_LOST: Ms = 2000;
/// A standby that lacks no more records than this counts as caught up.
const LAG_MAX: usize = 20;
/// How long the confirming write may take (15 s in the real one).
const CONFIRM_LIMIT: Ms = 3000;

/// The newest answer of one member.
pub struct View {
    pub at: Ms,
    pub refused: bool,
    pub role: Role,
    pub epoch: Epoch,
    pub promised: Epoch,
    pub holder_heard: Option<Ms>,
}

/// What the failover loop remembers while its node leads Raft.
pub struct Leading {
    since_grant: Ms,
    current: Epoch,
    frozen: BTreeMap<NodeId, Position>,
    asked: BTreeMap<NodeId, Ms>,
    resigning: Option<(Epoch, Ms)>,
    granting: bool,
    round_at: Ms,
    /// When a majority last answered, and since when it does again after it was silent.
    heard: Ms,
    again: Ms,
}

impl Leading {
    pub fn new(now: Ms) -> Self {
        Self {
            since_grant: now,
            current: Epoch(0),
            frozen: BTreeMap::new(),
            asked: BTreeMap::new(),
            resigning: None,
            granting: false,
            round_at: 0,
            heard: now,
            again: 0,
        }
    }
}

/// The lease of the active node.
pub struct Holding {
    epoch: Epoch,
    began: Ms,
    lease: Lease,
    until: Ms,
    ask_at: Ms,
}

impl Holding {
    pub fn new(epoch: Epoch, now: Ms) -> Self {
        Self { epoch, began: now, lease: Lease::new(LEASE), until: now + LEASE.as_millis() as Ms, ask_at: 0 }
    }
}

impl World {
    // Looking.

    pub fn observe_tick(&mut self, id: NodeId) {
        let now = self.now;
        if now < self.nodes[&id].observe_at {
            return;
        }
        self.n(id).observe_at = now + OBSERVE;
        let peers = self.peers_of(id);
        let state = self.known(id);
        let node = self.n(id);
        node.views.retain(|peer, _| state.members.contains_key(peer));
        let own = View {
            at: now,
            refused: false,
            role: node.role,
            epoch: node.role_epoch,
            promised: node.promised,
            holder_heard: node.holder_heard(&state, now),
        };
        node.views.insert(id, own);
        for peer in peers {
            if self.nodes[&id].asking.get(&peer).is_some_and(|(_, at)| now < at + OBSERVE_DEADLINE) {
                continue;
            }
            let ask = self.fresh();
            self.n(id).asking.insert(peer, (ask, now));
            self.send(id, peer, Msg::Observe { id: ask });
        }
    }

    pub fn on_observe(&mut self, id: NodeId, from: NodeId, ask: u64) {
        let state = self.known(id);
        let node = &self.nodes[&id];
        let answer = Msg::Observed {
            id: ask,
            role: node.role,
            epoch: node.role_epoch,
            promised: node.promised,
            holder_heard: node.holder_heard(&state, self.now),
        };
        self.send(id, from, answer);
    }

    pub fn on_observed(&mut self, id: NodeId, from: NodeId, ask: u64, mut view: View) {
        let now = self.now;
        let node = self.n(id);
        if node.asking.get(&from).is_none_or(|(asked, at)| *asked != ask || now > at + OBSERVE_DEADLINE) {
            return;
        }
        node.asking.remove(&from);
        view.at = now;
        let news = node.views.get(&from).is_none_or(|old| {
            old.refused || (old.role, old.epoch, old.promised) != (view.role, view.epoch, view.promised)
        });
        node.views.insert(from, view);
        if news {
            self.round(id);
        }
    }

    pub fn on_refused(&mut self, id: NodeId, from: NodeId, ask: u64) {
        let node = self.n(id);
        if node.asking.get(&from).is_none_or(|(asked, _)| *asked != ask) {
            return;
        }
        node.asking.remove(&from);
        if let Some(view) = node.views.get_mut(&from).filter(|view| !view.refused) {
            view.refused = true;
            self.round(id);
        }
    }

    // Deciding.

    pub fn round_tick(&mut self, id: NodeId) {
        let now = self.now;
        if self.n(id).leading.as_mut().is_some_and(|leading| now >= leading.round_at) {
            self.round(id);
        }
    }

    /// As `Failover::may_decide`.
    pub fn hear_majority(&mut self, id: NodeId) {
        let (now, heard) = (self.now, self.has_majority(id));
        if let Some(leading) = self.n(id).leading.as_mut().filter(|_| heard) {
            if now > leading.heard + CUT_OFF {
                leading.again = now + POLICY.silence.as_millis() as Ms;
            }
            leading.heard = now;
        }
    }

    pub fn round(&mut self, id: NodeId) {
        let now = self.now;
        let state = self.known(id);
        let current = state.current().map(|record| record.epoch).unwrap_or_default();
        let one_less = self.knobs.need_one_less;
        let node = self.n(id);
        let Some(leading) = node.leading.as_mut().filter(|leading| !leading.granting) else { return };
        leading.round_at = now + ROUND;
        if now > leading.heard + CUT_OFF || now < leading.again {
            return;
        }
        if current != leading.current {
            leading.current = current;
            leading.since_grant = now;
            leading.frozen.clear();
            leading.asked.clear();
            leading.resigning = None;
        }
        leading.asked.retain(|_, at| now < *at + FREEZE_LOST);
        leading.resigning = leading.resigning.filter(|(_, at)| now < at + FREEZE_LOST);
        let ms = Duration::from_millis;
        let seen = |view: &View| Seen {
            silent_for: ms(now - view.at),
            refused: view.refused,
            role: view.role,
            epoch: view.epoch,
            promised: view.promised,
            holder_heard: view.holder_heard.map(ms),
        };
        let observation = Observation {
            leader: id,
            nodes: node.views.iter().map(|(peer, view)| (*peer, seen(view))).collect(),
            since_grant: ms(now - leading.since_grant),
            frozen: leading.frozen.clone(),
        };
        let mut counted = (*state).clone();
        if one_less {
            counted.sync.num_sync += 1;
        }
        let (reason, actions) = decide(&counted, &observation, &POLICY);
        if !actions.is_empty() {
            self.trace(|| format!("{id} decides: {reason}: {actions:?}"));
        }
        for action in actions {
            self.act(id, &state, action);
        }
    }

    fn act(&mut self, id: NodeId, state: &ClusterState, action: Action) {
        let now = self.now;
        match action {
            Action::Freeze { epoch, nodes } => {
                for node in nodes {
                    let Some(leading) = self.n(id).leading.as_mut() else { return };
                    if leading.asked.contains_key(&node) {
                        continue;
                    }
                    leading.asked.insert(node, now);
                    self.send_or_self(id, node, Msg::Freeze { epoch });
                }
            }
            Action::Grant { epoch, holder, parent, mut counted, .. } => {
                if self.knobs.need_one_less {
                    counted = state.sync.clone();
                }
                let Some(leading) = self.n(id).leading.as_mut() else { return };
                leading.granting = true;
                self.propose(id, Command::Grant { epoch, holder, parent, counted }, Purpose::Grant);
            }
            Action::Resign { node, epoch } => {
                let Some(leading) = self.n(id).leading.as_mut() else { return };
                if leading.resigning.is_none_or(|(asked, _)| asked != epoch) {
                    leading.resigning = Some((epoch, now));
                    self.send_or_self(id, node, Msg::Resign { epoch });
                }
            }
        }
    }

    pub fn on_frozen(&mut self, id: NodeId, from: NodeId, epoch: Epoch, position: Option<Position>) {
        let Some(leading) = self.n(id).leading.as_mut().filter(|l| l.current.next() == epoch) else { return };
        match position {
            Some(position) => {
                leading.frozen.insert(from, position);
                self.round(id);
            }
            None => self.after(100, id, What::AskAgain { node: from, epoch }),
        }
    }

    pub fn on_ask_again(&mut self, id: NodeId, node: NodeId, epoch: Epoch) {
        if let Some(leading) = self.n(id).leading.as_mut().filter(|l| l.current.next() == epoch) {
            leading.asked.remove(&node);
            self.round(id);
        }
    }

    pub fn proposal_ended(&mut self, id: NodeId, purpose: Purpose, answer: Answer) {
        match purpose {
            Purpose::Grant => {
                if let Some(leading) = self.n(id).leading.as_mut() {
                    leading.granting = false;
                }
                self.round(id);
            }
            Purpose::Open => self.open_ended(id, answer),
            Purpose::Sync => self.n(id).sync_busy = false,
            Purpose::Other => {}
        }
    }

    // The lease.

    pub fn lease_tick(&mut self, id: NodeId) {
        let now = self.now;
        let Some(holding) = self.n(id).lease.as_mut() else { return };
        let epoch = holding.epoch;
        if now >= holding.until {
            self.fence(id, "a majority was silent for too long");
        } else if now >= holding.ask_at {
            holding.ask_at = now + 100;
            for peer in self.peers_of(id) {
                self.send(id, peer, Msg::LeaseAsk { epoch, sent: now });
            }
            self.renew(id);
        }
    }

    pub fn on_lease_ask(&mut self, id: NodeId, from: NodeId, epoch: Epoch, sent: Ms) {
        let now = self.now;
        let node = self.n(id);
        let promised = node.promised;
        if epoch >= promised {
            node.holder_heard = Some((epoch, now));
        }
        self.send(id, from, Msg::LeaseAnswer { epoch, sent, promised });
    }

    pub fn on_lease_answer(&mut self, id: NodeId, from: NodeId, epoch: Epoch, sent: Ms, promised: Epoch) {
        let now = self.now;
        let Some(holding) = self.n(id).lease.as_mut().filter(|holding| holding.epoch == epoch) else { return };
        if now > sent + LEASE.as_millis() as Ms {
            return;
        }
        if promised > epoch {
            self.fence(id, "somebody promised a newer epoch");
            return;
        }
        let sent_at = Duration::from_millis(sent - holding.began);
        holding.lease.answered(from, sent_at);
        self.renew(id);
    }

    fn renew(&mut self, id: NodeId) {
        let (now, state) = (self.now, self.known(id));
        let Some(holding) = self.n(id).lease.as_mut() else { return };
        let voters = state.members.values().filter(|member| member.voter).map(|member| member.id);
        let until = holding.lease.until(id, voters, Duration::from_millis(now - holding.began));
        holding.until = holding.until.max(holding.began + until.as_millis() as Ms);
    }

    // The synchronous set.

    pub fn sync_tick(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.n(id);
        if node.confirming.as_ref().is_some_and(|(_, until)| now >= *until) {
            node.confirming = None;
            node.sync_busy = false;
        }
        if now < node.sync_at || node.sync_busy || node.serving.is_none() {
            return;
        }
        node.sync_at = now + SYNC;
        node.sync_busy = true;
        let state = self.known(id);
        let after = self.rng.range(1, 20);
        self.after(after, id, What::SyncLook { state });
    }

    pub fn on_sync_look(&mut self, id: NodeId, state: Rc<ClusterState>) {
        let node = self.n(id);
        node.sync_busy = false;
        let Some(epoch) = node.serving.filter(|_| node.pg.mode == Mode::Primary) else { return };
        let in_effect = node.pg.sync.clone();
        let close = |has: usize| has + LAG_MAX >= node.flushed;
        let caught_up: BTreeSet<NodeId> =
            node.pg.senders.iter().filter(|(_, s)| s.has > 0 && close(s.has)).map(|(peer, _)| *peer).collect();
        match next_step(&state, id, &in_effect, &caught_up) {
            None => {}
            Some(Step::SetPostgres(sync)) => {
                self.trace(|| format!("{id} makes commits wait for {sync:?}"));
                self.n(id).sync_busy = true;
                self.set_sync(id, &sync);
            }
            Some(Step::Agree(sync)) => {
                self.n(id).sync_busy = true;
                let command = Command::SetSync { epoch, expected: state.sync.clone(), sync: sync.clone() };
                if sync == in_effect && !self.knobs.agree_unconfirmed {
                    // What was acknowledged by the set before must be on the nodes that elections will hear.
                    let until = self.now + CONFIRM_LIMIT;
                    self.n(id).confirming = Some((command, until));
                    self.write(id, 0);
                } else {
                    self.propose(id, command, Purpose::Sync);
                }
            }
        }
    }

    /// The confirming write is on as many standbys as the new set asks for.
    pub fn confirmed(&mut self, id: NodeId) {
        if let Some((command, _)) = self.n(id).confirming.take() {
            self.propose(id, command, Purpose::Sync);
        }
    }

    pub fn on_sync_settled(&mut self, id: NodeId, server: u64) {
        let node = self.n(id);
        if node.pg.life == server {
            node.sync_busy = false;
            node.pg.sync_before = node.pg.sync.clone();
            if node.pg.sync.num_sync == 0 {
                let upto = node.flushed;
                self.acknowledge(id, upto);
            }
        }
    }

    // Membership.

    pub fn members_tick(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.n(id);
        let cut_off = node.leading.as_ref().is_none_or(|leading| now > leading.heard + CUT_OFF);
        if now < node.members_at || !node.voter.leads || cut_off {
            return;
        }
        node.members_at = now + MEMBERS;
        let state = self.known(id);
        let voter = state.members.values().find(|m| !m.voter && state.sync.members.contains(&m.id));
        let holder = state.current().map(|record| record.holder);
        let replaced = state.members.values().filter(|old| Some(old.id) != holder).find(|old| {
            let newer = |new: &&quorate_types::Member| new.id > old.id && new.address == old.address;
            state.members.values().any(|new| newer(&new))
        });
        let command = match (voter, replaced) {
            (Some(member), _) => Command::SetVoter(member.id),
            (None, Some(old)) => Command::RemoveMember(old.id),
            (None, None) => return,
        };
        self.propose(id, command, Purpose::Other);
    }

    /// For the trace: what a node is busy with.
    pub fn busy_with(&self, id: NodeId) -> &'static str {
        match self.nodes[&id].op.as_ref().map(|op| &op.kind) {
            None => "nothing",
            Some(Kind::Start) => "starting",
            Some(Kind::Report { .. }) => "reporting",
            Some(Kind::Promote { .. }) => "promoting",
            Some(Kind::Opening { .. }) => "opening",
            Some(Kind::Follow { .. } | Kind::StartFollowing { .. }) => "following",
            Some(Kind::Fetch { .. }) => "copying",
            Some(Kind::Resign { .. }) => "resigning",
            Some(Kind::Pause) => "pausing",
        }
    }

    /// Whether nobody has left or joined, and everybody stands in the agreed set.
    pub fn membership_rests(&self) -> bool {
        let state = self.latest();
        let ids: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        let full: SyncSet = super::raft::full_set(ids.iter().copied());
        let all_vote = state.members.values().all(|member| member.voter);
        state.sync == full && all_vote && state.members.keys().copied().collect::<BTreeSet<_>>() == ids
    }
}
