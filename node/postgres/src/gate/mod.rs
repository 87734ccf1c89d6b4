//! The doors to PostgreSQL. All three splice to a Unix socket after a check, and cut what they spliced when the node
//! leaves the epoch: closing them is a network fence that needs nothing from PostgreSQL.
//!
//! - [`Gate`]: port 15432. A member asks for replication or for a session in an epoch; only the holder of that epoch
//!   lets it in, and only under the member's own replication role.
//! - [`Upstream`]: the local socket to which this node's walreceiver, `pg_basebackup` and `pg_rewind` connect; it leads
//!   to the holder's port 15432, and nowhere while the node follows nobody.
//! - [`Sessions`]: local port 5432 on every node, which leads to the primary wherever it is.

mod hello;
mod replication;
mod sessions;
mod upstream;

pub use replication::Gate;
pub use sessions::Sessions;
pub use upstream::{Target, Upstream};

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use quorate_types::{Epoch, NodeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long each side may take until the splice stands.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Connections through one door at once.
const CONNECTIONS_MAX: usize = 512;

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to a member's replication port, with the cluster's certificate.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects.
    async fn dial(&self, node: NodeId) -> io::Result<Box<dyn Stream>>;
}

/// The epoch in which this node's PostgreSQL is the primary; ends with the token.
#[derive(Clone)]
pub struct Reign {
    /// Its number.
    pub epoch: Epoch,
    /// Cancelled when the node must not be primary any more.
    pub over: CancellationToken,
}

/// Whether this node's PostgreSQL is the primary now.
#[derive(Clone)]
pub struct Throne {
    reign: watch::Sender<Option<Reign>>,
}

impl Default for Throne {
    fn default() -> Self {
        Self { reign: watch::Sender::new(None) }
    }
}

impl Throne {
    /// Lets members in.
    pub fn ascend(&self, epoch: Epoch) {
        self.leave();
        self.reign.send_replace(Some(Reign { epoch, over: CancellationToken::new() }));
    }

    /// Cuts everybody off at once.
    pub fn leave(&self) {
        if let Some(reign) = self.reign.send_replace(None) {
            reign.over.cancel();
        }
    }

    /// The present reign.
    #[must_use]
    pub fn reign(&self) -> Option<Reign> {
        self.reign.borrow().clone()
    }
}

/// Copies both ways until one side ends or the token does.
async fn splice(mut a: impl Stream, mut b: impl Stream, over: &CancellationToken) {
    tokio::select! {
        () = over.cancelled() => {}
        // A broken connection is the ordinary end of a splice.
        _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
    }
}
