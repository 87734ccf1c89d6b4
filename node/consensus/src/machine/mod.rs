//! The replicated state machine: pure, so that every replica gets the same result from the same commands.
//!
//! *Invariants*: an epoch is granted once and only as the successor of the current one; a node number is never used
//! twice; a join token admits one node.

mod cluster;
mod kv;

use std::collections::BTreeMap;

use quorate_types::{ClusterState, NodeId};
use serde::{Deserialize, Serialize};

use crate::command::{Command, KvMap, Reply};

/// Join tokens that may wait at once.
pub const JOIN_TOKENS_MAX: usize = 64;
/// Tombstones of keys; when there are more, the older half is forgotten.
pub const KV_TOMBSTONES_MAX: usize = 8192;

/// A token that admits one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The secret itself is shown once and never stored.
    pub secret_sha256: String,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Everything the cluster agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Members, epochs, synchronous set.
    pub cluster: ClusterState,
    /// Tokens that wait for their node.
    #[serde(default)]
    pub join_tokens: BTreeMap<String, JoinToken>,
    /// The number that the next admitted node gets.
    #[serde(default)]
    pub next_node: u64,
    /// The key-value store.
    #[serde(default)]
    pub kv: KvMap,
    /// The log index of the store's last change.
    #[serde(default)]
    pub kv_index: u64,
    /// Keys that are gone, and the log index at which they went: a reader who waits must hear of it.
    #[serde(default)]
    pub kv_tombstones: BTreeMap<String, u64>,
    /// The newest index among the tombstones that are no longer kept.
    #[serde(default)]
    pub kv_forgotten: u64,
}

impl Machine {
    /// Carries out one command that was committed at `index`.
    pub fn apply(&mut self, command: Command, index: u64) -> Reply {
        match command {
            Command::Kv(command) => self.apply_kv(command, index),
            other => match self.apply_cluster(other) {
                Ok(reply) => reply,
                Err(why) => Reply::Refused(why),
            },
        }
    }

    fn admit(&mut self, member: quorate_types::Member) -> NodeId {
        let id = member.id;
        self.next_node = self.next_node.max(id.0 + 1);
        self.cluster.members.insert(id, member);
        id
    }
}
