//! The durable promise: the newest epoch that this node will not fall behind.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_types::Epoch;
use tokio::sync::{Mutex, watch};

/// The promise on disk and in memory.
pub struct Promises {
    path: PathBuf,
    newest: watch::Sender<Epoch>,
    writing: Arc<Mutex<()>>,
}

impl Promises {
    /// Reads what was promised in earlier lives.
    ///
    /// # Errors
    /// When the file is unreadable: without it the node could break its word.
    pub fn load(state_dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(state_dir)?;
        let path = state_dir.join("promised-epoch");
        let newest = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Epoch(0),
            Err(error) => return Err(error),
        };
        Ok(Self { path, newest: watch::Sender::new(newest), writing: Arc::default() })
    }

    /// The newest promise.
    pub fn newest(&self) -> Epoch {
        *self.newest.borrow()
    }

    /// The newest promise, and its changes.
    pub fn watch(&self) -> watch::Receiver<Epoch> {
        self.newest.subscribe()
    }

    /// Promises an epoch, on disk before it returns. An older one changes nothing.
    ///
    /// # Errors
    /// When it cannot be written; then nothing was promised.
    pub async fn give(&self, epoch: Epoch) -> io::Result<()> {
        let writing = self.writing.clone().lock_owned().await;
        if epoch <= self.newest() {
            return Ok(());
        }
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || {
            let _writing = writing;
            store(&path, epoch)
        })
        .await
        .map_err(io::Error::other)??;
        self.newest.send_if_modified(|newest| {
            let grows = epoch > *newest;
            *newest = epoch.max(*newest);
            grows
        });
        Ok(())
    }
}

fn store(path: &Path, epoch: Epoch) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = std::fs::File::create(&aside)?;
    writeln!(file, "{epoch}")?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_promise_outlives_the_process_and_never_falls() {
        let folder = tempfile::tempdir().unwrap();
        let promises = Promises::load(folder.path()).unwrap();
        promises.give(Epoch(4)).await.unwrap();
        promises.give(Epoch(3)).await.unwrap();
        assert_eq!(promises.newest(), Epoch(4));
        assert_eq!(Promises::load(folder.path()).unwrap().newest(), Epoch(4));
        std::fs::write(folder.path().join("promised-epoch"), "nonsense").unwrap();
        assert!(Promises::load(folder.path()).is_err());
    }
}
