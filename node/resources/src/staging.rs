//! Private places for new items.

use std::path::PathBuf;

/// The name of what is staged inside its own directory.
pub const STAGED_NAME: &str = "item";

/// A private place for one new item; removed with what is still in it when this is dropped.
#[derive(Debug)]
pub struct Staged {
    pub(crate) directory: PathBuf,
}

impl Staged {
    /// Where to create the file or directory that becomes the item; nothing is there yet.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(STAGED_NAME)
    }

    /// Its name in the staging area.
    pub(crate) fn name(&self) -> Option<String> {
        Some(self.directory.file_name()?.to_str()?.to_owned())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                tracing::warn!(directory = %directory.display(), %error, "what was staged stays until the next start");
            }
        };
        // A tree may be large, and whoever drops it may be a task.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
