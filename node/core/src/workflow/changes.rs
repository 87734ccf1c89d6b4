//! What the engine answers: things to write and things to send.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{Operation, TaskState};

/// One thing to do. The executor carries out the steps of one answer in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write all of these in one transaction before going on.
    Apply(Vec<Change>),
    /// Hand this operation to a worker. The same `task_id` may be handed out again after a restore: whoever receives
    /// it twice runs it once.
    Send {
        /// Stable id; also `__cloudify_context.task_id`.
        task_id: String,
        /// Ready but for `rest_host`, `rest_port`, `rest_token`, `execution_token`, which the executor adds.
        kwargs: Value,
        /// Who runs it.
        target: Target,
    },
}

/// Who runs an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A worker of the cluster.
    Central,
    /// The agent on the host with this node instance id.
    Agent(String),
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Row `id` moves to `state`. Guard with "state is not terminal": a second result never lands.
    State {
        /// Row id.
        id: String,
        /// New state.
        state: TaskState,
    },
    /// Row `id` gets these parameters (whole value).
    Parameters {
        /// Row id.
        id: String,
        /// The new value.
        parameters: Value,
    },
    /// A failed sub-graph is open again: its state goes back to `started`. Only [`super::resume`] asks for it.
    Reopen {
        /// Row id.
        id: String,
    },
    /// A new row after all others: a retry.
    NewOperation(Operation),
    /// A node instance moves to `state`. The executor also resets drift on `configured` and status on `started`.
    InstanceState {
        /// Node instance id.
        instance_id: String,
        /// New state.
        state: String,
    },
    /// Insert an event.
    Event(EventRecord),
    /// The execution's `total_operations` and `finished_operations`.
    Progress {
        /// Counted rows, retries included.
        total: u32,
        /// Counted rows that ended.
        finished: u32,
    },
}

/// One row of the events table; time, execution and tenant are the executor's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EventRecord {
    /// `task_started`, `workflow_node_event`, …
    pub event_type: String,
    /// The text.
    pub message: String,
    /// Operation name, for task events.
    pub operation: Option<String>,
    /// Node instance id (`node_id` in the table).
    pub node_instance_id: Option<String>,
    /// Relationship operations: instance id of the source.
    pub source_id: Option<String>,
    /// Relationship operations: instance id of the target.
    pub target_id: Option<String>,
    /// Causes of a failure: list of `{type, message, traceback}`.
    pub error_causes: Option<Value>,
}
