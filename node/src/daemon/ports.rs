//! Taking the ports, and what is known of the primary for those that lead to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::anyhow;
use quorate_config::Config;
use quorate_types::{ClusterState, Epoch, NodeId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Listens, or says which port is taken and what to do.
pub async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "{address} is taken by another program (see `ss -ltnp 'sport = :{port}'`); stop it, or set `ports.{key}`",
            port = address.port()
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow!("{} is no address of this host; set `address.node`", address.ip())
        }
        _ => anyhow::Error::from(error).context(format!("listen on {address} (`ports.{key}`)")),
    })
}

/// Database sessions are for this host only.
pub fn local_postgres(config: &Config) -> SocketAddr {
    let node = config.address.node;
    let address = if node.is_loopback() { node } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    SocketAddr::new(address, config.ports.postgres)
}

/// The holder of the newest epoch, once it is open.
pub fn primary(
    mut cluster: watch::Receiver<Arc<ClusterState>>,
    stop: CancellationToken,
) -> watch::Receiver<Option<(NodeId, Epoch)>> {
    let read = |state: &ClusterState| {
        state.current().filter(|record| record.opened.is_some()).map(|record| (record.holder, record.epoch))
    };
    let (sender, receiver) = watch::channel(read(&cluster.borrow()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = cluster.changed() => if changed.is_err() { return },
            }
            sender.send_replace(read(&cluster.borrow_and_update()));
        }
    });
    receiver
}
