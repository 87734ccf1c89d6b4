//! Starting, and the handle to what runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use quorate_types::NodeId;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::{Driver, Event};
use crate::exchange;
use crate::identity::stamp_now;
use crate::load::{Load, LoadError};
use crate::member::{MemberHint, MemberState, Members};
use crate::seal::Sealer;
use crate::settings::{GossipSettings, NAME_BYTES_MAX};

/// How many events may wait for the driver; senders wait when it is full.
const EVENTS_MAX: usize = 64;
/// How often another port is tried when the one that is free for TCP is taken for UDP.
const FREE_PORT_TRIES: usize = 16;

/// Gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, not local, or not allowed.
    #[error("listen for gossip on {address} ({protocol})")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The name would not fit into a packet.
    #[error("the node's name has {0} bytes, at most {NAME_BYTES_MAX} fit into a gossip packet")]
    Name(usize),
    /// A duration is zero, or `probe` is not more than twice `answer`.
    #[error("the pace of gossip is not sound: durations above zero, probe more than twice answer")]
    Pace,
    /// The first load does not fit.
    #[error("the node's load does not fit into a gossip packet")]
    Load(#[from] LoadError),
}

/// Messages since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent.
    pub sent: u64,
    /// Packets received that opened.
    pub received: u64,
    /// Packets and exchanges dropped because they do not open: another key, another cluster, or damaged.
    pub unsealed: u64,
    /// Messages that opened and make no sense: another version of the program.
    pub malformed: u64,
}

#[derive(Default)]
pub(crate) struct Tally {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub unsealed: AtomicU64,
    pub malformed: AtomicU64,
}

/// What all tasks of one gossip have in common.
#[derive(Clone)]
pub(crate) struct Shared {
    pub sealer: Arc<Sealer>,
    pub tally: Arc<Tally>,
    pub events: mpsc::Sender<Event>,
    pub tasks: TaskTracker,
}

/// Running gossip. It runs until the token given to [`Gossip::start`] is cancelled; dropping this does not stop it.
pub struct Gossip {
    address: SocketAddr,
    members: watch::Receiver<Members>,
    seeds: watch::Sender<Vec<SocketAddr>>,
    load: watch::Sender<Load>,
    tally: Arc<Tally>,
    tasks: TaskTracker,
}

impl Gossip {
    /// Binds UDP and TCP and begins to look for the others. Cancelling `stop` says goodbye, so that the others see
    /// this node as down at once.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(settings: GossipSettings, stop: CancellationToken) -> Result<Self, StartError> {
        let (udp, tcp) = bind(settings.address).await?;
        Self::start_on(settings, stamp_now(), udp, tcp, stop)
    }

    /// Like [`Gossip::start`] on sockets that are there; TCP's address is the one that is told to others.
    pub(crate) fn start_on(
        settings: GossipSettings,
        stamp: u64,
        udp: UdpSocket,
        tcp: TcpListener,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        if settings.name.len() > NAME_BYTES_MAX {
            return Err(StartError::Name(settings.name.len()));
        }
        if !settings.pace.is_sound() {
            return Err(StartError::Pace);
        }
        settings.load.check()?;
        let address = tcp.local_addr().map_err(|source| bind_error(settings.address, "TCP", source))?;
        let settings = GossipSettings { address, ..settings };

        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (seeds, seeds_seen) = watch::channel(settings.seeds.clone());
        let (load, load_seen) = watch::channel(settings.load.clone());
        let (view, members) = watch::channel(Members::from([]));
        let tally = Arc::new(Tally::default());
        let tasks = TaskTracker::new();
        let shared = Shared {
            sealer: Arc::new(Sealer::new(&settings.key, &settings.cluster_id)),
            tally: Arc::clone(&tally),
            events,
            tasks: tasks.clone(),
        };
        let serving = exchange::serve(tcp, shared.clone(), stop.clone());
        let driver = Driver::new(&settings, stamp, udp, view, shared);
        // Neither ends before `stop`: both handle every error where it happens.
        tasks.spawn(serving);
        tasks.spawn(driver.run(inbox, seeds_seen, load_seen, stop));
        tasks.close();
        Ok(Self { address, members, seeds, load, tally, tasks })
    }

    /// Where this node listens, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All members that this node knows of, itself included, also those that are down.
    #[must_use]
    pub fn members(&self) -> Members {
        Arc::clone(&self.members.borrow())
    }

    /// What this node knows of `node`.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<MemberHint> {
        self.members.borrow().iter().find(|hint| hint.node == node).cloned()
    }

    /// Whether `node` is known and not suspect. A hint: never decide on it whether a node may act.
    #[must_use]
    pub fn alive(&self, node: NodeId) -> bool {
        self.members.borrow().iter().any(|hint| hint.node == node && hint.state == MemberState::Alive)
    }

    /// Wakes whenever [`Gossip::members`] changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// Tells all members what this node says about itself; does nothing when it is what they know already.
    ///
    /// # Errors
    /// [`LoadError`] when a text is too long.
    pub fn set_load(&self, load: Load) -> Result<(), LoadError> {
        load.check()?;
        self.load.send_if_modified(|known| {
            let news = *known != load;
            *known = load;
            news
        });
        Ok(())
    }

    /// Where members may be found from now on; tried at once. At most [`crate::MEMBERS_MAX`] are used.
    pub fn set_seeds(&self, seeds: Vec<SocketAddr>) {
        self.seeds.send_if_modified(|known| {
            let news = *known != seeds;
            *known = seeds;
            news
        });
    }

    /// Messages since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            sent: self.tally.sent.load(Relaxed),
            received: self.tally.received.load(Relaxed),
            unsealed: self.tally.unsealed.load(Relaxed),
            malformed: self.tally.malformed.load(Relaxed),
        }
    }

    /// Returns when all has ended after the token was cancelled: at once, exchanges are cut.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

fn bind_error(address: SocketAddr, protocol: &'static str, source: io::Error) -> StartError {
    StartError::Bind { address, protocol, source }
}

/// The same port for both. With port 0, TCP chooses and UDP follows.
async fn bind(wanted: SocketAddr) -> Result<(UdpSocket, TcpListener), StartError> {
    let mut tries = if wanted.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        let tcp = TcpListener::bind(wanted).await.map_err(|source| bind_error(wanted, "TCP", source))?;
        let address = tcp.local_addr().map_err(|source| bind_error(wanted, "TCP", source))?;
        tries -= 1;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(source) => return Err(bind_error(address, "UDP", source)),
        }
    }
}
