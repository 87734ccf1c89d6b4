//! The moving state of one execution over its stored rows.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde_json::Value;

use super::changes::{Change, Step, Target};
use super::model::{CancelKind, Operation, Parameters, TaskError, TaskKind, TaskProgress, TaskState, Verdict};
use super::outcome::{Failure, FailureKind, TaskOutcome};
use super::texts::{self, TaskText};

/// A step stops taking new work after this many changes and sends, so that one transaction stays small. A single task
/// may pass the mark by its own few changes.
pub const MAX_CHANGES_PER_STEP: usize = 1000;

/// Settings of a run that are the same before and after a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// Milliseconds other branches may go on after the first failure; the execution's `wait_after_fail` × 1000.
    pub wait_after_fail_ms: i64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { wait_after_fail_ms: 600_000 }
    }
}

/// One task with all its retries: the newest row stands for it.
#[derive(Clone)]
pub(super) struct Slot {
    pub id: String,
    pub name: String,
    pub kind: TaskKind,
    pub state: TaskState,
    pub parameters: Parameters,
    pub dependencies: Vec<String>,
    pub parent: Option<usize>,
    /// Slots that wait for the end of this one.
    pub dependents: Vec<usize>,
    /// Slots inside this sub-graph.
    pub children: Vec<usize>,
    /// Waits not over yet, the own sub-graph's opening among them.
    pub unmet: usize,
    /// Children not ended yet.
    pub open_children: usize,
    pub failed_child: bool,
}

impl Slot {
    fn text(&self) -> TaskText<'_> {
        TaskText { kind: self.kind, name: &self.name, parameters: &self.parameters }
    }

    fn context(&self) -> &Value {
        &self.parameters.task_kwargs["kwargs"]["__cloudify_context"]
    }

    fn ignores_failure(&self) -> bool {
        self.parameters.on_failure["path"] == "ignore_failure"
    }

    /// Nobody is named when an agent must run it but the instance has no host.
    fn target(&self) -> Option<Target> {
        let context = self.context();
        if context["executor"] != "host_agent" {
            return Some(Target::Central);
        }
        context["host_id"].as_str().filter(|host| !host.is_empty()).map(|h| Target::Agent(h.into()))
    }
}

/// Pure run state. Sets are ordered by row, so the same rows always give the same next steps.
#[derive(Clone)]
pub struct Run {
    pub(super) slots: Vec<Slot>,
    /// Newest row of each slot; ids of retried rows are gone, so their late results find nothing.
    pub(super) by_id: HashMap<String, usize>,
    pub(super) ready: BTreeSet<usize>,
    /// In flight when the rows were read: nobody knows whether a worker has them.
    pub(super) unknown: BTreeSet<usize>,
    pub(super) timers: BTreeSet<(i64, usize)>,
    pub(super) in_flight: usize,
    /// Remote tasks that failed for good, by time.
    pub(super) errors: BTreeSet<(i64, usize)>,
    pub(super) total: u32,
    pub(super) ended: u32,
    pub(super) written: (u32, u32),
    pub(super) cancel: CancelKind,
    pub(super) options: RunOptions,
    pub(super) gave_up: bool,
}

/// Numbers only: kwargs may hold secrets.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("total", &self.total)
            .field("ended", &self.ended)
            .field("in_flight", &self.in_flight)
            .field("ready", &self.ready.len())
            .field("timers", &self.timers.len())
            .field("errors", &self.errors.len())
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

impl Run {
    /// What can be done at `now_ms` (milliseconds since the epoch). Call again until the answer is empty; then wait
    /// for a reply or for [`Run::next_wake_ms`]. The changes of one answer come first and make its sends true.
    pub fn step(&mut self, now_ms: i64) -> Vec<Step> {
        self.wake(now_ms);
        let mut changes = Vec::new();
        let mut sends = Vec::new();
        if self.cancel <= CancelKind::Graceful && !self.gave_up {
            while sends.len() < MAX_CHANGES_PER_STEP
                && let Some(slot) = self.unknown.pop_first()
            {
                sends.extend(self.send(slot));
            }
        }
        if self.cancel == CancelKind::None && !self.gave_up {
            while changes.len() + sends.len() < MAX_CHANGES_PER_STEP
                && let Some(slot) = self.ready.pop_first()
            {
                self.perform(slot, now_ms, &mut changes, &mut sends);
            }
        }
        self.report_progress(&mut changes);
        let mut steps = Vec::with_capacity(sends.len() + 1);
        if !changes.is_empty() {
            steps.push(Step::Apply(changes));
        }
        steps.extend(sends);
        steps
    }

    /// A worker or the broker says how far a task is. Never moves a task backwards.
    pub fn progress(&mut self, task_id: &str, progress: TaskProgress) -> Vec<Change> {
        let Some(slot) = self.flying(task_id) else {
            return Vec::new();
        };
        let state = progress.state();
        let before = self.slots[slot].state;
        if state <= before {
            return Vec::new();
        }
        let mut changes = Vec::new();
        self.set_state(slot, state, &mut changes);
        if before < TaskState::Started && state >= TaskState::Started {
            self.event(slot, |text| text.started(), &mut changes);
        }
        changes
    }

    /// A worker's result. Only the first one of a task counts: for later ones, and for tasks already retried, the
    /// answer is empty. Results are taken after a cancel too, so that a resume knows them.
    pub fn record(
        &mut self,
        task_id: &str,
        outcome: TaskOutcome,
        now_ms: i64,
        new_id: &mut dyn FnMut() -> String,
    ) -> Vec<Change> {
        let Some(slot) = self.flying(task_id) else {
            return Vec::new();
        };
        self.unknown.remove(&slot);
        self.in_flight -= 1;
        let mut changes = Vec::new();
        if self.slots[slot].state < TaskState::Started {
            // The report of the start was lost or overtaken; the history shall still tell it.
            self.event(slot, |text| text.started(), &mut changes);
        }
        match outcome {
            TaskOutcome::Succeeded(result) => self.succeed(slot, &result, &mut changes),
            TaskOutcome::Failed(failure) => {
                self.judge(slot, &failure, now_ms, new_id, &mut changes);
            }
        }
        self.report_progress(&mut changes);
        changes
    }

    /// When [`Run::step`] has something to do by time alone, milliseconds since the epoch.
    pub fn next_wake_ms(&self) -> Option<i64> {
        if self.finished().is_some() || self.cancel != CancelKind::None {
            return None;
        }
        let retry = self.timers.first().map(|(due, _)| *due);
        let give_up = self.give_up_ms();
        match (retry, give_up) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Asks to stop. A weaker request after a stronger one changes nothing.
    pub fn cancel(&mut self, kind: CancelKind) {
        self.cancel = self.cancel.max(kind);
    }

    /// The verdict, once there is one. Operations may still be running after [`CancelKind::Force`],
    /// [`CancelKind::Kill`], and when `wait_after_fail` ran out.
    pub fn finished(&self) -> Option<Verdict> {
        match self.cancel {
            CancelKind::Force | CancelKind::Kill => return Some(Verdict::Cancelled),
            CancelKind::Graceful => return (self.in_flight == 0).then_some(Verdict::Cancelled),
            CancelKind::None => {}
        }
        if self.gave_up {
            return Some(self.failed());
        }
        if self.in_flight > 0 || !self.ready.is_empty() || !self.timers.is_empty() {
            return None;
        }
        let all_well = self.errors.is_empty() && self.slots.iter().all(|slot| slot.state == TaskState::Succeeded);
        Some(if all_well { Verdict::Terminated } else { self.failed() })
    }

    /// Counted rows: all, and those that ended. Retries count, empty joins do not.
    pub fn totals(&self) -> (u32, u32) {
        (self.total, self.ended)
    }

    /// Tasks a worker has, or may have.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn flying(&self, task_id: &str) -> Option<usize> {
        let slot = *self.by_id.get(task_id)?;
        let is = &self.slots[slot];
        (is.kind == TaskKind::Remote && is.state.is_in_flight()).then_some(slot)
    }

    fn give_up_ms(&self) -> Option<i64> {
        let (first, _) = self.errors.first()?;
        Some(first.saturating_add(self.options.wait_after_fail_ms))
    }

    fn wake(&mut self, now_ms: i64) {
        if self.cancel == CancelKind::None
            && self.finished().is_none()
            && self.give_up_ms().is_some_and(|at| at <= now_ms)
        {
            self.gave_up = true;
        }
        while let Some(&(due, slot)) = self.timers.first() {
            if due > now_ms {
                break;
            }
            self.timers.pop_first();
            self.ready.insert(slot);
        }
    }

    fn perform(&mut self, slot: usize, now_ms: i64, changes: &mut Vec<Change>, sends: &mut Vec<Step>) {
        let is = &self.slots[slot];
        let kwargs = &is.parameters.task_kwargs;
        let text = |key: &str| kwargs[key].as_str().unwrap_or_default().to_owned();
        match is.kind {
            TaskKind::Subgraph => self.turn_subgraph(slot, changes),
            TaskKind::Nop => self.succeed(slot, &Value::Null, changes),
            TaskKind::SendNodeEvent => {
                let event = texts::node_event(&text("node_instance_id"), text("event"));
                self.succeed(slot, &Value::Null, changes);
                changes.push(Change::Event(event));
            }
            TaskKind::SetNodeInstanceState => {
                let change = Change::InstanceState { instance_id: text("node_instance_id"), state: text("state") };
                self.succeed(slot, &Value::Null, changes);
                changes.push(change);
            }
            TaskKind::Remote => match self.send(slot) {
                Some(send) => {
                    self.in_flight += 1;
                    self.set_state(slot, TaskState::Sending, changes);
                    self.event(slot, |text| text.sending(), changes);
                    sends.push(send);
                }
                None => {
                    let node = is.context()["node_id"].as_str().unwrap_or_default();
                    let failure = Failure::non_recoverable(format!(
                        "node instance {node} has no host whose agent could run the operation"
                    ));
                    self.fail(slot, &failure, now_ms, changes);
                }
            },
        }
    }

    fn send(&self, slot: usize) -> Option<Step> {
        let is = &self.slots[slot];
        Some(Step::Send {
            task_id: is.id.clone(),
            kwargs: is.parameters.task_kwargs["kwargs"].clone(),
            target: is.target()?,
        })
    }

    fn turn_subgraph(&mut self, slot: usize, changes: &mut Vec<Change>) {
        let is = &self.slots[slot];
        match is.state {
            TaskState::Pending => {
                self.set_state(slot, TaskState::Started, changes);
                self.event(slot, |text| text.started(), changes);
                for i in 0..self.slots[slot].children.len() {
                    let child = self.slots[slot].children[i];
                    self.one_wait_over(child);
                }
                if self.slots[slot].open_children == 0 {
                    self.ready.insert(slot);
                }
            }
            TaskState::Started if is.failed_child => {
                self.set_state(slot, TaskState::Failed, changes);
                self.event(slot, |text| text.failed(None), changes);
                self.tell_parent(slot, false);
            }
            TaskState::Started if is.open_children == 0 => self.succeed(slot, &Value::Null, changes),
            _ => {}
        }
    }

    fn succeed(&mut self, slot: usize, result: &Value, changes: &mut Vec<Change>) {
        self.set_state(slot, TaskState::Succeeded, changes);
        self.event(slot, |text| text.succeeded(result), changes);
        // Nothing reads them again here, and a graph of thousands holds megabytes of them.
        self.slots[slot].parameters.task_kwargs = Value::Null;
        for dependent in std::mem::take(&mut self.slots[slot].dependents) {
            self.one_wait_over(dependent);
        }
        self.tell_parent(slot, true);
    }

    fn judge(
        &mut self,
        slot: usize,
        failure: &Failure,
        now_ms: i64,
        new_id: &mut dyn FnMut() -> String,
        changes: &mut Vec<Change>,
    ) {
        let is = &self.slots[slot];
        let left =
            is.parameters.total_retries < 0 || i64::from(is.parameters.current_retries) < is.parameters.total_retries;
        let ignored = is.ignores_failure();
        match failure.kind {
            FailureKind::Reschedule { retry_after } if left => {
                self.retry(slot, failure, retry_after, now_ms, new_id, changes);
            }
            _ if ignored => {
                let event = is.text().ignored(failure);
                changes.push(Change::Event(event));
                self.succeed(slot, &Value::Null, changes);
            }
            FailureKind::Recoverable { retry_after } if left => {
                self.retry(slot, failure, retry_after, now_ms, new_id, changes);
            }
            _ => self.fail(slot, failure, now_ms, changes),
        }
    }

    /// Ends this row and puts a new one in its place: dependents wait on.
    fn retry(
        &mut self,
        slot: usize,
        failure: &Failure,
        retry_after: Option<f64>,
        now_ms: i64,
        new_id: &mut dyn FnMut() -> String,
        changes: &mut Vec<Change>,
    ) {
        self.end_badly(slot, failure, now_ms, changes);
        let is = &mut self.slots[slot];
        let interval = is.parameters.retry_interval.as_ref().and_then(serde_json::Number::as_f64);
        let due = now_ms.saturating_add(milliseconds(retry_after.or(interval).unwrap_or(0.0)));
        let id = new_id();
        let row = again(is, &id, is.parameters.current_retries + 1, Some(due));
        let old = std::mem::replace(&mut is.id, id);
        self.by_id.remove(&old);
        self.by_id.insert(is.id.clone(), slot);
        self.total += 1;
        self.timers.insert((due, slot));
        changes.push(Change::NewOperation(row));
    }

    fn fail(&mut self, slot: usize, failure: &Failure, now_ms: i64, changes: &mut Vec<Change>) {
        self.end_badly(slot, failure, now_ms, changes);
        self.errors.insert((now_ms, slot));
        self.tell_parent(slot, false);
    }

    fn end_badly(&mut self, slot: usize, failure: &Failure, now_ms: i64, changes: &mut Vec<Change>) {
        let rescheduled = matches!(failure.kind, FailureKind::Reschedule { .. });
        let state = if rescheduled { TaskState::Rescheduled } else { TaskState::Failed };
        self.slots[slot].parameters.error = Some(TaskError {
            kind: failure.exception_type.clone(),
            message: failure.message.clone(),
            traceback: failure.traceback(),
            at_ms: now_ms,
        });
        self.set_state(slot, state, changes);
        let is = &self.slots[slot];
        changes.push(Change::Parameters { id: is.id.clone(), parameters: is.parameters.to_value() });
        if rescheduled {
            self.event(slot, |text| text.rescheduled(failure), changes);
        } else {
            self.event(slot, |text| text.failed(Some(failure)), changes);
        }
    }

    fn tell_parent(&mut self, slot: usize, well: bool) {
        let Some(parent) = self.slots[slot].parent else {
            return;
        };
        let is = &mut self.slots[parent];
        is.open_children -= 1;
        is.failed_child |= !well;
        if is.state == TaskState::Started && (is.failed_child || is.open_children == 0) {
            self.ready.insert(parent);
        }
    }

    fn one_wait_over(&mut self, slot: usize) {
        let is = &mut self.slots[slot];
        is.unmet -= 1;
        if is.unmet == 0 && is.state == TaskState::Pending {
            match is.parameters.not_before_ms {
                Some(due) => {
                    self.timers.insert((due, slot));
                }
                None => {
                    self.ready.insert(slot);
                }
            }
        }
    }

    fn set_state(&mut self, slot: usize, state: TaskState, changes: &mut Vec<Change>) {
        let is = &mut self.slots[slot];
        is.state = state;
        if state.is_terminal() && is.kind != TaskKind::Nop {
            self.ended += 1;
        }
        changes.push(Change::State { id: is.id.clone(), state });
    }

    fn event(
        &self,
        slot: usize,
        text: impl FnOnce(&TaskText<'_>) -> super::changes::EventRecord,
        changes: &mut Vec<Change>,
    ) {
        let is = &self.slots[slot];
        let tells = matches!(is.kind, TaskKind::Remote | TaskKind::Subgraph);
        if tells && is.parameters.send_task_events {
            changes.push(Change::Event(text(&is.text())));
        }
    }

    fn report_progress(&mut self, changes: &mut Vec<Change>) {
        if self.written != self.totals() {
            self.written = self.totals();
            changes.push(Change::Progress { total: self.total, finished: self.ended });
        }
    }

    fn failed(&self) -> Verdict {
        let errors: Vec<(&Slot, &TaskError)> = self
            .errors
            .iter()
            .filter_map(|(_, slot)| {
                let slot = &self.slots[*slot];
                Some((slot, slot.parameters.error.as_ref()?))
            })
            .collect();
        let line = |(slot, error): &(&Slot, &TaskError)| {
            let context = slot.context();
            let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!(
                "{} ({}:{}): {} `{}`",
                slot.name,
                part(&context["node_id"]),
                part(&context["operation"]["name"]),
                error.kind,
                error.message
            )
        };
        let error = match errors.as_slice() {
            [] => "Tasks are left that can never run: they wait for each other".to_owned(),
            [one] => format!("Task failed: {}", line(one)),
            many => {
                let mut text = format!("{} operation errors:", many.len());
                for one in many {
                    text.push_str("\nTask failed: ");
                    text.push_str(&line(one));
                }
                text
            }
        };
        let traceback = errors.first().and_then(|(_, error)| error.traceback.clone());
        Verdict::Failed { error, traceback: traceback.unwrap_or_default() }
    }
}

/// Makes the slot's next row: a fresh id, the same kwargs, the same waits.
pub(super) fn again(slot: &mut Slot, id: &str, retries: u32, not_before_ms: Option<i64>) -> Operation {
    let parameters = &mut slot.parameters;
    let context = &mut parameters.task_kwargs["kwargs"]["__cloudify_context"];
    context["task_id"] = Value::from(id);
    context["operation"]["retry_number"] = Value::from(retries);
    parameters.current_retries = retries;
    parameters.retried_task = Some(slot.id.clone());
    parameters.error = None;
    parameters.not_before_ms = not_before_ms;
    slot.state = TaskState::Pending;
    Operation {
        id: id.to_owned(),
        name: slot.name.clone(),
        state: TaskState::Pending,
        kind: slot.kind.as_str().to_owned(),
        dependencies: slot.dependencies.clone(),
        parameters: slot.parameters.to_value(),
    }
}

/// Saturates; negative and strange values are zero.
#[allow(clippy::cast_possible_truncation)]
fn milliseconds(seconds: f64) -> i64 {
    (seconds.max(0.0) * 1000.0) as i64
}
