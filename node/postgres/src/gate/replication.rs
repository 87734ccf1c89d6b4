//! The accepting side of port 15432.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use quorate_types::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tracing::{debug, info};

use super::hello::{Answer, Hello, Purpose, receive, send};
use super::{CONNECTIONS_MAX, HANDSHAKE_LIMIT, Reign, Stream, Throne, splice};
use crate::roles::{REWIND_ROLE, is_internal, replication_role};
use crate::settings::{Settings, socket_in};
use crate::wire::{Startup, refusal};

/// Decides who reaches the local PostgreSQL from another node.
pub struct Gate {
    cluster_id: String,
    throne: Throne,
    server: PathBuf,
    room: Arc<Semaphore>,
}

impl Gate {
    /// For one cluster and the local server.
    #[must_use]
    pub fn new(cluster_id: String, throne: Throne, settings: &Settings) -> Self {
        let server = socket_in(&settings.server_sockets());
        Self { cluster_id, throne, server, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// Serves one connection whose certificate belongs to the member `peer`.
    pub async fn serve(&self, mut stream: impl Stream, peer: NodeId) {
        let Ok(_place) = self.room.try_acquire() else {
            info!(%peer, "refused a replication connection: too many are open");
            return;
        };
        match tokio::time::timeout(HANDSHAKE_LIMIT, self.admit(&mut stream, peer)).await {
            Ok(Ok((server, reign))) => splice(stream, server, &reign.over).await,
            Ok(Err(error)) => info!(%peer, %error, "refused a replication connection"),
            Err(_) => debug!(%peer, "a replication connection did not say what it wants"),
        }
    }

    async fn admit(&self, stream: &mut (impl Stream + ?Sized), peer: NodeId) -> io::Result<(UnixStream, Reign)> {
        let hello: Hello = receive(stream).await?;
        let reign = match self.check(&hello) {
            Ok(reign) => reign,
            Err(why) => {
                send(stream, &Answer { refused: Some(why.clone()) }).await?;
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
        };
        send(stream, &Answer { refused: None }).await?;
        let startup = first_packet(stream).await?;
        if let Err(why) = allowed(hello.purpose, &startup, peer) {
            stream.write_all(&refusal("28000", &why)).await?;
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut server = UnixStream::connect(&self.server).await?;
        server.write_all(&raw(startup)).await?;
        Ok((server, reign))
    }

    fn check(&self, hello: &Hello) -> Result<Reign, String> {
        if hello.cluster_id != self.cluster_id {
            return Err("this is another cluster".into());
        }
        match self.throne.reign() {
            None => Err("this node is not the primary".into()),
            Some(reign) if reign.epoch != hello.epoch => {
                Err(format!("this node is the primary of epoch {}, not of {}", reign.epoch, hello.epoch))
            }
            Some(reign) => Ok(reign),
        }
    }
}

/// The startup packet; TLS inside our TLS is declined.
pub(super) async fn first_packet(stream: &mut (impl Stream + ?Sized)) -> io::Result<Startup> {
    loop {
        match Startup::read(&mut &mut *stream).await? {
            Startup::Request(_) => stream.write_all(b"N").await?,
            other => return Ok(other),
        }
    }
}

pub(super) fn raw(startup: Startup) -> Vec<u8> {
    match startup {
        Startup::Session { raw, .. } | Startup::Cancel(raw) => raw,
        Startup::Request(_) => Vec::new(),
    }
}

fn allowed(purpose: Purpose, startup: &Startup, peer: NodeId) -> Result<(), String> {
    let Startup::Session { parameters, .. } = startup else { return Ok(()) };
    let get = |name: &str| parameters.get(name).map_or("", String::as_str);
    let replication = !matches!(get("replication"), "" | "false" | "off" | "no" | "0");
    match purpose {
        Purpose::Session if replication || is_internal(get("user")) => {
            Err(format!("role {} is not for sessions from outside", get("user")))
        }
        Purpose::Session => Ok(()),
        Purpose::Replication if !replication && get("user") == REWIND_ROLE => Ok(()),
        Purpose::Replication if replication && get("user") == replication_role(peer) => {
            // The name decides whose acknowledgement a commit counts: it must be the certificate's.
            let name = get("application_name");
            if name == peer.to_string() || !names_a_node(name) {
                Ok(())
            } else {
                Err(format!("{peer} may not call itself {name}"))
            }
        }
        Purpose::Replication => Err(format!("{peer} may not replicate as {}", get("user"))),
    }
}

fn names_a_node(name: &str) -> bool {
    name.parse::<NodeId>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(parameters: &[(&str, &str)]) -> Startup {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Startup::Session { parameters, raw: Vec::new() }
    }

    #[test]
    fn a_node_replicates_under_its_own_name_only() {
        let stream = |user, name| session(&[("user", user), ("application_name", name), ("replication", "true")]);
        let peer = NodeId(2);
        assert!(allowed(Purpose::Replication, &stream("repl_n2", "n2"), peer).is_ok());
        assert!(allowed(Purpose::Replication, &stream("repl_n2", "pg_basebackup"), peer).is_ok());
        assert!(allowed(Purpose::Replication, &stream("repl_n2", "n3"), peer).is_err());
        assert!(allowed(Purpose::Replication, &stream("repl_n3", "n3"), peer).is_err());
        assert!(allowed(Purpose::Replication, &stream("postgres", "n2"), peer).is_err());
    }

    #[test]
    fn sessions_from_outside_use_no_role_of_ours() {
        for user in ["postgres", "quorate", "quorate_rewind", "repl_n2"] {
            assert!(allowed(Purpose::Session, &session(&[("user", user)]), NodeId(2)).is_err(), "{user}");
        }
        assert!(allowed(Purpose::Session, &session(&[("user", "app")]), NodeId(2)).is_ok());
        let sneaky = session(&[("user", "app"), ("replication", "database")]);
        assert!(allowed(Purpose::Session, &sneaky, NodeId(2)).is_err());
    }
}
