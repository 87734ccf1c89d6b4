//! Local port 5432: database sessions, led to the primary wherever it is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use quorate_types::{Epoch, NodeId};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::hello::{Hello, Purpose, greet};
use super::replication::{first_packet, raw};
use super::{CONNECTIONS_MAX, Dial, HANDSHAKE_LIMIT, Stream, Throne, splice};
use crate::roles::is_internal;
use crate::settings::{Settings, socket_in};
use crate::wire::{Startup, refusal};

/// Where the primary is, as the caller knows: the holder of the newest opened epoch.
pub type Primary = watch::Receiver<Option<(NodeId, Epoch)>>;

/// Leads sessions to the primary.
pub struct Sessions {
    cluster_id: String,
    throne: Throne,
    server: PathBuf,
    primary: Primary,
    dial: Arc<dyn Dial>,
}

impl Sessions {
    /// For one cluster.
    #[must_use]
    pub fn new(cluster_id: String, throne: Throne, settings: &Settings, primary: Primary, dial: Arc<dyn Dial>) -> Self {
        Self { cluster_id, throne, server: socket_in(&settings.server_sockets()), primary, dial }
    }

    /// Serves the port until the token ends.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let this = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let client = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => client,
                    Err(error) => {
                        warn!(%error, "cannot accept database sessions");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(place) = room.clone().try_acquire_owned() else { continue };
            let this = this.clone();
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = this.lead(client).await {
                    debug!(%error, "a database session did not begin");
                }
            });
        }
    }

    async fn lead(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let startup = tokio::time::timeout(HANDSHAKE_LIMIT, first_packet(&mut client)).await??;
        if let Startup::Session { parameters, .. } = &startup {
            let user = parameters.get("user").map_or("", String::as_str);
            if is_internal(user) || parameters.contains_key("replication") {
                return client.write_all(&refusal("28000", "this role is not for sessions from outside")).await;
            }
        }
        match tokio::time::timeout(HANDSHAKE_LIMIT, self.connect(startup)).await {
            Ok(Ok((server, over))) => {
                splice(client, server, &over).await;
                Ok(())
            }
            _ => client.write_all(&refusal("57P03", "there is no primary now; try again in a moment")).await,
        }
    }

    async fn connect(&self, startup: Startup) -> io::Result<(Box<dyn Stream>, CancellationToken)> {
        if let Some(reign) = self.throne.reign() {
            let mut server = UnixStream::connect(&self.server).await?;
            server.write_all(&raw(startup)).await?;
            return Ok((Box::new(server), reign.over));
        }
        let primary = *self.primary.borrow();
        let (node, epoch) = primary.ok_or_else(|| io::Error::other("no primary"))?;
        let mut server = self.dial.dial(node).await?;
        let hello = Hello { cluster_id: self.cluster_id.clone(), epoch, purpose: Purpose::Session };
        greet(&mut *server, &hello).await?;
        server.write_all(&raw(startup)).await?;
        Ok((server, CancellationToken::new()))
    }
}
