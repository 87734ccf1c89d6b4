//! `/nodes`, `/node-instances`, `/evaluate/functions`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::evaluate::Context;
use quorate_app::nodes::{InstanceChanges, Node, NodeInstance};
use quorate_app::{App, Visibility};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{self, time_text, view};
use super::body::Body;
use super::caller::TenantCaller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// A node.
    NodeView {
        id: String,
        created_at: String,
        created_by: String,
        tenant_name: String,
        visibility: String,
        resource_availability: String,
        private_resource: bool,
        deployment_id: String,
        deployment_display_name: String,
        blueprint_id: String,
        host_id: Option<String>,
        r#type: String,
        type_hierarchy: Value,
        properties: Value,
        operations: Value,
        relationships: Value,
        plugins: Value,
        plugins_to_install: Value,
        number_of_instances: i32,
        planned_number_of_instances: i32,
        deploy_number_of_instances: i32,
        min_number_of_instances: i32,
        max_number_of_instances: i32,
        actual_number_of_instances: i64,
        actual_planned_number_of_instances: i32,
        drifted_instances: i64,
        unavailable_instances: i64,
    }
}

impl From<Node> for NodeView {
    fn from(row: Node) -> Self {
        Self {
            id: row.id,
            created_at: time_text(row.created_at),
            created_by: row.creator,
            tenant_name: row.tenant,
            resource_availability: row.visibility.clone(),
            private_resource: row.visibility == Visibility::Private.as_str(),
            visibility: row.visibility,
            deployment_id: row.deployment_id,
            deployment_display_name: row.deployment_display_name,
            blueprint_id: row.blueprint_id,
            host_id: row.host_id,
            r#type: row.kind,
            type_hierarchy: row.type_hierarchy.into(),
            properties: row.properties.into(),
            operations: row.operations.into(),
            relationships: row.relationships.into(),
            plugins: row.plugins.into(),
            plugins_to_install: row.plugins_to_install.into(),
            number_of_instances: row.number_of_instances,
            planned_number_of_instances: row.planned_number_of_instances,
            deploy_number_of_instances: row.deploy_number_of_instances,
            min_number_of_instances: row.min_number_of_instances,
            max_number_of_instances: row.max_number_of_instances,
            actual_number_of_instances: row.actual_number_of_instances,
            actual_planned_number_of_instances: row.planned_number_of_instances,
            drifted_instances: row.drifted_instances,
            unavailable_instances: row.unavailable_instances,
        }
    }
}

view! {
    /// An instance of a node.
    NodeInstanceView {
        id: String,
        created_at: String,
        created_by: String,
        tenant_name: String,
        visibility: String,
        resource_availability: String,
        private_resource: bool,
        node_id: String,
        deployment_id: String,
        host_id: Option<String>,
        index: i32,
        state: String,
        version: i32,
        relationships: Value,
        runtime_properties: Value,
        system_properties: Value,
        scaling_groups: Value,
        has_configuration_drift: bool,
        is_status_check_ok: bool,
    }
}

impl From<NodeInstance> for NodeInstanceView {
    fn from(row: NodeInstance) -> Self {
        Self {
            id: row.id,
            created_at: time_text(row.created_at),
            created_by: row.creator,
            tenant_name: row.tenant,
            resource_availability: row.visibility.clone(),
            private_resource: row.visibility == Visibility::Private.as_str(),
            visibility: row.visibility,
            node_id: row.node_id,
            deployment_id: row.deployment_id,
            host_id: row.host_id,
            index: row.index,
            state: row.state,
            version: row.version,
            relationships: row.relationships.into(),
            runtime_properties: row.runtime_properties.into(),
            system_properties: row.system_properties.into(),
            scaling_groups: row.scaling_groups.into(),
            has_configuration_drift: row.has_configuration_drift,
            is_status_check_ok: row.is_status_check_ok,
        }
    }
}

#[derive(Deserialize)]
struct Changes {
    version: i32,
    state: Option<String>,
    runtime_properties: Option<Value>,
    system_properties: Option<Value>,
    relationships: Option<Value>,
}

#[derive(Deserialize)]
struct Evaluation {
    deployment_id: String,
    #[serde(default)]
    context: Option<Asking>,
    payload: Value,
}

/// Ids of node instances.
#[derive(Deserialize, Default)]
struct Asking {
    #[serde(rename = "self")]
    itself: Option<String>,
    source: Option<String>,
    target: Option<String>,
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/nodes", get(list))
        .route("/node-instances", get(instances))
        .route("/node-instances/{id}", get(instance).patch(update))
        .route("/evaluate/functions", post(evaluate))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let all_tenants = params.flag("_all_tenants")?;
    let itself = params.value("_instance_context").map(str::to_owned);
    let evaluated = params.flag("_evaluate_functions")?.then(|| Context { itself, ..Context::default() });
    let nodes = app.nodes().list(&actor, &params.list()?, all_tenants, evaluated).await?;
    answer::list(nodes.map(NodeView::from), &params)
}

async fn instances(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    params: Params,
) -> Result<Response, ApiError> {
    let instances = app.nodes().instances(&actor, &params.list()?, params.flag("_all_tenants")?).await?;
    answer::list(instances.map(NodeInstanceView::from), &params)
}

async fn instance(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let instance = app.nodes().instance(&actor, &id, params.flag("_evaluate_functions")?).await?;
    answer::one(StatusCode::OK, &NodeInstanceView::from(instance), &params)
}

async fn update(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(changes): Body<Changes>,
) -> Result<Response, ApiError> {
    let changes = InstanceChanges {
        version: changes.version,
        force: params.flag("force")?,
        state: changes.state,
        runtime_properties: changes.runtime_properties,
        system_properties: changes.system_properties,
        relationships: changes.relationships,
    };
    let changed = app.nodes().update_instance(&actor, &id, changes).await?;
    answer::one(StatusCode::OK, &NodeInstanceView::from(changed), &params)
}

async fn evaluate(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Body(Evaluation { deployment_id, context, payload }): Body<Evaluation>,
) -> Result<Response, ApiError> {
    let Asking { itself, source, target } = context.unwrap_or_default();
    let context = Context { itself, source, target };
    let payload = app.evaluate_functions(&actor, &deployment_id, &context, &payload).await?;
    Ok(Json(json!({ "deployment_id": deployment_id, "payload": payload })).into_response())
}
