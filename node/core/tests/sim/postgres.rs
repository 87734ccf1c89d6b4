//! PostgreSQL and the gates around it: WAL, streaming, and what commits wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use quorate_core::failover::Position;
use quorate_core::invariants::{Fact, Violation};
use quorate_types::{Epoch, Lsn, NodeId, SyncSet, TimelineId};

use super::events::{Ms, Msg, Rec, What};
use super::world::World;

/// Between two looks of the walreceiver and walsenders.
const RETRY: Ms = 60;
/// Without a word the connection is given up (longer in the real one; shorter here means more events in a schedule).
const CONNECTION_LIMIT: Ms = 2500;
/// Records in one message.
const BATCH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Stopped,
    Standby,
    Primary,
}

/// What a primary knows of one walsender.
pub struct Sender {
    pub conn: u64,
    pub has: usize,
    /// From when on it uses the newest set.
    pub adopts: Ms,
    pub sent_at: Ms,
}

/// What a standby knows of its walreceiver.
#[derive(Debug, Clone, Copy)]
pub struct Receiver {
    pub conn: u64,
    pub from: NodeId,
    pub epoch: Epoch,
    pub ready: bool,
    pub heard: Ms,
}

pub struct Server {
    pub mode: Mode,
    /// Changes with every start and kill.
    pub life: u64,
    /// It is being stopped in order: it takes no writes, and waiting clients are cut off.
    pub stopping: bool,
    pub receiver: Option<Receiver>,
    pub retry: Ms,
    pub senders: BTreeMap<NodeId, Sender>,
    /// Commits that are not acknowledged: position and write.
    pub waiting: Vec<(usize, u64)>,
    pub sync: SyncSet,
    pub sync_before: SyncSet,
    /// From when on backends use the newest set.
    pub adopts: Ms,
}

impl Server {
    pub fn new() -> Self {
        Self {
            mode: Mode::Stopped,
            life: 0,
            stopping: false,
            receiver: None,
            retry: 0,
            senders: BTreeMap::new(),
            waiting: Vec::new(),
            sync: SyncSet::default(),
            sync_before: SyncSet::default(),
            adopts: 0,
        }
    }
}

impl World {
    /// The node's data as the election sees it.
    pub fn position(&self, id: NodeId) -> Position {
        let wal = &self.nodes[&id].wal;
        let lineage = wal.last().map_or(Epoch(0), |record| record.epoch);
        Position { lineage, lsn: Lsn(wal.len() as u64), timeline: TimelineId(1) }
    }

    /// Kills the server. What was not on disk may be lost; after a power cut it is.
    pub fn kill_server(&mut self, id: NodeId, power: bool) {
        let node = &self.nodes[&id];
        let (flushed, all) = (node.flushed, node.wal.len());
        let kept = if power { flushed } else { self.rng.range(flushed as u64, all as u64) as usize };
        let life = self.fresh();
        let node = self.n(id);
        node.wal.truncate(kept);
        node.flushed = kept;
        node.reign = None;
        node.upstream = None;
        let (sync, sync_before) = (node.pg.sync.clone(), node.pg.sync_before.clone());
        node.pg = Server { life, sync, sync_before, ..Server::new() };
    }

    pub fn start_server(&mut self, id: NodeId) {
        let life = self.fresh();
        let node = self.n(id);
        if node.pg.mode == Mode::Stopped {
            node.pg = Server { mode: Mode::Standby, life, ..Server::new() };
            node.reign = None;
            node.upstream = None;
        }
    }

    pub fn close_upstream(&mut self, id: NodeId) {
        let node = self.n(id);
        node.upstream = None;
        node.pg.receiver = None;
    }

    /// As `Upstream::leave_below`.
    pub fn leave_below(&mut self, id: NodeId, epoch: Epoch) {
        let node = self.n(id);
        node.floor = node.floor.max(epoch);
        if node.upstream.is_some_and(|(_, followed)| followed < epoch) {
            self.close_upstream(id);
        }
    }

    /// As `Upstream::follow`.
    pub fn lead_upstream(&mut self, id: NodeId, holder: NodeId, epoch: Epoch) {
        let any = self.knobs.old_epoch_accepted;
        let node = self.n(id);
        if (epoch < node.floor && !any) || node.upstream == Some((holder, epoch)) {
            return;
        }
        node.upstream = Some((holder, epoch));
        node.pg.receiver = None;
    }

    pub fn server_tick(&mut self, id: NodeId) {
        let now = self.now;
        let node = &self.nodes[&id];
        match node.pg.mode {
            Mode::Stopped => {}
            Mode::Standby => {
                if node.pg.receiver.is_some_and(|r| now > r.heard + CONNECTION_LIMIT) {
                    self.n(id).pg.receiver = None;
                }
                let node = &self.nodes[&id];
                // A server that is gone is noticed at once when its host answers.
                let gone = node.pg.receiver.is_some_and(|r| {
                    self.both_ways(id, r.from)
                        && r.ready
                        && self.nodes[&r.from].pg.senders.get(&id).is_none_or(|s| s.conn != r.conn)
                });
                if gone {
                    self.n(id).pg.receiver = None;
                }
                self.connect(id);
            }
            Mode::Primary => {
                let due: Vec<NodeId> =
                    node.pg.senders.iter().filter(|(_, s)| now >= s.sent_at + 100).map(|(peer, _)| *peer).collect();
                for peer in due {
                    self.ship(id, peer);
                }
            }
        }
    }

    fn connect(&mut self, id: NodeId) {
        let (now, conn) = (self.now, self.fresh());
        let node = self.n(id);
        let Some((from, epoch)) = node.upstream.filter(|_| node.pg.receiver.is_none() && now >= node.pg.retry) else {
            return;
        };
        if node.op.as_ref().is_some_and(|op| !op.streams()) {
            return;
        }
        node.pg.retry = now + RETRY;
        node.pg.receiver = Some(Receiver { conn, from, epoch, ready: false, heard: now });
        let has = node.wal.len();
        self.send(id, from, Msg::Connect { conn, epoch, has });
    }

    pub fn on_connect(&mut self, id: NodeId, from: NodeId, conn: u64, epoch: Epoch, has: usize) {
        let (now, any) = (self.now, self.knobs.old_epoch_accepted);
        let node = self.n(id);
        let ours = node.reign == Some(epoch) || (any && node.reign.is_some());
        if !ours || node.pg.mode != Mode::Primary || has > node.flushed {
            return;
        }
        node.pg.senders.insert(from, Sender { conn, has: 0, adopts: now, sent_at: now });
        self.send(id, from, Msg::Connected { conn, has });
        let parted = self.nodes.get(&from).is_some_and(|peer| {
            let same = peer.pg.receiver.is_some_and(|r| r.conn == conn) && peer.wal.len() == has;
            same && !self.nodes[&id].wal.starts_with(&peer.wal)
        });
        if parted && self.own_violation.is_none() {
            self.own_violation = Some(Violation {
                invariant: "A_FOLLOWER_HAS_A_PREFIX",
                at: std::time::Duration::from_millis(now),
                story: format!("{from} streams from {id} in epoch {epoch}, but its data is of another line"),
            });
        }
    }

    pub fn on_connected(&mut self, id: NodeId, from: NodeId, conn: u64, has: usize) {
        let now = self.now;
        if let Some(receiver) = self.n(id).pg.receiver.as_mut().filter(|r| r.conn == conn) {
            receiver.ready = true;
            receiver.heard = now;
            let flushed = self.nodes[&id].flushed.min(has);
            self.send(id, from, Msg::Flushed { conn, upto: flushed });
        }
    }

    fn ship(&mut self, id: NodeId, peer: NodeId) {
        let now = self.now;
        let node = self.n(id);
        let flushed = node.flushed;
        let Some(sender) = node.pg.senders.get_mut(&peer) else { return };
        sender.sent_at = now;
        let (conn, from) = (sender.conn, sender.has);
        let records: Rc<[Rec]> = node.wal[from..flushed.min(from + BATCH)].into();
        self.send(id, peer, Msg::Wal { conn, from, records });
    }

    pub fn on_wal(&mut self, id: NodeId, conn: u64, from: usize, records: &[Rec]) {
        let now = self.now;
        let node = self.n(id);
        let Some(receiver) = node.pg.receiver.as_mut().filter(|r| r.conn == conn && r.ready) else { return };
        receiver.heard = now;
        let epoch = receiver.epoch;
        let have = node.wal.len();
        if from > have {
            return;
        }
        if let Some(news) = records.get(have - from..).filter(|news| !news.is_empty()) {
            node.wal.extend_from_slice(news);
            if node.followed != epoch || node.promised > epoch {
                node.followed = epoch;
                self.fact(Fact::Followed { node: id, epoch });
            }
        }
        let node = &self.nodes[&id];
        let (server, upto) = (node.pg.life, node.wal.len());
        let after = self.rng.range(1, 5);
        self.after(after, id, What::FlushedThere { server, conn, upto });
    }

    pub fn on_flushed_there(&mut self, id: NodeId, server: u64, conn: u64, upto: usize) {
        let node = self.n(id);
        if node.pg.life != server {
            return;
        }
        node.flushed = node.flushed.max(upto.min(node.wal.len()));
        let upto = node.flushed;
        if let Some(receiver) = node.pg.receiver.filter(|r| r.conn == conn) {
            self.send(id, receiver.from, Msg::Flushed { conn, upto });
        }
    }

    pub fn on_flushed(&mut self, id: NodeId, from: NodeId, conn: u64, upto: usize) {
        let now = self.now;
        let pg = &mut self.n(id).pg;
        let Some(sender) = pg.senders.get_mut(&from).filter(|s| s.conn == conn) else { return };
        sender.has = sender.has.max(upto);
        // A walsender counts with the set that it knows itself.
        let set = if now >= sender.adopts { pg.sync.clone() } else { pg.sync_before.clone() };
        self.release(id, &set);
        let node = &self.nodes[&id];
        if node.pg.senders.get(&from).is_some_and(|s| s.has < node.flushed && s.conn == conn) {
            self.ship(id, from);
        }
    }

    /// Acknowledges what is on enough standbys of the set.
    fn release(&mut self, id: NodeId, set: &SyncSet) {
        if set.num_sync == 0 {
            return;
        }
        let node = &self.nodes[&id];
        let mut has: Vec<usize> =
            node.pg.senders.iter().filter(|(peer, _)| set.members.contains(peer)).map(|(_, s)| s.has).collect();
        has.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(upto) = has.get(set.num_sync - 1) {
            let upto = (*upto).min(node.flushed);
            self.acknowledge(id, upto);
        }
    }

    pub fn acknowledge(&mut self, id: NodeId, upto: usize) {
        let node = self.n(id);
        let Some(epoch) = node.reign else { return };
        let (done, rest) = std::mem::take(&mut node.pg.waiting).into_iter().partition(|(at, _)| *at <= upto);
        node.pg.waiting = rest;
        for (at, write) in done {
            if write == 0 {
                self.confirmed(id);
                continue;
            }
            self.trace(|| format!("{id} acknowledges write {write} at {at}"));
            self.acknowledged.push(self.now);
            self.fact(Fact::Acknowledged { write, epoch });
        }
    }

    /// Write 0 is the sync loop's own.
    pub fn write(&mut self, id: NodeId, write: u64) {
        let after = self.rng.range(1, 4);
        let node = self.n(id);
        let Some(epoch) = node.reign else { return };
        node.wal.push(Rec { epoch, write });
        let upto = node.wal.len();
        node.pg.waiting.push((upto, write));
        let server = node.pg.life;
        self.after(after, id, What::FlushedHere { server, upto });
    }

    pub fn on_flushed_here(&mut self, id: NodeId, server: u64, upto: usize) {
        let now = self.now;
        let node = self.n(id);
        if node.pg.life != server {
            return;
        }
        node.flushed = node.flushed.max(upto);
        let set = if now >= node.pg.adopts { node.pg.sync.clone() } else { node.pg.sync_before.clone() };
        if set.num_sync == 0 {
            self.acknowledge(id, upto);
        }
        let peers: Vec<NodeId> = self.nodes[&id].pg.senders.keys().copied().collect();
        for peer in peers {
            self.ship(id, peer);
        }
    }

    /// Writes the configuration and reloads; every process takes it when it looks.
    pub fn set_sync(&mut self, id: NodeId, sync: &SyncSet) {
        let now = self.now;
        let settles = now + 150 + self.rng.range(0, 30);
        let peers: Vec<NodeId> = self.nodes[&id].pg.senders.keys().copied().collect();
        let adopts: Vec<Ms> = peers.iter().map(|_| now + self.rng.range(0, 140)).collect();
        let backends = now + self.rng.range(0, 140);
        let node = self.n(id);
        let epoch = node.reign;
        node.pg.sync_before = std::mem::replace(&mut node.pg.sync, sync.clone());
        node.pg.adopts = backends;
        // A confirmation of the set before confirms nothing about this one.
        node.pg.waiting.retain(|(_, write)| *write != 0);
        for (peer, at) in peers.iter().zip(adopts) {
            if let Some(sender) = node.pg.senders.get_mut(peer) {
                sender.adopts = at;
            }
        }
        let server = node.pg.life;
        if let Some(epoch) = epoch {
            self.fact(Fact::SyncInEffect { epoch, sync: sync.clone() });
        }
        self.after(settles - now, id, What::SyncSettled { server });
    }

    /// The promotion itself: the first record of the epoch's timeline. Returns where it began.
    pub fn promote_server(&mut self, id: NodeId, epoch: Epoch, sync: &SyncSet) -> Lsn {
        self.close_upstream(id);
        let now = self.now;
        let node = self.n(id);
        let start = Lsn(node.wal.len() as u64);
        let writes: BTreeSet<u64> = node.wal.iter().map(|r| r.write).filter(|w| *w != 0).collect();
        node.wal.push(Rec { epoch, write: 0 });
        node.flushed = node.wal.len();
        node.pg.mode = Mode::Primary;
        node.pg.sync = sync.clone();
        node.pg.sync_before = sync.clone();
        node.pg.adopts = now;
        node.reign = Some(epoch);
        self.opened_with.insert(epoch, writes);
        self.trace(|| format!("{id} promotes in epoch {epoch} at {start}"));
        self.fact(Fact::Promoted { node: id, epoch });
        self.fact(Fact::SyncInEffect { epoch, sync: sync.clone() });
        start
    }
}
