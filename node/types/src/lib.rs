//! The vocabulary of Quorate: ids, positions, ports and the agreed cluster state.
//!
//! Plain data only. No runtime, clock, randomness, file or socket: every crate of the house depends on this one.

pub mod cluster;
mod ids;
mod lsn;
pub mod ports;

pub use cluster::{ClusterState, EpochRecord, Member, SyncSet};
pub use ids::{Epoch, NodeId, ParseIdError, Term};
pub use lsn::{Lsn, ParseLsnError, TimelineId};
