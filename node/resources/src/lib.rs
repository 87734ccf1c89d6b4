//! The replicated resources directory: real files, on a majority of disks before anything names them.
//!
//! The active node places and removes *items*, files or trees that never change, each with a version and a manifest
//! record. Nodes compare their manifests and pull what they lack. Deliberately absent: connections (the caller gives
//! channels through [`Dial`] and mounts [`Resources::service`]), who is active (the caller says the epoch), the time
//! between two rounds of [`Resources::repair`], and watching for changes by hand.
//!
//! *Invariants*: an acknowledged item is on a majority of disks; a node accepts nothing of an epoch older than it has
//! promised; a node that took over has everything that was acknowledged before; nothing that differs is removed before
//! it is kept aside; no path leads out of the root.

mod entry;
mod lookup;
mod manifest;
mod merge;
mod path;
mod peers;
mod place;
mod repair;
mod service;
mod staging;
mod store;
mod transfer;
mod tree;
mod wire;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::resources::resources_server::ResourcesServer;
use quorate_types::{Epoch, NodeId};
use tokio::sync::{Mutex, Semaphore, watch};
use tonic::transport::Channel;

pub use entry::{Content, Entry, FileEntry, Hash, Kind, Summary, Version};
pub use manifest::ManifestError;
pub use path::{DATA_DIRS, ItemPath, PathError};
pub use place::{PlaceError, Placed};
pub use repair::{Repaired, TakeOverError, TakenOver};
pub use service::Service;
pub use staging::Staged;
pub use store::InstallError;
pub use tree::TreeError;

use peers::Peers;
use store::Store;

/// Chunks are this small at least.
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Chunks are this large at most, so that they fit a message with the file's record.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Placements whose slower receivers are still being served after the acknowledgement. Beyond it they are left to
/// repair.
const TAILS_MAX: usize = 16;

/// Gives channels to members' resources ports.
pub trait Dial: Send + Sync + 'static {
    /// The channel to a member; it connects on use. `None`: it is no member.
    fn channel(&self, node: NodeId) -> Option<Channel>;
}

/// What this node allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes_max: u64,
    /// Bytes of one item.
    pub tree_bytes_max: u64,
    /// Files and directories of one item.
    pub entries_max: u64,
    /// Items on this node, tombstones among them.
    pub items_max: u64,
    /// Bytes of one message, 4 KiB to 1 MiB.
    pub chunk_bytes: usize,
    /// Transfers at once: to one peer, from all peers, and asked for by all peers.
    pub concurrent_transfers_max: usize,
    /// Bytes that stay free on the disk.
    pub free_bytes_kept: u64,
    /// Replaced and removed things that are kept aside, the newest.
    pub aside_items_max: u64,
    /// Their bytes.
    pub aside_bytes_max: u64,
    /// A transfer that does not move for this long has failed.
    pub idle: Duration,
    /// How long a receiver may take to sync and name what has arrived.
    pub finish: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes_max: 8 << 30,
            tree_bytes_max: 16 << 30,
            entries_max: 50_000,
            items_max: 200_000,
            chunk_bytes: 256 << 10,
            concurrent_transfers_max: 4,
            free_bytes_kept: 64 << 20,
            aside_items_max: 256,
            aside_bytes_max: 4 << 30,
            idle: Duration::from_secs(5),
            finish: Duration::from_secs(60),
        }
    }
}

/// How to run.
#[derive(Debug, Clone)]
pub struct ResourcesSettings {
    /// The directory; made when it is missing.
    pub root: PathBuf,
    /// Who this is.
    pub node_id: NodeId,
    /// What is allowed.
    pub limits: Limits,
}

/// Why the directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A limit makes no sense.
    #[error("limits.{0}")]
    Limits(&'static str),
    /// The disk.
    #[error("open the resources directory {path}")]
    Directory {
        /// What was opened.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Why a file is not served.
#[derive(Debug, thiserror::Error)]
pub enum OpenFileError {
    /// No regular file inside the data directories, or a path that must not be asked for.
    #[error("there is no file `{0}`")]
    NotFound(String),
    /// The disk.
    #[error("open a file of the resources directory")]
    Disk(#[source] io::Error),
}

/// How far this node is, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Items, tombstones among them.
    pub items: u64,
    /// Over them; nodes with the same digest have the same items.
    pub digest: Hash,
    /// Nothing of an older epoch is accepted.
    pub promised: Epoch,
    /// The epoch whose take-over the items build on.
    pub base: Epoch,
    /// Whether this node took over in `base` and may place.
    pub holder: bool,
    /// False while the directory is new or was lost, and not yet filled from the others.
    pub complete: bool,
}

/// The running directory. Cheap to clone.
#[derive(Clone)]
pub struct Resources {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    limits: Limits,
    store: Arc<Store>,
    peers: Peers,
    /// Repairs and take-overs go one after the other.
    repairing: Mutex<()>,
    tails: Arc<Semaphore>,
    incoming: Arc<Semaphore>,
    serving: Arc<Semaphore>,
}

impl Resources {
    /// Opens the directory, settles what the last run left half done, and empties the staging area.
    ///
    /// `fence`: the oldest epoch that this node still accepts, as it durably promised; it never goes back.
    /// Blocking (call it before serving).
    ///
    /// # Errors
    /// [`OpenError`]; among others when another process has the directory open.
    pub fn open(
        settings: ResourcesSettings,
        dial: Arc<dyn Dial>,
        fence: watch::Receiver<Epoch>,
    ) -> Result<Self, OpenError> {
        let ResourcesSettings { root, node_id: node, limits } = settings;
        if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&limits.chunk_bytes) {
            return Err(OpenError::Limits("chunk_bytes must be 4 KiB to 1 MiB"));
        }
        if limits.concurrent_transfers_max == 0 {
            return Err(OpenError::Limits("concurrent_transfers_max must be 1 or more"));
        }
        let transfers = || Arc::new(Semaphore::new(limits.concurrent_transfers_max));
        let inner = Inner {
            node,
            limits,
            store: Arc::new(Store::open(&root, limits, fence)?),
            peers: Peers::new(node, dial, limits),
            repairing: Mutex::new(()),
            tails: Arc::new(Semaphore::new(TAILS_MAX)),
            incoming: transfers(),
            serving: transfers(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The service for port 22000; only current members may reach it.
    #[must_use]
    pub fn service(&self) -> ResourcesServer<Service> {
        Service::server(self.clone())
    }

    /// A private place on the same file system for one new item; see [`Staged::path`].
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub async fn staging(&self) -> Result<Staged, InstallError> {
        let store = self.inner.store.clone();
        blocking(move || store.stage()).await
    }

    /// Opens a regular file below a data directory, for reading. Links are followed only inside the data directory.
    ///
    /// # Errors
    /// [`OpenFileError::NotFound`] also for whatever must not be asked for.
    pub async fn open_file(&self, path: &str) -> Result<File, OpenFileError> {
        let (store, path) = (self.inner.store.clone(), path.to_owned());
        blocking(move || store.open_file(&path)).await
    }

    /// What is recorded of an item. `None`: there is none, or it was removed.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub async fn item(&self, path: &ItemPath) -> Result<Option<Entry>, ManifestError> {
        let (store, path) = (self.inner.store.clone(), path.clone());
        let entry = blocking(move || store.look(|manifest, _| manifest.entry(&path))).await?;
        Ok(entry.filter(|entry| entry.kind != Kind::Tombstone))
    }

    /// How far this node is.
    pub async fn status(&self) -> Status {
        let look = self.own_look().await;
        Status {
            items: look.items,
            digest: look.digest,
            promised: look.promised,
            base: look.base,
            holder: look.holder,
            complete: look.complete,
        }
    }

    async fn own_look(&self) -> wire::Look {
        let store = self.inner.store.clone();
        blocking(move || own_look(&store)).await
    }
}

fn own_look(store: &Store) -> wire::Look {
    store.look(|manifest, standing| {
        wire::Look::new(standing, manifest.sequence(), manifest.items().len(), manifest.digest())
    })
}

/// The smallest majority of `nodes`.
const fn majority_of(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// Runs disk work beside the runtime. It is not cut when the caller goes away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending: nobody waits for an answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}
