//! Placing and removing items: what only the node that took over in the epoch does.

use std::fmt;
use std::sync::Arc;

use quorate_types::{Epoch, NodeId};
use tokio::task::JoinSet;

use crate::entry::{Entry, Hash, Kind, Version};
use crate::path::ItemPath;
use crate::peers::Said;
use crate::staging::Staged;
use crate::store::{InstallError, Rule};
use crate::transfer::TransferError;
use crate::tree::{Seal, Source, TreeError, describe};
use crate::{ManifestError, Resources, blocking};

/// An item is on a majority of disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which write this was.
    pub version: Version,
    /// Over its files.
    pub digest: Hash,
    /// The bytes of its files.
    pub bytes: u64,
    /// Who had it when this was acknowledged, this node among them.
    pub nodes: Vec<NodeId>,
}

/// Who did not take an item, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals(pub Vec<(NodeId, String)>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (node, why) in &self.0 {
            write!(f, "; {node}: {why}")?;
        }
        Ok(())
    }
}

/// Why an item was not acknowledged.
///
/// It is not under its name on this node then. Some peers may have it; it may appear here later, as after any answer
/// that was lost. Placing or removing the same path again replaces it everywhere.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A newer epoch was promised, here or by a peer.
    #[error("epoch {epoch} is over: epoch {promised} was promised")]
    Fenced {
        /// The caller's.
        epoch: Epoch,
        /// The newer one.
        promised: Epoch,
    },
    /// [`Resources::take_over`] was not done in this epoch.
    #[error("this node has not taken over the resources in epoch {epoch} (its items build on epoch {base})")]
    NotTakenOver {
        /// The caller's.
        epoch: Epoch,
        /// Where this node is.
        base: Epoch,
    },
    /// Too few peers have it.
    #[error("only {have} of {need} nodes have it on disk{refusals}")]
    NoMajority {
        /// How many, this node (where it is staged only) counted.
        have: usize,
        /// How many it takes.
        need: usize,
        /// Who does not, and why.
        refusals: Refusals,
    },
    /// What was staged cannot be an item.
    #[error("the staged item cannot be placed")]
    Tree(#[source] TreeError),
    /// This node's disk.
    #[error("this node cannot keep the item")]
    Install(#[source] InstallError),
}

impl From<InstallError> for PlaceError {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Fenced { epoch, promised } => Self::Fenced { epoch, promised },
            other => Self::Install(other),
        }
    }
}

impl From<ManifestError> for PlaceError {
    fn from(error: ManifestError) -> Self {
        Self::Install(error.into())
    }
}

impl Resources {
    /// Places what is staged at `path`: a file or a tree. Answers when `majority` nodes, this one counted, have it on
    /// disk; the others go on in the background, and what they miss is repaired.
    ///
    /// `peers`: all other members. Whoever reads a row that names the path finds it on a majority.
    ///
    /// # Errors
    /// [`PlaceError`]. Dropped before it ends, the outcome is as after an error, or the item is there, unacknowledged.
    pub async fn place(
        &self,
        epoch: Epoch,
        path: &ItemPath,
        staged: Staged,
        peers: &[NodeId],
        majority: usize,
    ) -> Result<Placed, PlaceError> {
        let (store, limits, at) = (self.inner.store.clone(), self.inner.limits, path.clone());
        let (staged, entry, source) = blocking(move || {
            check_epoch(&store.standing(), epoch)?;
            store.check_room(0)?;
            let (kind, files) = describe(&staged.path(), &limits, Seal::Yes).map_err(PlaceError::Tree)?;
            let entry = Entry { version: store.next_version(epoch)?, kind, files };
            store.check(&at, kind, entry.version, Rule::Place)?;
            let source =
                store.staged_source(&staged).map_err(|source| InstallError::disk("open what is staged", source))?;
            Ok::<_, PlaceError>((staged, entry, source))
        })
        .await?;
        self.spread(path, entry, staged, Some(Arc::new(source)), peers, majority).await
    }

    /// Removes the item at `path` in the same way; on each node its files are kept aside for a while. Harmless when
    /// there is none.
    ///
    /// # Errors
    /// [`PlaceError`], with the same meaning.
    pub async fn remove(
        &self,
        epoch: Epoch,
        path: &ItemPath,
        peers: &[NodeId],
        majority: usize,
    ) -> Result<Placed, PlaceError> {
        let store = self.inner.store.clone();
        let (staged, entry) = blocking(move || {
            check_epoch(&store.standing(), epoch)?;
            Ok::<_, PlaceError>((store.stage()?, Entry::tombstone(store.next_version(epoch)?)))
        })
        .await?;
        self.spread(path, entry, staged, None, peers, majority).await
    }

    /// Sends to all peers at once, waits for enough, then shows the item here: what is visible on the active node is
    /// acknowledged, or was about to be.
    async fn spread(
        &self,
        path: &ItemPath,
        entry: Entry,
        staged: Staged,
        source: Option<Arc<Source>>,
        peers: &[NodeId],
        majority: usize,
    ) -> Result<Placed, PlaceError> {
        let entry = Arc::new(entry);
        let epoch = entry.version.epoch;
        // Dropping the set ends the transfers.
        let mut transfers = JoinSet::new();
        for &node in peers.iter().filter(|node| **node != self.inner.node) {
            let (this, path, entry, source) = (self.clone(), path.clone(), entry.clone(), source.clone());
            transfers.spawn(async move { (node, this.inner.peers.send(node, path, entry, source).await) });
        }
        let mut nodes = vec![self.inner.node];
        let mut refusals = Refusals::default();
        while nodes.len() < majority {
            let Some(ended) = transfers.join_next().await else {
                return Err(PlaceError::NoMajority { have: nodes.len(), need: majority, refusals });
            };
            match ended {
                Ok((node, Ok(Said::Has))) => nodes.push(node),
                Ok((_, Ok(Said::Promised(promised)))) => return Err(PlaceError::Fenced { epoch, promised }),
                Ok((node, Err(error))) => refusals.0.push((node, error.status().message().to_owned())),
                Err(error) => tracing::error!(%error, "a transfer ended unexpectedly"),
            }
        }
        let (store, at, installed) = (self.inner.store.clone(), path.clone(), entry.clone());
        blocking(move || store.install(&at, &installed, &staged, Rule::Place)).await?;
        self.finish_in_background(path, transfers);
        let summary = entry.summary();
        if entry.kind == Kind::Tombstone {
            tracing::info!(%path, version = %entry.version, "item removed");
        } else {
            tracing::info!(%path, version = %entry.version, bytes = entry.bytes(), "item placed");
        }
        Ok(Placed { version: entry.version, digest: summary.digest, bytes: entry.bytes(), nodes })
    }

    /// The slower peers: their transfers end by themselves, through the idle time.
    fn finish_in_background(&self, path: &ItemPath, mut transfers: JoinSet<(NodeId, Result<Said, TransferError>)>) {
        if transfers.is_empty() {
            return;
        }
        let Ok(turn) = self.inner.tails.clone().try_acquire_owned() else {
            tracing::warn!(%path, "too many slow peers; what they miss is left to repair");
            return;
        };
        let path = path.clone();
        tokio::spawn(async move {
            let _turn = turn;
            while let Some(ended) = transfers.join_next().await {
                if let Ok((node, Err(error))) = ended {
                    tracing::info!(%path, %node, error = error.status().message(), "a peer missed an item");
                }
            }
        });
    }
}

fn check_epoch(standing: &crate::manifest::Standing, epoch: Epoch) -> Result<(), PlaceError> {
    if epoch < standing.promised {
        return Err(PlaceError::Fenced { epoch, promised: standing.promised });
    }
    if standing.held != epoch || standing.base != epoch {
        return Err(PlaceError::NotTakenOver { epoch, base: standing.base });
    }
    Ok(())
}
