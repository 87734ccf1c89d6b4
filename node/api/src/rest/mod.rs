//! REST v3.1, as the original's clients know it; older versions of the path answer with the same resources.
//!
//! `caller`: who calls. `lists`: filters, paging, `_include`. `body`: JSON bodies. `answer`: what goes out. One file
//! per resource beside them.

pub mod answer;
mod blueprints;
pub mod body;
pub mod caller;
mod cluster;
mod config;
mod deployments;
pub mod error;
mod events;
mod executions;
mod labels;
pub mod lists;
mod nodes;
mod operations;
mod permissions;
mod system;
mod tenants;
mod times;
mod tokens;
mod user_groups;
mod users;

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use http::Method;
use quorate_app::{App, AppError, Code};
use tracing::{Instrument, debug, info_span};

use crate::files;
use error::ApiError;

/// Versions of the path that clients use.
const VERSIONS: [&str; 5] = ["v1", "v2", "v2.1", "v3", "v3.1"];
/// Bytes in a JSON body. Uploads set their own limit.
pub const JSON_BODY_BYTES_MAX: usize = 32 << 20;

/// Everything under `/api`, and the file server.
pub fn router(app: App) -> Router {
    let resources = Router::new()
        .merge(blueprints::routes())
        .merge(cluster::routes())
        .merge(config::routes())
        .merge(deployments::routes())
        .merge(events::routes())
        .merge(executions::routes())
        .merge(nodes::routes())
        .merge(operations::routes())
        .merge(permissions::routes())
        .merge(system::routes())
        .merge(tenants::routes())
        .merge(tokens::routes())
        .merge(user_groups::routes())
        .merge(users::routes());
    // The one path that clients use without a version.
    let mut router = Router::new().merge(files::routes()).route("/api/version", get(system::version));
    for version in VERSIONS {
        router = router.nest(&format!("/api/{version}"), resources.clone());
    }
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(JSON_BODY_BYTES_MAX))
        .layer(from_fn(in_span))
        .with_state(app)
}

/// Gives every request a number that its log lines share.
async fn in_span(request: Request, next: Next) -> Response {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let span = info_span!("request", number, method = %request.method(), path = request.uri().path());
    async {
        let response = next.run(request).await;
        debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError(AppError::new(Code::NotFound, format!("The path `{}` was not found", request.uri().path())))
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError(AppError::new(Code::MethodNotAllowed, format!("{method} is not possible here")))
}
