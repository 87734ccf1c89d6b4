//! openraft's state machine over [`Machine`], kept in memory and rebuilt from snapshot and log at every start.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use quorate_types::ClusterState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::failure;
use super::writer::{Loaded, Write, Writer, keys};
use crate::command::Reply;
use crate::machine::Machine;
use crate::raft_types::{Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig};

/// What readers and the state machine share.
pub struct Shared {
    applied: Mutex<Applied>,
    cluster: watch::Sender<Arc<ClusterState>>,
    kv_index: watch::Sender<u64>,
}

/// The version of snapshots that this program writes. 0 had none written and kept no tombstones.
const SNAPSHOT_VERSION: u32 = 1;

#[derive(Clone, Serialize, Deserialize)]
struct Applied {
    #[serde(default)]
    version: u32,
    last: Option<LogId>,
    membership: StoredMembership,
    machine: Machine,
}

impl Default for Applied {
    fn default() -> Self {
        Self {
            version: SNAPSHOT_VERSION,
            last: None,
            membership: StoredMembership::default(),
            machine: Machine::default(),
        }
    }
}

impl Applied {
    /// Reads a snapshot of this version or an older one.
    fn read(data: &[u8]) -> Result<Self, serde_json::Error> {
        let mut applied: Self = serde_json::from_slice(data)?;
        if applied.version > SNAPSHOT_VERSION {
            let text = format!("the snapshot has version {}, this program reads {SNAPSHOT_VERSION}", applied.version);
            return Err(serde::de::Error::custom(text));
        }
        if applied.version == 0 {
            // Anything may have been deleted up to here.
            applied.machine.kv_forgotten = applied.machine.kv_index;
        }
        applied.version = SNAPSHOT_VERSION;
        Ok(applied)
    }
}

impl Shared {
    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state; keep it short, the lock stops the state machine.
    pub fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.applied().machine)
    }

    /// The committed cluster state, and its changes.
    pub fn cluster(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.cluster.subscribe()
    }

    /// The log index of the key-value store's last change, and its changes.
    pub fn kv_index(&self) -> watch::Receiver<u64> {
        self.kv_index.subscribe()
    }

    /// Tells the watchers after something was applied.
    fn publish(&self, applied: &Applied) {
        self.cluster.send_if_modified(|seen| {
            let changed = **seen != applied.machine.cluster;
            if changed {
                *seen = Arc::new(applied.machine.cluster.clone());
            }
            changed
        });
        self.kv_index.send_if_modified(|seen| {
            let changed = *seen != applied.machine.kv_index;
            *seen = applied.machine.kv_index;
            changed
        });
    }
}

/// A snapshot and what it covers.
type Kept = (SnapshotMeta, Vec<u8>);

/// The state machine.
#[derive(Clone)]
pub struct MachineStore {
    shared: Arc<Shared>,
    writer: Writer,
    snapshot: Arc<Mutex<Option<Kept>>>,
}

impl MachineStore {
    /// Over the snapshot that was found on disk.
    pub fn new(writer: Writer, loaded: &mut Loaded) -> Result<Self, serde_json::Error> {
        let snapshot = match (loaded.snapshot_meta.take(), loaded.snapshot.take()) {
            (Some(meta), Some(data)) => Some((serde_json::from_slice::<SnapshotMeta>(&meta)?, data)),
            _ => None,
        };
        let applied: Applied = match &snapshot {
            Some((_, data)) => Applied::read(data)?,
            None => Applied::default(),
        };
        let shared = Shared {
            cluster: watch::Sender::new(Arc::new(applied.machine.cluster.clone())),
            kv_index: watch::Sender::new(applied.machine.kv_index),
            applied: Mutex::new(applied),
        };
        Ok(Self { shared: Arc::new(shared), writer, snapshot: Arc::new(Mutex::new(snapshot)) })
    }

    /// The readers' side.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    async fn keep(&self, meta: &SnapshotMeta, data: Vec<u8>) -> Result<(), StorageError> {
        let text = serde_json::to_vec(meta).map_err(|error| failure(ErrorVerb::Write, &error))?;
        let values = vec![(keys::SNAPSHOT_META, text), (keys::SNAPSHOT, data.clone())];
        self.writer
            .wait(|done| Write::Meta(values, Some(done)))
            .await
            .map_err(|error| failure(ErrorVerb::Write, &std::io::Error::other(error)))?;
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some((meta.clone(), data));
        Ok(())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MachineStore {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let applied = self.shared.applied().clone();
        let data = serde_json::to_vec(&applied).map_err(|error| failure(ErrorVerb::Read, &error))?;
        let index = applied.last.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
            snapshot_id: format!("{index}-{}", data.len()),
        };
        self.keep(&meta, data.clone()).await?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.shared.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.shared.applied();
        let mut replies = Vec::new();
        for entry in entries {
            let id = entry.log_id;
            applied.last = Some(id);
            replies.push(match entry.payload {
                EntryPayload::Blank => Reply::Done,
                EntryPayload::Normal(command) => applied.machine.apply(command, id.index),
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(id), membership);
                    Reply::Done
                }
            });
        }
        self.shared.publish(&applied);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let mut received = Applied::read(&data).map_err(|error| failure(ErrorVerb::Read, &error))?;
        received.last = meta.last_log_id;
        received.membership = meta.last_membership.clone();
        // On disk first: after a crash the log before the snapshot is not there to fall back on.
        self.keep(meta, data).await?;
        let mut applied = self.shared.applied();
        *applied = received;
        self.shared.publish(&applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let kept = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept
            .as_ref()
            .map(|(meta, data)| Snapshot { meta: meta.clone(), snapshot: Box::new(Cursor::new(data.clone())) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_snapshot_is_read_and_the_newest_is_written() {
        let old = Applied::read(include_bytes!("golden/snapshot_0.json")).ok().unwrap();
        let text = include_str!("golden/snapshot_1.json");
        let new = Applied::read(text.as_bytes()).ok().unwrap();
        assert_eq!((old.last, &old.membership), (new.last, &new.membership));
        assert_eq!(old.machine.cluster, new.machine.cluster);
        assert_eq!((new.machine.kv_key_changed("gone"), new.machine.kv_key_changed("never")), (8, 0));
        assert_eq!(old.machine.kv_key_changed("never"), 8, "the old one does not know what was removed");
        let written = serde_json::to_value(&new).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn a_newer_snapshot_is_refused() {
        let newer = Applied { version: SNAPSHOT_VERSION + 1, ..Applied::default() };
        assert!(Applied::read(&serde_json::to_vec(&newer).unwrap()).is_err());
    }
}
