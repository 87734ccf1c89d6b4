//! Accept loops. Each ends with its token; connections of the cluster address are then reset, not closed, so that
//! clients notice at once.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

/// Connections at once on one listener.
const CONNECTIONS_MAX: usize = 4096;
/// A client must finish its TLS handshake within this.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A client must have sent its request's head within this.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long to wait when the system gives no connection, for example because there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener is for.
#[derive(Clone)]
pub struct Listening {
    /// Ends the listener and resets its connections.
    pub stop: CancellationToken,
    /// Lets every connection end with the answer that it waits for; new ones get one answer each.
    pub finish: CancellationToken,
    /// Where clients go.
    pub router: Router,
}

/// Serves HTTPS until the token ends.
pub async fn serve_tls(listener: TcpListener, tls: Arc<ServerConfig>, listening: Listening) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    accept(listener, listening.stop.clone(), move |socket, peer| {
        let acceptor = acceptor.clone();
        let (router, finish) = (listening.router.clone(), listening.finish.clone());
        async move {
            match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => serve_connection(stream, router, peer, finish).await,
                Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
        }
    })
    .await;
}

/// Serves plain HTTP until the token ends: only for the redirect on port 80.
pub async fn serve_plain(listener: TcpListener, listening: Listening) {
    accept(listener, listening.stop.clone(), move |socket, peer| {
        let (router, finish) = (listening.router.clone(), listening.finish.clone());
        async move { serve_connection(socket, router, peer, finish).await }
    })
    .await;
}

/// Passes every connection's bytes on to `target` until the token ends.
pub async fn splice_to(listener: TcpListener, target: SocketAddr, stop: CancellationToken) {
    accept(listener, stop, move |mut socket, peer| async move {
        match TcpStream::connect(target).await {
            Ok(mut other) => {
                let ended = tokio::io::copy_bidirectional(&mut socket, &mut other).await;
                debug!(%peer, ?ended, "spliced connection ended");
            }
            Err(error) => debug!(%peer, %target, %error, "nothing answers behind the splice"),
        }
    })
    .await;
}

async fn accept<F, W>(listener: TcpListener, stop: CancellationToken, handle: F)
where
    F: Fn(TcpStream, SocketAddr) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            permit = room.clone().acquire_owned() => permit.expect("nobody closes the semaphore"),
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A second handle, to reset the connection when the reign ends: the client goes to the new active node at once.
        let handle_for_reset = socket.set_nodelay(true).and_then(|()| socket.as_fd().try_clone_to_owned());
        let handle_for_reset = match handle_for_reset {
            Ok(handle) => handle,
            Err(error) => {
                debug!(%peer, %error, "a connection ended before it began");
                continue;
            }
        };
        let work = handle(socket, peer);
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => set_zero_linger(&handle_for_reset),
                () = work => {}
            }
        });
    }
}

/// The close that follows resets the connection. Not for finished connections: a reset may discard what was sent last.
fn set_zero_linger(socket: &OwnedFd) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    if let Err(error) = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &linger) {
        debug!(%error, "the connection will be closed in order instead of being reset");
    }
}

async fn serve_connection<S>(stream: S, router: Router, peer: SocketAddr, finish: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    let finishing = finish.is_cancelled();
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .keep_alive(!finishing)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = finish.cancelled(), if !finishing => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%peer, %error, "connection ended");
    }
}
