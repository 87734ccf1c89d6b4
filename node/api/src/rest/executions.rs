//! `/executions`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use quorate_app::executions::{Execution, StartExecution, WAIT_AFTER_FAIL_SECONDS};
use quorate_app::{App, AppError};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{self, time_text, view};
use super::body::{Body, flag};
use super::caller::TenantCaller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// An execution.
    ExecutionView {
        id: String,
        created_at: String,
        visibility: String,
        created_by: String,
        tenant_name: String,
        deployment_id: Option<String>,
        deployment_display_name: Option<String>,
        blueprint_id: Option<String>,
        workflow_id: String,
        parameters: Value,
        status: String,
        status_display: String,
        error: Option<String>,
        is_system_workflow: bool,
        is_dry_run: bool,
        resume: bool,
        allow_custom_parameters: bool,
        started_at: Option<String>,
        ended_at: Option<String>,
        scheduled_for: Option<String>,
        total_operations: i32,
        finished_operations: i32,
        resource_availability: String,
        private_resource: bool,
    }
}

impl From<Execution> for ExecutionView {
    fn from(row: Execution) -> Self {
        Self {
            id: row.id,
            created_at: time_text(row.created_at),
            created_by: row.creator,
            tenant_name: row.tenant,
            deployment_id: row.deployment_id,
            deployment_display_name: row.deployment_display_name,
            blueprint_id: row.blueprint_id,
            workflow_id: row.workflow_id,
            parameters: row.parameters.into(),
            status_display: status_display(&row.status).to_owned(),
            status: row.status,
            error: row.error,
            is_system_workflow: row.is_system_workflow,
            is_dry_run: row.is_dry_run,
            resume: row.resume,
            allow_custom_parameters: row.allow_custom_parameters,
            started_at: row.started_at.map(time_text),
            ended_at: row.ended_at.map(time_text),
            scheduled_for: row.scheduled_for.map(time_text),
            total_operations: row.total_operations,
            finished_operations: row.finished_operations,
            private_resource: row.visibility == "private",
            resource_availability: row.visibility.clone(),
            visibility: row.visibility,
        }
    }
}

/// A status as users read it.
pub(super) fn status_display(status: &str) -> &str {
    if status == "terminated" { "completed" } else { status }
}

#[derive(Deserialize)]
struct NewExecution {
    deployment_id: String,
    workflow_id: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "flag")]
    allow_custom_parameters: bool,
    #[serde(default, deserialize_with = "flag")]
    force: bool,
    #[serde(default, deserialize_with = "flag")]
    dry_run: bool,
    #[serde(default, deserialize_with = "flag")]
    queue: bool,
    scheduled_time: Option<String>,
    wait_after_fail: Option<i32>,
}

#[derive(Deserialize)]
struct Asked {
    action: String,
}

pub fn routes() -> Router<App> {
    Router::new().route("/executions", get(list).post(start)).route("/executions/{id}", get(one).post(act))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let system = params.flag("_include_system_workflows")?;
    let everywhere = params.flag("_all_tenants")?;
    let page = app.executions().list(&actor, &params.list()?, system, everywhere).await?;
    answer::list(page.map(ExecutionView::from), &params)
}

async fn one(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let execution = app.executions().get(&actor, &id).await?;
    answer::one(StatusCode::OK, &ExecutionView::from(execution), &params)
}

async fn start(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    params: Params,
    Body(new): Body<NewExecution>,
) -> Result<Response, ApiError> {
    if new.scheduled_time.is_some() {
        return Err(AppError::bad("scheduled_time is not supported; start the execution when it is due").into());
    }
    let asked = StartExecution {
        deployment_id: new.deployment_id,
        workflow_id: new.workflow_id,
        parameters: new.parameters.unwrap_or_default(),
        allow_custom_parameters: new.allow_custom_parameters,
        force: new.force,
        dry_run: new.dry_run,
        queue: new.queue,
        wait_after_fail: new.wait_after_fail.unwrap_or(WAIT_AFTER_FAIL_SECONDS),
    };
    let execution = app.executions().start(&actor, asked).await?;
    answer::one(StatusCode::CREATED, &ExecutionView::from(execution), &params)
}

async fn act(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(asked): Body<Asked>,
) -> Result<Response, ApiError> {
    let execution = app.executions().act(&actor, &id, asked.action.parse()?).await?;
    answer::one(StatusCode::OK, &ExecutionView::from(execution), &params)
}
