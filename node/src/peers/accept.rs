//! The accepting side of a cluster port: mutual TLS, then the check that the certificate is a current member's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_types::{ClusterState, NodeId};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{info, warn};

use super::is_member;
use crate::pki::{public_key_sha256, tls::peer_node};

/// A node must finish its handshake within this.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes at once; a cluster has at most a few members with a few connections each.
const HANDSHAKES_MAX: usize = 64;
/// Accepted connections that wait for the server to take them.
const ACCEPTED_MAX: usize = 16;
/// How long to wait when the system gives no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which member is on the other side; tonic puts it into every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerNode(pub NodeId);

/// A connection whose other side is a member.
pub struct ClusterStream {
    stream: TlsStream<TcpStream>,
    peer: PeerNode,
}

impl ClusterStream {
    /// Which member is on the other side.
    #[must_use]
    pub fn peer(&self) -> NodeId {
        self.peer.0
    }
}

impl Connected for ClusterStream {
    type ConnectInfo = PeerNode;

    fn connect_info(&self) -> PeerNode {
        self.peer
    }
}

/// The connections of members, until the token ends.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    state: watch::Receiver<Arc<ClusterState>>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<ClusterStream>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let permit = room.clone().acquire_owned().await.expect("nobody closes the semaphore");
            let (socket, address) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(pair) => pair,
                    Err(error) => {
                        warn!(%error, "cannot accept connections of members");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (acceptor, sender, state) = (acceptor.clone(), sender.clone(), state.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match tokio::time::timeout(HANDSHAKE_DEADLINE, admit(acceptor, socket, &state)).await {
                    // The receiver is gone only when the server is: then nobody needs the connection.
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => info!(%address, %error, "refused a connection to a cluster port"),
                    Err(_) => info!(%address, "handshake on a cluster port took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn admit(
    acceptor: tokio_rustls::TlsAcceptor,
    socket: TcpStream,
    state: &watch::Receiver<Arc<ClusterState>>,
) -> io::Result<ClusterStream> {
    socket.set_nodelay(true)?;
    let stream = acceptor.accept(socket).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let node = peer_node(certificates).ok_or_else(|| io::Error::other("the certificate names no node"))?;
    let key = certificates
        .and_then(|chain| chain.first())
        .and_then(|certificate| public_key_sha256(certificate).ok())
        .ok_or_else(|| io::Error::other("the certificate has no readable key"))?;
    if !is_member(&state.borrow(), node, &key) {
        return Err(io::Error::other(format!("{node} with this certificate is no member any more")));
    }
    Ok(ClusterStream { stream, peer: PeerNode(node) })
}

impl AsyncRead for ClusterStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClusterStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
