//! `/tenants`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, put};
use http::StatusCode;
use quorate_app::tenants::TenantDetails;
use quorate_app::{App, AppError, TenantRole};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{self, view};
use super::body::Body;
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// A tenant.
    TenantView {
        name: String,
        // How many, or who.
        users: Value,
        groups: Value,
        user_roles: Option<Value>,
        rabbitmq_vhost: Option<String>,
        rabbitmq_username: Option<String>,
        rabbitmq_password: Option<String>,
    }
}

impl From<TenantDetails> for TenantView {
    fn from(tenant: TenantDetails) -> Self {
        let mut users = json!(tenant.users);
        let mut groups = json!(0);
        let mut user_roles = None;
        if let Some(members) = tenant.members {
            let named = |name: &String, role: &String| (name.clone(), json!({ "tenant-role": role, "roles": [role] }));
            users = Value::Object(members.iter().map(|(name, role)| named(name, role)).collect());
            groups = json!({});
            let direct: Map<String, Value> = members.into_iter().map(|(name, role)| (name, role.into())).collect();
            user_roles = Some(json!({ "direct": direct, "groups": {} }));
        }
        let (rabbitmq_vhost, rabbitmq_username, rabbitmq_password) = match tenant.broker {
            Some(account) => (Some(account.vhost), Some(account.username), Some(account.password)),
            None => (None, None, None),
        };
        Self { name: tenant.name, users, groups, user_roles, rabbitmq_vhost, rabbitmq_username, rabbitmq_password }
    }
}

#[derive(Deserialize)]
struct NewTenant {
    rabbitmq_password: Option<String>,
}

#[derive(Deserialize)]
struct Assignment {
    tenant_name: String,
    username: String,
    role: String,
}

#[derive(Deserialize)]
struct Removal {
    tenant_name: String,
    username: String,
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/tenants", get(list))
        .route("/tenants/users", put(add_user).patch(update_user).delete(remove_user))
        .route("/tenants/{name}", get(one).post(create).delete(remove))
}

async fn list(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    let tenants = app.tenants().list(&login, &params.list()?, params.flag("_get_data")?).await?;
    answer::list(tenants.map(TenantView::from), &params)
}

async fn one(
    State(app): State<App>,
    Caller(login): Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let tenant = app.tenants().get(&login, &name, params.flag("_get_data")?).await?;
    answer::one(StatusCode::OK, &TenantView::from(tenant), &params)
}

async fn create(
    State(app): State<App>,
    Caller(login): Caller,
    Path(name): Path<String>,
    params: Params,
    Body(new): Body<NewTenant>,
) -> Result<Response, ApiError> {
    let tenant = app.tenants().create(&login, &name, new.rabbitmq_password).await?;
    answer::one(StatusCode::CREATED, &TenantView::from(tenant), &params)
}

async fn remove(
    State(app): State<App>,
    Caller(login): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.tenants().delete(&login, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn add_user(
    State(app): State<App>,
    Caller(login): Caller,
    params: Params,
    Body(new): Body<Assignment>,
) -> Result<Response, ApiError> {
    let tenant = app.tenants().add_user(&login, &new.tenant_name, &new.username, role(&new.role)?).await?;
    answer::one(StatusCode::OK, &TenantView::from(tenant), &params)
}

async fn update_user(
    State(app): State<App>,
    Caller(login): Caller,
    params: Params,
    Body(new): Body<Assignment>,
) -> Result<Response, ApiError> {
    let tenant = app.tenants().update_user(&login, &new.tenant_name, &new.username, role(&new.role)?).await?;
    answer::one(StatusCode::OK, &TenantView::from(tenant), &params)
}

async fn remove_user(
    State(app): State<App>,
    Caller(login): Caller,
    Body(removal): Body<Removal>,
) -> Result<StatusCode, ApiError> {
    app.tenants().remove_user(&login, &removal.tenant_name, &removal.username).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn role(name: &str) -> Result<TenantRole, AppError> {
    let unknown =
        |_| AppError::bad(format!("Invalid role: `{name}`. Valid tenant roles: manager, user, operations, viewer"));
    name.parse().map_err(unknown)
}
