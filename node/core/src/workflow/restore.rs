//! From rows back to a run.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::model::{CancelKind, Graph, Parameters, RestoreError, TaskKind, TaskState};
use super::run::{Run, RunOptions, Slot};

impl Parameters {
    fn of(id: &str, value: Value) -> Result<Self, RestoreError> {
        let wrong = |reason: String| RestoreError::Parameters { id: id.to_owned(), reason };
        // serde would read a list as the fields in order.
        if !value.is_object() {
            return Err(wrong("not an object".to_owned()));
        }
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }

    pub(super) fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("plain data with text keys is always JSON")
    }
}

impl Run {
    /// The run these rows stand for; also the way to start a new one, after the executor stored the graph and wrote
    /// [`Run::totals`] to the execution. Rows stand in insertion order. Tasks found in flight are handed out again
    /// under their own ids by the first step.
    ///
    /// # Errors
    /// When the rows are not a graph this engine wrote.
    pub fn restore(graph: Graph, cancelled: CancelKind, options: RunOptions) -> Result<Self, RestoreError> {
        let Slots { mut slots, by_id, rows, total, ended } = read(graph)?;
        connect(&mut slots, &rows)?;
        let mut run = Self {
            slots,
            by_id,
            ready: BTreeSet::new(),
            unknown: BTreeSet::new(),
            timers: BTreeSet::new(),
            in_flight: 0,
            errors: BTreeSet::new(),
            total,
            ended,
            written: (total, ended),
            cancel: cancelled,
            options,
            gave_up: false,
        };
        for slot in 0..run.slots.len() {
            run.place(slot);
        }
        Ok(run)
    }

    /// Puts a slot where its state says it belongs.
    fn place(&mut self, slot: usize) {
        let is = &self.slots[slot];
        match (is.kind, is.state) {
            (TaskKind::Remote, state) if state.is_in_flight() => {
                self.in_flight += 1;
                self.unknown.insert(slot);
            }
            (TaskKind::Remote, TaskState::Failed | TaskState::Rescheduled) => {
                let at = is.parameters.error.as_ref().map_or(0, |error| error.at_ms);
                self.errors.insert((at, slot));
            }
            (TaskKind::Subgraph, TaskState::Started) => {
                if is.failed_child || is.open_children == 0 {
                    self.ready.insert(slot);
                }
            }
            (_, state) if state.is_terminal() || is.unmet > 0 => {}
            _ => match is.parameters.not_before_ms {
                Some(due) => {
                    self.timers.insert((due, slot));
                }
                None => {
                    self.ready.insert(slot);
                }
            },
        }
    }
}

pub(super) struct Slots {
    pub slots: Vec<Slot>,
    /// Newest row of each slot.
    pub by_id: HashMap<String, usize>,
    /// Every row, retried ones too.
    pub rows: HashMap<String, usize>,
    pub total: u32,
    pub ended: u32,
}

/// Reads the rows; a retry takes the slot of the row it repeats.
pub(super) fn read(graph: Graph) -> Result<Slots, RestoreError> {
    let mut out = Slots {
        slots: Vec::with_capacity(graph.operations.len()),
        by_id: HashMap::with_capacity(graph.operations.len()),
        rows: HashMap::with_capacity(graph.operations.len()),
        total: 0,
        ended: 0,
    };
    for row in graph.operations {
        let kind = TaskKind::parse(&row.kind)
            .ok_or_else(|| RestoreError::UnknownKind { id: row.id.clone(), kind: row.kind.clone() })?;
        let parameters = Parameters::of(&row.id, row.parameters)?;
        if kind != TaskKind::Nop {
            out.total += 1;
            out.ended += u32::from(row.state.is_terminal());
        }
        let place = match &parameters.retried_task {
            None => out.slots.len(),
            Some(old) => {
                let place = reference(&out.rows, &row.id, old)?;
                out.by_id.remove(old);
                place
            }
        };
        if out.rows.insert(row.id.clone(), place).is_some() {
            return Err(RestoreError::Duplicate(row.id));
        }
        out.by_id.insert(row.id.clone(), place);
        let slot = Slot {
            id: row.id,
            name: row.name,
            kind,
            state: row.state,
            parameters,
            dependencies: row.dependencies,
            parent: None,
            dependents: Vec::new(),
            children: Vec::new(),
            unmet: 0,
            open_children: 0,
            failed_child: false,
        };
        match out.slots.get_mut(place) {
            Some(older) => *older = slot,
            None => out.slots.push(slot),
        }
    }
    Ok(out)
}

fn reference(rows: &HashMap<String, usize>, id: &str, other: &str) -> Result<usize, RestoreError> {
    rows.get(other)
        .copied()
        .ok_or_else(|| RestoreError::UnknownReference { id: id.to_owned(), other: other.to_owned() })
}

/// Draws the edges and counts the waits that are not over.
fn connect(slots: &mut [Slot], rows: &HashMap<String, usize>) -> Result<(), RestoreError> {
    for at in 0..slots.len() {
        let is = &slots[at];
        let state = is.state;
        let parent = match &is.parameters.containing_subgraph {
            None => None,
            Some(id) => Some(reference(rows, &is.id, id)?),
        };
        let waits: Vec<usize> =
            is.dependencies.iter().map(|id| reference(rows, &is.id, id)).collect::<Result<_, _>>()?;
        let mut unmet = 0;
        if let Some(parent) = parent {
            let outer = &mut slots[parent];
            outer.children.push(at);
            outer.open_children += usize::from(!state.is_terminal());
            outer.failed_child |= matches!(state, TaskState::Failed | TaskState::Rescheduled);
            // The opening of the own sub-graph is a wait whether the row names it or not.
            unmet += usize::from(outer.state == TaskState::Pending);
        }
        for wait in waits {
            if Some(wait) != parent && slots[wait].state != TaskState::Succeeded {
                slots[wait].dependents.push(at);
                unmet += 1;
            }
        }
        slots[at].parent = parent;
        slots[at].unmet = unmet;
    }
    Ok(())
}
