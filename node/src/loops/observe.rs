//! Looks at every member all the time. Every node does, so that any of them can answer `cluster status`; the Raft
//! leader decides from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_consensus::Consensus;
use quorate_core::failover::{Position, Seen};
use quorate_proto::control::control_client::ControlClient;
use quorate_proto::control::{ObserveReply, ObserveRequest};
use quorate_types::{Epoch, Lsn, NodeId, TimelineId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::local::{Local, role_of};
use crate::peers::Peers;

/// How often each member is asked.
const PERIOD: Duration = Duration::from_millis(100);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_millis(300);

/// The newest answer of one member.
#[derive(Clone)]
pub struct View {
    pub reply: ObserveReply,
    pub at: Instant,
    /// Its host answered that nobody listens, after the newest reply.
    pub refused: bool,
}

/// A member that answered within this counts as alive where people and clients are told.
const ALIVE: Duration = Duration::from_secs(2);

impl View {
    /// Whether the member is alive, as far as this node hears.
    pub fn is_alive(&self) -> bool {
        self.answered_within(ALIVE)
    }

    /// Whether its newest answer is younger than this, and its host refused nothing since.
    pub fn answered_within(&self, age: Duration) -> bool {
        self.at.elapsed() < age && !self.refused
    }
}

/// The newest answers of all members.
#[derive(Clone, Default)]
pub struct Views {
    views: Arc<Mutex<BTreeMap<NodeId, View>>>,
    /// Rung when something changed that a decision may depend on.
    pub changed: Arc<Notify>,
}

impl Views {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy.
    pub fn all(&self) -> BTreeMap<NodeId, View> {
        self.lock().clone()
    }

    fn record(&self, node: NodeId, reply: ObserveReply) {
        let mut views = self.lock();
        let news = views.get(&node).is_none_or(|view| {
            let old = &view.reply;
            view.refused
                || (&old.role, old.epoch, old.promised_epoch) != (&reply.role, reply.epoch, reply.promised_epoch)
        });
        views.insert(node, View { reply, at: Instant::now(), refused: false });
        drop(views);
        if news {
            self.changed.notify_one();
        }
    }

    /// Whether this node's host refuses connections, as the newest attempt found.
    pub fn refused(&self, node: NodeId) -> bool {
        self.lock().get(&node).is_some_and(|view| view.refused)
    }

    fn refuse(&self, node: NodeId) {
        let mut views = self.lock();
        if let Some(view) = views.get_mut(&node).filter(|view| !view.refused) {
            view.refused = true;
            drop(views);
            self.changed.notify_one();
        }
    }

    fn forget_strangers(&self, keep: impl Fn(NodeId) -> bool) {
        self.lock().retain(|node, _| keep(*node));
    }
}

/// What the decision wants to know of an answer.
pub fn seen(view: &View) -> Seen {
    Seen {
        silent_for: view.at.elapsed(),
        refused: view.refused,
        role: role_of(&view.reply.role),
        epoch: Epoch(view.reply.epoch),
        promised: Epoch(view.reply.promised_epoch),
        holder_heard: view.reply.holder_heard_ms.map(Duration::from_millis),
    }
}

/// The position in an answer.
pub fn position(reply: Option<&quorate_proto::control::Position>) -> Option<Position> {
    reply.map(|position| Position {
        lineage: Epoch(position.lineage),
        lsn: Lsn(position.lsn),
        timeline: TimelineId(position.timeline),
    })
}

/// Asks everybody until the token ends.
pub async fn run(
    consensus: Consensus,
    local: Arc<Local>,
    peers: Peers,
    port: u16,
    views: Views,
    decision: Arc<Mutex<String>>,
    stop: CancellationToken,
) {
    let mut cluster = consensus.cluster();
    let mut askers: BTreeMap<NodeId, CancellationToken> = BTreeMap::new();
    loop {
        let state = cluster.borrow_and_update().clone();
        askers.retain(|node, asker| {
            let stays = state.members.contains_key(node);
            if !stays {
                asker.cancel();
            }
            stays
        });
        views.forget_strangers(|node| state.members.contains_key(&node));
        for node in state.members.keys() {
            askers.entry(*node).or_insert_with(|| {
                let end = stop.child_token();
                let asked = Asker {
                    node: *node,
                    local: local.clone(),
                    peers: peers.clone(),
                    port,
                    views: views.clone(),
                    decision: decision.clone(),
                };
                tokio::spawn(asked.run(end.clone()));
                end
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = cluster.changed() => if changed.is_err() { return },
        }
    }
}

struct Asker {
    node: NodeId,
    local: Arc<Local>,
    peers: Peers,
    port: u16,
    views: Views,
    decision: Arc<Mutex<String>>,
}

impl Asker {
    async fn run(self, stop: CancellationToken) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut own_changes = self.local.status();
        loop {
            let is_self = self.node == self.local.me();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = period.tick() => {}
                _ = own_changes.changed(), if is_self => {}
            }
            if is_self {
                let decision = self.decision.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.views.record(self.node, crate::control::own_reply(&self.local, decision));
            } else {
                self.ask().await;
            }
        }
    }

    async fn ask(&self) {
        let Some(channel) = self.peers.channel(self.node, self.port) else { return };
        let mut client = ControlClient::new(channel);
        let request = ObserveRequest { from: self.local.me().0, term: 0 };
        match tokio::time::timeout(DEADLINE, client.observe(request)).await {
            Ok(Ok(reply)) => self.views.record(self.node, reply.into_inner()),
            Ok(Err(status)) if is_refusal(&status) => self.views.refuse(self.node),
            // Silence: the age of the last answer grows.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Whether the host itself said that nobody listens.
fn is_refusal(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}
