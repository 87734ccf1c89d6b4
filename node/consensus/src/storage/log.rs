//! openraft's log over the writing thread. The entries since the last purge are kept in memory, so reads and
//! replication never wait for the disk; an append is reported as flushed only after its sync.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{ErrorVerb, OptionalSend, RaftLogId, RaftLogReader};

use super::failure;
use super::writer::{Loaded, Write, Writer, keys};
use crate::raft_types::{Entry, LogId, StorageError, TypeConfig, Vote};

#[derive(Default)]
struct Kept {
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

/// The log.
#[derive(Clone)]
pub struct LogStore {
    kept: Arc<Mutex<Kept>>,
    writer: Writer,
}

impl LogStore {
    /// Over what was found on disk.
    pub fn new(writer: Writer, loaded: &mut Loaded) -> Result<Self, serde_json::Error> {
        fn read<T: serde::de::DeserializeOwned>(bytes: Option<&Vec<u8>>) -> Result<Option<T>, serde_json::Error> {
            bytes.map(|bytes| serde_json::from_slice(bytes)).transpose()
        }
        let kept = Kept {
            entries: std::mem::take(&mut loaded.entries).into_iter().map(|e| (e.log_id.index, e)).collect(),
            purged: read(loaded.purged.as_ref())?,
            vote: read(loaded.vote.as_ref())?,
            committed: read(loaded.committed.as_ref())?,
        };
        Ok(Self { kept: Arc::new(Mutex::new(kept)), writer })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(value).map_err(|error| failure(ErrorVerb::Write, &error))
}

fn written(result: Result<(), String>) -> Result<(), StorageError> {
    result.map_err(|error| failure(ErrorVerb::Write, &std::io::Error::other(error)))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.kept().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let kept = self.kept();
        let last = kept.entries.values().next_back().map(|entry| *entry.get_log_id()).or(kept.purged);
        Ok(LogState { last_purged_log_id: kept.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = json(vote)?;
        written(self.writer.wait(|done| Write::Meta(vec![(keys::VOTE, bytes)], Some(done))).await)?;
        self.kept().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.kept().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // A hint for the next start, so nobody waits for it.
        if let Some(committed) = committed {
            let bytes = json(&committed)?;
            written(self.writer.send(Write::Meta(vec![(keys::COMMITTED, bytes)], None)).await)?;
        }
        self.kept().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.kept().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut rows = Vec::with_capacity(entries.len());
        for entry in &entries {
            rows.push((entry.log_id.index, json(entry)?));
        }
        self.kept().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        written(self.writer.send(Write::Append(rows, callback)).await)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        drop(self.kept().entries.split_off(&log_id.index));
        written(self.writer.wait(|done| Write::Truncate(log_id.index, done)).await)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let bytes = json(&log_id)?;
        {
            let mut kept = self.kept();
            let rest = kept.entries.split_off(&(log_id.index + 1));
            kept.entries = rest;
            kept.purged = Some(log_id);
        }
        written(self.writer.wait(|done| Write::Purge(log_id.index, bytes, done)).await)
    }
}
