//! One execution: its rows are read, its run is stepped, what that changes is written, what that sends is sent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quorate_core::workflow::{
    CancelKind, Change, Failure, Run, Step, Target as For, TaskOutcome, TaskProgress, Verdict, workflow_cancelled,
    workflow_failed, workflow_succeeded,
};
use quorate_dispatch::{ManagerAccess, OperationMessage};
use quorate_store::executions::Execution;
use quorate_store::{StoreError, Tx, deployment_views, events, executions, operations};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use uuid::Uuid;

use super::changes::{self, ApplyError, Target};
use super::flight::{Flight, fly};
use super::look::cancel_kind;
use super::pool::Place;
use super::{Address, Input, Reply, Shared, now_ms, open};
use crate::AppError;

/// Between tries to go on after the database failed.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Inputs taken into one transaction.
const BATCH_MAX: usize = 256;
/// How long a run sleeps at most; everything that matters wakes it.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// Telling one worker to end what it runs.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Why an attempt to carry out an execution ended without its end.
pub(super) enum Broken {
    /// The executor ends, or its epoch is over.
    Over,
    /// Nobody knows what was written: read the rows again.
    Doubt(Box<dyn std::error::Error + Send + Sync>),
    /// It can never go on.
    Never(String),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Fenced) { Self::Over } else { Self::Doubt(error.into()) }
    }
}

impl From<ApplyError> for Broken {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Store(error) => error.into(),
            ApplyError::Stale => Self::Doubt(error.into()),
        }
    }
}

impl From<AppError> for Broken {
    fn from(error: AppError) -> Self {
        // It names its cause, but not whether that was the fence: the next attempt's transaction says so.
        Self::Doubt(error.into())
    }
}

/// Carries out an execution to its end, or to the executor's.
pub(super) async fn carry_out(shared: Arc<Shared>, key: i64, mut inbox: mpsc::Receiver<Input>) {
    // Not yet recorded; they outlive an attempt.
    let mut replies: Vec<Reply> = Vec::new();
    let mut pause = PAUSE_MIN;
    loop {
        let begun = tokio::time::Instant::now();
        let ended = match attempt(&shared, key, &mut inbox, &mut replies).await {
            Err(Broken::Never(why)) => fail(&shared, key, &why).await,
            other => other,
        };
        match ended {
            Ok(()) => break,
            Err(Broken::Over) => {
                shared.stop.cancel();
                break;
            }
            Err(Broken::Doubt(error)) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, execution = key, "read again and go on");
            }
            Err(Broken::Never(why)) => tracing::error!(why, execution = key, "the execution cannot be failed"),
        }
        if begun.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        if !shared.pause(pause).await {
            break;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    shared.runs().remove(&key);
    // What came too late for us is for whoever comes next: recorded as of an execution that nobody carries out.
    inbox.close();
    while let Ok(input) = inbox.try_recv() {
        if let Input::Reply(reply) = input {
            replies.push(reply);
        }
    }
    if !shared.stop.is_cancelled() {
        super::replies::leave(&shared, replies).await;
        // Its deployment is free for the next one.
        shared.settings.wake.notify_one();
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    key: i64,
    inbox: &mut mpsc::Receiver<Input>,
    replies: &mut Vec<Reply>,
) -> Result<(), Broken> {
    let Some(opened) = open::open(shared, key).await? else { return Ok(()) };
    let (lost, told) = mpsc::unbounded_channel();
    let mut live = Live {
        shared,
        access: ManagerAccess {
            hosts: shared.settings.rest_hosts.clone(),
            port: shared.settings.rest_port,
            token: opened.token,
        },
        cancel: cancel_kind(&opened.row.status),
        row: opened.row,
        to: opened.target,
        run: opened.run,
        at: opened.at,
        held: VecDeque::new(),
        flights: HashMap::new(),
        tasks: JoinSet::new(),
        lost,
        agents: HashMap::new(),
    };
    live.go(inbox, replies, told).await
}

/// An operation that no worker has from us.
struct Held {
    task_id: String,
    kwargs: Value,
    target: For,
    /// Who has it from an earlier attempt.
    at: Option<String>,
}

struct Aloft {
    abort: AbortHandle,
    kwargs: Value,
    target: For,
}

struct Live<'a> {
    shared: &'a Arc<Shared>,
    row: Execution,
    to: Target,
    run: Run,
    access: ManagerAccess,
    cancel: CancelKind,
    /// Which worker may have which operation.
    at: BTreeMap<String, Address>,
    held: VecDeque<Held>,
    flights: HashMap<String, Aloft>,
    tasks: JoinSet<()>,
    lost: mpsc::UnboundedSender<String>,
    /// Agents by host.
    agents: HashMap<String, Result<Agent, String>>,
}

#[derive(Clone)]
struct Agent {
    address: Address,
    hosts: Option<Vec<String>>,
}

/// What one turn writes, and what it does once that is written.
#[derive(Default)]
struct Turn {
    changes: Vec<Change>,
    assigned: Vec<(String, String)>,
    flights: Vec<(Held, Flight)>,
}

impl Live<'_> {
    async fn go(
        &mut self,
        inbox: &mut mpsc::Receiver<Input>,
        replies: &mut Vec<Reply>,
        mut told: mpsc::UnboundedReceiver<String>,
    ) -> Result<(), Broken> {
        let mut room = self.shared.pool.room();
        let mut lost = Vec::new();
        loop {
            room.borrow_and_update();
            let more = self.turn(replies, &mut lost).await?;
            match more {
                Next::Ended => return Ok(()),
                Next::More => continue,
                Next::Wait => {}
            }
            while self.tasks.try_join_next().is_some() {}
            let waits_for_room = !self.held.is_empty();
            let stop = &self.shared.stop;
            tokio::select! {
                () = stop.cancelled() => return Err(Broken::Over),
                Some(input) = inbox.recv() => {
                    self.take(input, replies);
                    while replies.len() < BATCH_MAX && let Ok(input) = inbox.try_recv() {
                        self.take(input, replies);
                    }
                }
                Some(task) = told.recv() => {
                    lost.push(task);
                    while let Ok(task) = told.try_recv() {
                        lost.push(task);
                    }
                }
                _ = room.changed(), if waits_for_room => {}
                () = tokio::time::sleep(self.nap()) => {}
            }
        }
    }

    fn take(&mut self, input: Input, replies: &mut Vec<Reply>) {
        match input {
            Input::Reply(reply) => replies.push(reply),
            Input::Cancel(kind) => {
                self.cancel = self.cancel.max(kind);
                self.run.cancel(kind);
            }
        }
    }

    fn nap(&self) -> Duration {
        let Some(due) = self.run.next_wake_ms() else { return SLEEP_MAX };
        Duration::from_millis(u64::try_from(due - now_ms()).unwrap_or(0)).min(SLEEP_MAX)
    }

    /// Takes in what came, goes one step, writes, and sends.
    async fn turn(&mut self, replies: &mut Vec<Reply>, lost: &mut Vec<String>) -> Result<Next, Broken> {
        let mut turn = Turn::default();
        self.record(replies, &mut turn).await?;
        for task in lost.drain(..) {
            if let Some(aloft) = self.flights.remove(&task) {
                self.held.push_back(Held { task_id: task, kwargs: aloft.kwargs, target: aloft.target, at: None });
            }
        }
        let steps = self.run.step(now_ms());
        let more = !steps.is_empty();
        for step in steps {
            match step {
                Step::Apply(changes) => turn.changes.extend(changes),
                Step::Send { task_id, kwargs, target } => {
                    let at = self.at.get(&task_id).map(|address| address.worker.clone());
                    self.held.push_back(Held { task_id, kwargs, target, at });
                }
            }
        }
        self.assign(&mut turn).await?;
        // What nobody has needs no end: it is repeated by a resume.
        let idle = self.cancel == CancelKind::Graceful && self.flights.is_empty() && turn.flights.is_empty();
        let verdict = if idle { Some(Verdict::Cancelled) } else { self.run.finished() };
        self.write(&turn, verdict.as_ref()).await?;
        for reply in replies.drain(..) {
            (reply.ack)().await;
        }
        if verdict.is_some() {
            return Ok(Next::Ended);
        }
        for (held, flight) in turn.flights {
            self.at.insert(held.task_id.clone(), flight.to.clone());
            let abort = self.tasks.spawn(fly(self.shared.clone(), flight, self.lost.clone()));
            self.flights.insert(held.task_id, Aloft { abort, kwargs: held.kwargs, target: held.target });
        }
        Ok(if more { Next::More } else { Next::Wait })
    }

    async fn record(&mut self, replies: &[Reply], turn: &mut Turn) -> Result<(), Broken> {
        if replies.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = replies.iter().map(|reply| reply.task_id.clone()).collect();
        let begun = operations::begun(&mut *self.shared.settings.app.store().read().await?, &ids).await?;
        for id in &begun {
            // The worker reported it, and the event is there.
            self.run.progress(id, TaskProgress::Started);
        }
        for reply in replies {
            let changes = self.run.record(&reply.task_id, reply.outcome.clone(), now_ms(), &mut new_id);
            turn.changes.extend(changes);
            self.at.remove(&reply.task_id);
            if let Some(aloft) = self.flights.remove(&reply.task_id) {
                aloft.abort.abort();
            }
            self.held.retain(|held| held.task_id != reply.task_id);
        }
        Ok(())
    }

    /// Finds a worker for each operation that has none, as far as there is room.
    async fn assign(&mut self, turn: &mut Turn) -> Result<(), Broken> {
        if self.cancel > CancelKind::Graceful {
            self.held.clear();
            return Ok(());
        }
        for _ in 0..self.held.len() {
            let Some(held) = self.held.pop_front() else { break };
            // A cancelled execution only waits for what a worker may have.
            if self.cancel == CancelKind::Graceful && held.at.is_none() {
                continue;
            }
            match self.place(&held).await? {
                Found::Room { to, place, access } => {
                    match OperationMessage::new(held.task_id.clone(), held.kwargs.clone(), &access) {
                        Ok(message) => {
                            let is_first = held.at.is_none();
                            if held.at.as_deref() != Some(to.worker.as_str()) {
                                turn.assigned.push((held.task_id.clone(), to.worker.clone()));
                            }
                            turn.changes.extend(self.run.progress(&held.task_id, TaskProgress::Sent));
                            turn.flights.push((held, Flight { to, place, message, is_first }));
                        }
                        Err(error) => self.refuse(&held, error.to_string(), turn),
                    }
                }
                Found::NoRoom => self.held.push_back(held),
                Found::Nobody(why) => self.refuse(&held, why, turn),
            }
        }
        Ok(())
    }

    /// Fails an operation that nobody can ever run.
    fn refuse(&mut self, held: &Held, why: String, turn: &mut Turn) {
        let outcome = TaskOutcome::Failed(Failure::non_recoverable(why));
        turn.changes.extend(self.run.record(&held.task_id, outcome, now_ms(), &mut new_id));
    }

    async fn place(&mut self, held: &Held) -> Result<Found, Broken> {
        let pool = &self.shared.pool;
        let room = |place: Place| Found::Room {
            to: Address { tenant: None, worker: place.worker.clone() },
            place: Some(place),
            access: self.access.clone(),
        };
        let host = match (&held.target, &held.at) {
            (For::Central, Some(worker)) => return Ok(room(pool.hold(worker))),
            (For::Central, None) => return Ok(pool.assign().map_or(Found::NoRoom, room)),
            (For::Agent(host), _) => host.clone(),
        };
        if !self.agents.contains_key(&host) {
            let agent = self.agent(&host).await?;
            self.agents.insert(host.clone(), agent);
        }
        Ok(match &self.agents[&host] {
            Ok(agent) => {
                let hosts = agent.hosts.clone().unwrap_or_else(|| self.access.hosts.clone());
                let access = ManagerAccess { hosts, ..self.access.clone() };
                Found::Room { to: agent.address.clone(), place: None, access }
            }
            Err(why) => Found::Nobody(why.clone()),
        })
    }

    /// The agent on a host, as its installation left it in the host's runtime properties.
    async fn agent(&self, host: &str) -> Result<Result<Agent, String>, StoreError> {
        let missing = || {
            format!(
                "missing cloudify_agent.queue runtime information. Most likely, this means that the agent on {host} was \
                 never started successfully"
            )
        };
        let Some(deployment) = self.to.deployment else { return Ok(Err(missing())) };
        let mut reader = self.shared.settings.app.store().read().await?;
        let settings = deployment_views::agent(&mut reader, deployment, host).await?.unwrap_or_default();
        let Some(queue) = settings["queue"].as_str().filter(|queue| !queue.is_empty()) else {
            return Ok(Err(missing()));
        };
        let hosts = match &settings["rest_host"] {
            Value::String(host) => Some(vec![host.clone()]),
            Value::Array(hosts) => Some(hosts.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            _ => None,
        };
        let address = Address { tenant: Some(self.row.tenant.clone()), worker: queue.to_owned() };
        Ok(Ok(Agent { address, hosts }))
    }

    async fn write(&self, turn: &Turn, verdict: Option<&Verdict>) -> Result<(), Broken> {
        if turn.changes.is_empty() && turn.assigned.is_empty() && verdict.is_none() {
            return Ok(());
        }
        let mut tx = self.shared.settings.app.store().begin().await?;
        changes::apply(&mut tx, &self.to, &turn.changes).await?;
        if !turn.assigned.is_empty() {
            let (ids, workers): (Vec<String>, Vec<String>) = turn.assigned.iter().cloned().unzip();
            operations::assign(&mut tx, &ids, &workers).await?;
        }
        if let Some(verdict) = verdict {
            if self.cancel == CancelKind::Kill {
                self.kill(&mut tx).await?;
            }
            finish(&mut tx, &self.row, verdict).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Ends what workers run. Within the transaction: while it is open, no later epoch is.
    async fn kill(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let mut workers: Vec<&Address> = self.at.values().collect();
        workers.sort();
        workers.dedup();
        for worker in workers {
            let telling = self.shared.settings.transport.cancel(worker, &self.row.id);
            if tokio::time::timeout(KILL_LIMIT, telling).await.is_err() {
                tracing::warn!(worker = worker.worker, execution = self.row.id, "the worker was not told to end it");
            }
        }
        let failed = operations::give_up(tx, self.row.key).await?;
        let (total, ended) = self.run.totals();
        let ended = ended.saturating_add(u32::try_from(failed).unwrap_or(u32::MAX)).min(total);
        executions::set_progress(tx, self.row.key, total, ended).await
    }
}

enum Next {
    Ended,
    More,
    Wait,
}

enum Found {
    Room {
        to: Address,
        place: Option<Place>,
        access: ManagerAccess,
    },
    NoRoom,
    /// And why nobody ever will.
    Nobody(String),
}

/// Writes how an execution ended.
pub(super) async fn finish(tx: &mut Tx, row: &Execution, verdict: &Verdict) -> Result<(), StoreError> {
    let suffix = if row.is_dry_run { " (dry run)" } else { "" };
    let (status, error, mut event) = match verdict {
        Verdict::Terminated => ("terminated", String::new(), workflow_succeeded(&row.workflow_id)),
        Verdict::Cancelled => ("cancelled", String::new(), workflow_cancelled(&row.workflow_id)),
        Verdict::Failed { error, traceback } => {
            let event = workflow_failed(&row.workflow_id, error);
            let text = if traceback.is_empty() { error.clone() } else { format!("{error}\n{traceback}") };
            ("failed", changes::storable(&text), event)
        }
    };
    event.message.push_str(suffix);
    if executions::finish(tx, row.key, status, &error).await? {
        events::insert(tx, row.key, &[changes::event(event)]).await?;
        tracing::info!(execution = row.id, workflow = row.workflow_id, status, "execution ended");
    }
    Ok(())
}

/// Fails an execution that can never go on.
async fn fail(shared: &Arc<Shared>, key: i64, why: &str) -> Result<(), Broken> {
    let mut tx = shared.settings.app.store().begin().await?;
    if let Some(row) = executions::get(&mut tx, key).await? {
        let verdict = Verdict::Failed { error: why.to_owned(), traceback: String::new() };
        finish(&mut tx, &row, &verdict).await?;
    }
    Ok(tx.commit().await?)
}

pub(super) fn new_id() -> String {
    Uuid::new_v4().to_string()
}
