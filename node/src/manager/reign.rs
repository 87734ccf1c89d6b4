//! The beginning and the end of one reign.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use quorate_app::executor::{self, AmqpTransport, ExecutorSettings, Limits};
use quorate_app::{App, AppSettings, Ports, UploadLimits};
use quorate_config::Config;
use quorate_consensus::Consensus;
use quorate_dispatch::AmqpTarget;
use quorate_network::{ProbeError, Vip, VipKind};
use quorate_resources::Resources;
use quorate_store::{PgConnectOptions, PgPool, PgPoolOptions, migrate, open_epoch};
use quorate_types::Epoch;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Doorkeeper;
use super::accounts::{self, BROKER_WORKER, VHOST};
use super::cluster_view::Picture;
use super::content::{Content, quorum};
use super::front::Front;
use super::workers::HeardWorkers;
use crate::commands::cluster::init::first_password_path;
use crate::edge::Edge;
use crate::local::{Local, chain};
use crate::loops::observe::Views;
use crate::pki::Identity;

/// Database sessions of the application.
const SESSIONS_MAX: u32 = 48;
/// How long a request waits for a session.
const SESSION_WAIT: Duration = Duration::from_secs(10);
/// Between two attempts to take the cluster address.
const HOLD_AGAIN: Duration = Duration::from_millis(100);
/// How long a predecessor may still answer on the cluster address after it handed over.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(5);
/// A predecessor that answered within this may still be there.
const PREDECESSOR_ALIVE: Duration = Duration::from_millis(1500);
/// How long an answer to an ARP probe may take on a local network.
const PROBE: Duration = Duration::from_millis(150);
/// Between two probes.
const PROBE_AGAIN: Duration = Duration::from_millis(20);
/// The database and the role of the manager.
const DATABASE: &str = "quorate";

/// What a reign is made of.
pub struct Manager {
    pub config: Arc<Config>,
    pub identity: Arc<Identity>,
    pub consensus: Consensus,
    pub local: Arc<Local>,
    pub resources: Resources,
    pub views: Views,
    pub front: Front,
    pub edge: Edge,
    /// The cluster address, when there is one.
    pub vip: Option<Arc<Vip>>,
    /// Rung when the broker's accounts may have changed.
    pub accounts: Arc<Notify>,
}

/// How the local PostgreSQL is reached.
pub fn database(config: &Config) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(config.postgres.socket_dir.join("pg"))
        .username(DATABASE)
        .database(DATABASE)
        .application_name("quorate")
}

impl Manager {
    /// Everything that must be before a request is answered.
    pub(super) async fn begin(&self, epoch: Epoch, reign: &CancellationToken) -> anyhow::Result<Router> {
        let began = tokio::time::Instant::now();
        let (me, cluster) = (self.local.me(), self.consensus.cluster());
        let (peers, majority) = quorum(&cluster.borrow(), me);
        let (pool, taken) = tokio::join!(self.open_database(epoch), self.resources.take_over(epoch, &peers, majority));
        let taken = taken.context("take over the resources directory")?;
        let pool = pool?;
        let content = Content { resources: self.resources.clone(), me, epoch, cluster };
        let work = Arc::new(Notify::new());
        let ports = Ports {
            content: Arc::new(content),
            executor: work.clone(),
            broker: self.accounts.clone(),
            cluster: Arc::new(self.picture()),
        };
        let resources_root = self.config.resources_dir.clone();
        let limits = UploadLimits {
            upload_bytes_max: self.config.limits.upload_bytes_max,
            unpacked_bytes_max: self.config.limits.unpacked_bytes_max,
            entries_max: self.config.limits.archive_entries_max,
        };
        let app = App::new(AppSettings { pool: pool.clone(), epoch, resources_root, ports, limits });
        self.bootstrap(&app).await?;
        app.resume_uploads().await.context("take up unfinished uploads")?;
        self.start_executor(&app, work, reign);
        // The sessions end with the reign.
        let end = reign.clone();
        tokio::spawn(async move {
            end.cancelled().await;
            pool.close().await;
        });
        let milliseconds = began.elapsed().as_millis();
        info!(%epoch, milliseconds, files_pulled = taken.repaired.pulled, "the application is ready");
        Ok(quorate_api::rest::router(app))
    }

    async fn open_database(&self, epoch: Epoch) -> anyhow::Result<PgPool> {
        let pool = PgPoolOptions::new()
            .max_connections(SESSIONS_MAX)
            .acquire_timeout(SESSION_WAIT)
            .connect_with(database(&self.config))
            .await
            .context("open sessions with the local PostgreSQL")?;
        migrate(&pool).await?;
        open_epoch(&pool, epoch).await.context("open the epoch in the database")?;
        Ok(pool)
    }

    /// Takes up every execution that is not ended; it stops with the reign.
    fn start_executor(&self, app: &App, wake: Arc<Notify>, reign: &CancellationToken) {
        let config = &self.config;
        let broker = AmqpTarget {
            address: config.at(config.ports.amqps),
            ca_pem: self.identity.authority.certificate_pem().to_owned(),
            user: BROKER_WORKER.into(),
            password: accounts::derived(&self.identity, BROKER_WORKER),
            vhost: VHOST.into(),
        };
        let settings = ExecutorSettings {
            app: app.clone(),
            transport: Arc::new(AmqpTransport::start(broker, app.store().clone())),
            workers: Arc::new(HeardWorkers(self.views.clone())),
            wake,
            rest_hosts: vec![config.client_address().to_string()],
            rest_port: config.ports.agents,
            limits: Limits {
                operations_per_worker_max: config.worker_operations_max,
                worker_lost_after: config.timing.worker_lost_after,
                ..Limits::default()
            },
        };
        // It ends by itself; a failure ends with the next reign, which reads everything again.
        drop(executor::start(settings, reign.clone()));
    }

    fn picture(&self) -> Picture {
        Picture {
            config: self.config.clone(),
            consensus: self.consensus.clone(),
            views: self.views.clone(),
            authority_pem: self.identity.authority.certificate_pem().to_owned(),
        }
    }

    /// The founder's first reign makes the first account; the password's file is then removed.
    async fn bootstrap(&self, app: &App) -> anyhow::Result<()> {
        let path = first_password_path(&self.config.data_dir);
        let password = match tokio::fs::read_to_string(&path).await {
            Ok(password) => password,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        app.bootstrap(password.trim_end()).await.context("make the first account")?;
        tokio::fs::remove_file(&path).await.with_context(|| format!("remove {}", path.display()))
    }

    /// Takes the cluster address and opens its doors.
    pub(super) async fn hold_cluster_address(&self, doors: &Doorkeeper) {
        let Some(vip) = &self.vip else { return };
        self.wait_for_predecessor(vip).await;
        while let Err(error) = vip.hold().await {
            warn!(address = %vip.address(), error = chain(&error), "the cluster address cannot be taken, trying again");
            tokio::time::sleep(HOLD_AGAIN).await;
        }
        self.front.serve_cluster_address(vip.address(), &doors.stop, &doors.finish);
    }

    /// A predecessor that handed over in order still answers on the cluster address for a moment. One that is gone is
    /// not waited for, and nobody is waited for long.
    async fn wait_for_predecessor(&self, vip: &Vip) {
        if vip.kind() == VipKind::Loopback {
            // There the doors themselves show who holds it.
            return;
        }
        let state = self.consensus.cluster().borrow().clone();
        let predecessor = state.epochs.values().rev().skip(1).find(|record| record.opened.is_some());
        let Some(predecessor) = predecessor.map(|record| record.holder).filter(|node| *node != self.local.me()) else {
            return;
        };
        let until = tokio::time::Instant::now() + PREDECESSOR_LIMIT;
        while tokio::time::Instant::now() < until {
            let alive = self.views.all().get(&predecessor).is_some_and(|view| view.answered_within(PREDECESSOR_ALIVE));
            if !alive || !matches!(vip.probe(PROBE).await, Err(ProbeError::Conflict { .. })) {
                return;
            }
            tokio::time::sleep(PROBE_AGAIN).await;
        }
    }

    /// Gives the cluster address back.
    pub(super) async fn end_reign(&self, epoch: Epoch) {
        let Some(vip) = &self.vip else { return };
        match vip.release().await {
            Ok(_) => info!(%epoch, "this node serves no longer"),
            Err(error) => warn!(%epoch, error = chain(&error), "the cluster address cannot be given back"),
        }
    }
}
