//! The dialling side: one gRPC channel per member and port, made on first use.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quorate_types::{ClusterState, NodeId};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::pki::tls;

/// How long a connection to a member may take.
const CONNECT_DEADLINE: Duration = Duration::from_millis(300);
/// HTTP/2 pings notice a peer that is gone without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Dials members. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    tls: Arc<ClientConfig>,
    state: watch::Receiver<Arc<ClusterState>>,
    channels: Arc<Mutex<HashMap<(NodeId, SocketAddr), Channel>>>,
}

impl Peers {
    /// `tls`: settings that show this node's certificate.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>, state: watch::Receiver<Arc<ClusterState>>) -> Self {
        Self { tls, state, channels: Arc::default() }
    }

    /// A member's address. `None`: it is no member.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<IpAddr> {
        self.state.borrow().members.get(&node).map(|member| member.address)
    }

    /// Connects to one port of a member.
    ///
    /// # Errors
    /// When it cannot be reached within 300 ms, or is not that member.
    pub async fn connect(&self, node: NodeId, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        tokio::time::timeout(CONNECT_DEADLINE, tls::dial(&self.tls, node, address)).await?
    }

    /// The gRPC channel to one port of a member; it connects when it is used and again after it broke.
    #[must_use]
    pub fn channel(&self, node: NodeId, port: u16) -> Option<Channel> {
        Some(self.channel_at(node, SocketAddr::new(self.address(node)?, port)))
    }

    /// The same for a node whose address the caller knows better, as Raft does while this node is joining.
    #[must_use]
    pub fn channel_at(&self, node: NodeId, address: SocketAddr) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.entry((node, address)).or_insert_with(|| self.open(node, address)).clone()
    }

    fn open(&self, node: NodeId, address: SocketAddr) -> Channel {
        let peers = self.clone();
        // The URI only fills the request line: the connector knows where to go.
        Endpoint::from_static("http://member")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let peers = peers.clone();
                async move { peers.connect(node, address).await.map(TokioIo::new) }
            }))
    }
}

/// How consensus reaches members.
pub struct RaftDial {
    /// The members.
    pub peers: Peers,
    /// Their Raft port.
    pub port: u16,
}

impl quorate_consensus::Dial for RaftDial {
    fn channel(&self, node: NodeId, address: IpAddr) -> Channel {
        self.peers.channel_at(node, SocketAddr::new(address, self.port))
    }
}

/// How the resources directory reaches members.
pub struct ResourcesDial {
    /// The members.
    pub peers: Peers,
    /// Their resources port.
    pub port: u16,
}

impl quorate_resources::Dial for ResourcesDial {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.peers.channel(node, self.port)
    }
}

/// How the gates of PostgreSQL reach members.
pub struct ReplicationDial {
    /// The members.
    pub peers: Peers,
    /// Their replication port.
    pub port: u16,
}

#[async_trait::async_trait]
impl quorate_postgres::gate::Dial for ReplicationDial {
    async fn dial(&self, node: NodeId) -> io::Result<Box<dyn quorate_postgres::gate::Stream>> {
        let address = self.peers.address(node).ok_or_else(|| io::Error::other(format!("{node} is no member")))?;
        Ok(Box::new(self.peers.connect(node, SocketAddr::new(address, self.port)).await?))
    }
}
