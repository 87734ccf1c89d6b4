//! Task graphs and operations, as workers and clients see them.

use quorate_core::workflow::task_started;
use quorate_store::executions::{self, Execution};
use quorate_store::{PgConnection, Scope, events};
use quorate_store::{operations as rows, tasks_graphs};

pub use quorate_store::operations::Operation;
pub use quorate_store::tasks_graphs::TasksGraph;

use crate::executor::changes;
use crate::{Actor, App, AppError, Code, Permission};

/// What a worker says of an operation that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It begins.
    Started,
    /// It has a result and is about to send it.
    ResponseSent,
}

/// Who says so; either may be unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reporter<'a> {
    /// The worker's name.
    pub agent: Option<&'a str>,
    /// Its node's name.
    pub manager: Option<&'a str>,
}

/// Which operations.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// Of a graph.
    Graph(&'a str),
    /// Of all graphs of an execution.
    Execution(&'a str),
}

/// The use cases.
pub struct Operations<'a>(pub(crate) &'a App);

impl Operations<'_> {
    /// The graphs of an execution, oldest first; `name`: only this one.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn graphs(
        &self,
        actor: &Actor,
        execution: &str,
        name: Option<&str>,
    ) -> Result<Vec<TasksGraph>, AppError> {
        actor.require(Permission::Operations)?;
        let mut reader = self.0.store().read().await?;
        let execution = seen(&mut reader, &actor.readable(), execution).await?;
        Ok(tasks_graphs::of_execution(&mut reader, execution.key, name).await?)
    }

    /// Operations in insertion order.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn list(&self, actor: &Actor, of: Of<'_>) -> Result<Vec<Operation>, AppError> {
        actor.require(Permission::Operations)?;
        let mut reader = self.0.store().read().await?;
        let graphs = match of {
            Of::Execution(id) => {
                let execution = seen(&mut reader, &actor.readable(), id).await?;
                tasks_graphs::of_execution(&mut reader, execution.key, None).await?
            }
            Of::Graph(id) => {
                let graph = tasks_graphs::find(&mut reader, id).await?;
                let graph = graph.ok_or_else(|| AppError::not_found("TasksGraph", id))?;
                seen(&mut reader, &actor.readable(), &graph.execution_id).await?;
                vec![graph]
            }
        };
        let mut all = Vec::new();
        for graph in graphs {
            all.extend(rows::of_graph(&mut reader, graph.key).await?);
        }
        Ok(all)
    }

    /// One operation.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn get(&self, actor: &Actor, id: &str) -> Result<Operation, AppError> {
        actor.require(Permission::Operations)?;
        let mut reader = self.0.store().read().await?;
        let row = rows::find(&mut reader, id).await?.ok_or_else(|| AppError::not_found("Operation", id))?;
        visible(&mut reader, &actor.readable(), &row).await?;
        Ok(row)
    }

    /// Notes how far a worker is. An operation that has its result stays as it is.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`. `conflict_error` for a start that must not be: the operation was given to
    /// another worker, has its result, or its execution has ended.
    pub async fn report(
        &self,
        actor: &Actor,
        id: &str,
        progress: Progress,
        reporter: Reporter<'_>,
    ) -> Result<(), AppError> {
        actor.require(Permission::Operations)?;
        let mut tx = self.0.store().begin().await?;
        let row = rows::lock(&mut tx, id).await?.ok_or_else(|| AppError::not_found("Operation", id))?;
        let execution = visible(&mut tx, &actor.writable(), &row).await?;
        let is_final = matches!(row.state.as_str(), "succeeded" | "failed" | "rescheduled");
        if progress == Progress::ResponseSent {
            if !is_final {
                rows::set_state(&mut tx, id, "response-sent").await?;
                tx.commit().await?;
            }
            return Ok(());
        }
        let conflict = |why: &str| Err(AppError::new(Code::Conflict, format!("Operation {id} must not start: {why}")));
        if is_final {
            return conflict("it has its result");
        }
        if matches!(execution.status.as_str(), "terminated" | "failed" | "cancelled") {
            return conflict("its execution has ended");
        }
        // One who gives no name cannot be told from the right one.
        if let (Some(assigned), Some(agent)) = (row.agent_name.as_deref(), reporter.agent)
            && assigned != agent
        {
            return conflict("it was given to another worker");
        }
        if let Some(manager) = reporter.manager {
            rows::set_manager(&mut tx, id, manager).await?;
        }
        if matches!(row.state.as_str(), "pending" | "sending" | "sent") {
            rows::set_state(&mut tx, id, "started").await?;
            if let Some(event) = task_started(&changes::operation(row)?) {
                let mut event = changes::event(event);
                event.agent_name = reporter.agent.map(str::to_owned);
                event.manager_name = reporter.manager.map(str::to_owned);
                events::insert(&mut tx, execution.key, &[event]).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}

async fn visible(connection: &mut PgConnection, scope: &Scope, row: &Operation) -> Result<Execution, AppError> {
    let execution = executions::get(connection, row.execution_key).await?;
    let id = execution.map(|execution| execution.id).unwrap_or_default();
    let seen = executions::find(connection, scope, &id).await?;
    seen.ok_or_else(|| AppError::not_found("Operation", &row.id))
}

async fn seen(connection: &mut PgConnection, scope: &Scope, id: &str) -> Result<Execution, AppError> {
    let found = executions::find(connection, scope, id).await?;
    found.ok_or_else(|| AppError::not_found("Execution", id))
}
