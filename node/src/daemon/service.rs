//! Puts together what serves clients: files, broker, edge, manager, and the API on 8500.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use futures::FutureExt;
use quorate_broker::{Broker, BrokerSettings};
use quorate_config::Config;
use quorate_consensus::Consensus;
use quorate_gossip::Gossip;
use quorate_network::{Vip, VipSettings};
use quorate_resources::{Limits, Resources, ResourcesSettings};
use quorate_store::PgPoolOptions;
use quorate_types::ClusterState;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::services::{ApiToken, NodeServices};
use super::{admission, ports};
use crate::edge::{Edge, Forwarder, Listening, Serving, serve_tls};
use crate::local::Local;
use crate::loops::observe::Views;
use crate::loops::{broker, resources, worker};
use crate::manager::Manager;
use crate::manager::accounts::{self, API_TOKEN, BROKER_ADMIN};
use crate::manager::front::{Doors, Front};
use crate::manager::reign::database;
use crate::peers::{Peers, ResourcesDial, incoming};
use crate::pki::tls::Tls;
use crate::pki::{Identity, KeyFile};

/// How long requests may go on when this node hands over.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// The ports that must be free before anything starts.
pub struct ServicePorts {
    doors: Doors,
    resources: TcpListener,
    api: TcpListener,
}

impl ServicePorts {
    /// Takes them.
    pub async fn take(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            doors: Doors::take(config).await?,
            resources: ports::listen(config.at(config.ports.resources), "resources").await?,
            api: ports::listen(config.at(config.ports.consul), "consul").await?,
        })
    }
}

/// What the service stands on.
pub struct Service<'a> {
    pub config: &'a Arc<Config>,
    pub identity: &'a Arc<Identity>,
    pub tls: &'a Tls,
    pub consensus: &'a Consensus,
    pub local: &'a Arc<Local>,
    pub peers: &'a Peers,
    pub state: watch::Receiver<Arc<ClusterState>>,
    pub views: &'a Views,
    pub gossip: Arc<Gossip>,
    pub stop: &'a CancellationToken,
    pub tasks: &'a TaskTracker,
}

impl Service<'_> {
    /// Starts everything.
    pub async fn start(self, taken: ServicePorts) -> anyhow::Result<()> {
        let (config, stop) = (self.config, self.stop);
        let accounts_changed = Arc::new(Notify::new());
        let broker = self.start_broker().await?;
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(database(config));
        self.tasks.spawn(broker::run(broker, self.identity.clone(), pool, accounts_changed.clone(), stop.clone()));

        let resources = self.start_resources(taken.resources)?;
        let (serving_sender, serving) = watch::channel(Serving::Nobody);
        let forwarder = Forwarder::new(&self.tls.cluster_client, self.local.me());
        let edge = Edge::new(serving, forwarder, config.timing.hold_requests, config.limits.held_requests_max);
        let front = Front::new(config.clone(), self.tls.public_server.clone(), &edge);
        front.serve(taken.doors, stop);

        let manager = Manager {
            config: config.clone(),
            identity: self.identity.clone(),
            consensus: self.consensus.clone(),
            local: self.local.clone(),
            resources,
            views: self.views.clone(),
            front,
            edge: edge.clone(),
            vip: self.take_back_address().await?,
            accounts: accounts_changed,
        };
        let (letting_in, requests) = (serving_sender.clone(), edge);
        self.local.drain_before_resigning(Box::new(move || {
            let requests = requests.clone();
            // From here on requests wait for the next active node.
            letting_in.send_replace(Serving::Nobody);
            async move {
                if !requests.drained(DRAIN_LIMIT).await {
                    warn!("requests still ran when this node handed over; their outcome is not known to their senders");
                }
            }
            .boxed()
        }));
        self.tasks.spawn(manager.run(serving_sender, stop.clone()));

        let active = worker::active_broker(self.consensus.cluster(), config.ports.amqps, stop.clone());
        self.tasks.spawn(worker::run(config.clone(), self.identity.clone(), active, stop.clone()));

        let listening = Listening { stop: stop.clone(), finish: CancellationToken::new(), router: self.api() };
        self.tasks.spawn(serve_tls(taken.api, self.tls.public_server.clone(), listening));
        Ok(())
    }

    async fn start_broker(&self) -> anyhow::Result<Arc<Broker>> {
        let config = self.config;
        let file = |key: KeyFile| key.path(&config.data_dir);
        let broker = Broker::start(BrokerSettings {
            program: config.rabbitmq.program.clone(),
            user: Some(config.rabbitmq.user.clone()),
            node_dir: config.data_dir.join("rabbitmq"),
            node_address: config.address.node,
            amqps_port: config.ports.amqps,
            management_port: config.ports.amqp_management,
            distribution_port: config.ports.amqp_distribution,
            ca_pem_path: file(KeyFile::Authority),
            cert_pem_path: file(KeyFile::Certificate),
            key_pem_path: file(KeyFile::Key),
            admin_user: BROKER_ADMIN.into(),
            admin_password: accounts::derived(self.identity, BROKER_ADMIN),
        });
        Ok(Arc::new(broker.await.context("start the broker")?))
    }

    fn start_resources(&self, port: TcpListener) -> anyhow::Result<Resources> {
        let config = self.config;
        let settings = ResourcesSettings {
            root: config.resources_dir.clone(),
            node_id: self.local.me(),
            limits: Limits::default(),
        };
        let dial = Arc::new(ResourcesDial { peers: self.peers.clone(), port: config.ports.resources });
        let resources = Resources::open(settings, dial, self.local.promises())?;
        let members_only = incoming(port, self.tls.cluster_server.clone(), self.state.clone(), self.stop.clone());
        let grpc = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(resources.service())
            .serve_with_incoming_shutdown(members_only, self.stop.clone().cancelled_owned());
        self.tasks.spawn(async move {
            if let Err(error) = grpc.await {
                error!(%error, "the resources port ended");
            }
        });
        let follow = resources::run(resources.clone(), self.local.me(), self.consensus.cluster(), self.stop.clone());
        self.tasks.spawn(follow);
        Ok(resources)
    }

    /// The cluster address, which a crash may have left on this host.
    async fn take_back_address(&self) -> anyhow::Result<Option<Arc<Vip>>> {
        let address = &self.config.address;
        let Some(cluster) = address.cluster else { return Ok(None) };
        let mut settings = VipSettings::new(cluster);
        settings.prefix_len = address.prefix;
        settings.interface = address.interface.clone();
        let vip = Vip::new(settings).context("use the cluster address (`address.cluster`)")?;
        vip.release().await.context("give back the cluster address of an earlier run")?;
        Ok(Some(Arc::new(vip)))
    }

    fn api(&self) -> Router {
        let config = self.config;
        let admission =
            admission::router(config.clone(), self.identity.clone(), self.consensus.clone(), self.views.clone());
        let consul = quorate_api::consul::router(quorate_api::consul::ConsulApi {
            consensus: self.consensus.clone(),
            node: quorate_api::consul::NodeInfo {
                name: config.name.clone(),
                datacenter: "dc1".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                raft_port: config.ports.raft,
                gossip_port: config.ports.gossip,
            },
            services: Arc::new(NodeServices {
                config: config.clone(),
                consensus: self.consensus.clone(),
                views: self.views.clone(),
                gossip: self.gossip.clone(),
            }),
            tokens: Arc::new(ApiToken(accounts::derived(self.identity, API_TOKEN))),
        });
        admission.fallback_service(consul)
    }
}
