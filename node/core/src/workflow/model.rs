//! The words of the engine: rows, states, errors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// State of one operation row, in the spelling the REST API shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Stored, not begun.
    Pending,
    /// Chosen to run; a worker may or may not have it.
    Sending,
    /// Handed to the broker.
    Sent,
    /// The worker began, or the sub-graph opened.
    Started,
    /// The worker answered; the answer is not judged yet.
    ResponseSent,
    /// Ended well.
    Succeeded,
    /// Ended badly. A retry is another row.
    Failed,
    /// The operation asked to be run again later. The retry is another row.
    Rescheduled,
}

impl TaskState {
    /// The spelling in the database and the REST API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Started => "started",
            Self::ResponseSent => "response-sent",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rescheduled => "rescheduled",
        }
    }

    /// No result can change this state any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Rescheduled)
    }

    /// A worker may have the task: after a failover nobody knows how far it got.
    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::Sending | Self::Sent | Self::Started | Self::ResponseSent)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no task state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task state {0:?}")]
pub struct ParseTaskStateError(String);

impl FromStr for TaskState {
    type Err = ParseTaskStateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "pending" => Self::Pending,
            "sending" => Self::Sending,
            "sent" => Self::Sent,
            "started" => Self::Started,
            "response-sent" => Self::ResponseSent,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "rescheduled" => Self::Rescheduled,
            other => return Err(ParseTaskStateError(other.to_owned())),
        })
    }
}

/// What a row does; the spelling of [`Operation::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// Runs on a worker.
    Remote,
    /// Holds other tasks: opens before them, ends with the last.
    Subgraph,
    /// Sets the state of a node instance in the same transaction.
    SetNodeInstanceState,
    /// Inserts one `workflow_node_event`.
    SendNodeEvent,
    /// Does nothing; joins branches. Not counted.
    Nop,
}

impl TaskKind {
    /// The spelling in the database and the REST API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remote => "RemoteWorkflowTask",
            Self::Subgraph => "SubgraphTask",
            Self::SetNodeInstanceState => "SetNodeInstanceStateTask",
            Self::SendNodeEvent => "SendNodeEventTask",
            Self::Nop => "NOPLocalWorkflowTask",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Remote, Self::Subgraph, Self::SetNodeInstanceState, Self::SendNodeEvent, Self::Nop]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// One row of a stored graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Task id: stable for the life of the row, also on the wire.
    pub id: String,
    /// Task name (`script_runner.tasks.run`), sub-graph name, or the kind for local tasks.
    pub name: String,
    /// How far it got.
    pub state: TaskState,
    /// Spelling of a [`TaskKind`]; `type` in the REST API.
    #[serde(rename = "type")]
    pub kind: String,
    /// Ids of rows that must end before; the own sub-graph is among them.
    pub dependencies: Vec<String>,
    /// [`Parameters`] as JSON.
    pub parameters: Value,
}

/// A graph as stored: one per execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// `install`, `execute_operation_<operation>`, …
    pub name: String,
    /// In insertion order.
    pub operations: Vec<Operation>,
}

/// What `parameters` of a row holds. Unknown keys written by others are not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Remote: `{"kwargs": {…}}`; others as their kind needs.
    #[serde(default)]
    pub task_kwargs: Value,
    /// Free.
    #[serde(default)]
    pub info: Value,
    /// Why the task failed for good or was retried.
    #[serde(default)]
    pub error: Option<TaskError>,
    /// 0 for the first run.
    #[serde(default)]
    pub current_retries: u32,
    /// −1 = without end.
    #[serde(default)]
    pub total_retries: i64,
    /// Seconds.
    #[serde(default)]
    pub retry_interval: Option<Number>,
    /// The row this row repeats.
    #[serde(default)]
    pub retried_task: Option<String>,
    /// The row of the sub-graph this row is in.
    #[serde(default)]
    pub containing_subgraph: Option<String>,
    /// False: no task events for this row.
    #[serde(default = "yes")]
    pub send_task_events: bool,
    /// Kept for clients that read it.
    #[serde(default)]
    pub on_success: Value,
    /// `{"path": "ignore_failure", …}` turns failures into successes.
    #[serde(default)]
    pub on_failure: Value,
    /// A retry may start from here on, milliseconds since the epoch. In the row so that a failover keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
}

fn yes() -> bool {
    true
}

/// Why a task failed, kept in its row: the verdict of the run is made from these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// Python class name of the error.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its text.
    pub message: String,
    /// Traceback of the first cause, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// When it was recorded, milliseconds since the epoch.
    pub at_ms: i64,
}

/// What an execution knows before its graph is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecutionContext {
    /// Execution id.
    pub execution_id: String,
    /// `install`, …
    pub workflow_id: String,
    /// Execution parameters; an object.
    pub parameters: Value,
    /// Tenant name.
    pub tenant: String,
    /// Blueprint id.
    pub blueprint_id: String,
    /// Deployment id.
    pub deployment_id: String,
    /// Deployment display name.
    pub deployment_display_name: String,
    /// Who created the deployment.
    pub deployment_creator: String,
    /// Resource tags of the deployment; an object.
    pub deployment_resource_tags: Value,
    /// Who started the execution.
    pub creator: String,
    /// Retries of an operation that sets none; −1 = without end.
    pub task_retries: i64,
    /// Seconds between retries of an operation that sets none.
    pub task_retry_interval: f64,
    /// Passed through to operations.
    pub bypass_maintenance: Option<bool>,
}

/// How strongly somebody asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelKind {
    /// Nobody asked.
    #[default]
    None,
    /// Nothing new starts; what runs may end, then the run is cancelled.
    Graceful,
    /// Nothing new starts; the run is cancelled at once, what runs goes on by itself.
    Force,
    /// As force; the executor also kills what runs.
    Kill,
}

/// Reports of a worker before its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskProgress {
    /// The broker has the message.
    Sent,
    /// The worker began.
    Started,
    /// The worker has a result and is about to reply.
    ResponseSent,
}

impl TaskProgress {
    pub(super) fn state(self) -> TaskState {
        match self {
            Self::Sent => TaskState::Sent,
            Self::Started => TaskState::Started,
            Self::ResponseSent => TaskState::ResponseSent,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every task succeeded.
    Terminated,
    /// At least one task failed for good.
    Failed {
        /// The execution's `error`.
        error: String,
        /// Traceback of the first error, empty when unknown.
        traceback: String,
    },
    /// Stopped on request.
    Cancelled,
}

/// Why a graph cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not a workflow of this engine.
    #[error("workflow '{0}' is not built in")]
    UnknownWorkflow(String),
    /// A node instance of a node the deployment does not have.
    #[error("node instance '{instance}' belongs to unknown node '{node}'")]
    UnknownNode {
        /// Instance id.
        instance: String,
        /// Node id.
        node: String,
    },
    /// An object without a field it must have.
    #[error("{what} has no '{field}'")]
    Malformed {
        /// Which object.
        what: String,
        /// Which field.
        field: &'static str,
    },
    /// A wrong execution parameter.
    #[error("parameter '{name}' of workflow '{workflow}' {problem}")]
    Parameter {
        /// Workflow name.
        workflow: String,
        /// Parameter name.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// `operation_kwargs` names inputs the operation sets itself and overriding was not allowed.
    #[error("operation '{operation}' of '{instance}' already sets {names}; set allow_kwargs_override to replace them")]
    DuplicateParameters {
        /// Operation name.
        operation: String,
        /// Instance id.
        instance: String,
        /// Input names, joined.
        names: String,
    },
    /// Instances that wait for each other.
    #[error("relationships of node instance '{0}' form a cycle")]
    Cycle(String),
}

/// Why rows are not a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A row of a type this engine does not run.
    #[error("operation {id} has unknown type '{kind}'")]
    UnknownKind {
        /// Row id.
        id: String,
        /// Its type.
        kind: String,
    },
    /// `parameters` do not read as [`Parameters`].
    #[error("operation {id} has unreadable parameters: {reason}")]
    Parameters {
        /// Row id.
        id: String,
        /// What the reader says.
        reason: String,
    },
    /// A row names a row that is not there.
    #[error("operation {id} refers to unknown operation {other}")]
    UnknownReference {
        /// Row id.
        id: String,
        /// The missing one.
        other: String,
    },
    /// The same id twice.
    #[error("operation {0} is stored twice")]
    Duplicate(String),
}
