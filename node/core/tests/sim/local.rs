//! A node's own part, as `node/src/local`: promises, and the task that moves PostgreSQL.

use std::rc::Rc;

use quorate_core::failover::Role;
use quorate_core::invariants::Fact;
use quorate_core::rejoin::{Return, how_to_return};
use quorate_core::standing::{Standing, standing};
use quorate_types::cluster::Opened;
use quorate_types::{ClusterState, Epoch, NodeId, TimelineId};

use super::events::{Answer, Command, Ms, Msg, Rec};
use super::postgres::Mode;
use super::raft::Purpose;
use super::world::World;

const STEP: Ms = 250;
const OPEN_LIMIT: Ms = 10_000;
const FETCH_LIMIT: Ms = 3000;
const PAUSE_AFTER_FAILURE: Ms = 500;

/// A long operation; it holds the lock of the moving task.
pub struct Op {
    pub id: u64,
    pub kind: Kind,
}

pub enum Kind {
    Start,
    Report {
        to: NodeId,
        epoch: Epoch,
    },
    Promote {
        state: Rc<ClusterState>,
        epoch: Epoch,
    },
    /// It is not known yet whether everybody else knows.
    Opening {
        epoch: Epoch,
        opened: Opened,
        until: Ms,
        answered: bool,
    },
    Follow {
        state: Rc<ClusterState>,
        epoch: Epoch,
        holder: NodeId,
    },
    /// Rewinds or copies.
    Fetch {
        epoch: Epoch,
        holder: NodeId,
        until: Ms,
        asked: bool,
    },
    StartFollowing {
        epoch: Epoch,
        holder: NodeId,
    },
    Resign {
        epoch: Epoch,
    },
    Pause,
}

impl Op {
    /// Whether PostgreSQL may stream meanwhile.
    pub fn streams(&self) -> bool {
        matches!(self.kind, Kind::Pause | Kind::Start | Kind::Resign { .. })
    }
}

impl World {
    pub fn set_role(&mut self, id: NodeId, role: Role, epoch: Epoch) {
        let node = self.n(id);
        if (node.role, node.role_epoch) != (role, epoch) {
            node.role = role;
            node.role_epoch = epoch;
            self.trace(|| format!("{id} is {role:?} in epoch {epoch}"));
        }
    }

    fn begin(&mut self, id: NodeId, kind: Kind, least: Ms, most: Ms) {
        let op = self.fresh();
        let after = self.rng.range(least, most);
        self.n(id).op = Some(Op { id: op, kind });
        self.after(after, id, super::events::What::Op { op });
    }

    fn again(&mut self, id: NodeId, after: Ms) {
        if let Some(op) = self.nodes[&id].op.as_ref().map(|op| op.id) {
            self.after(after, id, super::events::What::Op { op });
        }
    }

    /// The lock is free again: whoever waits for it goes first.
    fn done(&mut self, id: NodeId) {
        self.n(id).op = None;
        if let Some((to, epoch)) = self.n(id).reports.pop_front() {
            self.report(id, to, epoch);
        } else {
            self.step(id);
        }
    }

    pub fn step_tick(&mut self, id: NodeId) {
        if self.now >= self.nodes[&id].step_at {
            self.n(id).step_at = self.now + STEP;
            self.step(id);
        }
    }

    pub fn step(&mut self, id: NodeId) {
        if self.nodes[&id].op.is_some() {
            return;
        }
        let state = self.known(id);
        let node = &self.nodes[&id];
        let promised = if self.knobs.old_epoch_accepted { Epoch(0) } else { node.promised };
        match standing(&state, id, promised, node.serving) {
            Standing::Serve { epoch } => self.set_role(id, Role::Active, epoch),
            Standing::Promote { epoch } => {
                self.n(id).following = None;
                self.set_role(id, Role::Promoting, epoch);
                if self.nodes[&id].has_data {
                    self.start_server(id);
                    self.begin(id, Kind::Promote { state, epoch }, 20, 150);
                } else {
                    self.give_up(id, epoch);
                    self.begin(id, Kind::Pause, PAUSE_AFTER_FAILURE, PAUSE_AFTER_FAILURE);
                }
            }
            Standing::Follow { epoch, holder } => {
                self.leave_service(id);
                let node = &self.nodes[&id];
                if node.following == Some((holder, epoch)) && node.pg.mode == Mode::Standby {
                    self.set_role(id, Role::Standby, epoch);
                } else if self.nodes[&id].has_data {
                    self.start_server(id);
                    self.begin(id, Kind::Follow { state, epoch, holder }, 5, 80);
                } else {
                    self.fetch(id, epoch, holder);
                }
            }
            Standing::Wait => {
                self.leave_service(id);
                let epoch = state.current().map(|record| record.epoch).unwrap_or_default();
                let node = self.n(id);
                node.following = None;
                let left = matches!(node.role, Role::Resigned | Role::Fenced) && node.role_epoch == epoch;
                if node.has_data && node.pg.mode == Mode::Stopped {
                    self.begin(id, Kind::Start, 20, 150);
                }
                if !left {
                    self.set_role(id, Role::Standby, Epoch(0));
                }
            }
        }
    }

    fn leave_service(&mut self, id: NodeId) {
        if self.nodes[&id].serving.is_some() {
            self.fence(id, "its epoch is over");
        }
    }

    pub fn end_service(&mut self, id: NodeId) -> Option<Epoch> {
        let epoch = self.n(id).serving.take()?;
        self.n(id).lease = None;
        self.fact(Fact::ServiceEnded { node: id, epoch });
        self.fact(Fact::AddressLeft { node: id });
        Some(epoch)
    }

    pub fn fence(&mut self, id: NodeId, why: &str) {
        if let Some(epoch) = self.end_service(id) {
            self.trace(|| format!("{id} fences itself in epoch {epoch}: {why}"));
            self.set_role(id, Role::Fenced, epoch);
            self.kill_server(id, false);
        }
    }

    fn give_up(&mut self, id: NodeId, epoch: Epoch) {
        self.kill_server(id, false);
        self.set_role(id, Role::Fenced, epoch);
    }

    pub fn on_freeze(&mut self, id: NodeId, from: NodeId, epoch: Epoch) {
        if epoch > self.nodes[&id].promised {
            self.n(id).promised = epoch;
            self.fact(Fact::Promised { node: id, epoch });
        }
        if !self.knobs.skip_freeze {
            self.leave_below(id, epoch);
        }
        if self.nodes[&id].serving.is_some_and(|serving| serving < epoch) {
            self.fence(id, "a newer epoch was promised");
        }
        if self.nodes[&id].op.is_some() {
            self.n(id).reports.push_back((from, epoch));
        } else {
            self.report(id, from, epoch);
        }
    }

    fn report(&mut self, id: NodeId, to: NodeId, epoch: Epoch) {
        let node = &self.nodes[&id];
        if node.promised != epoch || !node.has_data {
            self.send(id, to, Msg::Frozen { epoch, position: None });
            return self.done(id);
        }
        self.n(id).following = None;
        self.start_server(id);
        if !self.knobs.skip_freeze {
            self.close_upstream(id);
        }
        self.begin(id, Kind::Report { to, epoch }, 8, 60);
    }

    pub fn on_resign(&mut self, id: NodeId, epoch: Epoch) {
        if self.nodes[&id].serving == Some(epoch) && self.nodes[&id].op.is_none() {
            self.set_role(id, Role::Resigned, epoch);
            self.end_service(id);
            let pg = &mut self.n(id).pg;
            pg.stopping = true;
            pg.waiting.clear();
            self.begin(id, Kind::Resign { epoch }, 10, 100);
        }
    }

    pub fn on_op(&mut self, id: NodeId, op: u64) {
        if self.nodes[&id].op.as_ref().is_none_or(|current| current.id != op) {
            return;
        }
        let Some(current) = self.n(id).op.take() else { return };
        match current.kind {
            Kind::Pause => self.done(id),
            Kind::Start => {
                self.start_server(id);
                self.done(id);
            }
            Kind::Resign { epoch } => {
                self.trace(|| format!("{id} has handed epoch {epoch} over"));
                let node = self.n(id);
                node.flushed = node.wal.len();
                self.kill_server(id, false);
                self.done(id);
            }
            Kind::Report { to, epoch } => {
                let node = self.n(id);
                node.flushed = node.wal.len();
                let position = self.position(id);
                self.trace(|| format!("{id} reports {position:?} for epoch {epoch}"));
                self.send(id, to, Msg::Frozen { epoch, position: Some(position) });
                self.done(id);
            }
            // It died before the epoch was open. Where the epoch left its parent cannot be told any more.
            Kind::Promote { epoch, .. } if self.position(id).lineage == epoch => {
                self.give_up(id, epoch);
                self.done(id);
            }
            Kind::Promote { state, epoch } => {
                let start = self.promote_server(id, epoch, &state.sync);
                let opened = Opened { timeline: TimelineId(1), start };
                let until = self.now + OPEN_LIMIT;
                self.n(id).op = Some(Op { id: op, kind: Kind::Opening { epoch, opened, until, answered: false } });
                self.propose(id, Command::Open { epoch, holder: id, opened }, Purpose::Open);
                self.again(id, 5);
            }
            Kind::Opening { epoch, opened, until, answered } => {
                let state = self.known(id);
                let open = state.epochs.get(&epoch).is_some_and(|r| r.opened == Some(opened) && r.holder == id);
                if answered && open && self.nodes[&id].promised <= epoch {
                    let now = self.now;
                    let node = self.n(id);
                    node.serving = Some(epoch);
                    node.lease = Some(super::loops::Holding::new(epoch, now));
                    node.sync_busy = false;
                    node.confirming = None;
                    self.fact(Fact::ServiceBegan { node: id, epoch });
                    self.fact(Fact::AddressTaken { node: id });
                    self.set_role(id, Role::Active, epoch);
                    self.done(id);
                } else if (answered && open) || self.now >= until {
                    self.give_up(id, epoch);
                    self.done(id);
                } else {
                    self.n(id).op = Some(Op { id: op, kind: Kind::Opening { epoch, opened, until, answered } });
                    self.again(id, 5);
                }
            }
            Kind::Follow { state, epoch, holder } => match how_to_return(&state, epoch, self.position(id)) {
                Return::Follow => {
                    self.lead_upstream(id, holder, epoch);
                    self.followed(id, epoch, holder);
                }
                Return::Rewind => {
                    self.trace(|| format!("{id} rewinds to follow epoch {epoch}"));
                    self.fetch(id, epoch, holder);
                }
                Return::Clone => self.fetch(id, epoch, holder),
            },
            Kind::Fetch { epoch, holder, until, asked } => {
                if self.nodes[&id].upstream != Some((holder, epoch)) || self.now >= until {
                    self.begin(id, Kind::Pause, PAUSE_AFTER_FAILURE, PAUSE_AFTER_FAILURE);
                    return;
                }
                if !asked {
                    self.send(id, holder, Msg::Fetch { op, epoch });
                }
                self.n(id).op = Some(Op { id: op, kind: Kind::Fetch { epoch, holder, until, asked: true } });
                self.again(id, 300);
            }
            Kind::StartFollowing { epoch, holder } => {
                self.n(id).has_data = true;
                self.start_server(id);
                self.lead_upstream(id, holder, epoch);
                self.followed(id, epoch, holder);
            }
        }
    }

    fn followed(&mut self, id: NodeId, epoch: Epoch, holder: NodeId) {
        self.set_role(id, Role::Standby, epoch);
        self.n(id).following = Some((holder, epoch));
        self.done(id);
    }

    fn fetch(&mut self, id: NodeId, epoch: Epoch, holder: NodeId) {
        self.set_role(id, Role::Cloning, epoch);
        // The old data must not stream meanwhile: what it would acknowledge is not in the copy.
        self.kill_server(id, false);
        self.lead_upstream(id, holder, epoch);
        let until = self.now + FETCH_LIMIT;
        self.begin(id, Kind::Fetch { epoch, holder, until, asked: false }, 100, 600);
    }

    pub fn on_fetch(&mut self, id: NodeId, from: NodeId, op: u64, epoch: Epoch) {
        let node = &self.nodes[&id];
        if node.reign == Some(epoch) && node.pg.mode == Mode::Primary {
            let wal = node.wal[..node.flushed].into();
            self.send(id, from, Msg::Fetched { op, wal });
        }
    }

    pub fn on_fetched(&mut self, id: NodeId, op: u64, wal: &[Rec]) {
        let node = &self.nodes[&id];
        let Some(Op { id: current, kind: Kind::Fetch { epoch, holder, .. } }) = &node.op else { return };
        let (current, epoch, holder) = (*current, *epoch, *holder);
        // The way to the primary was cut: the copy is not finished.
        if current != op || node.upstream != Some((holder, epoch)) {
            return;
        }
        self.kill_server(id, false);
        let broken = self.rng.permille(500);
        let node = self.n(id);
        node.wal = wal.to_vec();
        node.flushed = wal.len();
        // A rewind leaves a broken directory when it is interrupted, a copy a complete old one or new one.
        node.has_data = !broken;
        self.begin(id, Kind::StartFollowing { epoch, holder }, 20, 100);
    }

    pub fn open_ended(&mut self, id: NodeId, answer: Answer) {
        let Some(Op { kind: Kind::Opening { epoch, answered, .. }, .. }) = &mut self.n(id).op else { return };
        let epoch = *epoch;
        *answered = true;
        if answer == Answer::Refused {
            self.give_up(id, epoch);
            self.n(id).op = None;
            self.done(id);
        }
    }
}
