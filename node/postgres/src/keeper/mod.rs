//! The keeper: carries out what was decided for the local PostgreSQL. It decides nothing itself.

mod conf;
mod copy;
mod primary;
mod standby;
mod start;
mod sync;

pub use primary::Replica;

use std::path::PathBuf;
use std::time::Duration;

use quorate_types::{Epoch, NodeId, SyncSet, TimelineId};
use tokio::sync::Mutex;

use crate::account::Account;
use crate::error::PostgresError;
use crate::gate::{Throne, Upstream};
use crate::lineage::Lineage;
use crate::process::{Process, Spawner};
use crate::settings::{Settings, socket_in};
use crate::wire::{Rows, Session};

/// The longest that an ordinary question may take.
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at something that changes soon.
const POLL: Duration = Duration::from_millis(3);

/// The local PostgreSQL.
pub struct Keeper {
    settings: Settings,
    account: Account,
    spawner: Spawner,
    process: std::sync::Mutex<Option<Process>>,
    /// What the changing part of the configuration says.
    conf: Mutex<conf::Dynamic>,
    /// What commits are known to wait for.
    synced: std::sync::Mutex<sync::Synced>,
    throne: Throne,
    upstream: Upstream,
}

/// Whom to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// The primary.
    pub holder: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The epochs that it continues, with their timelines.
    pub line: std::collections::BTreeMap<Epoch, Option<TimelineId>>,
}

impl Keeper {
    /// Prepares directories and configuration, and ends a server that an earlier life left behind.
    ///
    /// # Errors
    /// When the account is missing or a directory cannot be made.
    pub async fn open(settings: Settings) -> Result<Self, PostgresError> {
        let account = Account::find(&settings.user)?;
        let spawner =
            Spawner::start().map_err(PostgresError::file("start the parent thread for", &settings.bin_dir))?;
        let keeper = Self {
            account,
            spawner,
            process: std::sync::Mutex::new(None),
            conf: Mutex::new(conf::Dynamic::default()),
            synced: std::sync::Mutex::default(),
            throne: Throne::default(),
            upstream: Upstream::default(),
            settings,
        };
        keeper.make_directories()?;
        keeper.end_leftover().await?;
        Ok(keeper)
    }

    /// How it runs.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether this node's PostgreSQL is the primary; shared with the gates.
    #[must_use]
    pub fn throne(&self) -> Throne {
        self.throne.clone()
    }

    /// The way to the primary; shared with its socket.
    #[must_use]
    pub fn upstream(&self) -> Upstream {
        self.upstream.clone()
    }

    /// The path of the upstream socket.
    #[must_use]
    pub fn upstream_socket(&self) -> PathBuf {
        socket_in(&self.settings.upstream_sockets())
    }

    /// Whether there is a data directory that may be started.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.settings.data().join("PG_VERSION").exists() && !self.settings.poisoned().exists()
    }

    /// Whether the server runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// Resolves when the running server ends, with how; at once when none runs.
    pub async fn ended(&self) -> String {
        match self.running() {
            Some(process) => process.wait().await,
            None => "it does not run".into(),
        }
    }

    /// What the data directory contains.
    ///
    /// # Errors
    /// When the record is unreadable.
    pub fn lineage(&self) -> Result<Lineage, PostgresError> {
        Lineage::load(&self.settings.data())
    }

    fn running(&self) -> Option<Process> {
        let process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        process.as_ref().filter(|process| process.ended().is_none()).cloned()
    }

    fn set_process(&self, process: Option<Process>) {
        *self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = process;
    }

    async fn session(&self) -> Result<Session, PostgresError> {
        let socket = socket_in(&self.settings.server_sockets());
        Ok(Session::connect(&socket, "postgres", "postgres", false, QUERY_LIMIT).await?)
    }

    /// One question on a connection of its own.
    async fn ask(&self, sql: &str) -> Result<Rows, PostgresError> {
        Ok(self.session().await?.query(sql, QUERY_LIMIT).await?)
    }

    /// The names that `synchronous_standby_names` wants for a set.
    fn sync_names(sync: &SyncSet) -> String {
        if sync.num_sync == 0 {
            return String::new();
        }
        let names: Vec<String> = sync.members.iter().map(ToString::to_string).collect();
        format!("ANY {} ({})", sync.num_sync, names.join(", "))
    }
}

fn text(rows: &Rows, column: usize) -> Option<&str> {
    rows.first()?.get(column)?.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_a_single_node_wait_for_nobody() {
        let set = |num_sync, last| SyncSet { num_sync, members: (1..=last).map(NodeId).collect() };
        assert_eq!(Keeper::sync_names(&set(1, 3)), "ANY 1 (n1, n2, n3)");
        assert_eq!(Keeper::sync_names(&set(0, 1)), "");
    }
}
