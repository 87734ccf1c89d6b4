//! The task that brings PostgreSQL to where it should stand.

use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::{Command, ProposeError};
use quorate_core::failover::Role;
use quorate_core::rejoin::{Return, how_to_return};
use quorate_core::standing::{Standing, standing};
use quorate_postgres::{Following, PostgresError};
use quorate_types::cluster::Opened;
use quorate_types::{ClusterState, Epoch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Local, Moving, chain};

/// How often the task looks even when nothing seems to have changed.
const PERIOD: Duration = Duration::from_millis(250);
/// After a failure: long enough not to spin, short enough not to matter.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How long a followed primary may send nothing, while it is the primary, before the data is copied anew.
const DRY_LIMIT: Duration = Duration::from_secs(45);
/// How long the word about an opened epoch may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

impl Local {
    /// Runs until the token ends; PostgreSQL is then ended too.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut cluster = self.consensus.cluster();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ended = async {
                if self.keeper.is_running() { self.keeper.ended().await } else { std::future::pending().await }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                _ = period.tick() => {}
                () = self.wake.notified() => {}
                changed = cluster.changed() => if changed.is_err() { break },
                how = ended => self.server_ended(&how).await,
            }
            let state = cluster.borrow_and_update().clone();
            if let Err(failure) = self.step(&state).await {
                warn!(error = chain(&failure), "PostgreSQL is not where it should be, trying again");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
        self.serving.send_replace(None);
        self.keeper.kill().await;
    }

    async fn server_ended(&self, how: &str) {
        if self.serving.borrow().is_some() {
            self.fence(&format!("its PostgreSQL ended: {how}")).await;
        }
    }

    async fn step(&self, state: &Arc<ClusterState>) -> Result<(), PostgresError> {
        let mut moving = self.moving.lock().await;
        let serving = *self.serving.borrow();
        match standing(state, self.me, self.promised(), serving) {
            Standing::Serve { epoch } => {
                self.set_role(Role::Active, epoch, "");
                Ok(())
            }
            Standing::Promote { epoch } => self.promote(&mut moving, state, epoch).await,
            Standing::Follow { epoch, holder } => {
                self.leave_service(epoch).await;
                let following = Following { holder, epoch, line: state.line(epoch) };
                self.follow(&mut moving, state, following).await
            }
            Standing::Wait => {
                let epoch = state.current().map_or(Epoch(0), |record| record.epoch);
                self.leave_service(epoch).await;
                self.wait(&mut moving, epoch).await
            }
        }
    }

    /// A node that serves an epoch that is over.
    async fn leave_service(&self, epoch: Epoch) {
        if self.serving.borrow().is_some() {
            self.fence(&format!("epoch {epoch} has replaced its own")).await;
        }
    }

    /// Whether this node may make the very first data directory.
    pub(super) fn may_found(&self) -> bool {
        let state = self.consensus.cluster().borrow().clone();
        self.founder && state.epochs.is_empty() && state.members.len() == 1 && state.members.contains_key(&self.me)
    }

    pub(super) async fn ensure_data(&self) -> Result<(), PostgresError> {
        if !self.keeper.has_data() && self.may_found() {
            info!("making the first data directory");
            self.keeper.init().await?;
        }
        Ok(())
    }

    async fn wait(&self, moving: &mut Moving, epoch: Epoch) -> Result<(), PostgresError> {
        moving.following = None;
        let kept = self.status.borrow().role;
        // The leader must see that this node has left an epoch it held, until the next one comes.
        let left = matches!(kept, Role::Resigned | Role::Fenced) && self.status.borrow().epoch == epoch;
        self.ensure_data().await?;
        if self.keeper.has_data() && !self.keeper.is_running() {
            self.keeper.start(None).await?;
        }
        if !left {
            self.set_role(Role::Standby, Epoch(0), "waits for the next epoch");
        }
        Ok(())
    }

    async fn promote(&self, moving: &mut Moving, state: &Arc<ClusterState>, epoch: Epoch) -> Result<(), PostgresError> {
        moving.following = None;
        self.set_role(Role::Promoting, epoch, "");
        let began = Instant::now();
        self.keeper.start(None).await?;
        // It promoted in an earlier life and died before the epoch was open. A second promotion would hide where the
        // epoch left its parent, and with it who has to rewind: the next epoch continues this one.
        if self.keeper.position().await?.lineage == epoch {
            self.give_up(epoch, "it promoted before, and died before the epoch was open").await;
            return Ok(());
        }
        match self.open(state, epoch).await {
            Ok(true) => {
                info!(%epoch, milliseconds = began.elapsed().as_millis(), "epoch opened, this node is active");
                self.set_role(Role::Active, epoch, "");
                let keeper = self.keeper.clone();
                tokio::spawn(async move {
                    if let Err(failure) = keeper.checkpoint().await {
                        warn!(error = chain(&failure), "the checkpoint after the promotion failed");
                    }
                });
                Ok(())
            }
            Ok(false) => {
                self.give_up(epoch, "the epoch was not opened").await;
                Ok(())
            }
            Err(failure) => {
                let text = chain(&failure);
                error!(%epoch, error = text, "promotion failed");
                self.give_up(epoch, &text).await;
                Err(failure)
            }
        }
    }

    async fn give_up(&self, epoch: Epoch, why: &str) {
        self.keeper.kill().await;
        self.set_role(Role::Fenced, epoch, why);
    }

    /// Promotes and has the epoch opened. `false`: somebody else got the next one.
    async fn open(&self, state: &Arc<ClusterState>, epoch: Epoch) -> Result<bool, PostgresError> {
        let opened = self.keeper.promote(epoch, &state.sync).await?;
        let members: Vec<_> = state.members.keys().copied().collect();
        self.keeper.keep_slots(&members).await?;
        // The manager connects as soon as the epoch is served, and at the very first start its role is not there. Later
        // it is, and a commit would wait for standbys that follow only once the epoch is open.
        if state.last_opened().is_none() && state.sync.num_sync == 0 {
            self.keeper.keep_roles(&members).await?;
        }
        let Opened { timeline, start } = opened;
        let proposal = self.consensus.propose(Command::Open { epoch, holder: self.me, timeline, start });
        match proposal.await {
            Ok(_) => {}
            Err(ProposeError::Refused(why)) => {
                warn!(%epoch, why, "the epoch cannot be opened");
                return Ok(false);
            }
            Err(failure) => warn!(%epoch, error = chain(&failure), "it is not known whether the epoch was opened"),
        }
        let mut cluster = self.consensus.cluster();
        let is_open = |state: &Arc<ClusterState>| {
            state.epochs.get(&epoch).is_some_and(|record| record.opened == Some(opened) && record.holder == self.me)
        };
        let seen = tokio::time::timeout(OPEN_LIMIT, cluster.wait_for(is_open)).await.is_ok_and(|seen| seen.is_ok());
        // A promise that came meanwhile wins: the leader goes on to the next epoch.
        if !seen || self.promised() > epoch || !self.keeper.is_running() {
            return Ok(false);
        }
        self.serving.send_replace(Some(epoch));
        // Between the look above and the line above a freeze may have looked for a serving node and found none.
        if self.promised() > epoch {
            self.fence("a newer epoch was promised").await;
            return Ok(false);
        }
        Ok(true)
    }

    async fn follow(
        &self,
        moving: &mut Moving,
        state: &Arc<ClusterState>,
        following: Following,
    ) -> Result<(), PostgresError> {
        let epoch = following.epoch;
        if moving.following.as_ref() == Some(&following) && self.keeper.is_running() {
            return self.keep_following(moving, &following).await;
        }
        moving.dry_since = None;
        if self.keeper.has_data() {
            self.keeper.start(None).await?;
            let position = self.keeper.position().await?;
            match how_to_return(state, epoch, position) {
                Return::Follow => self.keeper.follow(&following).await?,
                Return::Rewind => {
                    info!(%epoch, from = %position.lsn, "this node's data has parted from the line, rewinding");
                    self.set_role(Role::Cloning, epoch, "rewinds to where its data parted from the line");
                    if let Err(failure) = self.keeper.rewind(&following).await {
                        // A freeze waits for this task: a copy would only fail for the same reason.
                        if self.promised() > epoch {
                            return Err(failure);
                        }
                        warn!(error = chain(&failure), "rewind failed, copying everything instead");
                        self.copy(&following).await?;
                    }
                    self.keeper.start(Some(&following)).await?;
                }
                Return::Clone => {
                    info!(%epoch, lineage = %position.lineage, "this node's data is of a line that ended, copying");
                    self.copy(&following).await?;
                    self.keeper.start(Some(&following)).await?;
                }
            }
        } else {
            self.copy(&following).await?;
            self.keeper.start(Some(&following)).await?;
        }
        self.set_role(Role::Standby, epoch, "");
        moving.following = Some(following);
        Ok(())
    }

    async fn copy(&self, following: &Following) -> Result<(), PostgresError> {
        self.set_role(Role::Cloning, following.epoch, "copies the data of the active node");
        let began = Instant::now();
        self.keeper.copy(following).await?;
        info!(seconds = began.elapsed().as_secs_f32(), "copied the data of the active node");
        Ok(())
    }

    /// A standby whose WAL the primary no longer has would wait for ever.
    async fn keep_following(&self, moving: &mut Moving, following: &Following) -> Result<(), PostgresError> {
        if self.keeper.receives().await? {
            moving.dry_since = None;
            self.set_role(Role::Standby, following.epoch, "");
            if let Ok(position) = self.keeper.position().await {
                self.status.send_modify(|status| status.position = Some(position));
            }
            return Ok(());
        }
        let since = *moving.dry_since.get_or_insert_with(Instant::now);
        self.set_role(Role::Standby, following.epoch, "nothing arrives from the active node");
        let reachable = self.holder_heard().is_some_and(|age| age < Duration::from_secs(2));
        if since.elapsed() >= DRY_LIMIT && reachable {
            warn!("the active node lives but its WAL does not arrive, copying everything anew");
            moving.dry_since = None;
            self.copy(following).await?;
            self.keeper.start(Some(following)).await?;
        }
        Ok(())
    }
}
