//! The demo as a REST client of its own cluster, through the cluster address and over TLS like any other.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

/// How long one call may take; the edge holds a request for less than this.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A client that is logged in as `admin`.
pub struct Rest {
    client: reqwest::Client,
    base: String,
    password: String,
}

impl Rest {
    pub fn new(address: IpAddr, port: u16, ca_file: &Path, password: &str) -> anyhow::Result<Self> {
        let pem = std::fs::read(ca_file).with_context(|| format!("read {}", ca_file.display()))?;
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem)?])
            .timeout(CALL_LIMIT)
            .no_proxy()
            .build()?;
        let host = std::net::SocketAddr::new(address, port);
        let base = format!("https://{host}/api/v3.1");
        Ok(Self { client, base, password: password.to_owned() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .basic_auth("admin", Some(&self.password))
            .header("Tenant", "default_tenant")
    }

    /// Whether the service answers.
    pub async fn answers(&self) -> anyhow::Result<()> {
        checked(self.request(Method::GET, "/status").send().await?).await.map(drop)
    }

    /// One object; `None` when it does not exist.
    pub async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let response = self.request(Method::GET, path).send().await.with_context(|| format!("GET {path}"))?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        checked(response).await.map(Some).with_context(|| format!("GET {path}"))
    }

    /// One object that must exist.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.request(Method::GET, path).send().await.with_context(|| format!("GET {path}"))?;
        checked(response).await.with_context(|| format!("GET {path}"))
    }

    /// Sends JSON.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let response = self.request(method, path).json(body).send().await.with_context(|| what.clone())?;
        checked(response).await.context(what)
    }

    /// Uploads a blueprint's archive.
    pub async fn upload(&self, id: &str, archive: Vec<u8>) -> anyhow::Result<Value> {
        let params = serde_json::json!({
            "visibility": "tenant", "async_upload": true, "application_file_name": "blueprint.yaml",
        });
        let form = reqwest::multipart::Form::new()
            .text("params", params.to_string())
            .part("blueprint_archive", reqwest::multipart::Part::bytes(archive).file_name("sample.tar.gz"));
        let path = format!("/blueprints/{id}");
        let response = self.request(Method::PUT, &path).multipart(form).send().await.context("upload the blueprint")?;
        checked(response).await.context("upload the blueprint")
    }
}

async fn checked(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        let message =
            serde_json::from_str::<Value>(&text).ok().and_then(|body| Some(body["message"].as_str()?.to_owned()));
        bail!("{}: {}", status, message.unwrap_or(text));
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).context("understand the answer")
}
