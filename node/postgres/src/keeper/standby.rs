//! Following, and standing still to be counted.

use std::time::Duration;

use nix::sys::signal::Signal;
use quorate_core::failover::Position;
use quorate_types::TimelineId;
use tokio::time::Instant;

use super::{Following, Keeper, POLL, QUERY_LIMIT, text};
use crate::error::PostgresError;
use crate::settings::socket_in;
use crate::wire::Session;

/// How long the walreceiver may take to end, and local WAL to be replayed.
const STILL_LIMIT: Duration = Duration::from_secs(60);
/// Looks in a row that must agree that nothing is left to replay.
const QUIET_LOOKS: u32 = 3;

impl Keeper {
    /// Follows somebody, or somebody else, without a restart.
    ///
    /// # Errors
    /// When the record of the lineage cannot be written; then nothing is followed.
    pub async fn follow(&self, following: &Following) -> Result<(), PostgresError> {
        self.lead_upstream(following)?;
        let mut conf = self.conf.lock().await;
        if !conf.follows {
            conf.follows = true;
            self.write_dynamic_conf(&conf)?;
            self.reload();
        }
        Ok(())
    }

    /// The lineage first: once the way is open, WAL of the new epoch arrives.
    pub(super) fn lead_upstream(&self, following: &Following) -> Result<(), PostgresError> {
        let known = self.lineage()?;
        let lineage = known.clone().following(&following.line);
        if lineage != known {
            lineage.store(&self.settings.data(), self.account)?;
        }
        self.upstream.follow(following.holder, following.epoch);
        Ok(())
    }

    /// Whether WAL is being received now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn receives(&self) -> Result<bool, PostgresError> {
        let rows = self.ask("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'").await?;
        Ok(text(&rows, 0) != Some("0"))
    }

    pub(super) fn reload(&self) {
        if let Some(process) = self.running() {
            process.signal(Signal::SIGHUP);
        }
    }

    /// Follows nobody any more and says how far the data reaches. The way is cut before anything else happens: what
    /// arrives later cannot be acknowledged any more.
    ///
    /// # Errors
    /// When the server does not run, or local WAL is not replayed within a minute.
    pub async fn stand_still(&self) -> Result<Position, PostgresError> {
        self.upstream.close();
        {
            let mut conf = self.conf.lock().await;
            if conf.follows {
                conf.follows = false;
                self.write_dynamic_conf(&conf)?;
                self.reload();
            }
        }
        let deadline = Instant::now() + STILL_LIMIT;
        let mut session = self.session().await?;
        let mut before = None;
        let mut quiet = 0;
        // The walreceiver flushes what it has, ends, and the startup process replays the rest.
        let look = "SELECT (SELECT count(*) FROM pg_stat_wal_receiver), pg_last_wal_replay_lsn(), \
                    (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')";
        while quiet < QUIET_LOOKS {
            if Instant::now() >= deadline {
                return Err(PostgresError::TooSlow { what: "replaying local WAL", limit: STILL_LIMIT });
            }
            let rows = session.query(look, QUERY_LIMIT).await?;
            let streams = text(&rows, 0) != Some("0");
            let replayed = text(&rows, 1).map(str::to_owned);
            // Between two tries to find more WAL the startup process waits in exactly these places.
            let waits = matches!(text(&rows, 2), Some("RecoveryRetrieveRetryInterval" | "RecoveryWalStream"));
            quiet = if !streams && waits && replayed == before { quiet + 1 } else { 0 };
            before = replayed;
            if quiet < QUIET_LOOKS {
                tokio::time::sleep(POLL).await;
            }
        }
        self.position().await
    }

    /// How far the data reaches now: what is flushed here, received or written.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn position(&self) -> Result<Position, PostgresError> {
        let socket = socket_in(&self.settings.server_sockets());
        let mut session = Session::connect(&socket, "postgres", "postgres", true, QUERY_LIMIT).await?;
        let rows = session.query("IDENTIFY_SYSTEM", QUERY_LIMIT).await?;
        let nonsense = || PostgresError::Nonsense("IDENTIFY_SYSTEM");
        let timeline = TimelineId(text(&rows, 1).and_then(|text| text.parse().ok()).ok_or_else(nonsense)?);
        let lsn = text(&rows, 2).and_then(|text| text.parse().ok()).ok_or_else(nonsense)?;
        Ok(Position { lineage: self.lineage()?.epoch_of(timeline), lsn, timeline })
    }
}
