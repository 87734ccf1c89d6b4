//! How a member names itself on the wire.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

/// One life of a member at an address.
///
/// The address is the unique part, because a seed is known by its address before its id is known. `stamp` orders
/// lives: it starts with the wall clock in milliseconds, and grows with every renewal. A clock that went back does
/// not keep a node out: an exchange tells it the last stamp that others know, and it takes a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub node: NodeId,
    pub address: SocketAddr,
    pub stamp: u64,
    pub name: String,
}

/// Milliseconds since 1970: the start of a counter, never a time that is compared with another node's.
pub(crate) fn stamp_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

impl Identity {
    /// Stands for whoever listens on a seed's address. Node 0 is nobody's id.
    pub(crate) fn unknown(address: SocketAddr) -> Self {
        Self { node: NodeId(0), address, stamp: 0, name: String::new() }
    }

    /// The same member in a later life than `stamp`.
    pub(crate) fn after(&self, stamp: u64) -> Self {
        Self { stamp: stamp.max(self.stamp).saturating_add(1), ..self.clone() }
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(self.after(stamp_now().saturating_sub(1)))
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.stamp, self.node, &self.name) > (other.stamp, other.node, &other.name)
    }
}
