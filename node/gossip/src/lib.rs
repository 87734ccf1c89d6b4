//! Who can be reached, and how loaded each member is: SWIM on port 8301, UDP and TCP.
//!
//! *A hint, never an authority*: nothing here elects, fences or counts a quorum. Membership is Raft's; a member named
//! here may have been removed, and one that is missing may be healthy.
//!
//! Every packet is sealed with the cluster's gossip key ([`GossipKey`]), and bound to the cluster's id and to the way
//! it travels. There is no protection against replay, on purpose: a replayed packet can at most make a member look
//! alive or down for a moment, which a hint may be, and a wrongly accused member contradicts at once. Whoever has
//! the key is trusted.
//!
//! UDP carries the protocol itself. TCP carries whole member lists: when joining, every [`Pace::sync`], and at once
//! when a member becomes suspect, so that a network that loses UDP does not take members down.
//!
//! *Invariants*: no packet leaves unsealed; none is over [`PACKET_BYTES_MAX`]; one that does not open is counted and
//! dropped before anything reads it.

mod driver;
mod exchange;
mod identity;
mod load;
mod member;
mod seal;
mod settings;
mod start;
#[cfg(test)]
mod tests;

pub use load::{Load, LoadError};
pub use member::{MemberHint, MemberState, Members};
pub use seal::GossipKey;
pub use settings::{GossipSettings, Pace};
pub use start::{Counters, Gossip, StartError};

/// The largest UDP payload sent or read, in bytes: fits an Ethernet frame with room for a tunnel's headers.
pub const PACKET_BYTES_MAX: usize = 1400;

/// How many members are exchanged, and how many seeds are kept. A cluster has three or five nodes.
pub const MEMBERS_MAX: usize = 64;
