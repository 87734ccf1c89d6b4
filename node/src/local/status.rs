//! What the node says about itself.

use quorate_core::failover::{Position, Role};
use quorate_types::{Epoch, NodeId, SyncSet};

/// Cached: nobody who asks waits for PostgreSQL.
#[derive(Debug, Clone)]
pub struct LocalStatus {
    pub role: Role,
    pub epoch: Epoch,
    pub note: String,
    pub position: Option<Position>,
    /// Only on the active node: what commits wait for.
    pub sync: Option<SyncSet>,
    /// Only on the active node: standbys with the bytes they lack.
    pub lags: Vec<(NodeId, u64)>,
}

impl Default for LocalStatus {
    fn default() -> Self {
        Self {
            role: Role::Starting,
            epoch: Epoch(0),
            note: String::new(),
            position: None,
            sync: None,
            lags: Vec::new(),
        }
    }
}

/// The words on the wire and in `cluster status`.
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Starting => "starting",
        Role::Standby => "standby",
        Role::Promoting => "promoting",
        Role::Active => "active",
        Role::Resigned => "resigned",
        Role::Fenced => "fenced",
        Role::Cloning => "cloning",
        Role::Failed => "failed",
    }
}

/// Reads such a word; an unknown one is a newer program's, and counts as starting.
pub fn role_of(name: &str) -> Role {
    match name {
        "standby" => Role::Standby,
        "promoting" => Role::Promoting,
        "active" => Role::Active,
        "resigned" => Role::Resigned,
        "fenced" => Role::Fenced,
        "cloning" => Role::Cloning,
        "failed" => Role::Failed,
        _ => Role::Starting,
    }
}
