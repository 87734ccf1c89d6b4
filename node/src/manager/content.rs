//! The application's files, placed on a majority of the members.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_app::ports::{ContentError, ContentStore, PlaceRequest, Placed, Staging};
use quorate_resources::{ItemPath, OpenFileError, PlaceError, Resources, Staged};
use quorate_types::{ClusterState, Epoch, NodeId};
use tokio::sync::watch;

use crate::local::chain;

/// The resources directory in one epoch.
pub struct Content {
    pub resources: Resources,
    pub me: NodeId,
    pub epoch: Epoch,
    pub cluster: watch::Receiver<Arc<ClusterState>>,
}

/// The other members, and how many members are a majority, this node counted.
pub fn quorum(state: &ClusterState, me: NodeId) -> (Vec<NodeId>, usize) {
    let peers: Vec<NodeId> = state.members.keys().copied().filter(|node| *node != me).collect();
    let majority = peers.len().div_ceil(2) + 1;
    (peers, majority)
}

impl Content {
    fn quorum(&self) -> (Vec<NodeId>, usize) {
        quorum(&self.cluster.borrow(), self.me)
    }
}

struct Place(Staged);

impl Staging for Place {
    fn path(&self) -> PathBuf {
        self.0.path()
    }
}

#[async_trait::async_trait]
impl ContentStore for Content {
    async fn staging(&self) -> Result<Box<dyn Staging>, ContentError> {
        Ok(Box::new(Place(self.resources.staging().await.map_err(disk)?)))
    }

    async fn place(&self, request: PlaceRequest) -> Result<Placed, ContentError> {
        let path = item_path(&request.path)?;
        let staged = self.resources.staging().await.map_err(disk)?;
        tokio::fs::rename(&request.staged, staged.path()).await.map_err(ContentError::Disk)?;
        let (peers, majority) = self.quorum();
        let placed = self.resources.place(self.epoch, &path, staged, &peers, majority).await.map_err(refused)?;
        Ok(Placed { bytes: placed.bytes })
    }

    async fn remove(&self, path: &Path) -> Result<(), ContentError> {
        let path = item_path(path)?;
        let (peers, majority) = self.quorum();
        self.resources.remove(self.epoch, &path, &peers, majority).await.map_err(refused)?;
        Ok(())
    }

    async fn open(&self, path: &str) -> Result<Option<File>, ContentError> {
        match self.resources.open_file(path).await {
            Ok(file) => Ok(Some(file)),
            Err(OpenFileError::NotFound(_)) => Ok(None),
            Err(error) => Err(disk(error)),
        }
    }
}

fn item_path(path: &Path) -> Result<ItemPath, ContentError> {
    let bad = || ContentError::BadPath(path.to_owned());
    path.to_str().ok_or_else(bad)?.parse().map_err(|_| bad())
}

fn disk(error: impl std::error::Error + Send + Sync + 'static) -> ContentError {
    ContentError::Disk(io::Error::other(error))
}

fn refused(error: PlaceError) -> ContentError {
    match error {
        PlaceError::Fenced { .. } | PlaceError::NotTakenOver { .. } | PlaceError::NoMajority { .. } => {
            tracing::warn!(error = chain(&error), "files were not placed");
            ContentError::NoMajority
        }
        other => disk(other),
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::Member;

    use super::*;

    #[test]
    fn a_majority_counts_this_node() {
        let member = |id: u64| {
            let address = [10, 0, 0, 1].into();
            let id = NodeId(id);
            (id, Member { id, name: id.to_string(), address, public_key_sha256: String::new(), voter: true })
        };
        let state = |members: std::ops::RangeInclusive<u64>| ClusterState {
            members: members.map(member).collect(),
            ..ClusterState::default()
        };
        assert_eq!(quorum(&state(1..=1), NodeId(1)), (vec![], 1));
        assert_eq!(quorum(&state(1..=3), NodeId(2)), (vec![NodeId(1), NodeId(3)], 2));
        assert_eq!(quorum(&state(1..=4), NodeId(1)).1, 3);
        assert_eq!(quorum(&state(1..=5), NodeId(1)).1, 3);
    }
}
