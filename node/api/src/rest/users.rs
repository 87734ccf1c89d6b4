//! `/users` and `/user`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;
use quorate_app::users::{Change, UserDetails};
use quorate_app::{App, AppError, SystemRole};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{self, time_text, view};
use super::body::{Body, flag};
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// A user.
    UserView {
        username: String,
        role: String,
        // How many, or which.
        tenants: Value,
        tenant_roles: Option<Value>,
        groups: Value,
        group_system_roles: Value,
        active: bool,
        is_locked: bool,
        created_at: String,
        first_login_at: Option<String>,
        last_login_at: Option<String>,
        show_getting_started: bool,
        // Never shown.
        password_hash: Option<String>,
    }
}

impl From<UserDetails> for UserView {
    fn from(user: UserDetails) -> Self {
        let mut tenants = json!(user.tenants);
        let mut groups = json!(0);
        let mut tenant_roles = None;
        if let Some(memberships) = user.memberships {
            let named =
                |(name, role): &(String, String)| (name.clone(), json!({ "tenant-role": role, "roles": [role] }));
            tenants = Value::Object(memberships.iter().map(named).collect());
            groups = json!([]);
            let direct: Map<String, Value> = memberships.into_iter().map(|(name, role)| (name, role.into())).collect();
            tenant_roles = Some(json!({ "direct": direct, "groups": {} }));
        }
        Self {
            username: user.username,
            role: user.role,
            tenants,
            tenant_roles,
            groups,
            group_system_roles: json!({}),
            active: user.active,
            is_locked: user.is_locked,
            created_at: time_text(user.created_at),
            first_login_at: user.first_login_at.map(time_text),
            last_login_at: user.last_login_at.map(time_text),
            show_getting_started: user.show_getting_started,
            password_hash: None,
        }
    }
}

/// No `Debug`: it holds a password.
#[derive(Deserialize)]
struct NewUser {
    username: String,
    password: String,
    #[serde(default = "default_role")]
    role: String,
    #[serde(default, deserialize_with = "flag")]
    is_prehashed: bool,
}

fn default_role() -> String {
    SystemRole::Default.to_string()
}

/// One of them. No `Debug`: it may hold a password.
#[derive(Deserialize)]
struct UserChange {
    password: Option<String>,
    role: Option<String>,
    show_getting_started: Option<bool>,
}

#[derive(Deserialize)]
struct Activation {
    action: String,
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/user", get(one_self))
        .route("/users", get(list).put(create))
        .route("/users/active/{username}", post(set_active))
        .route("/users/unlock/{username}", post(unlock))
        .route("/users/{username}", get(one).post(change).delete(remove))
}

async fn list(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    let users = app.users().list(&login, &params.list()?, params.flag("_get_data")?).await?;
    answer::list(users.map(UserView::from), &params)
}

async fn one_self(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    let user = app.users().get_self(&login, params.flag("_get_data")?).await?;
    answer::one(StatusCode::OK, &UserView::from(user), &params)
}

async fn one(
    State(app): State<App>,
    Caller(login): Caller,
    Path(username): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let user = app.users().get(&login, &username, params.flag("_get_data")?).await?;
    answer::one(StatusCode::OK, &UserView::from(user), &params)
}

async fn create(
    State(app): State<App>,
    Caller(login): Caller,
    params: Params,
    Body(new): Body<NewUser>,
) -> Result<Response, ApiError> {
    if new.is_prehashed {
        return Err(AppError::bad("Hashes of passwords from another manager cannot be used here").into());
    }
    let user = app.users().create(&login, &new.username, &new.password, role(&new.role)?).await?;
    answer::one(StatusCode::CREATED, &UserView::from(user), &params)
}

async fn change(
    State(app): State<App>,
    Caller(login): Caller,
    Path(username): Path<String>,
    params: Params,
    Body(wanted): Body<UserChange>,
) -> Result<Response, ApiError> {
    let change = match (wanted.password, wanted.role, wanted.show_getting_started) {
        (Some(password), None, None) => Change::Password(password),
        (None, Some(name), None) => Change::Role(role(&name)?),
        (None, None, Some(show)) => Change::ShowGettingStarted(show),
        _ => return Err(AppError::bad("Give one of: password, role, show_getting_started").into()),
    };
    let user = app.users().change(&login, &username, change).await?;
    answer::one(StatusCode::OK, &UserView::from(user), &params)
}

async fn set_active(
    State(app): State<App>,
    Caller(login): Caller,
    Path(username): Path<String>,
    params: Params,
    Body(wanted): Body<Activation>,
) -> Result<Response, ApiError> {
    let active = match wanted.action.as_str() {
        "activate" => true,
        "deactivate" => false,
        other => return Err(AppError::bad(format!("Invalid action: {other}, valid are activate, deactivate")).into()),
    };
    let user = app.users().set_active(&login, &username, active).await?;
    answer::one(StatusCode::OK, &UserView::from(user), &params)
}

async fn unlock(
    State(app): State<App>,
    Caller(login): Caller,
    Path(username): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let user = app.users().unlock(&login, &username).await?;
    answer::one(StatusCode::OK, &UserView::from(user), &params)
}

async fn remove(
    State(app): State<App>,
    Caller(login): Caller,
    Path(username): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.users().delete(&login, &username).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn role(name: &str) -> Result<SystemRole, AppError> {
    name.parse().map_err(|_| AppError::bad(format!("Invalid role: `{name}`. Valid system roles: sys_admin, default")))
}
