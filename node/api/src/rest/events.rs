//! `/events`: what clients page through while they wait, and what workers tell.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::events::{Event, NewEvent};
use quorate_app::{App, AppError, ListQuery};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::time_text;
use super::body::Body;
use super::caller::TenantCaller;
use super::error::ApiError;
use super::lists::Params;

/// Items on a page when the client does not say.
const PAGE_SIZE: i64 = 10_000;

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    events: Option<Vec<Item>>,
    #[serde(default)]
    logs: Option<Vec<Item>>,
    execution_id: String,
    manager_name: Option<String>,
    agent_name: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    timestamp: Option<String>,
    #[serde(default)]
    message: Value,
    event_type: Option<String>,
    logger: Option<String>,
    level: Option<String>,
    operation: Option<String>,
    #[serde(default)]
    context: Value,
}

pub fn routes() -> Router<App> {
    Router::new().route("/events", get(list).post(report))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let query = named_as_columns(params.list_sized(PAGE_SIZE)?);
    let page = app.events().list(&actor, &query, params.flag("_all_tenants")?).await?;
    let (size, offset) = (query.size.unwrap_or(PAGE_SIZE), query.offset);
    let items: Vec<Value> = page.items.into_iter().map(view).collect();
    let pagination = json!({ "total": page.total, "size": size, "offset": offset });
    Ok(Json(json!({ "items": items, "metadata": { "pagination": pagination } })).into_response())
}

/// Stored in one call; the answer has to be JSON.
async fn report(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Body(told): Body<Told>,
) -> Result<Response, ApiError> {
    let mut rows = Vec::new();
    for (items, is_log) in [(told.events, false), (told.logs, true)] {
        for item in items.unwrap_or_default() {
            rows.push(row(item, is_log, told.manager_name.as_deref(), told.agent_name.as_deref())?);
        }
    }
    app.events().report(&actor, &told.execution_id, &rows).await?;
    Ok((StatusCode::CREATED, Json(Value::Null)).into_response())
}

/// Clients use names from several generations of the API.
fn named_as_columns(mut query: ListQuery) -> ListQuery {
    let column = |name: &str| match name {
        "@timestamp" => Some("timestamp"),
        "node_id" => Some("node_instance_id"),
        _ => None,
    };
    if let Some(texts) = query.take("message.text") {
        query.search = texts.into_iter().next().map(|text| text.trim_matches('*').to_owned());
    }
    let names = query.filters.iter_mut().map(|(name, _)| name);
    let names = names.chain(query.ranges.iter_mut().map(|(name, ..)| name));
    for name in names.chain(query.sort.iter_mut().map(|sort| &mut sort.field)) {
        if let Some(column) = column(name) {
            column.clone_into(name);
        }
    }
    query
}

fn view(event: Event) -> Value {
    let mut view = json!({
        "_storage_id": event.key,
        "timestamp": time_text(event.timestamp),
        "reported_timestamp": time_text(event.reported_timestamp),
        "blueprint_id": event.blueprint_id,
        "deployment_id": event.deployment_id,
        "deployment_display_name": event.deployment_display_name,
        "execution_id": event.execution_id,
        "execution_group_id": null,
        "workflow_id": event.workflow_id,
        "message": event.message,
        "error_causes": event.error_causes.map(Value::from),
        "operation": event.operation,
        "source_id": event.source_id,
        "target_id": event.target_id,
        "manager_name": event.manager_name,
        "agent_name": event.agent_name,
        "node_instance_id": event.node_instance_id,
        "node_name": event.node_name,
        "type": event.kind,
    });
    if event.kind == "cloudify_log" {
        view["logger"] = json!(event.logger);
        view["level"] = json!(event.level);
    } else {
        view["event_type"] = json!(event.event_type);
    }
    view
}

fn row(item: Item, is_log: bool, manager: Option<&str>, agent: Option<&str>) -> Result<NewEvent, AppError> {
    let timestamp = item.timestamp.map(|text| {
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| AppError::bad(format!("`{text}` is no timestamp")))
    });
    let message = match &item.message {
        Value::Object(message) => message.get("text").and_then(Value::as_str).unwrap_or_default(),
        message => message.as_str().unwrap_or_default(),
    };
    let context = |key: &str| item.context[key].as_str().map(str::to_owned);
    let causes = Some(&item.context["task_error_causes"]).filter(|causes| !causes.is_null());
    Ok(NewEvent {
        is_log,
        timestamp: timestamp.transpose()?,
        // PostgreSQL keeps no NUL in a text.
        message: message.replace('\0', "<NUL>"),
        event_type: item.event_type,
        error_causes: causes.cloned().map(Into::into),
        operation: if is_log { context("operation") } else { item.operation },
        logger: item.logger,
        level: item.level,
        node_instance_id: context("node_id"),
        source_id: context("source_id"),
        target_id: context("target_id"),
        manager_name: manager.map(str::to_owned),
        agent_name: agent.map(str::to_owned),
    })
}
