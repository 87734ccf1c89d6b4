//! An [`App`] on a private PostgreSQL, with ports that stay on this machine.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use quorate_store::{PgPool, open_epoch, testing};
use quorate_types::{Epoch, NodeId};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::ports::{
    ClusterStatus, ClusterView, ContentError, ContentStore, MemberStatus, PlaceRequest, Placed, Staging,
};
use crate::{App, AppSettings, Ports, UploadLimits};

/// The first administrator's password.
pub const ADMIN_PASSWORD: &str = "admin-password";

/// The directory of a test's resources where uploads are received.
pub const STAGING: &str = ".staging";
/// What a test's app allows: little, so that it is reached.
pub const UPLOAD_LIMITS: UploadLimits =
    UploadLimits { upload_bytes_max: 1 << 20, unpacked_bytes_max: 2 << 20, entries_max: 100 };

/// What a test holds.
pub struct TestApp {
    /// Bootstrapped.
    pub app: App,
    /// Its database, for what the app itself never does.
    pub pool: PgPool,
    /// Woken when executions are waiting.
    pub executor: Arc<Notify>,
    /// The resources directory.
    pub resources: TempDir,
}

impl TestApp {
    /// The same database served in a later epoch: what `app` begins from now on is refused.
    ///
    /// # Panics
    /// When that epoch is over already.
    pub async fn take_over(&self, epoch: Epoch) -> App {
        open_epoch(&self.pool, epoch).await.expect("open the epoch");
        let (pool, ports) = (self.pool.clone(), self.app.ports().clone());
        let resources_root = self.resources.path().to_owned();
        App::new(AppSettings { pool, epoch, resources_root, ports, limits: UPLOAD_LIMITS })
    }
}

/// A bootstrapped app on a database and a directory of its own.
///
/// # Panics
/// When PostgreSQL 15 is not installed.
pub async fn app() -> TestApp {
    app_of(&[[127, 0, 33, 1].into()]).await
}

/// The same, with nodes at these addresses in its picture of the cluster; the first is active.
///
/// # Panics
/// As [`app`].
pub async fn app_of(addresses: &[IpAddr]) -> TestApp {
    let resources = tempfile::tempdir().expect("make a directory");
    let executor = Arc::new(Notify::new());
    let ports = Ports {
        content: Arc::new(OneDisk(resources.path().to_owned())),
        executor: executor.clone(),
        broker: Arc::new(Notify::new()),
        cluster: Arc::new(Drawn(addresses.to_vec())),
    };
    let pool = testing::pool().await;
    open_epoch(&pool, testing::EPOCH).await.expect("open the epoch");
    let resources_root = resources.path().to_owned();
    let (epoch, limits) = (testing::EPOCH, UPLOAD_LIMITS);
    let app = App::new(AppSettings { pool: pool.clone(), epoch, resources_root, ports, limits });
    app.bootstrap(ADMIN_PASSWORD).await.expect("bootstrap");
    TestApp { app, pool, executor, resources }
}

/// A deployment with one instance of each node, as `quorate_store::testing::deployment` describes them, and the
/// built-in workflows. Each operation of a node is given as `"name": "task"`.
///
/// # Panics
/// When the id is taken.
pub async fn deployment(app: &App, id: &str, nodes: &[Value]) -> i64 {
    let operation = |task: &Value| {
        json!({
            "plugin": "p", "operation": task, "executor": "central_deployment_agent", "inputs": {"a": 1},
            "has_intrinsic_functions": false, "max_retries": 2, "retry_interval": 0.05,
        })
    };
    let filled = nodes.iter().map(|node| {
        let mut node = node.clone();
        let named = node["operations"].as_object().cloned().unwrap_or_default();
        node["operations"] = named
            .iter()
            .map(|(name, task)| (format!("cloudify.interfaces.lifecycle.{name}"), operation(task)))
            .collect();
        node
    });
    let filled: Vec<Value> = filled.collect();
    let workflow = |name: &str, parameters: Value, active: Value| {
        json!({
            "plugin": "default_workflows", "operation": format!("cloudify.plugins.workflows.{name}"),
            "parameters": parameters, "is_cascading": false,
            "availability_rules": {"node_instances_active": active},
        })
    };
    let chosen = json!({
        "type_names": {"default": [], "type": "list"}, "node_ids": {"default": [], "type": "list"},
        "node_instance_ids": {"default": [], "type": "list"},
    });
    let mut one = chosen.clone();
    one["operation"] = json!({"type": "string"});
    let mut removal = chosen.clone();
    removal["ignore_failure"] = json!({"default": false, "type": "boolean"});
    let workflows = json!({
        "install": workflow("install", chosen, json!(["none", "partial"])),
        "uninstall": workflow("uninstall", removal, json!(["all", "partial"])),
        "execute_operation": workflow("execute_operation", one, json!(["all", "partial", "none"])),
    });
    testing::deployment(app.store(), id, workflows, &filled).await
}

/// A cluster of one: its majority is this disk.
struct OneDisk(PathBuf);

#[async_trait]
impl ContentStore for OneDisk {
    async fn staging(&self) -> Result<Box<dyn Staging>, ContentError> {
        let staging = self.0.join(STAGING);
        std::fs::create_dir_all(&staging).map_err(ContentError::Disk)?;
        Ok(Box::new(Place(tempfile::tempdir_in(&staging).map_err(ContentError::Disk)?)))
    }

    async fn place(&self, request: PlaceRequest) -> Result<Placed, ContentError> {
        self.remove(&request.path).await?;
        let place = self.0.join(&request.path);
        let parent = place.parent().ok_or_else(|| ContentError::BadPath(request.path.clone()))?;
        std::fs::create_dir_all(parent).map_err(ContentError::Disk)?;
        std::fs::rename(&request.staged, &place).map_err(ContentError::Disk)?;
        Ok(Placed { bytes: 0 })
    }

    async fn remove(&self, path: &Path) -> Result<(), ContentError> {
        let place = self.0.join(path);
        let removed = if place.is_dir() { std::fs::remove_dir_all(&place) } else { std::fs::remove_file(&place) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ContentError::Disk(error)),
            _ => Ok(()),
        }
    }

    async fn open(&self, path: &str) -> Result<Option<File>, ContentError> {
        match File::open(self.0.join(path)) {
            Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => Ok(Some(file)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ContentError::Disk(error)),
        }
    }
}

struct Place(TempDir);

impl Staging for Place {
    fn path(&self) -> PathBuf {
        self.0.path().join("item")
    }
}

/// A cluster in which all is well.
struct Drawn(Vec<IpAddr>);

impl ClusterView for Drawn {
    fn status(&self) -> ClusterStatus {
        let member = |(id, address): (u64, &IpAddr)| MemberStatus {
            id: NodeId(id),
            name: format!("node-{id}"),
            address: *address,
            is_active: id == 1,
            manager_fault: None,
            database_fault: None,
            broker_fault: None,
        };
        let members = (1..).zip(&self.0).map(member).collect();
        ClusterStatus { cluster_address: None, authority_pem: String::new(), broker_port: 5671, members }
    }
}
