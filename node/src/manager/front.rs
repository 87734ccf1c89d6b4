//! The doors for clients: on the node's own address always, on the cluster address while this node is active.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use quorate_config::Config;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::daemon::ports::listen;
use crate::edge::{Edge, Listening, redirect_router, serve_plain, serve_tls, splice_to};

/// How long to wait while the node before still holds a door of the cluster address.
const BIND_AGAIN: Duration = Duration::from_millis(20);
/// How often a door that cannot be taken is worth a line in the log.
const COMPLAIN_EVERY: u32 = 250;

/// The listeners on the node's own address; taken before anything starts.
pub struct Doors {
    http: TcpListener,
    https: TcpListener,
    agents: TcpListener,
}

impl Doors {
    /// Takes the ports.
    pub async fn take(config: &Config) -> anyhow::Result<Self> {
        let ports = &config.ports;
        Ok(Self {
            http: listen(config.at(ports.http), "http").await?,
            https: listen(config.at(ports.https), "https").await?,
            agents: listen(config.at(ports.agents), "agents").await?,
        })
    }
}

/// What stands behind every door. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    config: Arc<Config>,
    tls: Arc<ServerConfig>,
    /// Everything but the redirect goes here.
    router: Router,
    redirect: Router,
}

impl Front {
    pub fn new(config: Arc<Config>, tls: Arc<ServerConfig>, edge: &Edge) -> Self {
        let edge = edge.clone();
        let router = Router::new().fallback(move |request| edge.clone().handle(request));
        let redirect = redirect_router(config.ports.https);
        Self { config, tls, router, redirect }
    }

    /// Serves the node's own doors until the token ends.
    pub fn serve(&self, doors: Doors, stop: &CancellationToken) {
        let never = CancellationToken::new();
        let listening =
            |router: &Router| Listening { stop: stop.clone(), finish: never.clone(), router: router.clone() };
        tokio::spawn(serve_plain(doors.http, listening(&self.redirect)));
        tokio::spawn(serve_tls(doors.https, self.tls.clone(), listening(&self.router)));
        tokio::spawn(serve_tls(doors.agents, self.tls.clone(), listening(&self.router)));
    }

    /// Opens the doors of the cluster address, which this node holds, until `stop`; `finish` lets clients go before.
    pub fn serve_cluster_address(&self, address: IpAddr, stop: &CancellationToken, finish: &CancellationToken) {
        let (ports, reign) = (&self.config.ports, stop);
        let https = [ports.https, ports.agents];
        for port in https {
            let (front, reign, finish) = (self.clone(), reign.clone(), finish.clone());
            tokio::spawn(async move {
                let Some(listener) = take(SocketAddr::new(address, port), &reign).await else { return };
                serve_tls(listener, front.tls, Listening { stop: reign, finish, router: front.router }).await;
            });
        }
        let (redirect, at, end) = (self.redirect.clone(), SocketAddr::new(address, ports.http), reign.clone());
        let finish = finish.clone();
        tokio::spawn(async move {
            let Some(listener) = take(at, &end).await else { return };
            serve_plain(listener, Listening { stop: end, finish, router: redirect }).await;
        });
        // Agents reach the active node's broker through the cluster address.
        let (broker, at, end) = (self.config.at(ports.amqps), SocketAddr::new(address, ports.amqps), reign.clone());
        tokio::spawn(async move {
            let Some(listener) = take(at, &end).await else { return };
            splice_to(listener, broker, end).await;
        });
    }
}

/// Takes a door of the cluster address, which the node before may hold for a moment still.
async fn take(at: SocketAddr, reign: &CancellationToken) -> Option<TcpListener> {
    let mut tried = 0;
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => {
                info!(%at, "this node answers on the cluster address");
                return Some(listener);
            }
            Err(error) if tried % COMPLAIN_EVERY == 0 && tried > 0 => {
                warn!(%at, %error, "a door of the cluster address cannot be taken, trying again");
            }
            Err(_) => {}
        }
        tried += 1;
        tokio::select! {
            () = reign.cancelled() => return None,
            () = tokio::time::sleep(BIND_AGAIN) => {}
        }
    }
}
