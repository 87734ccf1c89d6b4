//! What can happen, and what nodes say to each other.

use std::rc::Rc;

use quorate_core::failover::{Position, Role};
use quorate_types::cluster::Opened;
use quorate_types::{ClusterState, Epoch, NodeId, SyncSet};

/// Milliseconds since the schedule began.
pub type Ms = u64;

/// Rules that a schedule breaks on purpose, to show that the invariants notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knobs {
    /// Elections hear one standby fewer.
    pub need_one_less: bool,
    /// Nodes report without leaving the old primary.
    pub skip_freeze: bool,
    /// Nodes follow an older epoch than the one they promised, and the gate lets standbys of any epoch in.
    pub old_epoch_accepted: bool,
    /// The agreed set follows PostgreSQL's without waiting for what was acknowledged before.
    pub agree_unconfirmed: bool,
}

/// One record of the write-ahead log. Write 0 is the promotion itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rec {
    pub epoch: Epoch,
    pub write: u64,
}

/// What Raft agrees on; as `quorate_consensus::Command`.
#[derive(Debug, Clone)]
pub enum Command {
    /// A new leader's first entry: its read barrier.
    Barrier,
    Grant {
        epoch: Epoch,
        holder: NodeId,
        parent: Epoch,
        counted: SyncSet,
    },
    Open {
        epoch: Epoch,
        holder: NodeId,
        opened: Opened,
    },
    SetSync {
        epoch: Epoch,
        expected: SyncSet,
        sync: SyncSet,
    },
    SetVoter(NodeId),
    RemoveMember(NodeId),
    Admit {
        id: NodeId,
        address: std::net::IpAddr,
    },
    SetSwitchover(NodeId),
}

/// How a proposal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    NotLeader,
    Unknown,
}

#[derive(Debug, Clone)]
pub enum Msg {
    Observe { id: u64 },
    Observed { id: u64, role: Role, epoch: Epoch, promised: Epoch, holder_heard: Option<Ms> },
    ObserveRefused { id: u64 },
    LeaseAsk { epoch: Epoch, sent: Ms },
    LeaseAnswer { epoch: Epoch, sent: Ms, promised: Epoch },
    Freeze { epoch: Epoch },
    Frozen { epoch: Epoch, position: Option<Position> },
    Resign { epoch: Epoch },
    Propose { id: u64, command: Command },
    Proposed { id: u64, answer: Answer },
    Heartbeat { term: u64, commit: usize },
    Newer { term: u64 },
    Connect { conn: u64, epoch: Epoch, has: usize },
    Connected { conn: u64, has: usize },
    Wal { conn: u64, from: usize, records: Rc<[Rec]> },
    Flushed { conn: u64, upto: usize },
    Fetch { op: u64, epoch: Epoch },
    Fetched { op: u64, wal: Rc<[Rec]> },
}

/// An event of one life of one node.
#[derive(Debug, Clone)]
pub enum What {
    Tick,
    Message {
        from: NodeId,
        msg: Msg,
    },
    /// The primary's own disk has it.
    FlushedHere {
        server: u64,
        upto: usize,
    },
    /// The standby's disk has it.
    FlushedThere {
        server: u64,
        conn: u64,
        upto: usize,
    },
    /// A part of a long operation ended.
    Op {
        op: u64,
    },
    /// Raft tries to commit what its leader has.
    Commit {
        term: u64,
    },
    /// The failover loop asks again.
    AskAgain {
        node: NodeId,
        epoch: Epoch,
    },
    /// The sync loop read what is in effect; it had looked at this state before.
    SyncLook {
        state: Rc<ClusterState>,
    },
    /// The changed set is in effect everywhere.
    SyncSettled {
        server: u64,
    },
}

/// An event of the world outside.
#[derive(Debug, Clone)]
pub enum Outside {
    Write,
    Fault,
    Heal,
    Restart(NodeId),
    Uncut(NodeId, NodeId),
    Probe,
}
