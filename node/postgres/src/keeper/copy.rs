//! Getting the data onto the line of the current epoch: rewind, else a new copy.

use std::process::Command;
use std::time::Duration;

use quorate_types::TimelineId;
use tokio::time::Instant;

use super::start::remove_tree;
use super::{Following, Keeper};
use crate::error::PostgresError;
use crate::lineage::{Lineage, write_synced};
use crate::roles::{REWIND_ROLE, replication_role};
use crate::settings::socket_in;
use crate::wire::Session;

/// How long a rewind may take before a copy is tried instead.
const REWIND_LIMIT: Duration = Duration::from_secs(600);
/// How long a copy may take.
const COPY_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How long the primary may take for its checkpoint.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(120);
/// How long one question to the primary may take.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long the server may take to stop for it.
const STOP_LIMIT: Duration = Duration::from_secs(30);

impl Keeper {
    /// Takes back what this node has and the line does not. The server is stopped for it and stays so.
    ///
    /// # Errors
    /// [`PostgresError::Left`] when the node is followed no longer before it begins; else when `pg_rewind` fails: the
    /// directory is then marked and only a copy helps.
    pub async fn rewind(&self, following: &Following) -> Result<(), PostgresError> {
        self.stop(STOP_LIMIT).await;
        let data = self.settings.data();
        self.upstream.follow(following.holder, following.epoch);
        self.await_checkpoint(following).await?;
        // From here on the directory is neither old nor new until it is done.
        write_synced(&self.settings.poisoned(), b"a rewind was interrupted", self.account)?;
        let lineage = self.lineage()?.following(&following.line);
        let mut command = Command::new(self.settings.program("pg_rewind"));
        command
            .arg("--target-pgdata")
            .arg(&data)
            .arg("--source-server")
            .arg(format!(
                "host={} port=5432 user={REWIND_ROLE} dbname=postgres connect_timeout=5",
                self.settings.upstream_sockets().display()
            ))
            .arg(format!("--config-file={}", self.settings.conf("postgresql.conf").display()));
        let result = self.run("pg_rewind", command, REWIND_LIMIT).await;
        self.upstream.close();
        result?;
        lineage.store(&data, self.account)?;
        self.heal()
    }

    /// Waits until the primary has written a checkpoint on its timeline: before that `pg_rewind` up to version 15 takes
    /// a diverged directory for a good one.
    async fn await_checkpoint(&self, following: &Following) -> Result<(), PostgresError> {
        let wanted = following.line.get(&following.epoch).copied().flatten();
        let socket = socket_in(&self.settings.upstream_sockets());
        let began = Instant::now();
        while began.elapsed() < CHECKPOINT_LIMIT {
            // Whoever promises a newer epoch wants to be counted now, and the primary may never answer again.
            if !self.leads_to(following) {
                return Err(PostgresError::Left);
            }
            let asked = async {
                let mut session = Session::connect(&socket, REWIND_ROLE, "postgres", false, ASK_LIMIT).await?;
                session.query("SELECT timeline_id FROM pg_control_checkpoint()", ASK_LIMIT).await
            };
            let timeline = asked.await.ok().and_then(|rows| rows.first()?.first()?.as_deref()?.parse().ok());
            if timeline.map(TimelineId) >= wanted {
                return Ok(());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Err(PostgresError::TooSlow { what: "the primary's checkpoint", limit: CHECKPOINT_LIMIT })
    }

    /// Whether the way to the primary is still open; a promise closes it.
    fn leads_to(&self, following: &Following) -> bool {
        let target = self.upstream.target();
        target.is_some_and(|target| (target.node, target.epoch) == (following.holder, following.epoch))
    }

    /// Copies everything anew from the primary. The server is stopped for it: what the old data streamed and
    /// acknowledged meanwhile would not be in the copy.
    ///
    /// # Errors
    /// When `pg_basebackup` fails or the node is followed no longer; the old directory is then untouched.
    pub async fn copy(&self, following: &Following) -> Result<(), PostgresError> {
        let fresh = self.settings.directory.join("data.new");
        remove_tree(&fresh)?;
        self.stop(STOP_LIMIT).await;
        self.upstream.follow(following.holder, following.epoch);
        if !self.leads_to(following) {
            return Err(PostgresError::Left);
        }
        let mut command = Command::new(self.settings.program("pg_basebackup"));
        command
            .arg("-d")
            .arg(format!(
                "host={} port=5432 user={} connect_timeout=5",
                self.settings.upstream_sockets().display(),
                replication_role(self.settings.node)
            ))
            .arg("-D")
            .arg(&fresh)
            .args(["-X", "stream", "-c", "fast", "--no-password"]);
        self.run("pg_basebackup", command, COPY_LIMIT).await?;
        Lineage::default().following(&following.line).store(&fresh, self.account)?;
        self.swap_in(&fresh)
    }
}
