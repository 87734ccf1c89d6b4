//! What goes over the operator's socket.

use std::net::IpAddr;

use quorate_types::{Epoch, Lsn, NodeId, SyncSet, Term};
use serde::{Deserialize, Serialize};

/// The cluster as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    pub cluster_id: String,
    /// The node that answers.
    pub seen_by: NodeId,
    pub active: Option<NodeId>,
    pub epoch: Epoch,
    /// Whether the active node serves requests now.
    pub serving: bool,
    pub raft_leader: Option<NodeId>,
    pub term: Term,
    /// Why the failover loop last did, or did not do, something: one line.
    pub reason: String,
    /// Why the current epoch was granted.
    pub granted_because: String,
    pub cluster_address: Option<IpAddr>,
    pub sync: SyncSet,
    pub nodes: Vec<NodeView>,
}

/// One member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeView {
    pub id: NodeId,
    pub name: String,
    pub address: IpAddr,
    /// active, standby, …; `unreachable` when it did not answer.
    pub role: String,
    pub epoch: Epoch,
    pub voter: bool,
    /// Bytes of WAL that it has not flushed; `None` when unknown.
    pub lag_bytes: Option<u64>,
    pub position: Option<Lsn>,
    /// Milliseconds since the failover loop last heard from it.
    pub silent_ms: Option<u64>,
    pub note: String,
    pub version: String,
}

/// Ask for a join token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    pub seconds: u64,
}

/// A join token; shown once.
#[derive(Serialize, Deserialize)]
pub struct MadeToken {
    pub token: String,
    pub expires_at: i64,
}

/// Ask for a planned change of the active node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSwitchover {
    /// Where to; `None`: the standby that is furthest.
    pub to: Option<NodeId>,
}

/// A switchover that was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Switched {
    pub from: NodeId,
    pub to: NodeId,
    pub epoch: Epoch,
    pub milliseconds: u64,
}
