//! The local socket that leads to the primary's replication port.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_types::{Epoch, NodeId};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::hello::{Hello, Purpose, greet};
use super::{CONNECTIONS_MAX, Dial, HANDSHAKE_LIMIT, splice};

/// Whom to follow; ends with the token.
#[derive(Clone)]
pub struct Target {
    /// The primary.
    pub node: NodeId,
    /// In which epoch.
    pub epoch: Epoch,
    over: CancellationToken,
}

/// The way to the primary.
#[derive(Clone)]
pub struct Upstream {
    target: watch::Sender<Option<Target>>,
    /// Epochs below this are never followed again.
    floor: Arc<AtomicU64>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { target: watch::Sender::new(None), floor: Arc::default() }
    }
}

impl Upstream {
    /// Leads to `node` from now on; connections to anybody else end. An epoch that was left behind is not followed,
    /// whoever asks: a decision that was made before the promise may still be on its way.
    pub fn follow(&self, node: NodeId, epoch: Epoch) {
        let mut old = None;
        self.target.send_if_modified(|target| {
            if epoch.0 < self.floor.load(Ordering::SeqCst) {
                return false;
            }
            let same = target.as_ref().is_some_and(|target| (target.node, target.epoch) == (node, epoch));
            if !same {
                old = target.replace(Target { node, epoch, over: CancellationToken::new() });
            }
            !same
        });
        if let Some(old) = old {
            old.over.cancel();
        }
    }

    /// Never leads to an epoch below this again; ends what leads there now.
    pub fn leave_below(&self, epoch: Epoch) {
        self.floor.fetch_max(epoch.0, Ordering::SeqCst);
        let mut old = None;
        self.target.send_if_modified(|target| {
            if target.as_ref().is_some_and(|target| target.epoch < epoch) {
                old = target.take();
            }
            old.is_some()
        });
        if let Some(old) = old {
            old.over.cancel();
        }
    }

    /// Leads nowhere from now on; every connection ends before this returns.
    pub fn close(&self) {
        if let Some(target) = self.target.send_replace(None) {
            target.over.cancel();
        }
    }

    /// Whom it leads to.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        self.target.borrow().clone()
    }

    /// Serves the socket until the token ends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(
        &self,
        socket: &Path,
        cluster_id: String,
        dial: Arc<dyn Dial>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let listener = listen(socket)?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let targets = self.target.subscribe();
        tokio::spawn(async move {
            loop {
                let client = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((client, _)) => client,
                        Err(error) => {
                            warn!(%error, "cannot accept on the upstream socket");
                            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                };
                // Nobody to follow, or too many already: the client sees a closed connection and tries again.
                let Some(target) = targets.borrow().clone() else { continue };
                let Ok(place) = room.clone().try_acquire_owned() else { continue };
                let (dial, cluster_id) = (dial.clone(), cluster_id.clone());
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = lead(client, &target, &*dial, cluster_id).await {
                        debug!(node = %target.node, %error, "the primary cannot be followed yet");
                    }
                });
            }
        });
        Ok(())
    }
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    // The folder is closed to everybody but PostgreSQL's account and us.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn lead(client: UnixStream, target: &Target, dial: &dyn Dial, cluster_id: String) -> io::Result<()> {
    let hello = Hello { cluster_id, epoch: target.epoch, purpose: Purpose::Replication };
    let connect = async {
        let mut server = dial.dial(target.node).await?;
        greet(&mut *server, &hello).await?;
        Ok::<_, io::Error>(server)
    };
    let server = tokio::select! {
        () = target.over.cancelled() => return Ok(()),
        connected = tokio::time::timeout(HANDSHAKE_LIMIT, connect) => connected??,
    };
    splice(client, server, &target.over).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_was_left_behind_is_not_followed_again() {
        let upstream = Upstream::default();
        upstream.follow(NodeId(1), Epoch(3));
        let target = upstream.target().unwrap();
        upstream.leave_below(Epoch(4));
        assert!(target.over.is_cancelled());
        upstream.follow(NodeId(1), Epoch(3));
        assert!(upstream.target().is_none(), "the late decision changes nothing");
        upstream.follow(NodeId(2), Epoch(4));
        assert_eq!(upstream.target().unwrap().node, NodeId(2));
    }
}
