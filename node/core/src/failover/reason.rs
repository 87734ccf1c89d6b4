//! Why the loop did, or did not do, something: one line for operators.

use std::fmt;
use std::time::Duration;

use quorate_types::{Epoch, NodeId};

/// The line under `quorate cluster status`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    /// Nobody has founded a cluster here.
    NoCluster,
    /// The cluster is new.
    FirstEpoch,
    /// All is well.
    Healthy { node: NodeId, epoch: Epoch },
    /// The leader is new and has not heard from the holder yet.
    Waiting { node: NodeId },
    /// The leader cannot hear it, but others do.
    HolderHeardByOthers { node: NodeId },
    /// The host answers, the process is gone.
    HolderDown { node: NodeId },
    /// Host or network is gone.
    HolderSilent { node: NodeId, silent_for: Duration },
    /// It said itself that it is no longer active.
    HolderGaveUp { node: NodeId },
    /// A granted epoch is being opened.
    Promoting { node: NodeId, epoch: Epoch },
    /// A granted epoch was not opened in time.
    PromotionHangs { node: NodeId },
    /// A change that was begun is finished.
    PromiseGiven { node: NodeId, epoch: Epoch },
    /// Planned.
    Switchover { from: NodeId, to: NodeId },
    /// Planned, but the target does not follow closely.
    TargetNotReady { node: NodeId },
    /// Nodes are being asked for their promise.
    Freezing { cause: Box<Reason>, epoch: Epoch },
    /// An acknowledged write could be on none of the nodes that can be reached.
    TooFew { cause: Box<Reason>, have: usize, need: usize },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCluster => write!(f, "this node belongs to no cluster yet"),
            Self::FirstEpoch => write!(f, "the cluster is new"),
            Self::Healthy { node, epoch } => write!(f, "{node} is active in epoch {epoch} and well"),
            Self::Waiting { node } => write!(f, "a new leader waits for the first word of {node}"),
            Self::HolderHeardByOthers { node } => write!(f, "the leader does not hear {node}, but others do"),
            Self::HolderDown { node } => write!(f, "{node} stopped: its host refuses connections"),
            Self::HolderSilent { node, silent_for } => {
                write!(f, "{node} was silent for {} ms", silent_for.as_millis())
            }
            Self::HolderGaveUp { node } => write!(f, "{node} gave up: its PostgreSQL, disk or majority was lost"),
            Self::Promoting { node, epoch } => write!(f, "{node} opens epoch {epoch}"),
            Self::PromotionHangs { node } => write!(f, "{node} did not open its epoch in time"),
            Self::PromiseGiven { node, epoch } => write!(f, "{node} has promised epoch {epoch}; the change goes on"),
            Self::Switchover { from, to } => write!(f, "switchover from {from} to {to} was asked for"),
            Self::TargetNotReady { node } => {
                write!(f, "switchover waits: {node} does not follow closely, or is not in the synchronous set")
            }
            Self::Freezing { cause, epoch } => write!(f, "{cause}; nodes are asked to promise epoch {epoch}"),
            Self::TooFew { cause, have, need } => write!(
                f,
                "{cause}; no failover: {have} of {need} needed standbys can be heard, so an acknowledged write could \
                 be on none of them"
            ),
        }
    }
}
