//! Promotion, and what only a primary does.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_types::cluster::Opened;
use quorate_types::{Epoch, Lsn, NodeId, SyncSet, TimelineId};
use tokio::time::Instant;

use super::{Keeper, POLL, QUERY_LIMIT, text};
use crate::error::PostgresError;
use crate::roles::{DATABASE, MANAGER_ROLE, bootstrap};

/// How long a promotion may take before the epoch is given up.
const PROMOTE_LIMIT: Duration = Duration::from_secs(30);
/// How long a statement that waits for standbys may take.
const WRITE_LIMIT: Duration = Duration::from_secs(15);

/// One standby as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Who.
    pub node: NodeId,
    /// What it has on disk.
    pub flushed: Lsn,
    /// What it has replayed.
    pub replayed: Lsn,
    /// Whether it has caught up and streams.
    pub streams: bool,
    /// Bytes of WAL that it has yet to flush.
    pub lag_bytes: u64,
}

impl Keeper {
    /// Promotes in an epoch that this node holds. What commits wait for is in effect before the first one.
    ///
    /// # Errors
    /// When it takes too long or the server ends; the epoch must then be given up.
    pub async fn promote(&self, epoch: Epoch, sync: &SyncSet) -> Result<Opened, PostgresError> {
        self.upstream.close();
        {
            let mut conf = self.conf.lock().await;
            conf.follows = false;
            conf.sync = Some(sync.clone());
            self.write_dynamic_conf(&conf)?;
            self.reload();
        }
        let before = self.position().await?;
        let lineage = self.lineage()?.promoting(before.timeline, epoch);
        lineage.store(&self.settings.data(), self.account)?;
        let mut session = self.session().await?;
        let wanted = Self::sync_names(sync);
        let deadline = Instant::now() + PROMOTE_LIMIT;
        let too_slow = PostgresError::TooSlow { what: "promotion", limit: PROMOTE_LIMIT };
        loop {
            let rows = session.query("SHOW synchronous_standby_names", QUERY_LIMIT).await?;
            if text(&rows, 0) == Some(wanted.as_str()) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(too_slow);
            }
            tokio::time::sleep(POLL).await;
        }
        session.query("SELECT pg_promote(false)", QUERY_LIMIT).await?;
        loop {
            let rows = session.query("SELECT pg_is_in_recovery()", QUERY_LIMIT).await?;
            if text(&rows, 0) == Some("f") {
                break;
            }
            if Instant::now() >= deadline {
                return Err(too_slow);
            }
            tokio::time::sleep(POLL).await;
        }
        let timeline = self.position().await?.timeline;
        let start = self.start_of(timeline)?;
        lineage.promoted(timeline).store(&self.settings.data(), self.account)?;
        self.promoted_with(sync);
        self.throne.ascend(epoch);
        Ok(Opened { timeline, start })
    }

    /// Where a timeline left its parent, from its history file.
    fn start_of(&self, timeline: TimelineId) -> Result<Lsn, PostgresError> {
        let path = self.settings.data().join("pg_wal").join(format!("{:08X}.history", timeline.0));
        let history = std::fs::read_to_string(&path).map_err(PostgresError::file("read", &path))?;
        history
            .lines()
            .rfind(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .ok_or(PostgresError::Nonsense("the timeline's history"))
    }

    /// A slot for every other member, so that WAL it still needs is kept; none for anybody else. Nothing here is
    /// replicated, so nothing waits for a standby.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn keep_slots(&self, members: &[NodeId]) -> Result<(), PostgresError> {
        let me = self.settings.node;
        let wanted: Vec<String> = members.iter().filter(|node| **node != me).map(ToString::to_string).collect();
        let rows = self.ask("SELECT slot_name, active, wal_status FROM pg_replication_slots").await?;
        let mut session = self.session().await?;
        let mut present = BTreeMap::new();
        for row in &rows {
            if let [Some(name), Some(active), status] = row.as_slice() {
                present.insert(name.clone(), (active == "t", status.as_deref() == Some("lost")));
            }
        }
        for (name, (active, lost)) in &present {
            let ours = name.parse::<NodeId>().is_ok();
            if ours && !active && (*lost || !wanted.contains(name)) {
                session.query(&format!("SELECT pg_drop_replication_slot('{name}')"), QUERY_LIMIT).await?;
            }
        }
        for name in wanted.iter().filter(|name| present.get(*name).is_none_or(|(active, lost)| *lost && !active)) {
            session.query(&format!("SELECT pg_create_physical_replication_slot('{name}')"), QUERY_LIMIT).await?;
        }
        Ok(())
    }

    /// Roles and database that must be there; waits for standbys like every write.
    ///
    /// # Errors
    /// When a statement fails or no standby confirms in time. May be repeated.
    pub async fn keep_roles(&self, members: &[NodeId]) -> Result<(), PostgresError> {
        let mut session = self.session().await?;
        for statement in bootstrap(members) {
            session.query(&statement, WRITE_LIMIT).await?;
        }
        let found = format!("SELECT FROM pg_database WHERE datname = '{DATABASE}'");
        if session.query(&found, QUERY_LIMIT).await?.is_empty() {
            session.query(&format!("CREATE DATABASE {DATABASE} OWNER {MANAGER_ROLE}"), WRITE_LIMIT).await?;
        }
        Ok(())
    }

    /// Writes a checkpoint: `pg_rewind` of an old primary needs one on the new timeline.
    ///
    /// # Errors
    /// When the server ends meanwhile.
    pub async fn checkpoint(&self) -> Result<(), PostgresError> {
        self.session().await?.query("CHECKPOINT", Duration::from_secs(300)).await?;
        Ok(())
    }

    /// Every standby that is connected.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn replicas(&self) -> Result<Vec<Replica>, PostgresError> {
        let rows = self
            .ask(
                "SELECT application_name, flush_lsn, replay_lsn, state, \
                 greatest(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), flush_lsn), 0)::bigint \
                 FROM pg_stat_replication WHERE flush_lsn IS NOT NULL",
            )
            .await?;
        let replica = |row: &Vec<Option<String>>| {
            let get = |column: usize| row.get(column)?.as_deref();
            Some(Replica {
                node: get(0)?.parse().ok()?,
                flushed: get(1)?.parse().ok()?,
                replayed: get(2).and_then(|text| text.parse().ok()).unwrap_or_default(),
                streams: get(3)? == "streaming",
                lag_bytes: get(4)?.parse().ok()?,
            })
        };
        Ok(rows.iter().filter_map(replica).collect())
    }
}
