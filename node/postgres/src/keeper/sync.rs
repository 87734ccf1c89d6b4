//! What commits wait for, and the proof that they do.
//!
//! `synchronous_standby_names` is counted with by processes that each have a copy of their own and renew it when they
//! come to it. `SHOW` only tells of the session that asks:
//!
//! - the *checkpointer* keeps the flag in shared memory without which no commit waits at all. It does not look at a
//!   changed configuration while it writes a hurried checkpoint. So a server starts with the flag up (a standby's
//!   configuration names somebody who does not exist), and where it has to go up later a checkpoint that was asked for
//!   after the reload is waited for: the checkpointer takes the configuration before it begins one;
//! - each *walsender* keeps whether its standby is listed, which `sync_priority` shows, and how many standbys are
//!   enough, which nothing shows. It takes a changed configuration before it reads replies and sends WAL, once a turn,
//!   and sends once a turn. So whoever was seen to send something new twice since the reload has taken it between the
//!   two; small records see to it that there is something new;
//! - sessions look at the flag only.
//!
//! *Invariant* `SYNC_SETS_MEET`: a set is reported as in effect only after this proof.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use quorate_types::{Lsn, NodeId, SyncSet};
use tokio::time::Instant;

use super::{Keeper, POLL, QUERY_LIMIT, text};
use crate::error::PostgresError;
use crate::wire::Session;

/// How long a changed set may take to be in effect in every process, the checkpoint aside.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// How long standbys may take to have on disk what was committed before.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);
/// How often a walsender must have been seen to send something new.
const TURNS: u32 = 2;
/// Writes a small record and makes it durable here; with [`LOCAL_COMMIT`] it waits for no standby.
const MARK: &str = "SELECT pg_logical_emit_message(true, 'quorate', '')";
const LOCAL_COMMIT: &str = "SET synchronous_commit = local";

/// What is known of the set that the running server counts with.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// The set that every process counts with. `None`: a change was begun, and it is not known how far it went.
    set: Option<SyncSet>,
    /// Whether commits wait at all.
    waits: bool,
    /// Changes with every start of the server.
    life: u64,
}

/// What was seen of one walsender.
struct Turns {
    sent: String,
    news: u32,
}

impl Keeper {
    fn synced(&self) -> MutexGuard<'_, Synced> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server starts anew: nothing is known.
    pub(super) fn forget_sync(&self) {
        let mut synced = self.synced();
        *synced = Synced { life: synced.life + 1, ..Synced::default() };
    }

    /// The server was promoted with this set: its flag was up all the time, and no walsender ran before.
    pub(super) fn promoted_with(&self, sync: &SyncSet) {
        let mut synced = self.synced();
        synced.set = Some(sync.clone());
        synced.waits = sync.num_sync > 0;
    }

    /// What commits wait for now. `None`: a change is not in effect everywhere, or somebody else made one;
    /// [`Keeper::settle_sync`] helps.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn sync_in_effect(&self) -> Result<Option<SyncSet>, PostgresError> {
        let known = self.synced().set.clone();
        let Some(set) = known else { return Ok(None) };
        Ok((self.shown().await? == Self::sync_names(&set)).then_some(set))
    }

    async fn shown(&self) -> Result<String, PostgresError> {
        let rows = self.ask("SHOW synchronous_standby_names").await?;
        Ok(text(&rows, 0).unwrap_or_default().to_owned())
    }

    /// Makes commits wait for another set; returns when that is in effect in every process.
    ///
    /// # Errors
    /// When it is not in effect in time; the caller goes on with [`Keeper::settle_sync`].
    pub async fn set_sync(&self, sync: &SyncSet) -> Result<(), PostgresError> {
        self.conf.lock().await.sync = Some(sync.clone());
        self.settle_sync().await
    }

    /// Brings the set that was asked for last into effect in every process.
    ///
    /// # Errors
    /// When it is not in effect in time. May be repeated.
    pub async fn settle_sync(&self) -> Result<(), PostgresError> {
        let (sync, life) = {
            let conf = self.conf.lock().await;
            let Some(sync) = conf.sync.clone() else { return Err(PostgresError::NotRunning) };
            let mut synced = self.synced();
            synced.set = None;
            if sync.num_sync == 0 {
                synced.waits = false;
            }
            self.write_dynamic_conf(&conf)?;
            self.reload();
            (sync, synced.life)
        };
        let wanted = Self::sync_names(&sync);
        let deadline = Instant::now() + SYNC_LIMIT;
        while self.shown().await? != wanted {
            not_yet(deadline).await?;
        }
        // That session may have heard of it before the others. Every session from here on was begun by a server
        // process that had told everybody.
        if sync.num_sync > 0 {
            if !self.synced().waits {
                self.checkpoint().await?;
            }
            self.every_walsender_counts(&sync).await?;
        }
        let mut synced = self.synced();
        if synced.life == life {
            synced.waits = sync.num_sync > 0;
            synced.set = Some(sync);
        }
        Ok(())
    }

    async fn every_walsender_counts(&self, sync: &SyncSet) -> Result<(), PostgresError> {
        let mut session = self.local_session().await?;
        let deadline = Instant::now() + SYNC_LIMIT;
        let mut seen: BTreeMap<String, Turns> = BTreeMap::new();
        loop {
            // The walsender of a base backup sends no WAL and hears no replies.
            let look = "SELECT pid, application_name, sync_priority, sent_lsn FROM pg_stat_replication \
                        WHERE state <> 'backup'";
            let mut all = true;
            for row in session.query(look, QUERY_LIMIT).await? {
                let [Some(pid), Some(name), Some(priority), sent] = row.as_slice() else {
                    return Err(PostgresError::Nonsense("pg_stat_replication"));
                };
                let sent = sent.clone().unwrap_or_default();
                let turns = seen.entry(pid.clone()).or_insert_with(|| Turns { sent: sent.clone(), news: 0 });
                if turns.sent != sent {
                    *turns = Turns { sent, news: turns.news + 1 };
                }
                let listed = name.parse().is_ok_and(|node| sync.members.contains(&node));
                let counted = priority != "0";
                all &= listed == counted && (!counted || turns.news >= TURNS);
            }
            if all {
                return Ok(());
            }
            not_yet(deadline).await?;
            session.query(MARK, QUERY_LIMIT).await?;
        }
    }

    /// Whether everything that was committed before this call is on as many standbys of the set as it asks for. Before
    /// that elections must not count with it: a commit of an earlier set could be on none of those that they hear.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn confirm_sync(&self, sync: &SyncSet) -> Result<bool, PostgresError> {
        if self.sync_in_effect().await?.as_ref() != Some(sync) {
            return Ok(false);
        }
        let rows = self.local_session().await?.query(MARK, QUERY_LIMIT).await?;
        let upto: Lsn =
            text(&rows, 0).and_then(|text| text.parse().ok()).ok_or(PostgresError::Nonsense("a written record"))?;
        let deadline = Instant::now() + CONFIRM_LIMIT;
        loop {
            let replicas = self.replicas().await?;
            let have: BTreeSet<NodeId> = replicas
                .iter()
                .filter(|replica| replica.streams && replica.flushed >= upto)
                .map(|replica| replica.node)
                .filter(|node| *node != self.settings.node && sync.members.contains(node))
                .collect();
            if have.len() >= sync.num_sync {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL * 5).await;
        }
    }

    async fn local_session(&self) -> Result<Session, PostgresError> {
        let mut session = self.session().await?;
        session.query(LOCAL_COMMIT, QUERY_LIMIT).await?;
        Ok(session)
    }
}

async fn not_yet(deadline: Instant) -> Result<(), PostgresError> {
    if Instant::now() >= deadline {
        return Err(PostgresError::TooSlow { what: "changing the synchronous set", limit: SYNC_LIMIT });
    }
    tokio::time::sleep(POLL * 5).await;
    Ok(())
}
