//! `/permissions`: who may do what.

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use quorate_app::{App, AppError, Permission, SystemRole, TenantRole};

use super::answer::{self, view};
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// One permission of one role.
    PermissionView {
        role: &'static str,
        permission: &'static str,
    }
}

pub fn routes() -> Router<App> {
    Router::new().route("/permissions", get(list)).route("/permissions/{role}", get(list_of_role))
}

/// The names of the roles that have a permission.
pub fn holders(permission: Permission) -> Vec<&'static str> {
    let system = SystemRole::ALL.iter().filter(|role| permission.of_system(**role)).map(|role| role.as_str());
    let tenant = TenantRole::ALL.iter().filter(|role| permission.of_tenant(**role)).map(|role| role.as_str());
    system.chain(tenant).collect()
}

async fn list(Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::ManagerConfigGet)?;
    answer::list_of(all(), &params)
}

async fn list_of_role(Caller(login): Caller, Path(role): Path<String>, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::ManagerConfigGet)?;
    if role.parse::<SystemRole>().is_err() && role.parse::<TenantRole>().is_err() {
        return Err(AppError::not_found("Role", &role).into());
    }
    answer::list_of(all().into_iter().filter(|row| row.role == role).collect(), &params)
}

fn all() -> Vec<PermissionView> {
    let of = |permission: &Permission| {
        let permission = *permission;
        holders(permission).into_iter().map(move |role| PermissionView { role, permission: permission.name() })
    };
    Permission::ALL.iter().flat_map(of).collect()
}
