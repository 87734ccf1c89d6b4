//! All tasks of a worker: each is begun once, and answered until somebody has its result.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::amqp::{Arrival, Published, Receipt, Session};
use crate::journal::{Address, Ending, Entry, JournalError, Recall};
use crate::process::end_leftovers;
use crate::run::{Ended, Operation, Shared, either};
use crate::settings::{ATTEMPTS_MAX, FOREIGN_FOR, FOREIGN_MAX, UNROUTABLE_MAX};
use crate::wire::{Failure, Object, Request, Task, crash, reply};

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Between failing to record a task and giving it back.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(5);
/// Between taking another worker's task and handing it on.
const HAND_ON_AFTER: Duration = Duration::from_millis(300);
/// Deliveries of one task that wait for its end; older ones are of connections long gone.
const RECEIPTS_MAX: usize = 8;

/// A task between its arrival and its settled reply.
struct Live {
    execution: String,
    cancel: CancellationToken,
    address: Option<Address>,
    receipts: Vec<Receipt>,
    /// Deliveries so far; each is owed a reply published after it came, since it may come from another broker.
    asked: u64,
    /// Somebody asked again: offer the reply at once.
    again: Arc<Notify>,
}

/// How far a task came.
enum Begun {
    /// To an end that is recorded.
    Ended(Box<Entry>),
    /// The worker stops.
    Stopped,
    /// Another worker has begun it.
    Foreign,
    /// It belongs to another worker now.
    NotMine,
}

pub(crate) struct Tasks {
    shared: Shared,
    session: watch::Receiver<Option<Session>>,
    slots: Semaphore,
    live: Mutex<HashMap<String, Live>>,
    /// Tasks that other management workers have begun, and when they first came here.
    foreign: Mutex<HashMap<String, Instant>>,
    tracker: TaskTracker,
}

impl Tasks {
    pub(crate) fn new(shared: Shared, session: watch::Receiver<Option<Session>>, operations_max: u16) -> Arc<Self> {
        Arc::new(Self {
            shared,
            session,
            slots: Semaphore::new(usize::from(operations_max.max(1))),
            live: Mutex::new(HashMap::new()),
            foreign: Mutex::new(HashMap::new()),
            tracker: TaskTracker::new(),
        })
    }

    /// Takes a message; returns at once.
    pub(crate) fn arrived(self: &Arc<Self>, arrival: Arrival) {
        let this = self.clone();
        self.tracker.spawn(async move { this.handle(arrival).await });
    }

    /// Goes on answering for what ended in an earlier run.
    pub(crate) fn settle_later(self: &Arc<Self>, entry: Entry) {
        let live = Live {
            execution: entry.execution.clone(),
            cancel: CancellationToken::new(),
            address: entry.address.clone(),
            receipts: Vec::new(),
            asked: 0,
            again: Arc::new(Notify::new()),
        };
        self.lock().insert(entry.task.clone(), live);
        let this = self.clone();
        self.tracker.spawn(async move { this.settle(entry).await });
    }

    /// Waits until all tasks have noticed the stop.
    pub(crate) async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(self: Arc<Self>, arrival: Arrival) {
        match Request::parse(&arrival.body) {
            Ok(Request::Operation(task)) => self.operation(*task, arrival.address, arrival.receipt).await,
            Ok(Request::Service { task_name, kwargs }) => {
                arrival.receipt.ack().await;
                let answer = self.service(&task_name, &kwargs);
                self.answer_once(arrival.address, &answer).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a message that is no task");
                self.answer_once(arrival.address, &crash(&error.to_string())).await;
                arrival.receipt.ack().await;
            }
        }
    }

    /// Service tasks: quick, and answered only if somebody is there to hear it.
    fn service(&self, task_name: &str, kwargs: &Object) -> Value {
        let cancel = |execution: Option<&Value>| {
            if let Some(execution) = execution.and_then(Value::as_str) {
                self.cancel(execution);
            }
        };
        match task_name {
            "ping" => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                return json!({"time": now.as_secs_f64()});
            }
            "cancel-operation" => cancel(kwargs.get("execution_id")),
            "cancel-workflow" => {
                for execution in kwargs.get("executions").and_then(Value::as_array).into_iter().flatten() {
                    cancel(execution.get("id"));
                }
            }
            other => {
                tracing::warn!(task_name = other, "an unknown service task");
                return crash(&format!("unknown service task {other}"));
            }
        }
        json!({"ok": true, "result": null})
    }

    fn cancel(&self, execution: &str) {
        for (task, live) in self.lock().iter().filter(|(_, live)| live.execution == execution) {
            tracing::info!(task, execution, "operation cancelled");
            live.cancel.cancel();
        }
    }

    async fn answer_once(&self, address: Option<Address>, body: &Value) {
        let session = self.session.borrow().clone();
        if let (Some(address), Some(session)) = (address, session)
            && let Err(error) = session.publish(&address, body.to_string().as_bytes()).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "answer a service task");
        }
    }

    async fn operation(self: Arc<Self>, task: Task, address: Option<Address>, receipt: Receipt) {
        let id = task.id.clone();
        let execution = crate::wire::text(&task.context, "execution_id").unwrap_or_default();
        let cancel = CancellationToken::new();
        {
            let mut live = self.lock();
            if let Some(running) = live.get_mut(&id) {
                tracing::info!(task = id, "delivered again while it runs, answered when it ends");
                running.address = address.or(running.address.take());
                if running.receipts.len() >= RECEIPTS_MAX {
                    running.receipts.remove(0);
                }
                running.receipts.push(receipt);
                running.asked += 1;
                running.again.notify_one();
                return;
            }
            let new = Live {
                execution: execution.clone(),
                cancel: cancel.clone(),
                address: address.clone(),
                receipts: vec![receipt],
                asked: 1,
                again: Arc::new(Notify::new()),
            };
            live.insert(id.clone(), new);
        }
        match self.run(task, &execution, address, cancel).await {
            Ok(Begun::Ended(entry)) => self.settle(*entry).await,
            // The record says it was begun, and the broker will deliver it again.
            Ok(Begun::Stopped) => drop(self.lock().remove(&id)),
            Ok(Begun::NotMine) => {
                let receipts = self.lock().remove(&id).map(|live| live.receipts).unwrap_or_default();
                for receipt in receipts {
                    receipt.ack().await;
                }
            }
            Ok(Begun::Foreign) => {
                sleep(HAND_ON_AFTER).await;
                let receipts = self.lock().remove(&id).map(|live| live.receipts).unwrap_or_default();
                for receipt in receipts {
                    receipt.give_back().await;
                }
            }
            Err(error) => {
                {
                    let cause = &error as &dyn std::error::Error;
                    tracing::error!(error = cause, task = id, "the journal cannot be written, the task is given back");
                }
                sleep(GIVE_BACK_AFTER).await;
                let receipts = self.lock().remove(&id).map(|live| live.receipts).unwrap_or_default();
                for receipt in receipts {
                    receipt.give_back().await;
                }
            }
        }
    }

    /// From arrival to a recorded end.
    async fn run(
        &self,
        task: Task,
        execution: &str,
        address: Option<Address>,
        cancel: CancellationToken,
    ) -> Result<Begun, JournalError> {
        let journal = &self.shared.journal;
        let attempts = match journal.recall(&task.id).await? {
            Recall::Ended(mut entry) => {
                tracing::info!(task = task.id, "delivered again, answered from the journal");
                entry.address = address.or(entry.address.take());
                return Ok(Begun::Ended(entry));
            }
            Recall::Interrupted { attempts } => attempts,
            Recall::Unknown => 0,
        };
        let mut entry = Entry::begun(&task.id, execution, attempts + 1, address);
        if attempts >= ATTEMPTS_MAX {
            let text = format!("the worker died {attempts} times while it ran this operation; not tried again");
            entry.ending = Some(Ending::Reply(reply(&Err(Failure::fatal(text)))));
            journal.write(entry.clone()).await?;
            return Ok(Begun::Ended(Box::new(entry)));
        }
        let slot = tokio::select! {
            slot = self.slots.acquire() => slot.ok(),
            () = either(&cancel, &self.shared.stop) => None,
        };
        if self.shared.stop.is_cancelled() {
            return Ok(Begun::Stopped);
        }
        entry.ending = Some(match slot {
            None => Ending::Silent,
            Some(_slot) => {
                journal.write(entry.clone()).await?;
                let (id, may_be_foreign) = (task.id.clone(), attempts == 0 && self.may_be_foreign(&task.id));
                match self.perform(task, entry.clone(), cancel, may_be_foreign).await {
                    Ok(ending) => ending,
                    Err(Begun::Foreign) => {
                        journal.forget(&id).await?;
                        self.note_foreign(&id);
                        return Ok(Begun::Foreign);
                    }
                    // Nothing was begun, so nothing is remembered: it may be given back to this worker.
                    Err(Begun::NotMine) => {
                        tracing::info!(task = id, "the task was given to another worker");
                        journal.forget(&id).await?;
                        return Ok(Begun::NotMine);
                    }
                    Err(begun) => return Ok(begun),
                }
            }
        });
        journal.write(entry.clone()).await?;
        Ok(Begun::Ended(Box::new(entry)))
    }

    /// Management workers share one queue, and an engine that sends a task again cannot choose who gets it. For a while,
    /// then, the others' tasks are handed on, so that the one who has begun it comes to answer.
    fn may_be_foreign(&self, task: &str) -> bool {
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shared = self.shared.runner.manager_name.is_some();
        let is_open = foreign.get(task).map_or(foreign.len() < FOREIGN_MAX, |first| first.elapsed() < FOREIGN_FOR);
        if !is_open {
            foreign.remove(task);
        }
        is_shared && is_open
    }

    fn note_foreign(&self, task: &str) {
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        foreign.retain(|_, first| first.elapsed() < 3 * FOREIGN_FOR);
        if !foreign.contains_key(task) {
            tracing::info!(task, "another worker has begun this task, handed on");
            foreign.insert(task.to_owned(), Instant::now());
        }
    }

    async fn perform(
        &self,
        task: Task,
        entry: Entry,
        cancel: CancellationToken,
        may_be_foreign: bool,
    ) -> Result<Ending, Begun> {
        let id = task.id.clone();
        let scratch = match tempfile::Builder::new().prefix("task-").tempdir_in(self.shared.home.scratch()) {
            Ok(scratch) => scratch,
            Err(error) => {
                let failure = Failure::recoverable("OSError", format!("make a scratch directory: {error}"));
                return Ok(Ending::Reply(reply(&Err(failure))));
            }
        };
        let path: PathBuf = scratch.path().to_owned();
        let mut operation = Operation::new(&self.shared, task, entry, path, cancel.clone(), may_be_foreign);
        tracing::info!(task = id, "operation started");
        // Calls to managers have their own patience; a cancel or stop does not wait for it.
        let outcome = tokio::select! {
            outcome = operation.perform() => outcome,
            () = async { either(&cancel, &self.shared.stop).await; sleep(2 * crate::settings::KILL_GRACE).await } => {
                Err(Ended::Cut)
            }
        };
        let ending = match outcome {
            Ok(value) => Ending::Reply(reply(&Ok(value))),
            Err(Ended::Failed(failure)) => Ending::Reply(reply(&Err(failure))),
            Err(Ended::Dropped) => Ending::Silent,
            Err(Ended::Cut) if cancel.is_cancelled() => Ending::Silent,
            Err(Ended::Cut) => return Err(Begun::Stopped),
            Err(Ended::Foreign) => return Err(Begun::Foreign),
            Err(Ended::NotMine) => return Err(Begun::NotMine),
        };
        tracing::info!(task = id, replied = matches!(ending, Ending::Reply(_)), "operation ended");
        if matches!(ending, Ending::Reply(_)) {
            tokio::select! {
                () = operation.report_ended() => {}
                () = either(&cancel, &self.shared.stop) => {}
            }
        }
        Ok(ending)
    }

    /// Offers a recorded result until a broker has it, then acknowledges the task.
    async fn settle(&self, mut entry: Entry) {
        let id = entry.task.clone();
        loop {
            let answered = match &entry.ending {
                Some(Ending::Reply(body)) => self.deliver(&id, body.to_string().as_bytes()).await,
                Some(Ending::Silent) => {
                    self.forget_reply_queue(&id).await;
                    Some(u64::MAX)
                }
                None => None,
            };
            let Some(answered) = answered else {
                self.lock().remove(&id);
                return;
            };
            if !entry.settled {
                entry.settled = true;
                if let Err(error) = self.shared.journal.write(entry.clone()).await {
                    // It stays unsettled in the journal: the next run offers it once more, which does no harm.
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, task = id, "record a settled task");
                }
            }
            let done = {
                let mut live = self.lock();
                let unasked = live.get(&id).is_none_or(|live| live.asked <= answered);
                if unasked { Some(live.remove(&id)) } else { None }
            };
            if let Some(live) = done {
                for receipt in live.map(|live| live.receipts).unwrap_or_default() {
                    receipt.ack().await;
                }
                break;
            }
        }
        self.shared.journal.prune().await;
    }

    /// How many deliveries the reply answers; `None` when the worker stops first.
    async fn deliver(&self, task: &str, body: &[u8]) -> Option<u64> {
        let mut session = self.session.clone();
        let mut pause = PAUSE_MIN;
        let mut unroutable_since: Option<Instant> = None;
        loop {
            let again = self.lock().get(task).map(|live| live.again.clone())?;
            let connected = tokio::select! {
                () = self.shared.stop.cancelled() => return None,
                connected = session.wait_for(Option::is_some) => connected.ok().and_then(|session| session.clone()),
            };
            let connected = connected?;
            let (address, asked) = self.lock().get(task).map(|live| (live.address.clone(), live.asked))?;
            // Nobody wants a reply.
            let Some(address) = address else { return Some(asked) };
            match connected.publish(&address, body).await {
                Ok(Published::Stored) => return Some(asked),
                Ok(Published::Unroutable) => {
                    // The one who waits has not declared its queue on this broker yet, or is gone for good. The
                    // journal holds the result, so the message may go; whoever asks again is answered at once.
                    let since = *unroutable_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > UNROUTABLE_MAX {
                        tracing::warn!(task, "nobody waits for this result, it stays in the journal");
                        return Some(asked);
                    }
                    let receipts = self.lock().get_mut(task).map(|live| std::mem::take(&mut live.receipts));
                    for receipt in receipts.unwrap_or_default() {
                        receipt.ack().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, task, "deliver a result, tried again");
                }
            }
            tokio::select! {
                () = self.shared.stop.cancelled() => return None,
                () = again.notified() => pause = PAUSE_MIN,
                _ = session.changed() => pause = PAUSE_MIN,
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// The execution of a cancelled operation is gone and with it whoever would empty its reply queue.
    async fn forget_reply_queue(&self, task: &str) {
        // Only a queue of that execution alone: an executor may take all its replies from one.
        let address = self.lock().get(task).and_then(|live| {
            live.address.clone().filter(|to| to.routing_key == format!("execution_responses_{}", live.execution))
        });
        let session = self.session.borrow().clone();
        if let (Some(address), Some(session)) = (address, session) {
            session.delete_queue(&address.routing_key).await;
        }
    }
}

/// Ends what interrupted tasks left running, all at once.
pub(crate) async fn end_all_leftovers(interrupted: &[Entry]) {
    /// Longer than the grace of one.
    const LIMIT: Duration = Duration::from_secs(30);
    let all = interrupted.iter().map(|entry| end_leftovers(&entry.task, entry.process));
    if timeout(LIMIT, futures::future::join_all(all)).await.is_err() {
        tracing::error!("processes of interrupted operations do not end");
    }
}
