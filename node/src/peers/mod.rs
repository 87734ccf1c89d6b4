//! Talking to the other members: connections out with [`Peers`], connections in with [`incoming`].
//!
//! *Invariant*: on a cluster port only a current member's certificate gets past the handshake.

mod accept;
mod dial;

pub use accept::{ClusterStream, incoming};
pub use dial::{Peers, RaftDial, ReplicationDial, ResourcesDial};

use std::sync::Arc;

use quorate_types::{ClusterState, NodeId};

/// Whether a certificate with this node id and public key belongs to a member.
///
/// A node that has not yet learned who belongs (its state is empty) can only rely on the authority's signature; it is
/// joining, votes for nobody and holds nothing.
#[must_use]
pub fn is_member(state: &Arc<ClusterState>, node: NodeId, public_key_sha256: &str) -> bool {
    state.members.is_empty()
        || state.members.get(&node).is_some_and(|member| member.public_key_sha256 == public_key_sha256)
}
