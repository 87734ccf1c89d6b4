//! Raft's messages over gRPC. Connections, certificates and membership checks belong to the caller.

mod client;
mod server;

pub use client::Network;
pub use server::{Heard, Service};

use std::net::IpAddr;

use quorate_types::NodeId;
use tonic::transport::Channel;

/// The largest message: a batch of entries with the largest values.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Gives channels to members.
pub trait Dial: Send + Sync + 'static {
    /// The channel to a member's Raft port at this address; it connects on use.
    fn channel(&self, node: NodeId, address: IpAddr) -> Channel;
}
