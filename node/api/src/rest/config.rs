//! `/config`: settings of the manager, and what its roles mean.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::config::{Setting, settings};
use quorate_app::{App, AppError, Permission, SystemRole, TenantRole};
use serde_json::{Map, Value, json};

use super::answer::{self, view};
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;
use super::permissions::holders;

view! {
    /// A setting.
    ConfigView {
        name: &'static str,
        value: Value,
        scope: &'static str,
        schema: Option<Value>,
        is_editable: bool,
        admin_only: bool,
        updated_at: Option<String>,
        updater_name: Option<String>,
    }
}

impl From<Setting> for ConfigView {
    fn from(setting: Setting) -> Self {
        Self {
            name: setting.name,
            value: setting.value,
            scope: setting.scope,
            schema: None,
            is_editable: false,
            admin_only: false,
            updated_at: None,
            updater_name: None,
        }
    }
}

pub fn routes() -> Router<App> {
    Router::new().route("/config", get(list)).route("/config/{name}", get(one))
}

async fn list(Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::ManagerConfigGet)?;
    let scope = params.value("scope");
    let wanted = settings().into_iter().filter(|setting| scope.is_none_or(|scope| scope == setting.scope));
    let items: Vec<ConfigView> = wanted.map(ConfigView::from).collect();
    Ok(Json(json!({ "metadata": {}, "items": items, "authorization": authorization() })).into_response())
}

/// `name` or `scope.name`.
async fn one(Caller(login): Caller, Path(name): Path<String>, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::ManagerConfigGet)?;
    let fits = |setting: &Setting| match name.split_once('.') {
        Some((scope, name)) => setting.scope == scope && setting.name == name,
        None => setting.name == name,
    };
    let mut found = settings().into_iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(setting), None) => answer::one(StatusCode::OK, &ConfigView::from(setting), &params),
        (Some(_), Some(_)) => {
            let message = format!("`{name}` exists in several scopes: ask for scope.{name}");
            Err(AppError::new(quorate_app::Code::AmbiguousName, message).into())
        }
        (None, _) => Err(AppError::not_found("Config", &name).into()),
    }
}

fn authorization() -> Value {
    let role = |(id, name, kind, description): (usize, &str, &str, &str)| json!({ "id": id, "name": name, "type": kind, "description": description });
    let described = [
        (SystemRole::Admin.as_str(), "system_role", "administers the cluster"),
        (SystemRole::Default.as_str(), "system_role", "works in the tenants it belongs to"),
        (TenantRole::Manager.as_str(), "tenant_role", "administers a tenant"),
        (TenantRole::User.as_str(), "tenant_role", "works in a tenant"),
        (TenantRole::Operations.as_str(), "tenant_role", "runs deployments of a tenant"),
        (TenantRole::Viewer.as_str(), "tenant_role", "looks at a tenant"),
    ];
    let roles: Vec<Value> = (1..).zip(described).map(|(id, (name, kind, text))| role((id, name, kind, text))).collect();
    let permissions: Map<String, Value> =
        Permission::ALL.iter().map(|permission| (permission.name().to_owned(), json!(holders(*permission)))).collect();
    json!({ "roles": roles, "permissions": permissions })
}
