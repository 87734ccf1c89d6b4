//! Where things are.

use std::path::{Path, PathBuf};

use quorate_types::NodeId;

/// How to run PostgreSQL.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who this is.
    pub node: NodeId,
    /// Holds `postgres`, `initdb`, `pg_rewind`, `pg_basebackup`.
    pub bin_dir: PathBuf,
    /// The account when this process is root.
    pub user: String,
    /// Ours alone: data directory, configuration, log.
    pub directory: PathBuf,
    /// For sockets; short.
    pub socket_dir: PathBuf,
    /// Sessions that the server takes at once, replication aside; `100..`, the value `initdb` records, because every
    /// start is a standby start and a standby may not have less.
    pub connections_max: u16,
}

impl Settings {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// PGDATA.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.directory.join("conf").join(name)
    }

    /// Set while a rewind is under way; what it leaves half done must not be started.
    pub(crate) fn poisoned(&self) -> PathBuf {
        self.directory.join("poisoned")
    }

    /// The folder of the server's own socket.
    #[must_use]
    pub fn server_sockets(&self) -> PathBuf {
        self.socket_dir.join("pg")
    }

    /// The folder of the socket that leads to the primary's replication port.
    #[must_use]
    pub fn upstream_sockets(&self) -> PathBuf {
        self.socket_dir.join("up")
    }
}

/// PostgreSQL's name of a socket in a folder.
#[must_use]
pub fn socket_in(folder: &Path) -> PathBuf {
    folder.join(".s.PGSQL.5432")
}
