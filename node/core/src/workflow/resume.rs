//! A stopped execution is asked to go on.

use super::changes::Change;
use super::model::{Graph, RestoreError, TaskKind, TaskState};
use super::restore::read;
use super::run::again;

/// What to write before a failed or cancelled execution runs again: each failed task gets a new row with a new id and
/// no retries used, for a worker never runs an id twice; failed sub-graphs open again. Tasks that nobody is known to
/// have begun are repeated too: a worker that saw the execution stopped has thrown them away for good. `force` also
/// repeats those that were begun. Results of repeated tasks are never taken.
///
/// # Errors
/// When the rows are not a graph this engine wrote.
pub fn resume(graph: Graph, force: bool, new_id: &mut dyn FnMut() -> String) -> Result<Vec<Change>, RestoreError> {
    let mut read = read(graph)?;
    let (mut total, mut ended) = (read.total, read.ended);
    let mut changes = Vec::new();
    for slot in &mut read.slots {
        let failed = matches!(slot.state, TaskState::Failed | TaskState::Rescheduled);
        match slot.kind {
            TaskKind::Subgraph if failed => {
                ended -= 1;
                changes.push(Change::Reopen { id: slot.id.clone() });
            }
            TaskKind::Remote if failed || (slot.state.is_in_flight() && (force || slot.state < TaskState::Started)) => {
                if !failed {
                    let state = TaskState::Failed;
                    ended += 1;
                    changes.push(Change::State { id: slot.id.clone(), state });
                }
                total += 1;
                changes.push(Change::NewOperation(again(slot, &new_id(), 0, None)));
            }
            _ => {}
        }
    }
    if !changes.is_empty() {
        changes.push(Change::Progress { total, finished: ended });
    }
    Ok(changes)
}
