//! Port 80: API clients are told to use TLS, browsers are sent there.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use super::error;

/// Answers everything on port 80; `https_port` is where TLS is.
pub fn redirect_router(https_port: u16) -> Router {
    Router::new().fallback(move |request: Request| async move { answer(&request, https_port) })
}

fn answer(request: &Request, https_port: u16) -> Response {
    if request.uri().path().starts_with("/api/") {
        return error(StatusCode::BAD_REQUEST, "SSL_REQUIRED", "this service speaks only HTTPS: use port 443");
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.parse::<u16>().is_ok() { name } else { host });
    if name.is_empty() {
        return error(StatusCode::BAD_REQUEST, "bad_parameters_error", "the request names no host");
    }
    let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, format!("https://{name}{port}{path}"))]).into_response()
}
