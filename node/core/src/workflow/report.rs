//! A worker says that it began; nobody needs the run for the event that this makes.

use super::changes::EventRecord;
use super::model::{Operation, Parameters, TaskKind};
use super::texts::TaskText;

/// The event of an operation that a worker began; none for rows that tell nothing.
pub fn task_started(operation: &Operation) -> Option<EventRecord> {
    let kind = TaskKind::parse(&operation.kind).filter(|kind| *kind == TaskKind::Remote)?;
    let parameters: Parameters = serde_json::from_value(operation.parameters.clone()).ok()?;
    let text = TaskText { kind, name: &operation.name, parameters: &parameters };
    parameters.send_task_events.then(|| text.started())
}
