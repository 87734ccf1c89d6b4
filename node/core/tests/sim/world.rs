//! Nodes, network, clock and queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use quorate_core::failover::Role;
use quorate_core::invariants::{Event, Fact, Violation, violations};
use quorate_types::cluster::Opened;
use quorate_types::{ClusterState, Epoch, EpochRecord, Lsn, NodeId, TimelineId};

use super::events::{Command, Knobs, Ms, Msg, Outside, Rec, What};
use super::local::Op;
use super::loops::{Holding, Leading, View};
use super::postgres::Server;
use super::raft::{Proposal, Raft, Voter, full_set, member};
use super::rng::Rng;

/// How long faults come.
const CHAOS: Ms = 14_000;
/// How long the cluster may then take until writes are acknowledged again: a promotion that hangs is given up after 5 s
/// and a proposal after 5 s, and both may come in turn.
const HEALS: Ms = 40_000;
/// Acknowledged writes in a row that end a schedule.
const ENOUGH: usize = 10;
const TICK: Ms = 20;

pub struct Node {
    pub address: std::net::IpAddr,
    pub up: bool,
    /// The machine is off: nobody refuses anything.
    pub dark: bool,
    pub life: u32,
    pub asleep_until: Ms,
    // On disk.
    pub promised: Epoch,
    pub wal: Vec<Rec>,
    pub flushed: usize,
    pub has_data: bool,
    // In memory.
    pub voter: Voter,
    pub role: Role,
    pub role_epoch: Epoch,
    pub serving: Option<Epoch>,
    pub holder_heard: Option<(Epoch, Ms)>,
    pub floor: Epoch,
    pub upstream: Option<(NodeId, Epoch)>,
    pub following: Option<(NodeId, Epoch)>,
    pub followed: Epoch,
    pub reign: Option<Epoch>,
    pub pg: Server,
    pub op: Option<Op>,
    pub reports: VecDeque<(NodeId, Epoch)>,
    pub views: BTreeMap<NodeId, View>,
    pub asking: BTreeMap<NodeId, (u64, Ms)>,
    pub leading: Option<Leading>,
    pub lease: Option<Holding>,
    pub proposals: BTreeMap<u64, Proposal>,
    pub sync_busy: bool,
    pub confirming: Option<(Command, Ms)>,
    pub step_at: Ms,
    pub observe_at: Ms,
    pub sync_at: Ms,
    pub members_at: Ms,
}

impl Node {
    pub fn new(address: std::net::IpAddr, applied: usize, now: Ms) -> Self {
        Self {
            address,
            up: true,
            dark: false,
            life: 0,
            asleep_until: 0,
            promised: Epoch(0),
            wal: Vec::new(),
            flushed: 0,
            has_data: false,
            voter: Voter { applied, term: 0, leads: false, hint: None, heard: now, timeout: 500, beat: 0 },
            role: Role::Starting,
            role_epoch: Epoch(0),
            serving: None,
            holder_heard: None,
            floor: Epoch(0),
            upstream: None,
            following: None,
            followed: Epoch(0),
            reign: None,
            pg: Server::new(),
            op: None,
            reports: VecDeque::new(),
            views: BTreeMap::new(),
            asking: BTreeMap::new(),
            leading: None,
            lease: None,
            proposals: BTreeMap::new(),
            sync_busy: false,
            confirming: None,
            step_at: 0,
            observe_at: 0,
            sync_at: 0,
            members_at: 0,
        }
    }

    /// The same node after it started again.
    pub fn reborn(&mut self, now: Ms) {
        let old = std::mem::replace(self, Self::new(self.address, self.voter.applied, now));
        self.life = old.life;
        self.promised = old.promised;
        self.floor = old.promised;
        self.wal = old.wal;
        self.flushed = old.flushed;
        self.has_data = old.has_data;
        self.voter.term = old.voter.term;
    }

    pub fn holder_heard(&self, state: &ClusterState, now: Ms) -> Option<Ms> {
        let current = state.current()?.epoch;
        self.holder_heard.filter(|(epoch, _)| *epoch == current).map(|(_, at)| now - at)
    }
}

pub struct World {
    pub now: Ms,
    pub rng: Rng,
    pub knobs: Knobs,
    pub nodes: BTreeMap<NodeId, Node>,
    pub raft: Raft,
    /// One-way cuts.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub loss: u64,
    pub delay: Ms,
    pub history: Vec<Event>,
    pub acknowledged: Vec<Ms>,
    pub opened_with: BTreeMap<Epoch, BTreeSet<u64>>,
    pub own_violation: Option<Violation>,
    pub chaos_until: Ms,
    pub quiet: bool,
    pub last_write: u64,
    pub next_id: u64,
    pub wakes: Vec<(Ms, NodeId)>,
    pub joining: Vec<(NodeId, std::net::IpAddr)>,
    queue: BTreeMap<(Ms, u64), Item>,
    steps: u64,
    fresh: u64,
    trace: Option<Vec<String>>,
}

enum Item {
    Of(NodeId, u32, What),
    Outside(Outside),
}

/// How a schedule ended.
pub struct Outcome {
    pub violations: Vec<Violation>,
    /// Gaps between acknowledged writes that hold a change of the active node.
    pub failovers: Vec<Ms>,
    pub acknowledged: usize,
    pub epochs: u64,
    pub trace: Vec<String>,
}

/// Runs the schedule of a seed.
pub fn run(seed: u64, knobs: Knobs, with_trace: bool) -> Outcome {
    let mut rng = Rng(seed);
    let size = if rng.permille(600) { 3 } else { 5 };
    let grows = rng.permille(250);
    let mut world = World::new(rng, knobs, size, grows, with_trace);
    let mut healed = false;
    while let Some(((at, _), item)) = world.queue.pop_first() {
        world.now = at;
        world.tell_of_wakes();
        world.happen(item);
        if world.own_violation.is_some() {
            break;
        }
        if world.quiet && !healed {
            let since = world.acknowledged.iter().rev().take_while(|at| **at > world.chaos_until + 3000).count();
            healed = since >= ENOUGH && world.one_active() && world.membership_rests();
            if healed {
                world.finish();
                break;
            }
        }
        if at > world.chaos_until + HEALS {
            break;
        }
    }
    let mut found: Vec<Violation> = world.own_violation.take().into_iter().collect();
    found.extend(violations(&world.history));
    if !healed && found.is_empty() {
        found.push(Violation {
            invariant: "IT_HEALS",
            at: Duration::from_millis(world.now),
            story: format!("no service within {HEALS} ms after the last fault: {}", world.overview()),
        });
    }
    Outcome {
        violations: found,
        failovers: world.failovers(),
        acknowledged: world.acknowledged.len(),
        epochs: world.latest().current().map_or(0, |record| record.epoch.0),
        trace: world.trace.take().unwrap_or_default(),
    }
}

impl World {
    fn new(rng: Rng, knobs: Knobs, size: u64, grows: bool, with_trace: bool) -> Self {
        let first = if grows { 1 } else { size };
        let address = |id: u64| std::net::IpAddr::from([10, 0, 0, id as u8]);
        let ids = || (1..=first).map(NodeId);
        let opened = Some(Opened { timeline: TimelineId(1), start: Lsn(0) });
        let record =
            EpochRecord { epoch: Epoch(1), holder: NodeId(1), parent: Epoch(0), reason: String::new(), opened };
        let state = ClusterState {
            cluster_id: "simulated".into(),
            members: ids().map(|id| (id, member(id, address(id.0), true))).collect(),
            epochs: [(Epoch(1), record)].into(),
            sync: full_set(ids()),
            switchover_to: None,
        };
        let mut world = Self {
            now: 0,
            rng,
            knobs,
            nodes: BTreeMap::new(),
            raft: Raft { log: vec![state.into()], leader: None, term: 0, pending: Vec::new() },
            cut: BTreeSet::new(),
            loss: 0,
            delay: 3,
            history: Vec::new(),
            acknowledged: Vec::new(),
            opened_with: BTreeMap::new(),
            own_violation: None,
            chaos_until: CHAOS,
            quiet: false,
            last_write: 0,
            next_id: size + 1,
            wakes: Vec::new(),
            joining: Vec::new(),
            queue: BTreeMap::new(),
            steps: 0,
            fresh: 1,
            trace: with_trace.then(Vec::new),
        };
        let sync = world.latest().sync.clone();
        world.fact(Fact::SyncAgreed { sync });
        world.fact(Fact::Granted { epoch: Epoch(1), holder: NodeId(1) });
        for id in 1..=size {
            let mut node = Node::new(address(id), 0, 0);
            if id <= first {
                node.promised = Epoch(1);
                node.floor = Epoch(1);
                node.wal = vec![Rec { epoch: Epoch(1), write: 0 }];
                node.flushed = 1;
                node.has_data = true;
            }
            node.voter.timeout = world.rng.range(400, 700);
            world.nodes.insert(NodeId(id), node);
            let phase = world.rng.range(0, TICK);
            world.after(phase, NodeId(id), What::Tick);
            if id > first {
                world.admit(NodeId(id), address(id));
            }
        }
        world.outside(500, Outside::Write);
        world.outside(2500, Outside::Fault);
        world.outside(CHAOS, Outside::Heal);
        world
    }

    pub fn n(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this world")
    }

    pub fn fresh(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    pub fn fact(&mut self, fact: Fact) {
        if !matches!(
            fact,
            Fact::WriteBegan { .. } | Fact::Opened { .. } | Fact::Shown { .. } | Fact::Acknowledged { .. }
        ) {
            self.trace(|| format!("{fact:?}"));
        }
        self.history.push(Event { at: Duration::from_millis(self.now), fact });
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6} {}", self.now, line()));
        }
    }

    pub fn after(&mut self, after: Ms, id: NodeId, what: What) {
        let life = self.nodes[&id].life;
        self.put(after, Item::Of(id, life, what));
    }

    pub fn outside(&mut self, after: Ms, what: Outside) {
        self.put(after, Item::Outside(what));
    }

    fn put(&mut self, after: Ms, item: Item) {
        self.steps += 1;
        self.queue.insert((self.now + after, self.steps), item);
    }

    pub fn awake(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.up && self.now >= node.asleep_until)
    }

    pub fn both_ways(&self, a: NodeId, b: NodeId) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a)) && self.awake(a) && self.awake(b)
    }

    /// Everybody else whom the node knows as a member, and who exists.
    pub fn peers_of(&self, id: NodeId) -> Vec<NodeId> {
        let state = self.known(id);
        state.members.keys().copied().filter(|peer| *peer != id && self.nodes.contains_key(peer)).collect()
    }

    pub fn send_or_self(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        if from == to {
            self.after(1, to, What::Message { from, msg });
        } else {
            self.send(from, to, msg);
        }
    }

    pub fn send(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        let Some(target) = self.nodes.get(&to) else { return };
        let (up, dark, life) = (target.up, target.dark, target.life);
        if self.cut.contains(&(from, to)) || self.rng.permille(self.loss) {
            return;
        }
        // A few are much later than the others.
        let most = if self.rng.permille(10) { self.delay * 30 } else { self.delay };
        let after = self.rng.range(1, most);
        if up {
            self.put(after, Item::Of(to, life, What::Message { from, msg }));
        } else if let (Msg::Observe { id }, false, false) = (msg, dark, self.cut.contains(&(to, from))) {
            self.after(after, from, What::Message { from: to, msg: Msg::ObserveRefused { id } });
        }
    }

    fn happen(&mut self, item: Item) {
        match item {
            Item::Outside(what) => self.on_outside(what),
            Item::Of(id, life, what) => {
                let Some(node) = self.nodes.get(&id).filter(|node| node.up && node.life == life) else { return };
                if self.now < node.asleep_until {
                    let after = node.asleep_until - self.now;
                    self.put(after, Item::Of(id, life, what));
                    return;
                }
                self.on(id, what);
            }
        }
    }

    fn on(&mut self, id: NodeId, what: What) {
        match what {
            What::Tick => {
                self.after(TICK, id, What::Tick);
                self.lease_tick(id);
                self.raft_tick(id);
                self.server_tick(id);
                self.step_tick(id);
                self.observe_tick(id);
                self.round_tick(id);
                self.sync_tick(id);
                self.members_tick(id);
            }
            What::Message { from, msg } => self.on_message(id, from, msg),
            What::FlushedHere { server, upto } => self.on_flushed_here(id, server, upto),
            What::FlushedThere { server, conn, upto } => self.on_flushed_there(id, server, conn, upto),
            What::Op { op } => self.on_op(id, op),
            What::Commit { term } => self.on_commit(id, term),
            What::AskAgain { node, epoch } => self.on_ask_again(id, node, epoch),
            What::SyncLook { state } => self.on_sync_look(id, state),
            What::SyncSettled { server } => self.on_sync_settled(id, server),
        }
    }

    fn on_message(&mut self, id: NodeId, from: NodeId, msg: Msg) {
        match msg {
            Msg::Observe { id: ask } => self.on_observe(id, from, ask),
            Msg::Observed { id: ask, role, epoch, promised, holder_heard } => {
                self.on_observed(id, from, ask, View { at: 0, refused: false, role, epoch, promised, holder_heard });
            }
            Msg::ObserveRefused { id: ask } => self.on_refused(id, from, ask),
            Msg::LeaseAsk { epoch, sent } => self.on_lease_ask(id, from, epoch, sent),
            Msg::LeaseAnswer { epoch, sent, promised } => self.on_lease_answer(id, from, epoch, sent, promised),
            Msg::Freeze { epoch } => self.on_freeze(id, from, epoch),
            Msg::Frozen { epoch, position } => self.on_frozen(id, from, epoch, position),
            Msg::Resign { epoch } => self.on_resign(id, epoch),
            Msg::Propose { id: proposal, command } => self.on_propose(id, from, proposal, command),
            Msg::Proposed { id: proposal, answer } => self.on_proposed(id, proposal, answer),
            Msg::Heartbeat { term, commit } => self.on_heartbeat(id, from, term, commit),
            Msg::Newer { term } => self.on_newer(id, term),
            Msg::Connect { conn, epoch, has } => self.on_connect(id, from, conn, epoch, has),
            Msg::Connected { conn, has } => self.on_connected(id, from, conn, has),
            Msg::Wal { conn, from: at, records } => self.on_wal(id, conn, at, &records),
            Msg::Flushed { conn, upto } => self.on_flushed(id, from, conn, upto),
            Msg::Fetch { op, epoch } => self.on_fetch(id, from, op, epoch),
            Msg::Fetched { op, wal } => self.on_fetched(id, op, &wal),
        }
    }

    fn one_active(&self) -> bool {
        self.nodes.values().filter(|node| node.serving.is_some()).count() == 1
    }

    /// What a reader finds at the end.
    fn finish(&mut self) {
        let active = self.nodes.values().find_map(|node| Some((node.serving?, node)));
        if let Some((epoch, node)) = active {
            let writes = node.wal.iter().map(|record| record.write).filter(|write| *write != 0).collect();
            self.fact(Fact::Shown { epoch, writes });
        }
    }

    /// How long clients waited when the active node changed.
    fn failovers(&self) -> Vec<Ms> {
        let began = self.history.iter().filter(|event| matches!(event.fact, Fact::ServiceBegan { .. }));
        let gap = |event: &Event| {
            let at = event.at.as_millis() as Ms;
            let before = self.acknowledged.iter().rev().find(|acked| **acked <= at)?;
            let after = self.acknowledged.iter().find(|acked| **acked > at)?;
            Some(after - before)
        };
        began.filter_map(gap).collect()
    }

    fn overview(&self) -> String {
        let state = self.latest();
        let node = |(id, node): (&NodeId, &Node)| {
            format!(
                "{id} {:?} in {}, promised {}, {} records, {:?}, busy with {}",
                node.role,
                node.role_epoch,
                node.promised,
                node.wal.len(),
                node.pg.mode,
                self.busy_with(*id)
            )
        };
        let nodes: Vec<String> = self.nodes.iter().map(node).collect();
        format!(
            "current {:?}, sync {:?}, raft leader {:?}; {}",
            state.current(),
            state.sync,
            self.raft.leader,
            nodes.join("; ")
        )
    }
}
