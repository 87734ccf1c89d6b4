//! `/deployments`.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use http::StatusCode;
use quorate_app::deployments::{CreateDeployment, DeploymentDetails};
use quorate_app::executions::is_available;
use quorate_app::{App, AppError, Visibility};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{self, time_text, view};
use super::blueprints::visibility;
use super::body::{Body, flag};
use super::caller::TenantCaller;
use super::error::ApiError;
use super::labels::{self, LabelView};
use super::lists::Params;

view! {
    /// A deployment.
    DeploymentView {
        id: String,
        created_at: String,
        created_by: String,
        tenant_name: String,
        visibility: String,
        resource_availability: String,
        private_resource: bool,
        updated_at: String,
        display_name: String,
        blueprint_id: String,
        description: Option<String>,
        inputs: Value,
        outputs: Value,
        capabilities: Value,
        workflows: Vec<Value>,
        groups: Value,
        scaling_groups: Value,
        policy_types: Value,
        policy_triggers: Value,
        permalink: Value,
        site_name: Value,
        labels: Vec<LabelView>,
        deployment_groups: Vec<Value>,
        resource_tags: Value,
        runtime_only_evaluation: bool,
        workdir_zip: Value,
        environment_type: &'static str,
        installation_status: String,
        deployment_status: String,
        create_execution: Option<String>,
        latest_execution: Option<String>,
        latest_execution_status: Option<String>,
        latest_execution_workflow_id: Option<String>,
        latest_execution_total_operations: Option<i32>,
        latest_execution_finished_operations: Option<i32>,
        has_sub_deployments: bool,
        sub_services_status: Value,
        sub_environments_status: Value,
        sub_services_count: i32,
        sub_environments_count: i32,
        drifted_instances: i64,
        unavailable_instances: i64,
    }
}

impl From<DeploymentDetails> for DeploymentView {
    fn from(DeploymentDetails { row, labels, installed }: DeploymentDetails) -> Self {
        let workflow = |(name, workflow): (&String, &Value)| {
            let mut shown = json!({
                "name": name, "plugin": "", "operation": "", "parameters": {}, "is_cascading": false,
                "is_available": is_available(&workflow["availability_rules"], &installed), "availability_rules": null,
            });
            for key in ["plugin", "operation", "parameters", "is_cascading", "availability_rules"] {
                if let Some(value) = workflow.get(key) {
                    shown[key] = value.clone();
                }
            }
            shown
        };
        Self {
            id: row.id,
            created_at: time_text(row.created_at),
            created_by: row.creator,
            tenant_name: row.tenant,
            resource_availability: row.visibility.clone(),
            private_resource: row.visibility == Visibility::Private.as_str(),
            visibility: row.visibility,
            updated_at: time_text(row.updated_at),
            display_name: row.display_name,
            blueprint_id: row.blueprint_id,
            description: row.description,
            inputs: row.inputs.into(),
            outputs: row.outputs.into(),
            capabilities: row.capabilities.into(),
            workflows: row.workflows.as_object().into_iter().flatten().map(workflow).collect(),
            groups: row.groups.into(),
            scaling_groups: row.scaling_groups.into(),
            policy_types: row.policy_types.into(),
            policy_triggers: row.policy_triggers.into(),
            permalink: Value::Null,
            site_name: Value::Null,
            labels: labels::views(labels),
            deployment_groups: vec![],
            resource_tags: row.resource_tags.into(),
            runtime_only_evaluation: row.runtime_only_evaluation,
            workdir_zip: Value::Null,
            environment_type: "",
            installation_status: row.installation_status,
            deployment_status: row.deployment_status,
            create_execution: row.create_execution,
            latest_execution: row.latest_execution,
            latest_execution_status: row.latest_execution_status,
            latest_execution_workflow_id: row.latest_execution_workflow_id,
            latest_execution_total_operations: row.latest_execution_total_operations,
            latest_execution_finished_operations: row.latest_execution_finished_operations,
            has_sub_deployments: false,
            sub_services_status: Value::Null,
            sub_environments_status: Value::Null,
            sub_services_count: 0,
            sub_environments_count: 0,
            drifted_instances: row.drifted_instances,
            unavailable_instances: row.unavailable_instances,
        }
    }
}

#[derive(Deserialize)]
struct NewDeployment {
    blueprint_id: String,
    inputs: Option<Map<String, Value>>,
    visibility: Option<String>,
    display_name: Option<String>,
    #[serde(default)]
    labels: Value,
    site_name: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    runtime_only_evaluation: bool,
}

#[derive(Deserialize)]
struct Changes {
    display_name: Option<String>,
    labels: Option<Value>,
}

#[derive(Deserialize)]
struct Shown {
    visibility: String,
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/deployments", get(list))
        .route("/deployments/{id}", get(one).put(create).patch(change).delete(remove))
        .route("/deployments/{id}/outputs", get(outputs))
        .route("/deployments/{id}/capabilities", get(capabilities))
        .route("/deployments/{id}/set-visibility", patch(set_visibility))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let all_tenants = params.flag("_all_tenants")?;
    let name_part = params.value("_search_name");
    let deployments = app.deployments().list(&actor, &params.list()?, all_tenants, name_part).await?;
    answer::list(deployments.map(DeploymentView::from), &params)
}

async fn one(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    answer::one(StatusCode::OK, &DeploymentView::from(app.deployments().get(&actor, &id).await?), &params)
}

async fn create(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(new): Body<NewDeployment>,
) -> Result<Response, ApiError> {
    if let Some(site) = new.site_name.filter(|site| !site.is_empty()) {
        return Err(AppError::not_found("Site", &site).into());
    }
    let new = CreateDeployment {
        blueprint_id: new.blueprint_id,
        inputs: new.inputs.unwrap_or_default(),
        visibility: visibility(new.visibility.as_deref())?,
        display_name: new.display_name.filter(|name| !name.is_empty()),
        labels: new.labels,
        runtime_only_evaluation: new.runtime_only_evaluation,
    };
    let made = app.deployments().create(&actor, &id, new).await?;
    answer::one(StatusCode::CREATED, &DeploymentView::from(made), &params)
}

async fn change(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(changes): Body<Changes>,
) -> Result<Response, ApiError> {
    let (name, labels) = (changes.display_name.as_deref(), changes.labels.as_ref());
    let changed = app.deployments().change(&actor, &id, name, labels).await?;
    answer::one(StatusCode::OK, &DeploymentView::from(changed), &params)
}

async fn set_visibility(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(shown): Body<Shown>,
) -> Result<Response, ApiError> {
    let changed = app.deployments().set_visibility(&actor, &id, visibility(Some(&shown.visibility))?).await?;
    answer::one(StatusCode::OK, &DeploymentView::from(changed), &params)
}

async fn remove(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    app.deployments().delete(&actor, &id, params.flag("force")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn outputs(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let outputs = app.deployments().outputs(&actor, &id).await?;
    Ok(Json(json!({ "deployment_id": id, "outputs": outputs })).into_response())
}

async fn capabilities(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let capabilities = app.deployments().capabilities(&actor, &id).await?;
    Ok(Json(json!({ "deployment_id": id, "capabilities": capabilities })).into_response())
}
