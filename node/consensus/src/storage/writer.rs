//! The writing thread: takes what waits, writes it in one transaction, syncs, then reports to each.

use std::path::{Path, PathBuf};

use openraft::storage::LogFlushed;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::raft_types::{Entry, TypeConfig};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// Keys of the `meta` table.
pub mod keys {
    pub const FORMAT: &str = "format";
    pub const VOTE: &str = "vote";
    pub const COMMITTED: &str = "committed";
    pub const PURGED: &str = "purged";
    pub const SNAPSHOT_META: &str = "snapshot_meta";
    pub const SNAPSHOT: &str = "snapshot";
}

/// The stored format; a newer program migrates from its predecessor.
const FORMAT: &[u8] = b"1";
/// Writes that wait at once; Raft itself stops long before.
const WAITING_MAX: usize = 1024;
/// Writes that share one sync.
const BATCH_MAX: usize = 256;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory.
    #[error("open the Raft store {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Written by another version.
    #[error("the Raft store {path} has format `{found}`, this program knows `1`; use the version that wrote it")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The log was lost while the identity was kept.
    #[error(
        "the Raft store {path} is gone, but this node has voted before: with an empty log it could undo what it \
         agreed to. Remove the node on another member and join it anew"
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// Raft itself did not start.
    #[error("start Raft: {0}")]
    Raft(String),
}

/// One thing to write.
pub enum Write {
    Append(Vec<(u64, Vec<u8>)>, LogFlushed<TypeConfig>),
    Meta(Vec<(&'static str, Vec<u8>)>, Option<Done>),
    Truncate(u64, Done),
    Purge(u64, Vec<u8>, Done),
}

/// Where the result goes.
pub type Done = oneshot::Sender<Result<(), String>>;

/// What the store held when it was opened.
#[derive(Default)]
pub struct Loaded {
    pub entries: Vec<Entry>,
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    pub purged: Option<Vec<u8>>,
    pub snapshot_meta: Option<Vec<u8>>,
    pub snapshot: Option<Vec<u8>>,
}

/// The way to the writing thread.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Write>,
}

impl Writer {
    /// Opens the file, or makes it, and starts the thread; the thread ends with the last handle.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open(directory: &Path) -> Result<(Self, Loaded), OpenError> {
        let path = directory.join("raft.redb");
        let marker = directory.join("created");
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Open { path: path.clone(), source };
        std::fs::create_dir_all(directory).map_err(|e| failed(e.into()))?;
        if marker.exists() && !path.exists() {
            return Err(OpenError::Lost { path });
        }
        let database = Database::create(&path).map_err(|e| failed(e.into()))?;
        let loaded = load(&database).map_err(failed)?;
        if let Some(found) = loaded.1 {
            return Err(OpenError::Format { path, found });
        }
        if !marker.exists() {
            mark(&marker).map_err(|e| failed(e.into()))?;
        }
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("raft-store".into())
            .spawn(move || run(&database, receiver))
            .map_err(|e| failed(e.into()))?;
        Ok((Self { queue }, loaded.0))
    }

    /// Hands something over without waiting for the disk.
    pub async fn send(&self, write: Write) -> Result<(), String> {
        self.queue.send(write).await.map_err(|_| "the Raft store has stopped".to_owned())
    }

    /// Writes something and waits until it is synced.
    pub async fn wait(&self, make: impl FnOnce(Done) -> Write) -> Result<(), String> {
        let (done, result) = oneshot::channel();
        self.send(make(done)).await?;
        result.await.unwrap_or_else(|_| Err("the Raft store has stopped".to_owned()))
    }
}

fn mark(marker: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(marker)?;
    file.sync_all()?;
    if let Some(directory) = marker.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

type LoadResult = Result<(Loaded, Option<String>), Box<dyn std::error::Error + Send + Sync>>;

fn load(database: &Database) -> LoadResult {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        let format = meta.get(keys::FORMAT)?.map(|value| value.value().to_vec());
        match format {
            None => drop(meta.insert(keys::FORMAT, FORMAT)?),
            Some(found) if found == FORMAT => {}
            Some(found) => return Ok((Loaded::default(), Some(String::from_utf8_lossy(&found).into_owned()))),
        }
    }
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let get = |key: &str| meta.get(key).map(|value| value.map(|value| value.value().to_vec()));
    let mut loaded = Loaded {
        entries: Vec::new(),
        vote: get(keys::VOTE)?,
        committed: get(keys::COMMITTED)?,
        purged: get(keys::PURGED)?,
        snapshot_meta: get(keys::SNAPSHOT_META)?,
        snapshot: get(keys::SNAPSHOT)?,
    };
    for row in transaction.open_table(LOG)?.iter()? {
        let (_, bytes) = row?;
        loaded.entries.push(serde_json::from_slice(bytes.value())?);
    }
    Ok((loaded, None))
}

fn run(database: &Database, mut queue: mpsc::Receiver<Write>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            match queue.try_recv() {
                Ok(write) => batch.push(write),
                Err(_) => break,
            }
        }
        let result = commit(database, &batch).map_err(|error| error.to_string());
        if let Err(error) = &result {
            tracing::error!(%error, "the Raft store cannot write");
        }
        for write in batch {
            match write {
                Write::Append(_, flushed) => {
                    flushed.log_io_completed(result.clone().map_err(std::io::Error::other));
                }
                Write::Meta(_, Some(done)) | Write::Truncate(_, done) | Write::Purge(_, _, done) => {
                    // The asker may have been cancelled; the write stands anyway.
                    let _ = done.send(result.clone());
                }
                Write::Meta(_, None) => {}
            }
        }
    }
}

fn commit(database: &Database, batch: &[Write]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        for write in batch {
            match write {
                Write::Append(entries, _) => {
                    for (index, bytes) in entries {
                        log.insert(index, bytes.as_slice())?;
                    }
                }
                Write::Meta(values, _) => {
                    for (key, value) in values {
                        meta.insert(*key, value.as_slice())?;
                    }
                }
                Write::Truncate(from, _) => log.retain_in(*from.., |_, _| false)?,
                Write::Purge(upto, id, _) => {
                    log.retain_in(..=*upto, |_, _| false)?;
                    meta.insert(keys::PURGED, id.as_slice())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
