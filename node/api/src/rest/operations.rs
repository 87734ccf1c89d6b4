//! `/operations` and `/tasks_graphs`: what clients look at, and how far workers say they are.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::operations::{Of, Operation, Progress, Reporter, TasksGraph};
use quorate_app::{App, AppError, Listing};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{self, time_text, view};
use super::body::Body;
use super::caller::TenantCaller;
use super::error::ApiError;
use super::lists::{PAGE_SIZE, Params};

view! {
    /// A row of a task graph.
    OperationView {
        id: String,
        name: String,
        state: String,
        r#type: String,
        created_at: String,
        dependencies: Vec<String>,
        parameters: Value,
        tasks_graph_id: String,
        manager_name: Option<String>,
        agent_name: Option<String>,
    }
}

impl From<Operation> for OperationView {
    fn from(row: Operation) -> Self {
        Self {
            id: row.id,
            name: row.name,
            state: row.state,
            r#type: row.kind,
            created_at: time_text(row.created_at),
            dependencies: row.dependencies,
            parameters: row.parameters.into(),
            tasks_graph_id: row.graph_id,
            manager_name: row.manager_name,
            agent_name: row.agent_name,
        }
    }
}

view! {
    /// A task graph.
    TasksGraphView {
        id: String,
        execution_id: String,
        name: String,
        created_at: String,
    }
}

impl From<TasksGraph> for TasksGraphView {
    fn from(row: TasksGraph) -> Self {
        Self { id: row.id, execution_id: row.execution_id, name: row.name, created_at: time_text(row.created_at) }
    }
}

#[derive(Deserialize)]
struct Report {
    state: String,
    manager_name: Option<String>,
    agent_name: Option<String>,
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/operations", get(list))
        .route("/operations/{id}", get(one).patch(report))
        .route("/tasks_graphs", get(graphs))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let of = match (params.value("graph_id"), params.value("execution_id")) {
        (Some(graph), _) => Of::Graph(graph),
        (None, Some(execution)) => Of::Execution(execution),
        (None, None) => return Err(AppError::bad("Missing graph_id or execution_id").into()),
    };
    let mut rows = app.operations().list(&actor, of).await?;
    if let Some(state) = params.value("state") {
        rows.retain(|row| row.state == state);
    }
    if params.flag("skip_internal")? {
        rows.retain(|row| row.kind != "NOPLocalWorkflowTask");
    }
    answer::list(paged(rows, &params)?.map(OperationView::from), &params)
}

async fn one(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let row = app.operations().get(&actor, &id).await?;
    answer::one(StatusCode::OK, &OperationView::from(row), &params)
}

async fn report(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    Body(report): Body<Report>,
) -> Result<Response, ApiError> {
    let progress = match report.state.as_str() {
        "started" => Progress::Started,
        "response-sent" => Progress::ResponseSent,
        // Results come as replies: a worker that could also set them here could do it twice.
        other => return Err(AppError::bad(format!("workers report started or response-sent, not `{other}`")).into()),
    };
    let reporter = Reporter { agent: report.agent_name.as_deref(), manager: report.manager_name.as_deref() };
    app.operations().report(&actor, &id, progress, reporter).await?;
    Ok(Json(json!({})).into_response())
}

async fn graphs(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    params: Params,
) -> Result<Response, ApiError> {
    let Some(execution) = params.value("execution_id") else {
        return Err(AppError::bad("Missing execution_id").into());
    };
    let rows = app.operations().graphs(&actor, execution, params.value("name")).await?;
    answer::list(paged(rows, &params)?.map(TasksGraphView::from), &params)
}

/// A page of what was read whole, because the engine needs it whole too.
fn paged<T>(rows: Vec<T>, params: &Params) -> Result<Listing<T>, AppError> {
    let total = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    if params.flag("_get_all_results")? {
        return Ok(Listing { items: rows, total });
    }
    let count = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    let (offset, size) = (count(params.offset()?), count(params.size(PAGE_SIZE)?));
    Ok(Listing { items: rows.into_iter().skip(offset).take(size).collect(), total })
}
