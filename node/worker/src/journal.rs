//! What this worker began and how it ended, on disk before anybody is told.
//!
//! One file per task, replaced whole and synced. Invariant: a result, once recorded, is never replaced, so a task
//! that is delivered again is answered with the same result and not run a second time. Tokens and inputs are not
//! recorded; results are, hence mode 0600.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::process::ProcessMark;

/// How long an ended task is remembered.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many ended tasks are remembered; the oldest go first.
const KEPT_MAX: usize = 10_000;
const VERSION: u8 = 1;

/// Where a reply goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) correlation_id: Option<String>,
}

/// How a task ended.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// With a reply, the body as it is sent.
    Reply(Value),
    /// Without one: cancelled, or nobody's task any more.
    Silent,
}

/// One task's record. No `Debug`: results may be secret.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    version: u8,
    pub(crate) task: String,
    pub(crate) execution: String,
    /// How often it was begun here, `1..`.
    pub(crate) attempt: u32,
    /// The process that runs it, once there is one.
    pub(crate) process: Option<ProcessMark>,
    pub(crate) address: Option<Address>,
    pub(crate) ending: Option<Ending>,
    /// Whether a broker confirmed the reply, or none is owed.
    pub(crate) settled: bool,
    /// Seconds since 1970, of the last change.
    changed_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begun { attempt: u32 },
    Ended,
}

struct Known {
    phase: Phase,
    changed_at: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the writer of the journal was cut off")]
    Cut,
}

/// What is known of a task that was just delivered.
pub(crate) enum Recall {
    Unknown,
    /// Begun this often before, never ended: the worker died in it.
    Interrupted {
        attempts: u32,
    },
    Ended(Box<Entry>),
}

/// What a previous run of this worker left.
#[derive(Default)]
pub(crate) struct LeftOver {
    pub(crate) interrupted: Vec<Entry>,
    /// Ended, and the reply not yet confirmed.
    pub(crate) unsettled: Vec<Entry>,
}

#[derive(Clone)]
pub(crate) struct Journal {
    dir: Arc<PathBuf>,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

impl Journal {
    /// Reads what is there. Files that are not whole are of no use to anybody and are dropped: they were never
    /// renamed into place by [`Journal::write`], so nobody was told of them.
    pub(crate) fn open(dir: &Path) -> Result<(Self, LeftOver), JournalError> {
        let read = |source| JournalError::Read { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(read)?;
        let mut known = HashMap::new();
        let mut left = LeftOver::default();
        for file in fs::read_dir(dir).map_err(read)? {
            let path = file.map_err(read)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                drop_file(&path);
                continue;
            }
            let bytes = fs::read(&path).map_err(|source| JournalError::Read { path: path.clone(), source })?;
            let entry: Entry = match serde_json::from_slice(&bytes) {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "journal entry is unreadable, dropped");
                    drop_file(&path);
                    continue;
                }
            };
            known.insert(entry.task.clone(), entry.summary());
            match (&entry.ending, entry.settled) {
                (None, _) => left.interrupted.push(entry),
                (Some(_), false) => left.unsettled.push(entry),
                (Some(_), true) => {}
            }
        }
        Ok((Self { dir: Arc::new(dir.to_owned()), known: Arc::new(Mutex::new(known)) }, left))
    }

    pub(crate) async fn recall(&self, task: &str) -> Result<Recall, JournalError> {
        let phase = self.lock().get(task).map(|known| known.phase);
        match phase {
            None => Ok(Recall::Unknown),
            Some(Phase::Begun { attempt }) => Ok(Recall::Interrupted { attempts: attempt }),
            Some(Phase::Ended) => {
                let path = self.path(task);
                let bytes =
                    tokio::fs::read(&path).await.map_err(|source| JournalError::Read { path: path.clone(), source })?;
                let entry = serde_json::from_slice(&bytes)
                    .map_err(|error| JournalError::Read { path, source: io::Error::other(error) })?;
                Ok(Recall::Ended(Box::new(entry)))
            }
        }
    }

    /// Records the entry; it is on disk when this returns.
    pub(crate) async fn write(&self, mut entry: Entry) -> Result<(), JournalError> {
        entry.changed_at = now();
        let path = self.path(&entry.task);
        let (task, summary) = (entry.task.clone(), entry.summary());
        tokio::task::spawn_blocking(move || replace(&path, &entry)).await.map_err(|_| JournalError::Cut)??;
        self.lock().insert(task, summary);
        Ok(())
    }

    /// Forgets a task that was not begun after all.
    pub(crate) async fn forget(&self, task: &str) -> Result<(), JournalError> {
        let path = self.path(task);
        self.lock().remove(task);
        tokio::fs::remove_file(&path).await.map_err(|source| JournalError::Write { path, source })
    }

    /// Forgets ended tasks beyond the limits; called now and then.
    pub(crate) async fn prune(&self) {
        let forgotten = {
            let mut known = self.lock();
            let oldest = now().saturating_sub(KEPT_FOR.as_secs());
            let is_old = |known: &Known| known.phase == Phase::Ended && known.changed_at < oldest;
            if known.len() <= KEPT_MAX && !known.values().any(is_old) {
                return;
            }
            let mut ended: Vec<(u64, String)> = known
                .iter()
                .filter(|(_, known)| known.phase == Phase::Ended)
                .map(|(task, known)| (known.changed_at, task.clone()))
                .collect();
            ended.sort_unstable();
            let surplus = ended.len().saturating_sub(KEPT_MAX);
            let forgotten: Vec<String> = ended
                .into_iter()
                .enumerate()
                .filter(|(at, (changed_at, _))| *at < surplus || *changed_at < oldest)
                .map(|(_, (_, task))| task)
                .collect();
            for task in &forgotten {
                known.remove(task);
            }
            forgotten
        };
        for task in forgotten {
            if let Err(error) = tokio::fs::remove_file(self.path(&task)).await {
                tracing::warn!(%error, "drop an old journal entry");
            }
        }
    }

    /// Ids come from outside and may hold anything, so the file is named by their hash.
    fn path(&self, task: &str) -> PathBuf {
        self.dir.join(format!("{}.json", hex::encode(Sha256::digest(task.as_bytes()))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(crate) fn begun(task: &str, execution: &str, attempt: u32, address: Option<Address>) -> Self {
        Self {
            version: VERSION,
            task: task.to_owned(),
            execution: execution.to_owned(),
            attempt,
            process: None,
            address,
            ending: None,
            settled: false,
            changed_at: 0,
        }
    }

    fn summary(&self) -> Known {
        let phase = if self.ending.is_some() { Phase::Ended } else { Phase::Begun { attempt: self.attempt } };
        Known { phase, changed_at: self.changed_at }
    }
}

fn replace(path: &Path, entry: &Entry) -> Result<(), JournalError> {
    let failed = |source| JournalError::Write { path: path.to_owned(), source };
    let next = path.with_extension("next");
    let bytes = serde_json::to_vec(entry).map_err(|error| failed(io::Error::other(error)))?;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&next, path).map_err(failed)?;
    match path.parent() {
        Some(dir) => File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed),
        None => Ok(()),
    }
}

fn drop_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "drop a journal file");
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn remembers_endings_and_interruptions_over_a_restart() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (journal, left) = Journal::open(dir.path()).expect("open");
        assert!(left.interrupted.is_empty() && left.unsettled.is_empty());
        journal.write(Entry::begun("../a", "x", 1, None)).await.expect("write");
        let mut ended = Entry::begun("b", "x", 1, None);
        ended.ending = Some(Ending::Reply(json!({"ok": true, "result": 7})));
        journal.write(ended).await.expect("write");
        fs::write(dir.path().join("half.next"), "{").expect("write");

        let (journal, left) = Journal::open(dir.path()).expect("open again");
        assert_eq!(left.interrupted.len(), 1);
        assert_eq!(left.unsettled.len(), 1);
        assert!(matches!(journal.recall("../a").await, Ok(Recall::Interrupted { attempts: 1 })));
        let Ok(Recall::Ended(entry)) = journal.recall("b").await else { panic!("b has ended") };
        assert!(matches!(entry.ending, Some(Ending::Reply(body)) if body["result"] == json!(7)));
        assert!(matches!(journal.recall("c").await, Ok(Recall::Unknown)));
        assert!(!dir.path().join("half.next").exists());
    }
}
