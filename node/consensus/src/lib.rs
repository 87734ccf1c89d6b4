//! Agreement: openraft over redb and gRPC, and the state that the cluster agreed on.
//!
//! A write is acknowledged when a majority has it on disk. Reads are local unless the caller asks for
//! [`Consensus::read_barrier`]. Deliberately absent: any decision (that is `core`) and any connection (the caller
//! gives channels through [`Dial`]).
//!
//! *Invariants*: a command is applied in the same order with the same result on every node; a node whose log was lost
//! does not vote again under its old number.

// openraft's own errors are large; every storage and network call returns them.
#![allow(clippy::result_large_err)]

pub mod command;
pub mod machine;
mod membership;
mod raft_types;
mod storage;
mod transport;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{BasicNode, SnapshotPolicy};
use quorate_proto::consensus::consensus_server::ConsensusServer;
use quorate_proto::consensus::{ProposeRequest, ReadIndexRequest};
use quorate_types::{ClusterState, Member, NodeId, Term};
use tokio::sync::watch;

pub use command::{Command, KvCommand, KvEntry, Reply};
pub use machine::Machine;
pub use storage::OpenError;
pub use transport::{Dial, Service};

use raft_types::Raft;
use storage::{LogStore, MachineStore, Shared, Writer};
use transport::{Heard, Network};

/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 5000;
/// Entries kept behind a snapshot, so that a member that was away briefly needs no snapshot.
const ENTRIES_KEPT: u64 = 1000;
/// Entries in one replication message.
const ENTRIES_PER_MESSAGE: u64 = 64;
/// Bytes in one snapshot message.
const SNAPSHOT_CHUNK_BYTES: u64 = 256 << 10;
/// How long a snapshot chunk may take.
const SNAPSHOT_CHUNK_MS: u64 = 5000;
/// How long a proposal looks for a leader.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks for a leader.
const LEADER_PAUSE: Duration = Duration::from_millis(20);

/// How to run.
pub struct Settings {
    /// Who this is.
    pub node: NodeId,
    /// Where the store lives.
    pub directory: PathBuf,
    /// Raft's heartbeat.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub election_min: Duration,
    /// The longest.
    pub election_max: Duration,
}

/// Who leads, as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader. `None` while there is none.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Whether this node leads.
    pub is_self: bool,
}

/// Why a command was not agreed on.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No majority, or no leader, within the deadline. Certainly not applied.
    #[error("the cluster has no leader (is a majority of its nodes up and connected?)")]
    NoLeader,
    /// It may or may not have been applied.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The agreed state does not allow it.
    #[error("{0}")]
    Refused(String),
}

/// A running member. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    node: NodeId,
    raft: Raft,
    shared: Arc<Shared>,
    network: Network,
    leadership: watch::Receiver<Leadership>,
    heard: Heard,
    silence_max: Duration,
}

impl Consensus {
    /// Opens the store and takes part.
    ///
    /// # Errors
    /// As [`OpenError`] says; a store that was lost or written by another version is refused.
    pub async fn open(settings: Settings, dial: Arc<dyn Dial>) -> Result<Self, OpenError> {
        let (writer, mut loaded) = Writer::open(&settings.directory)?;
        let unreadable = |error: serde_json::Error| OpenError::Raft(format!("the store is unreadable: {error}"));
        let machine = MachineStore::new(writer.clone(), &mut loaded).map_err(unreadable)?;
        let log = LogStore::new(writer, &mut loaded).map_err(unreadable)?;
        let shared = machine.shared();
        let network = Network::new(dial);
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "quorate".into(),
            heartbeat_interval: millis(settings.heartbeat),
            election_timeout_min: millis(settings.election_min),
            election_timeout_max: millis(settings.election_max),
            install_snapshot_timeout: SNAPSHOT_CHUNK_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            max_payload_entries: ENTRIES_PER_MESSAGE,
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
            ..openraft::Config::default()
        };
        let config = config.validate().map_err(|error| OpenError::Raft(error.to_string()))?;
        let raft = Raft::new(settings.node.0, Arc::new(config), network.clone(), log, machine)
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let leadership = follow_leadership(settings.node, &raft);
        let heard = Heard::new();
        Ok(Self { node: settings.node, raft, shared, network, leadership, heard, silence_max: settings.election_max })
    }

    /// The founder's first act: a cluster of one. Harmless when it was done before.
    ///
    /// # Errors
    /// As [`Consensus::propose`].
    pub async fn found(&self, cluster_id: String, first: Member) -> Result<(), ProposeError> {
        if !self.raft.is_initialized().await.map_err(|error| ProposeError::Unknown(error.to_string()))? {
            let node = BasicNode::new(first.address);
            self.raft
                .initialize(std::collections::BTreeMap::from([(self.node.0, node)]))
                .await
                .map_err(|error| ProposeError::Unknown(error.to_string()))?;
        }
        self.propose(Command::Init { cluster_id, first }).await.map(drop)
    }

    /// The service for port 8300.
    #[must_use]
    pub fn service(&self) -> ConsensusServer<Service> {
        Service::server(self.raft.clone(), self.heard.clone())
    }

    /// Who this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The committed cluster state as applied here, and its changes.
    #[must_use]
    pub fn cluster(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.shared.cluster()
    }

    /// Who leads, and its changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// How long ago a majority last answered this leader. `None`: this node does not lead.
    #[must_use]
    pub fn quorum_silent_for(&self) -> Option<Duration> {
        self.raft.metrics().borrow().millis_since_quorum_ack.map(Duration::from_millis)
    }

    /// How long ago this node last heard from the leader, or from a majority when it leads itself; since it was opened
    /// when it never did. What it has applied may be that old.
    #[must_use]
    pub fn leader_silent_for(&self) -> Duration {
        self.quorum_silent_for().unwrap_or_else(|| self.heard.elapsed())
    }

    /// The leader, if it was heard within the longest election timeout. [`Consensus::leadership`] alone goes on naming
    /// a leader that was cut off: Raft has it step down only when it hears of another.
    #[must_use]
    pub fn known_leader(&self) -> Option<NodeId> {
        let leader = self.leadership.borrow().leader?;
        (self.leader_silent_for() <= self.silence_max).then_some(leader)
    }

    /// Whom this node voted for last: itself when it stood for election, or the leader.
    #[must_use]
    pub fn voted_for(&self) -> Option<NodeId> {
        self.raft.metrics().borrow().vote.leader_id().voted_for().map(NodeId)
    }

    /// Raft's voters and their addresses, by number.
    #[must_use]
    pub fn voters(&self) -> Vec<(NodeId, IpAddr)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let mut voters: Vec<_> = membership
            .voter_ids()
            .filter_map(|id| Some((NodeId(id), membership.get_node(&id)?.addr.parse().ok()?)))
            .collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }

    /// Looks at the whole applied state; keep it short.
    pub fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        self.shared.read(look)
    }

    /// The log index of the key-value store's last change, and its changes.
    #[must_use]
    pub fn kv_index(&self) -> watch::Receiver<u64> {
        self.shared.kv_index()
    }

    /// The index of the last applied log entry.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.raft.metrics().borrow().last_applied.map_or(0, |id| id.index)
    }

    /// Agrees on a command; a follower hands it to the leader.
    ///
    /// # Errors
    /// [`ProposeError`]. Not cancel-safe: a cancelled proposal may still be applied.
    pub async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        let deadline = tokio::time::Instant::now() + PROPOSE_DEADLINE;
        let bytes = serde_json::to_vec(&command).map_err(|error| ProposeError::Refused(error.to_string()))?;
        loop {
            if let Some(reply) = self.try_propose(&command, &bytes, deadline).await? {
                return match reply {
                    Reply::Refused(why) => Err(ProposeError::Refused(why)),
                    reply => Ok(reply),
                };
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ProposeError::NoLeader);
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    /// One attempt. `Ok(None)`: certainly not appended.
    async fn try_propose(
        &self,
        command: &Command,
        bytes: &[u8],
        deadline: tokio::time::Instant,
    ) -> Result<Option<Reply>, ProposeError> {
        let leadership = *self.leadership.borrow();
        let late = || ProposeError::Unknown("no majority confirmed it in time".into());
        if leadership.is_self {
            return match tokio::time::timeout_at(deadline, self.raft.client_write(command.clone())).await {
                Ok(Ok(done)) => Ok(Some(done.data)),
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Ok(None),
                Ok(Err(error)) => Err(ProposeError::Unknown(error.to_string())),
                Err(_) => Err(late()),
            };
        }
        let Some((leader, address)) = leadership.leader.and_then(|id| Some((id, self.raft_address(id)?))) else {
            return Ok(None);
        };
        let mut client = self.network.client(leader, address);
        let request = ProposeRequest { command: bytes.to_vec() };
        match tokio::time::timeout_at(deadline, client.propose(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                if answer.not_leader {
                    return Ok(None);
                }
                serde_json::from_slice(&answer.reply)
                    .map(Some)
                    .map_err(|error| ProposeError::Unknown(format!("the leader's answer is unreadable: {error}")))
            }
            // Tonic says `Unavailable` also for a stream that broke after the request was sent.
            Ok(Err(status)) if never_sent(&status) => Ok(None),
            Ok(Err(status)) => Err(ProposeError::Unknown(status.message().to_owned())),
            Err(_) => Err(late()),
        }
    }

    /// Returns when everything that was committed before the call is applied here: reads after it are linearizable.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`] when no leader confirms in time.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let deadline = tokio::time::Instant::now() + PROPOSE_DEADLINE;
        loop {
            if let Some(index) = self.read_index(deadline).await {
                let wait = self.raft.wait(Some(deadline.saturating_duration_since(tokio::time::Instant::now())));
                return wait
                    .applied_index_at_least(Some(index), "linearizable read")
                    .await
                    .map(drop)
                    .map_err(|_| ProposeError::NoLeader);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ProposeError::NoLeader);
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    async fn read_index(&self, deadline: tokio::time::Instant) -> Option<u64> {
        let leadership = *self.leadership.borrow();
        if leadership.is_self {
            return match tokio::time::timeout_at(deadline, self.raft.get_read_log_id()).await.ok()? {
                Ok((read, _)) => Some(read.map_or(0, |id| id.index)),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)) | _) => None,
            };
        }
        let leader = leadership.leader?;
        let mut client = self.network.client(leader, self.raft_address(leader)?);
        let answer = tokio::time::timeout_at(deadline, client.read_index(ReadIndexRequest {})).await.ok()?;
        let answer = answer.ok()?.into_inner();
        (!answer.not_leader).then_some(answer.index)
    }

    /// Has this node stand for election now, if it votes and does not lead. Other voters refuse it until they have not
    /// heard from the leader for the longest election timeout, unless they stand or have stood themselves.
    pub async fn elect(&self) {
        if let Err(error) = self.raft.trigger().elect().await {
            // It has stopped; whoever waits for `failed` hears of it.
            tracing::debug!(%error, "this node cannot stand for election");
        }
    }

    fn raft_address(&self, node: NodeId) -> Option<IpAddr> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&node.0).and_then(|found| found.addr.parse().ok())
    }

    /// Ends this node's part; the store is closed.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end cleanly");
        }
    }

    /// Resolves when Raft has stopped by itself, which only a failed disk or a bug causes.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(error) = &metrics.borrow_and_update().running_state {
                return error.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft has ended".into();
            }
        }
    }
}

/// Whether a call certainly never reached the other side.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.to_string().contains("tcp connect error") || error.is::<std::io::Error>() && is_refusal(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Turns openraft's busy metrics into changes of leadership.
fn follow_leadership(node: NodeId, raft: &Raft) -> watch::Receiver<Leadership> {
    let mut metrics = raft.server_metrics();
    let read = move |metrics: &openraft::metrics::RaftServerMetrics<u64, BasicNode>| {
        let leader = metrics.current_leader.map(NodeId);
        Leadership {
            leader,
            term: Term(metrics.vote.leader_id().term),
            is_self: leader == Some(node) && metrics.state == openraft::ServerState::Leader,
        }
    };
    let (sender, receiver) = watch::channel(read(&metrics.borrow()));
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let now = read(&metrics.borrow_and_update());
            sender.send_if_modified(|seen| {
                let changed = *seen != now;
                *seen = now;
                changed
            });
        }
    });
    receiver
}
