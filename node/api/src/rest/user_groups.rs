//! `/user-groups`: users belong to tenants directly, so there are none.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use quorate_app::{App, Permission};

use super::answer::{self, view};
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;

view! {
    /// A group of users.
    UserGroupView {
        name: String,
        ldap_dn: Option<String>,
        role: String,
        users: i64,
        tenants: i64,
    }
}

pub fn routes() -> Router<App> {
    Router::new().route("/user-groups", get(list))
}

async fn list(Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    login.require(Permission::UserGroupList)?;
    answer::list_of::<UserGroupView>(vec![], &params)
}
