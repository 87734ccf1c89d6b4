//! A caller.

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, StatusCode};
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

    /// Null sends no body; an answer without JSON is null.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let answer = self.send(method, path, "application/json", body).await;
        (answer.status, answer.json())
    }

    /// Sends any body; `kind`: its content type.
    pub async fn send(&self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Answer {
        self.exchange(method, path, &[("content-type", kind)], body).await
    }

    /// Sends no body.
    pub async fn send_with(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.exchange(method, path, headers, Vec::new()).await
    }

    /// `path` is below `/api/v3.1` unless it begins with `/api` or `/resources`.
    async fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let is_whole = path.starts_with("/api") || path.starts_with("/resources");
        let prefix = if is_whole { "" } else { "/api/v3.1" };
        let login = STANDARD.encode(format!("{}:{}", self.username, self.password));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header("authorization", format!("Basic {login}"))
            .header("tenant", &self.tenant);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let response = quorate_api::rest::router(self.app.clone()).oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        Answer { status, headers, body }
    }
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body; null when it is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}
