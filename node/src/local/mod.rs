//! This node's own part: what it has promised, what its PostgreSQL does, and whether it serves.
//!
//! One task ([`Local::run`]) brings PostgreSQL to where `core::standing` says it should be. Promises and fences do not
//! wait for that task: they act at once, and the task finds itself overruled.
//!
//! *Invariants*: `PROMISE_BEFORE_REPORT` (a promise is on disk before a position is reported), `FENCE_NEEDS_NOBODY`
//! (fencing waits for no lock and no network).

mod promise;
mod role;
mod status;

pub use promise::Promises;
pub use status::{LocalStatus, role_name, role_of};

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_consensus::Consensus;
use quorate_core::failover::{Position, Role};
use quorate_postgres::{Following, Keeper};
use quorate_types::{Epoch, NodeId};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

/// How long a report may take before the leader is told to ask again.
const REPORT_LIMIT: Duration = Duration::from_secs(20);
/// How long PostgreSQL may take to end in order when the node resigns.
const RESIGN_LIMIT: Duration = Duration::from_secs(10);

/// Lets what runs end; bounded by itself.
pub type Drain = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// This node's own part.
pub struct Local {
    me: NodeId,
    founder: bool,
    keeper: Arc<Keeper>,
    consensus: Consensus,
    promises: Promises,
    /// The epoch that this node has opened and serves.
    serving: watch::Sender<Option<Epoch>>,
    status: watch::Sender<LocalStatus>,
    /// Held while PostgreSQL is moved from one standing to another.
    moving: Mutex<Moving>,
    wake: Notify,
    /// What happens before this node hands over: no new request is begun, those that run end.
    before_resign: OnceLock<Drain>,
    /// When the holder last asked for its lease, and for which epoch.
    holder_heard: std::sync::Mutex<Option<(Epoch, Instant)>>,
}

/// What only the moving task needs.
#[derive(Default)]
struct Moving {
    following: Option<Following>,
    /// Since when a followed primary sends nothing.
    dry_since: Option<Instant>,
}

/// A report for the election.
pub struct Report {
    /// Whether the promise was given and the position is final.
    pub position: Option<Position>,
    /// The newest promise.
    pub promised: Epoch,
    /// Why there is no position.
    pub note: String,
}

impl Local {
    /// For the local keeper.
    pub fn new(keeper: Arc<Keeper>, consensus: Consensus, promises: Promises, founder: bool) -> Arc<Self> {
        keeper.upstream().leave_below(promises.newest());
        Arc::new(Self {
            me: consensus.node(),
            founder,
            keeper,
            consensus,
            promises,
            serving: watch::Sender::new(None),
            status: watch::Sender::new(LocalStatus::default()),
            moving: Mutex::default(),
            wake: Notify::new(),
            before_resign: OnceLock::new(),
            holder_heard: std::sync::Mutex::default(),
        })
    }

    /// Who this is.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// The local PostgreSQL.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// The newest promise.
    pub fn promised(&self) -> Epoch {
        self.promises.newest()
    }

    /// The newest promise, and its changes.
    pub fn promises(&self) -> watch::Receiver<Epoch> {
        self.promises.watch()
    }

    /// The epoch that this node serves, and its changes.
    pub fn serving(&self) -> watch::Receiver<Option<Epoch>> {
        self.serving.subscribe()
    }

    /// What the node does, and its changes.
    pub fn status(&self) -> watch::Receiver<LocalStatus> {
        self.status.subscribe()
    }

    /// Promises `epoch`, stops taking part in anything older, and reports how far the data reaches.
    pub async fn freeze(self: &Arc<Self>, epoch: Epoch) -> Report {
        if let Err(error) = self.promises.give(epoch).await {
            let note = format!("the promise could not be written: {error}");
            return Report { position: None, promised: self.promised(), note };
        }
        self.keeper.upstream().leave_below(epoch);
        if self.serving.borrow().is_some_and(|serving| serving < epoch) {
            self.fence("a newer epoch was promised").await;
        }
        self.wake.notify_one();
        let this = self.clone();
        // A task of its own: a question that is given up must not stop PostgreSQL half way.
        let report = tokio::spawn(async move { this.report(epoch).await });
        match tokio::time::timeout(REPORT_LIMIT, report).await {
            Ok(Ok(report)) => report,
            _ => Report { position: None, promised: self.promised(), note: "busy".into() },
        }
    }

    async fn report(&self, epoch: Epoch) -> Report {
        let mut moving = self.moving.lock().await;
        let promised = self.promised();
        let nothing = |note: String| Report { position: None, promised, note };
        if promised != epoch {
            return nothing(format!("epoch {promised} is promised already"));
        }
        if !self.keeper.has_data() && !self.may_found() {
            return nothing("there is no data here yet".into());
        }
        moving.following = None;
        let counted = async {
            self.ensure_data().await?;
            self.keeper.start(None).await?;
            self.keeper.stand_still().await
        };
        match counted.await {
            Ok(position) => {
                self.status.send_modify(|status| status.position = Some(position));
                Report { position: Some(position), promised, note: String::new() }
            }
            Err(error) => nothing(chain(&error)),
        }
    }

    /// Stops serving at once: PostgreSQL and every session die.
    pub async fn fence(&self, why: &str) {
        let Some(epoch) = self.serving.send_replace(None) else { return };
        warn!(%epoch, why, "fencing this node");
        self.set_role(Role::Fenced, epoch, why);
        self.keeper.kill().await;
        self.wake.notify_one();
    }

    /// Sets what happens before this node hands over; once.
    pub fn drain_before_resigning(&self, drain: Drain) {
        // Set twice it stays as it was: the daemon does it once.
        let _ = self.before_resign.set(drain);
    }

    /// Hands over on purpose: whoever serves here stops, PostgreSQL sends everything to its standbys and ends.
    pub async fn resign(self: &Arc<Self>, epoch: Epoch, why: &str) -> Result<(), String> {
        if *self.serving.borrow() != Some(epoch) {
            return Err(format!("this node does not serve epoch {epoch}"));
        }
        info!(%epoch, why, "handing over");
        if let Some(drain) = self.before_resign.get() {
            drain().await;
        }
        if *self.serving.borrow() != Some(epoch) {
            return Err(format!("epoch {epoch} ended meanwhile"));
        }
        self.set_role(Role::Resigned, epoch, why);
        self.serving.send_replace(None);
        let _moving = self.moving.lock().await;
        if !self.keeper.stop(RESIGN_LIMIT).await {
            warn!("PostgreSQL did not end in order and was killed; standbys have what was acknowledged");
        }
        self.wake.notify_one();
        Ok(())
    }

    /// The holder of `epoch` asks whether it still is; the answer is the newest promise.
    pub fn lease_asked(&self, epoch: Epoch) -> Epoch {
        let promised = self.promised();
        if epoch >= promised {
            let mut heard = self.holder_heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *heard = Some((epoch, Instant::now()));
        }
        promised
    }

    /// Since the holder of the current epoch last asked.
    pub fn holder_heard(&self) -> Option<Duration> {
        let current = self.consensus.cluster().borrow().current().map(|record| record.epoch)?;
        let heard = self.holder_heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        heard.filter(|(epoch, _)| *epoch == current).map(|(_, at)| at.elapsed())
    }

    /// What commits wait for, and who lacks what; from the active node's loop.
    pub fn report_sync(&self, sync: quorate_types::SyncSet, lags: Vec<(NodeId, u64)>) {
        self.status.send_if_modified(|status| {
            status.sync = Some(sync);
            status.lags = lags;
            // Nobody decides from these: no need to wake anybody.
            false
        });
    }

    fn set_role(&self, role: Role, epoch: Epoch, note: &str) {
        self.status.send_if_modified(|status| {
            let changed = (status.role, status.epoch, status.note.as_str()) != (role, epoch, note);
            if changed {
                status.role = role;
                status.epoch = epoch;
                note.clone_into(&mut status.note);
            }
            changed
        });
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
