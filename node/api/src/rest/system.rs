//! Version, status and small answers that clients want before they work.

use std::sync::OnceLock;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::system::Duty;
use quorate_app::{App, Permission};
use serde_json::{Map, Value, json};

use super::answer::{self, view};
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;

/// The server line that clients of this API expect.
pub const VERSION: &str = "7.0.5";
/// `premium` would make clients ask for a licence.
pub const EDITION: &str = "community";

view! {
    /// What runs here.
    VersionView {
        edition: &'static str,
        version: &'static str,
        build: Option<String>,
        date: Option<String>,
        commit: Option<String>,
        distribution: String,
        distro_release: String,
    }
}

view! {
    /// A licence. None is needed.
    LicenseView {
        customer_id: String,
        expiration_date: Option<String>,
        license_edition: String,
        trial: bool,
        cloudify_version: String,
        capabilities: Vec<String>,
        expired: bool,
    }
}

/// The operating system of this node.
#[derive(Clone, Default)]
pub struct Distribution {
    /// `debian`
    pub name: String,
    /// `bookworm`
    pub release: String,
}

/// Read once.
pub fn distribution() -> &'static Distribution {
    static READ: OnceLock<Distribution> = OnceLock::new();
    READ.get_or_init(|| {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            lines.next().unwrap_or("unknown").trim_matches('"').to_owned()
        };
        Distribution { name: value("ID"), release: value("VERSION_CODENAME") }
    })
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/version", get(version))
        .route("/status", get(status))
        .route("/ok", get(ok))
        .route("/provider/context", get(provider_context))
        .route("/maintenance", get(maintenance))
        .route("/license", get(licenses))
        .route("/license-check", get(license_check))
        .route("/snapshot-status", get(snapshot_status))
        .route("/idp", get(identity_provider))
        .route("/ldap", get(ldap))
}

pub async fn version(Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::VersionGet)?;
    let Distribution { name, release } = distribution().clone();
    let view = VersionView {
        edition: EDITION,
        version: VERSION,
        build: None,
        date: None,
        commit: None,
        distribution: name,
        distro_release: release,
    };
    answer::one(StatusCode::OK, &view, &params)
}

/// Of the active node, which is the one that answers. 200 even if something is down: clients read the body.
async fn status(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Json<Value>, ApiError> {
    let cluster = app.system().cluster(&login, Permission::StatusGet)?;
    let active = cluster.members.iter().find(|member| member.is_active);
    let works = |duty: Duty| active.is_some_and(|member| duty.fault(member).is_none());
    // One process does what the original spreads over several services; clients show these names.
    let services = [
        ("Webserver", true),
        ("Manager Rest-Service", true),
        ("Cloudify Execution Scheduler", works(Duty::Manager)),
        ("Management Worker", works(Duty::Manager)),
        ("PostgreSQL", works(Duty::Database)),
        ("RabbitMQ", works(Duty::Broker)),
    ];
    let all = services.iter().all(|(_, works)| *works);
    let shown = |(name, works): (&str, bool)| {
        let status = if works { "Active" } else { "Inactive" };
        (name.to_owned(), json!({ "status": status, "is_remote": false, "extra_info": {} }))
    };
    let services: Map<String, Value> =
        if params.flag("summary")? { Map::new() } else { services.into_iter().map(shown).collect() };
    Ok(Json(json!({ "status": if all { "OK" } else { "Fail" }, "services": services })))
}

/// For load balancers: no login, no JSON.
async fn ok(State(app): State<App>) -> Response {
    match app.system().check().await {
        Ok(()) => (StatusCode::OK, "OK").into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "FAIL").into_response(),
    }
}

async fn provider_context(Caller(login): Caller) -> Result<Json<Value>, ApiError> {
    login.require(Permission::ProviderContextGet)?;
    Ok(Json(json!({ "id": "CONTEXT", "name": "provider", "context": {} })))
}

async fn maintenance(Caller(login): Caller) -> Result<Json<Value>, ApiError> {
    login.require(Permission::MaintenanceModeGet)?;
    Ok(Json(json!({
        "status": "deactivated",
        "activated_at": "",
        "activation_requested_at": "",
        "remaining_executions": null,
        "requested_by": "",
    })))
}

async fn licenses(Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::LicenseList)?;
    answer::list_of::<LicenseView>(vec![], &params)
}

async fn license_check(Caller(login): Caller) -> Result<Json<Value>, ApiError> {
    login.require(Permission::LicenseList)?;
    Ok(Json(json!("OK")))
}

/// Asked while somebody waits for a restore, when nobody can log in.
async fn snapshot_status() -> Json<Value> {
    Json(json!({ "status": "not-running" }))
}

async fn identity_provider(Caller(login): Caller) -> Result<Json<Value>, ApiError> {
    login.require(Permission::IdentityProviderGet)?;
    Ok(Json(json!("local")))
}

async fn ldap(Caller(login): Caller) -> Result<Json<Value>, ApiError> {
    login.require(Permission::LdapStatusGet)?;
    Ok(Json(json!("disabled")))
}
