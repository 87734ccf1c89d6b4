//! What use cases need from the rest of the node; the daemon supplies it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use quorate_types::NodeId;

/// Everything outside of the database. Cheap to clone.
#[derive(Clone)]
pub struct Ports {
    /// The replicated directory.
    pub content: Arc<dyn ContentStore>,
    /// Runs executions.
    pub executor: Arc<dyn Wake>,
    /// Derives the broker's users from the database.
    pub broker: Arc<dyn Wake>,
    /// Who else is there.
    pub cluster: Arc<dyn ClusterView>,
}

/// Somebody who finds his work in the database and only needs to be told to look.
pub trait Wake: Send + Sync {
    /// Look now. Never waits; too many calls do no harm; a lost call delays work until the next period.
    fn wake(&self);
}

impl Wake for tokio::sync::Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

/// The replicated directory. Paths are relative to its root, without `..`.
#[async_trait]
pub trait ContentStore: Send + Sync {
    /// A private place on the same file system for one new file or directory.
    ///
    /// # Errors
    /// [`ContentError::Disk`].
    async fn staging(&self) -> Result<Box<dyn Staging>, ContentError>;

    /// Puts a staged file or directory, which it takes, at a place, instead of what may be there. Returns when a
    /// majority of the nodes has it on disk. After a failure the place holds all of the old or all of the new.
    ///
    /// # Errors
    /// See [`ContentError`].
    async fn place(&self, request: PlaceRequest) -> Result<Placed, ContentError>;

    /// Removes a file or a directory with everything in it; succeeds when there is none.
    ///
    /// # Errors
    /// See [`ContentError`].
    async fn remove(&self, path: &Path) -> Result<(), ContentError>;

    /// Opens a regular file for reading. `None`: there is none, or it must not be asked for. Links are followed only
    /// inside the directory.
    ///
    /// # Errors
    /// [`ContentError::Disk`].
    async fn open(&self, path: &str) -> Result<Option<File>, ContentError>;
}

/// A place for one new file or directory. What is still there is removed when this is dropped.
pub trait Staging: Send + Sync {
    /// Where to create it; nothing is there yet.
    fn path(&self) -> PathBuf;
}

/// What to put where.
#[derive(Debug, Clone)]
pub struct PlaceRequest {
    /// The place, for example `blueprints/default_tenant/hello`.
    pub path: PathBuf,
    /// A file or a directory on the same file system as the replicated directory.
    pub staged: PathBuf,
}

/// What was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The sizes of its files together.
    pub bytes: u64,
}

/// Files could not be placed or removed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Too few nodes answered in time; may be repeated.
    #[error("a majority of the nodes could not be reached")]
    NoMajority,
    /// The disk.
    #[error("write to the resources directory")]
    Disk(#[source] io::Error),
    /// A path with `..`, or an absolute one.
    #[error("`{}` is no place in the resources directory", .0.display())]
    BadPath(PathBuf),
}

/// Who belongs to the cluster and how they are.
pub trait ClusterView: Send + Sync {
    /// The newest picture this node has. Never waits.
    fn status(&self) -> ClusterStatus;
}

/// A picture of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Where clients reach the active node, if the cluster has such an address.
    pub cluster_address: Option<IpAddr>,
    /// The certificate that signs every node's, PEM.
    pub authority_pem: String,
    /// Where the broker listens.
    pub broker_port: u16,
    /// By number.
    pub members: Vec<MemberStatus>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: NodeId,
    /// Its host name.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// Whether it holds the epoch.
    pub is_active: bool,
    /// Why the manager on it does not work; `None`: it does.
    pub manager_fault: Option<String>,
    /// The same for its PostgreSQL.
    pub database_fault: Option<String>,
    /// The same for its RabbitMQ.
    pub broker_fault: Option<String>,
}
