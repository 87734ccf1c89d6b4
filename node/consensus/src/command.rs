//! What can be agreed on, and what the agreement answers.
//!
//! Commands are facts for every replica: no command reads a clock or draws a number; the proposer puts both in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use quorate_types::{Epoch, Lsn, Member, NodeId, SyncSet, TimelineId};
use serde::{Deserialize, Serialize};

/// One change of the agreed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The founder's first command.
    Init { cluster_id: String, first: Member },
    /// Keeps the hash of a join token's secret until `expires_at` (unix seconds).
    AddJoinToken { id: String, secret_sha256: String, expires_at: i64 },
    /// Uses up a token and gives the new member a number that was never used.
    Admit { token: String, secret_sha256: String, now: i64, name: String, address: IpAddr, public_key_sha256: String },
    /// A member is no more.
    RemoveMember { id: NodeId },
    /// Whether a member votes in Raft.
    SetVoter { id: NodeId, voter: bool },
    /// A member's new name or address.
    UpdateMember { id: NodeId, name: String, address: IpAddr },
    /// Grants the next epoch. Refused unless `epoch` is the current one plus one and the synchronous set still is
    /// `counted`, with which the election was counted.
    Grant { epoch: Epoch, holder: NodeId, parent: Epoch, counted: SyncSet, reason: String },
    /// The holder has promoted. Refused unless `epoch` is the current one and `holder` holds it.
    Open { epoch: Epoch, holder: NodeId, timeline: TimelineId, start: Lsn },
    /// Replaces the synchronous set if it still is `expected` and the epoch still is `epoch`.
    SetSync { epoch: Epoch, expected: SyncSet, sync: SyncSet },
    /// Where the operator wants the active node.
    SetSwitchover { to: Option<NodeId> },
    /// Key-value store.
    Kv(KvCommand),
}

/// One change of the key-value store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCommand {
    /// Writes. With `cas`: only if the key's modify index is that; 0: only if the key is not there.
    Put {
        key: String,
        #[serde(with = "base64_bytes")]
        value: Vec<u8>,
        flags: u64,
        cas: Option<u64>,
    },
    /// Removes. With `cas`: only if the key's modify index is that, or it is not there anyway.
    Delete { key: String, cas: Option<u64> },
    /// Removes every key with the prefix.
    DeleteTree { prefix: String },
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was carried out.
    Done,
    /// It was not, because the state does not allow it; one line says why.
    Refused(String),
    /// The number of the admitted node.
    Admitted(NodeId),
    /// Whether it was carried out; only a failed `cas` is not. What was so already stays as it is, index and all.
    Kv { changed: bool, index: u64 },
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntry {
    /// Bytes, at most 512 KiB.
    #[serde(with = "base64_bytes")]
    pub value: Vec<u8>,
    /// The client's own number.
    pub flags: u64,
    /// The log index at which the key appeared.
    pub create_index: u64,
    /// The log index of its last change.
    pub modify_index: u64,
}

/// The store: keys in order.
pub type KvMap = BTreeMap<String, KvEntry>;

/// Bytes as Base64 text: JSON arrays of numbers are four times as long.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(de::Error::custom)
    }
}
