//! A caller.

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use quorate_app::App;
use quorate_app::testing::ADMIN_PASSWORD;
use serde_json::Value;
use tower::ServiceExt;

/// Somebody in a tenant.
pub struct Client {
    pub app: App,
    pub username: String,
    pub password: String,
    pub tenant: String,
}

impl Client {
    /// The first administrator in the default tenant.
    pub fn admin(app: &App) -> Self {
        Self::new(app, "admin", ADMIN_PASSWORD, "default_tenant")
    }

    pub fn new(app: &App, username: &str, password: &str, tenant: &str) -> Self {
        Self { app: app.clone(), username: username.into(), password: password.into(), tenant: tenant.into() }
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call("GET", path, Value::Null).await
    }

    /// `path` is below `/api/v3.1` unless it begins with `/api`. Null sends no body; an answer without JSON is null.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let prefix = if path.starts_with("/api") { "" } else { "/api/v3.1" };
        let login = STANDARD.encode(format!("{}:{}", self.username, self.password));
        let request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header("authorization", format!("Basic {login}"))
            .header("tenant", &self.tenant)
            .header("content-type", "application/json")
            .body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) })
            .unwrap();
        let response = quorate_api::rest::router(self.app.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}
