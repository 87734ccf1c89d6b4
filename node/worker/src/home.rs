//! The worker's directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::resources::write_private;
use crate::run::SHIM;

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The directory or one of its files.
    #[error("prepare {path}")]
    Io {
        /// Which.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another worker runs in this directory.
    #[error("{0} is in use by another worker")]
    InUse(PathBuf),
}

/// Places in the worker's directory, held by one worker.
pub(crate) struct Home {
    root: PathBuf,
    /// Names this worker among all that share a queue; stays over restarts.
    pub(crate) instance: String,
    _lock: Flock<File>,
}

impl Home {
    /// Takes the directory and puts in place what operations need. What earlier operations left in the scratch space
    /// goes, so their processes must be ended first: see [`Home::clear_scratch`].
    pub(crate) fn open(root: &Path, exe: &Path, rest_ca_pem: &str) -> Result<Self, HomeError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| HomeError::Io { path, source }
        };
        // Paths in here end up in other processes with other working directories.
        let root = std::path::absolute(root).map_err(at(root))?;
        for dir in ["", "bin", "work", "scratch", "shim/cloudify"] {
            let dir = root.join(dir);
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
        }
        let lock = root.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let _lock = Flock::lock(file.map_err(at(&lock))?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| HomeError::InUse(root.clone()))?;
        let link = root.join("bin/ctx");
        let exe = std::path::absolute(exe).map_err(at(exe))?;
        if fs::read_link(&link).ok().as_deref() != Some(exe.as_path()) {
            match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&link)(error)),
                _ => symlink(&exe, &link).map_err(at(&link))?,
            }
        }
        for (name, text) in SHIM {
            let path = root.join("shim").join(name);
            write_private(&path, text.as_bytes(), 0o600).map_err(at(&path))?;
        }
        let ca = root.join("rest-ca.pem");
        write_private(&ca, rest_ca_pem.as_bytes(), 0o600).map_err(at(&ca))?;
        let named = root.join("instance");
        let instance = match fs::read_to_string(&named) {
            Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
            _ => {
                let name = uuid::Uuid::new_v4().to_string();
                write_private(&named, name.as_bytes(), 0o600).map_err(at(&named))?;
                name
            }
        };
        Ok(Self { root, instance, _lock })
    }

    pub(crate) fn clear_scratch(&self) -> Result<(), HomeError> {
        let scratch = self.scratch();
        let at = |source| HomeError::Io { path: scratch.clone(), source };
        fs::remove_dir_all(&scratch).map_err(at)?;
        DirBuilder::new().mode(0o700).create(&scratch).map_err(at)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Where operations start.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(crate) fn shim(&self) -> PathBuf {
        self.root.join("shim")
    }

    pub(crate) fn rest_ca(&self) -> PathBuf {
        self.root.join("rest-ca.pem")
    }

    pub(crate) fn venv(&self) -> PathBuf {
        self.root.join("venv")
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    pub(crate) fn source_plugins(&self) -> PathBuf {
        self.root.join("source_plugins")
    }

    /// Python for scripts: the environment's, else the machine's.
    pub(crate) fn interpreter(&self) -> PathBuf {
        let own = self.venv().join("bin/python");
        if own.exists() { own } else { "python3".into() }
    }

    /// `PATH` of operations: `ctx` first.
    pub(crate) fn search_path(&self, given: Option<String>) -> String {
        let rest =
            given.or_else(|| std::env::var("PATH").ok()).unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        format!("{}:{rest}", self.root.join("bin").display())
    }
}
