//! The engine's rows and changes as the database keeps them.

use std::collections::HashMap;

use quorate_core::workflow::{Change, EventRecord, Graph, Operation, TaskState};
use quorate_store::operations::{self, NewOperation};
use quorate_store::{StoreError, Tx, events, executions, instance_states};

use crate::{AppError, Code};

/// What changes are written to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub execution: i64,
    pub deployment: Option<i64>,
    pub graph: i64,
}

/// Changes were not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("write changes of an execution")]
    Store(#[from] StoreError),
    /// Somebody else ended an operation first: what the changes were made from is not the truth any more.
    #[error("an operation has another result already")]
    Stale,
}

impl From<ApplyError> for AppError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Store(error) => error.into(),
            ApplyError::Stale => Self::caused(Code::Conflict, "the execution has moved on, ask again", error),
        }
    }
}

/// A row as the engine reads it.
///
/// # Errors
/// When its state is none.
pub(crate) fn operation(row: operations::Operation) -> Result<Operation, AppError> {
    let unknown = |error| AppError::caused(Code::Internal, "an operation has no state", error);
    Ok(Operation {
        state: row.state.parse::<TaskState>().map_err(unknown)?,
        id: row.id,
        name: row.name,
        kind: row.kind,
        dependencies: row.dependencies,
        parameters: row.parameters.into(),
    })
}

/// A stored graph as the engine reads it; rows in insertion order.
///
/// # Errors
/// When a state is none.
pub(crate) fn graph(name: &str, rows: Vec<operations::Operation>) -> Result<Graph, AppError> {
    let operations = rows.into_iter().map(operation).collect::<Result<_, _>>()?;
    Ok(Graph { name: name.to_owned(), operations })
}

/// A row that the engine made.
pub(crate) fn row(operation: &Operation) -> NewOperation {
    NewOperation {
        id: operation.id.clone(),
        name: operation.name.clone(),
        state: operation.state.as_str().to_owned(),
        kind: operation.kind.clone(),
        dependencies: operation.dependencies.clone(),
        parameters: operation.parameters.clone().into(),
    }
}

/// An event that the engine made.
pub(crate) fn event(event: EventRecord) -> events::NewEvent {
    events::NewEvent {
        message: storable(&event.message),
        event_type: Some(event.event_type),
        operation: event.operation,
        node_instance_id: event.node_instance_id,
        source_id: event.source_id,
        target_id: event.target_id,
        error_causes: event.error_causes.map(Into::into),
        ..events::NewEvent::default()
    }
}

/// A text as PostgreSQL keeps it.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "<NUL>")
}

/// Writes changes in a few statements, however many they are. *Invariant* `RECORDED_ONCE`.
///
/// # Errors
/// [`ApplyError::Stale`]: roll back and read the rows again.
pub(crate) async fn apply(tx: &mut Tx, to: &Target, changes: &[Change]) -> Result<(), ApplyError> {
    let mut states = Latest::default();
    let mut parameters = Latest::default();
    let (mut new, mut told, mut instances, mut progress) = (Vec::new(), Vec::new(), Vec::new(), None);
    for change in changes {
        match change {
            Change::State { id, state } => states.put(id, state.as_str().to_owned()),
            Change::Parameters { id, parameters: value } => parameters.put(id, value.clone().into()),
            Change::Reopen { id } => operations::reopen(tx, id).await?,
            Change::NewOperation(operation) => new.push(row(operation)),
            Change::InstanceState { instance_id, state } => instances.push((instance_id.clone(), state.clone())),
            Change::Event(record) => told.push(event(record.clone())),
            Change::Progress { total, finished } => progress = Some((*total, *finished)),
        }
    }
    if !new.is_empty() {
        operations::insert(tx, to.graph, &new).await?;
    }
    if !states.ids.is_empty() && operations::set_states(tx, &states.ids, &states.values).await? != states.ids.len() {
        return Err(ApplyError::Stale);
    }
    if !parameters.ids.is_empty() {
        operations::set_parameters(tx, &parameters.ids, &parameters.values).await?;
    }
    if let (Some(deployment), false) = (to.deployment, instances.is_empty()) {
        instance_states::set(tx, deployment, &instances).await?;
    }
    events::insert(tx, to.execution, &told).await?;
    if let Some((total, finished)) = progress {
        executions::set_progress(tx, to.execution, total, finished).await?;
    }
    Ok(())
}

/// The newest value of each id, in the order of their first ones.
struct Latest<V> {
    ids: Vec<String>,
    values: Vec<V>,
    places: HashMap<String, usize>,
}

impl<V> Default for Latest<V> {
    fn default() -> Self {
        Self { ids: Vec::new(), values: Vec::new(), places: HashMap::new() }
    }
}

impl<V> Latest<V> {
    fn put(&mut self, id: &str, value: V) {
        if let Some(place) = self.places.get(id) {
            self.values[*place] = value;
            return;
        }
        self.places.insert(id.to_owned(), self.ids.len());
        self.ids.push(id.to_owned());
        self.values.push(value);
    }
}
