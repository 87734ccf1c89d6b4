//! Three nodes with real directories and real servers on loopback.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_resources::{Dial, ItemPath, Limits, Placed, Resources, ResourcesSettings, Staged};
use quorate_types::{Epoch, NodeId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

type Addresses = Arc<Mutex<HashMap<NodeId, SocketAddr>>>;

struct Plain(Addresses);

impl Dial for Plain {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let address = *self.0.lock().unwrap().get(&node)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Some(endpoint.connect_timeout(Duration::from_millis(500)).connect_lazy())
    }
}

/// A running node.
pub struct Node {
    pub resources: Resources,
    pub root: PathBuf,
    pub fence: watch::Sender<Epoch>,
    server: tokio::task::JoinHandle<()>,
}

/// The nodes' directories and addresses; nodes come and go.
pub struct Bed {
    directory: tempfile::TempDir,
    addresses: Addresses,
    pub limits: Limits,
}

pub fn peers(of: u64) -> Vec<NodeId> {
    (1..=3).filter(|id| *id != of).map(NodeId).collect()
}

pub fn path(text: &str) -> ItemPath {
    text.parse().unwrap()
}

impl Bed {
    pub fn new() -> Self {
        let limits = Limits {
            file_bytes_max: 4 << 20,
            tree_bytes_max: 6 << 20,
            entries_max: 100,
            chunk_bytes: 4 << 10,
            free_bytes_kept: 0,
            idle: Duration::from_secs(2),
            finish: Duration::from_secs(10),
            ..Limits::default()
        };
        Self { directory: tempfile::tempdir().unwrap(), addresses: Addresses::default(), limits }
    }

    pub fn root(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    pub fn address(&self, id: u64) -> SocketAddr {
        self.addresses.lock().unwrap()[&NodeId(id)]
    }

    /// What answers at a node's address from now on.
    pub fn redirect(&self, id: u64, to: SocketAddr) {
        self.addresses.lock().unwrap().insert(NodeId(id), to);
    }

    /// Starts a node, or starts it again.
    pub async fn start(&self, id: u64) -> Node {
        self.start_with(id, self.limits).await
    }

    pub async fn start_with(&self, id: u64, limits: Limits) -> Node {
        let root = self.root(id);
        let (fence, watched) = watch::channel(Epoch(0));
        let settings = ResourcesSettings { root: root.clone(), node_id: NodeId(id), limits };
        let dial = Arc::new(Plain(self.addresses.clone()));
        let resources = Resources::open(settings, dial, watched).unwrap();
        let listener = TcpListener::bind(format!("127.35.0.{id}:0")).await.unwrap();
        self.redirect(id, listener.local_addr().unwrap());
        let routes = Server::builder().add_service(resources.service());
        let server = tokio::spawn(async move {
            routes.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Node { resources, root, fence, server }
    }

    /// Three nodes; the first has taken over in epoch 1 and the others have repaired.
    pub async fn cluster(&self) -> [Node; 3] {
        let nodes = [self.start(1).await, self.start(2).await, self.start(3).await];
        nodes[0].resources.take_over(Epoch(1), &peers(1), 2).await.unwrap();
        for (node, id) in nodes[1..].iter().zip(2..) {
            node.resources.repair(&peers(id)).await;
            assert!(node.resources.status().await.complete);
        }
        nodes
    }
}

impl Node {
    /// Ends it: connections break, and the directory is closed.
    pub async fn stop(self) {
        self.server.abort();
        drop(self.server.await);
        let lock = self.root.join(".quorate/manifest");
        drop(self.resources);
        // Connections that were being served hold the directory a little longer.
        until("the directory to be closed", || redb::Database::create(&lock).is_ok()).await;
    }

    pub async fn staged(&self, files: &[(&str, &[u8])]) -> Staged {
        let staged = self.resources.staging().await.unwrap();
        write(&staged.path(), files);
        staged
    }

    /// Places a tree as node `id` in an epoch, for a majority of 2.
    pub async fn place(&self, id: u64, epoch: u64, at: &str, content: &[u8]) -> Placed {
        let staged = self.staged(&[("a.txt", content)]).await;
        self.resources.place(Epoch(epoch), &path(at), staged, &peers(id), 2).await.unwrap()
    }

    pub fn has(&self, at: &str) -> bool {
        self.root.join(at).symlink_metadata().is_ok()
    }

    pub fn read(&self, at: &str) -> Vec<u8> {
        std::fs::read(self.root.join(at)).unwrap()
    }

    pub fn kept_aside(&self) -> usize {
        std::fs::read_dir(self.root.join(".quorate/aside")).unwrap().count()
    }

    pub async fn staging_is_empty(&self) {
        let staging = self.root.join(".quorate/staging");
        until("the staging area to be empty", || std::fs::read_dir(&staging).unwrap().next().is_none()).await;
    }
}

/// Writes a tree; an empty name writes one file.
pub fn write(at: &Path, files: &[(&str, &[u8])]) {
    for (name, content) in files {
        let file = if name.is_empty() { at.to_owned() } else { at.join(name) };
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
}

/// Everything below a directory: path, mode, content.
pub fn tree(at: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(at).min_depth(1) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let content = if meta.is_file() {
            std::fs::read(entry.path()).unwrap()
        } else if meta.is_symlink() {
            std::fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        found.insert(entry.path().strip_prefix(at).unwrap().to_owned(), (meta.permissions().mode(), content));
    }
    found
}

pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited too long for {what}");
}
