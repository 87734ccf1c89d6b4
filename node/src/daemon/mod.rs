//! `quorate run`: puts the parts of one node together and runs them until it is told to stop.

mod admission;
pub mod ports;
mod service;
mod services;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::fcntl::{Flock, FlockArg};
use quorate_config::Config;
use quorate_consensus::{Consensus, Settings as ConsensusSettings};
use quorate_core::failover::Policy;
use quorate_gossip::{Gossip, GossipKey, GossipSettings, Pace};
use quorate_postgres::gate::{Gate, Sessions};
use quorate_postgres::{Keeper, Settings as PostgresSettings};
use quorate_types::{ClusterState, Member};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::admin::AdminServer;
use crate::control::ControlService;
use crate::local::{Local, Promises};
use crate::loops::failover::Failover;
use crate::loops::lease::LeaseLoop;
use crate::loops::observe::{self, Views};
use crate::loops::{election, gossip, members, sync_set};
use crate::peers::{Peers, RaftDial, ReplicationDial, incoming};
use crate::pki::{Identity, public_key_sha256, sha256_hex, tls::Tls};
use service::{Service, ServicePorts};

/// How long the parts may take to end.
const GRACE: Duration = Duration::from_secs(15);
/// How long the active node may take to hand over when it is told to stop.
const HAND_OVER: Duration = Duration::from_secs(12);
/// How long a stopping node waits for another to become active.
const SUCCESSOR: Duration = Duration::from_secs(2);
/// How long clients of a stopping node have after that.
const GOODBYE: Duration = Duration::from_millis(500);
/// Sessions of PostgreSQL.
const SESSIONS_MAX: u16 = 200;

/// Runs the node to its end.
pub fn main(config: Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            // openraft calls every unreachable peer an error, many times a second; what is fatal ends the daemon.
            tracing_subscriber::EnvFilter::try_from_env("QUORATE_LOG")
                .unwrap_or_else(|_| "info,openraft=off,foca=warn,lapin=error,sqlx=warn".into()),
        )
        .init();
    let identity = Identity::load(&config.data_dir)
        .context("find out who this node is (was `quorate cluster init` or `quorate cluster join` run?)")?;
    let _lock = lock(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(config, identity));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Two daemons on one directory would destroy it.
fn lock(data_dir: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    let path = data_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("{} is in use: a daemon runs on this directory already", data_dir.display()))
}

async fn run(config: Config, identity: Identity) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let node = Node::start(config, identity, &stop, &tasks).await?;
    info!(node = %node.local.me(), "running");
    let reason = node.until_told_to_stop().await;
    let serving = *node.local.serving().borrow();
    if let Some(epoch) = serving {
        // Standbys get everything before PostgreSQL ends; who is left takes over at once.
        let handed = tokio::time::timeout(HAND_OVER, node.local.resign(epoch, "this node was told to stop")).await;
        if matches!(handed, Ok(Ok(()))) {
            // Clients that wait here are answered by whoever is active next, if anybody is.
            let followed = |state: &Arc<ClusterState>| {
                state.current().is_some_and(|record| record.epoch > epoch && record.opened.is_some())
            };
            if tokio::time::timeout(SUCCESSOR, node.consensus.cluster().wait_for(followed)).await.is_ok() {
                tokio::time::sleep(GOODBYE).await;
            }
        } else {
            warn!("this node could not hand over in order");
        }
    }
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        warn!(left = tasks.len(), "some parts did not end in time");
    }
    node.consensus.shutdown().await;
    reason
}

/// The parts that others look at.
struct Node {
    consensus: Consensus,
    local: Arc<Local>,
}

impl Node {
    async fn until_told_to_stop(&self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => info!("told to stop"),
            _ = interrupt.recv() => info!("told to stop"),
            why = self.consensus.failed() => {
                error!(why, "raft has stopped, so must this node");
                return Err(anyhow!("raft has stopped: {why}"));
            }
        }
        Ok(())
    }

    async fn start(
        config: Config,
        identity: Identity,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let identity = Arc::new(identity);
        let tls = Tls::new(&identity)?;
        let ports = &config.ports;

        // Every port is taken before anything starts: a node that lacks one is of no use.
        let raft_port = ports::listen(config.at(ports.raft), "raft").await?;
        let replication_port = ports::listen(config.at(ports.replication), "replication").await?;
        let session_port = ports::listen(ports::local_postgres(&config), "postgres").await?;
        let service_ports = ServicePorts::take(&config).await?;

        // Consensus. The members' addresses come from the state that it will hold.
        let (states, state) = watch::channel(Arc::new(ClusterState::default()));
        let peers = Peers::new(tls.cluster_client.clone(), state.clone());
        let consensus = Consensus::open(
            ConsensusSettings {
                node: identity.node,
                directory: config.data_dir.join("raft"),
                heartbeat: config.timing.raft_heartbeat,
                election_min: config.timing.raft_election_min,
                election_max: config.timing.raft_election_max,
            },
            Arc::new(RaftDial { peers: peers.clone(), port: ports.raft }),
        )
        .await?;
        tasks.spawn(copy_state(consensus.cluster(), states, stop.clone()));

        // PostgreSQL and this node's own part.
        let keeper = Arc::new(
            Keeper::open(PostgresSettings {
                node: identity.node,
                bin_dir: config.postgres.bin_dir.clone(),
                user: config.postgres.user.clone(),
                directory: config.data_dir.join("postgres"),
                socket_dir: config.postgres.socket_dir.clone(),
                connections_max: SESSIONS_MAX,
            })
            .await?,
        );
        let promises = Promises::load(&config.data_dir.join("state")).context("read this node's promise")?;
        let local = Local::new(keeper.clone(), consensus.clone(), promises, identity.founder);
        let dial = Arc::new(ReplicationDial { peers: peers.clone(), port: ports.replication });
        let cluster_id = identity.cluster_id.clone();
        keeper.upstream().serve(&keeper.upstream_socket(), cluster_id.clone(), dial.clone(), stop.clone())?;
        let gate = Gate::new(cluster_id.clone(), keeper.throne(), keeper.settings());
        let members_only = incoming(replication_port, tls.cluster_server.clone(), state.clone(), stop.clone());
        tasks.spawn(serve_replication(Arc::new(gate), members_only));
        let primary = ports::primary(consensus.cluster(), stop.clone());
        let sessions = Sessions::new(cluster_id, keeper.throne(), keeper.settings(), primary, dial);
        tasks.spawn(sessions.serve(session_port, stop.clone()));

        // Raft and control.
        let decision: Arc<Mutex<String>> = Arc::default();
        let raft_streams = incoming(raft_port, tls.cluster_server.clone(), state.clone(), stop.clone());
        let grpc = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(consensus.service())
            .add_service(ControlService::server(local.clone(), decision.clone()))
            .serve_with_incoming_shutdown(raft_streams, stop.clone().cancelled_owned());
        tasks.spawn(async move {
            if let Err(error) = grpc.await {
                error!(%error, "the raft port ended");
            }
        });

        // The loops.
        let views = Views::default();
        tasks.spawn(local.clone().run(stop.clone()));
        tasks.spawn(observe::run(
            consensus.clone(),
            local.clone(),
            peers.clone(),
            ports.raft,
            views.clone(),
            decision.clone(),
            stop.clone(),
        ));
        let failover = Failover {
            consensus: consensus.clone(),
            local: local.clone(),
            peers: peers.clone(),
            port: ports.raft,
            views: views.clone(),
            policy: Policy { silence: config.timing.silence, promotion: config.timing.promotion },
            decision: decision.clone(),
        };
        tasks.spawn(failover.run(stop.clone()));
        let lease = LeaseLoop {
            consensus: consensus.clone(),
            local: local.clone(),
            peers: peers.clone(),
            port: ports.raft,
            interval: config.timing.lease_interval,
            length: config.timing.lease,
        };
        tasks.spawn(lease.run(stop.clone()));
        let heartbeat = config.timing.raft_heartbeat;
        tasks.spawn(election::run(consensus.clone(), views.clone(), heartbeat, stop.clone()));
        tasks.spawn(members::run(consensus.clone(), stop.clone()));
        tasks.spawn(sync_set::run(consensus.clone(), local.clone(), stop.clone()));

        let gossiping = Arc::new(
            Gossip::start(
                GossipSettings {
                    node: identity.node,
                    name: config.name.clone(),
                    cluster_id: identity.cluster_id.clone(),
                    address: config.at(ports.gossip),
                    key: GossipKey::new(identity.gossip_key),
                    seeds: gossip::seeds(&state.borrow(), ports.gossip),
                    load: gossip::load(&local, &config.data_dir),
                    pace: Pace::default(),
                },
                stop.clone(),
            )
            .await
            .context("start gossip (`ports.gossip`)")?,
        );
        tasks.spawn(gossip::run(
            gossiping.clone(),
            consensus.clone(),
            local.clone(),
            ports.gossip,
            config.data_dir.clone(),
            stop.clone(),
        ));

        // The operator's socket.
        let authority_der = identity.chain()?.pop().context("the certificate chain is empty")?;
        let admin = AdminServer {
            config: config.clone(),
            consensus: consensus.clone(),
            views: views.clone(),
            decision,
            authority_sha256: sha256_hex(&authority_der),
        };
        admin.serve(stop.clone())?;

        let service = Service {
            config: &config,
            identity: &identity,
            tls: &tls,
            consensus: &consensus,
            local: &local,
            peers: &peers,
            state: state.clone(),
            views: &views,
            gossip: gossiping,
            stop,
            tasks,
        };
        service.start(service_ports).await?;

        if identity.founder {
            let first = Member {
                id: identity.node,
                name: config.name.clone(),
                address: config.address.node,
                public_key_sha256: public_key_sha256(&identity.chain()?[0])?,
                voter: true,
            };
            tasks.spawn(found(consensus.clone(), identity.cluster_id.clone(), first));
        }
        Ok(Self { consensus, local })
    }
}

/// The founder's first act, repeated until it holds.
async fn found(consensus: Consensus, cluster_id: String, first: Member) {
    while consensus.cluster().borrow().members.is_empty() {
        if let Err(error) = consensus.found(cluster_id.clone(), first.clone()).await {
            warn!(error = crate::local::chain(&error), "the cluster is not founded yet, trying again");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn copy_state(
    mut from: watch::Receiver<Arc<ClusterState>>,
    to: watch::Sender<Arc<ClusterState>>,
    stop: CancellationToken,
) {
    loop {
        to.send_replace(from.borrow_and_update().clone());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = from.changed() => if changed.is_err() { return },
        }
    }
}

async fn serve_replication(
    gate: Arc<Gate>,
    mut streams: tokio_stream::wrappers::ReceiverStream<std::io::Result<crate::peers::ClusterStream>>,
) {
    while let Some(stream) = streams.next().await {
        let Ok(stream) = stream else { continue };
        let gate = gate.clone();
        tokio::spawn(async move {
            let peer = stream.peer();
            gate.serve(stream, peer).await;
        });
    }
}
