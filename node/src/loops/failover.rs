//! The failover loop: on the Raft leader it turns what is seen into decisions and carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_consensus::{Command, Consensus, ProposeError};
use quorate_core::failover::{Action, Observation, Policy, Position, Reason, decide};
use quorate_proto::control::control_client::ControlClient;
use quorate_proto::control::{FreezeRequest, ResignRequest};
use quorate_types::{Epoch, NodeId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::observe::{Views, position, seen};
use crate::local::{Local, chain};
use crate::peers::Peers;

/// How often the loop decides even when nothing seems to have changed.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a frozen node may take to report.
const FREEZE_LIMIT: Duration = Duration::from_secs(25);
/// How long the active node may take to hand over.
const RESIGN_LIMIT: Duration = Duration::from_secs(20);
/// Before a node that did not report is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Before a leader that could not reach a majority tries again to learn what was agreed.
const BARRIER_AGAIN: Duration = Duration::from_millis(100);
/// What `cluster status` says of a leader that is cut off.
const SILENT: &str = "a majority of the nodes is silent: nothing is decided until it is heard";
/// Reports that wait to be taken in.
const REPORTS_MAX: usize = 64;

/// Everything the loop needs.
pub struct Failover {
    pub consensus: Consensus,
    pub local: Arc<Local>,
    pub peers: Peers,
    pub port: u16,
    pub views: Views,
    pub policy: Policy,
    /// Where `cluster status` finds why.
    pub decision: Arc<Mutex<String>>,
}

struct Leading {
    began: Instant,
    /// When this node became leader, or learned of the current epoch since.
    since_grant: Instant,
    current: Epoch,
    frozen: BTreeMap<NodeId, Position>,
    asked: BTreeSet<NodeId>,
    resigning: Option<Epoch>,
    reason: Option<Reason>,
    /// Why the change to the next epoch began: what operators want to read later.
    cause: Option<String>,
    majority: Majority,
    reports: mpsc::Sender<Heard>,
}

/// Whether a majority answers this leader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Majority {
    Heard,
    Silent,
    /// It was silent and answers again since then.
    HeardAgain(Instant),
}

enum Heard {
    Report { epoch: Epoch, node: NodeId, position: Option<Position> },
    Resigned { epoch: Epoch },
}

impl Failover {
    /// Runs until the token ends.
    pub async fn run(self, stop: CancellationToken) {
        let mut leadership = self.consensus.leadership();
        loop {
            if leadership.borrow_and_update().is_self {
                self.lead(&mut leadership, &stop).await;
                self.tell("");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn lead(
        &self,
        leadership: &mut tokio::sync::watch::Receiver<quorate_consensus::Leadership>,
        stop: &CancellationToken,
    ) {
        let end = stop.child_token();
        let _ended = end.clone().drop_guard();
        info!(term = %leadership.borrow().term, "this node leads raft and watches the active node");
        // Everything that was agreed before must be known before anything is decided. A leader that cannot reach a
        // majority now may do so later, and goes on being told that it leads: so it tries until it leads no more.
        while let Err(error) = self.consensus.read_barrier().await {
            debug!(error = chain(&error), "what was agreed before is not known yet");
            self.tell(SILENT);
            let again = tokio::time::sleep(BARRIER_AGAIN);
            tokio::select! {
                () = stop.cancelled() => return,
                () = again => {}
                _ = leadership.changed() => if !leadership.borrow_and_update().is_self { return },
            }
        }
        let (reports, mut heard) = mpsc::channel(REPORTS_MAX);
        let mut leading = Leading {
            began: Instant::now(),
            since_grant: Instant::now(),
            current: Epoch(0),
            frozen: BTreeMap::new(),
            asked: BTreeSet::new(),
            resigning: None,
            reason: None,
            cause: None,
            majority: Majority::Heard,
            reports,
        };
        let mut cluster = self.consensus.cluster();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let changed: &Notify = &self.views.changed;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = period.tick() => {}
                () = changed.notified() => {}
                _ = cluster.changed() => {}
                Some(heard) = heard.recv() => leading.take_in(heard),
                _ = leadership.changed() => if !leadership.borrow_and_update().is_self { return },
            }
            while let Ok(more) = heard.try_recv() {
                leading.take_in(more);
            }
            self.round(&mut leading, &end).await;
        }
    }

    async fn round(&self, leading: &mut Leading, end: &CancellationToken) {
        if !self.may_decide(leading) {
            return;
        }
        let state = self.consensus.cluster().borrow().clone();
        let current = state.current().map_or(Epoch(0), |record| record.epoch);
        if current != leading.current {
            leading.current = current;
            leading.since_grant = Instant::now();
            leading.frozen.clear();
            leading.asked.clear();
            leading.resigning = None;
            leading.cause = None;
        }
        let observation = Observation {
            leader: self.local.me(),
            nodes: self.views.all().iter().map(|(node, view)| (*node, seen(view))).collect(),
            since_grant: leading.since_grant.elapsed(),
            frozen: leading.frozen.clone(),
        };
        let (reason, actions) = decide(&state, &observation, &self.policy);
        if leading.cause.is_none() && !actions.is_empty() {
            leading.cause = Some(match &reason {
                Reason::Freezing { cause, .. } => cause.to_string(),
                other => other.to_string(),
            });
        }
        self.report(leading, reason);
        for action in actions {
            // Asked before every effect; the receivers refuse an older epoch anyway.
            if !self.consensus.leadership().borrow().is_self {
                return;
            }
            self.act(leading, action, end).await;
        }
    }

    /// Raft's leader goes on believing that it leads when it is cut off. It would freeze those it can still reach, not
    /// least itself, for a grant that nobody agrees on; and once it is back its own promise would force a change that
    /// nobody needs. When a majority is heard again, everybody has first to be looked at again.
    fn may_decide(&self, leading: &mut Leading) -> bool {
        // The read barrier that began this leadership has just been confirmed by a majority.
        let is_new = leading.began.elapsed() < self.policy.silence;
        if !is_new && self.consensus.known_leader() != Some(self.local.me()) {
            if leading.majority != Majority::Silent {
                info!("{SILENT}");
            }
            leading.majority = Majority::Silent;
            leading.reason = None;
            self.tell(SILENT);
            return false;
        }
        if leading.majority == Majority::Silent {
            info!("a majority is heard again");
            leading.majority = Majority::HeardAgain(Instant::now());
        }
        match leading.majority {
            Majority::HeardAgain(at) if at.elapsed() < self.policy.silence => false,
            _ => {
                leading.majority = Majority::Heard;
                true
            }
        }
    }

    async fn act(&self, leading: &mut Leading, action: Action, end: &CancellationToken) {
        match action {
            Action::Freeze { epoch, nodes } => {
                for node in nodes {
                    if leading.asked.insert(node) {
                        tokio::spawn(self.freeze(node, epoch, leading.reports.clone(), end.clone()));
                    }
                }
            }
            Action::Grant { epoch, holder, parent, counted, reason } => {
                let reason = leading.cause.clone().unwrap_or(reason);
                info!(%epoch, %holder, %parent, reason, "granting");
                match self.consensus.propose(Command::Grant { epoch, holder, parent, counted, reason }).await {
                    Ok(_) => {}
                    Err(ProposeError::Refused(why)) => info!(%epoch, why, "the grant came too late"),
                    Err(error) => warn!(%epoch, error = chain(&error), "the grant is not agreed, trying again"),
                }
            }
            Action::Resign { node, epoch } => {
                if leading.resigning != Some(epoch) {
                    leading.resigning = Some(epoch);
                    tokio::spawn(self.resign(node, epoch, leading.reports.clone()));
                }
            }
        }
    }

    fn freeze(
        &self,
        node: NodeId,
        epoch: Epoch,
        reports: mpsc::Sender<Heard>,
        end: CancellationToken,
    ) -> impl Future<Output = ()> + 'static {
        let (local, peers, port) = (self.local.clone(), self.peers.clone(), self.port);
        async move {
            let ask = async {
                if node == local.me() {
                    let report = local.freeze(epoch).await;
                    if report.position.is_none() {
                        debug!(%node, note = report.note, "no report yet");
                    }
                    return report.position;
                }
                let mut client = ControlClient::new(peers.channel(node, port)?);
                let request = FreezeRequest { epoch: epoch.0, from: local.me().0 };
                let reply = tokio::time::timeout(FREEZE_LIMIT, client.freeze(request)).await.ok()?.ok()?.into_inner();
                if !reply.accepted {
                    debug!(%node, note = reply.note, "no report yet");
                    return None;
                }
                position(reply.position.as_ref())
            };
            let position = tokio::select! {
                () = end.cancelled() => return,
                position = ask => position,
            };
            if position.is_none() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            // The loop is gone when the leadership is.
            let _ = reports.send(Heard::Report { epoch, node, position }).await;
        }
    }

    fn resign(&self, node: NodeId, epoch: Epoch, reports: mpsc::Sender<Heard>) -> impl Future<Output = ()> + 'static {
        let (local, peers, port) = (self.local.clone(), self.peers.clone(), self.port);
        async move {
            let why = "a switchover was asked for";
            let result = if node == local.me() {
                local.resign(epoch, why).await
            } else {
                ask_to_resign(&peers, port, node, epoch, why).await
            };
            if let Err(why) = result {
                warn!(%node, why, "the active node did not hand over");
                let _ = reports.send(Heard::Resigned { epoch }).await;
            }
        }
    }

    fn report(&self, leading: &mut Leading, reason: Reason) {
        // Ages change all the time; only another kind of reason is news.
        let news = leading.reason.as_ref().map(std::mem::discriminant) != Some(std::mem::discriminant(&reason));
        self.tell(&reason.to_string());
        if news {
            info!(%reason, "failover");
        }
        leading.reason = Some(reason);
    }

    fn tell(&self, text: &str) {
        text.clone_into(&mut self.decision.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn ask_to_resign(peers: &Peers, port: u16, node: NodeId, epoch: Epoch, why: &str) -> Result<(), String> {
    let channel = peers.channel(node, port).ok_or("it is no member")?;
    let request = ResignRequest { epoch: epoch.0, reason: why.to_owned() };
    match tokio::time::timeout(RESIGN_LIMIT, ControlClient::new(channel).resign(request)).await {
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            if reply.accepted { Ok(()) } else { Err(reply.note) }
        }
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer in time".into()),
    }
}

impl Leading {
    fn take_in(&mut self, heard: Heard) {
        match heard {
            Heard::Report { epoch, node, position } if epoch == self.current.next() => match position {
                Some(position) => {
                    info!(%node, %epoch, lineage = %position.lineage, lsn = %position.lsn, "promised and reported");
                    self.frozen.insert(node, position);
                }
                None => {
                    self.asked.remove(&node);
                }
            },
            Heard::Resigned { epoch } if self.resigning == Some(epoch) => self.resigning = None,
            _ => {}
        }
    }
}
