//! The REST client of the tests. It lives on a thread in the client's network.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// How long a reading call is repeated while no node answers.
const PATIENCE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How a client reaches the cluster.
#[derive(Clone)]
pub struct Access {
    /// The address that follows the active node.
    pub address: Ipv4Addr,
    /// What it trusts.
    pub ca_pem: Vec<u8>,
    /// Of the user `admin`.
    pub password: String,
}

/// A client that is logged in as `admin` in the default tenant.
#[derive(Clone)]
pub struct Rest {
    client: reqwest::Client,
    base: String,
    password: String,
}

impl Rest {
    /// `limit`: how long one call may take.
    ///
    /// # Errors
    /// When the CA file is no certificate.
    pub fn new(access: &Access, limit: Duration) -> Result<Self> {
        // The first of the threads installs it; the others find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&access.ca_pem)?])
            .timeout(limit)
            .connect_timeout(Duration::from_millis(500))
            .no_proxy()
            .build()?;
        let base = format!("https://{}/api/v3.1", access.address);
        Ok(Self { client, base, password: access.password.clone() })
    }

    /// A call that can be completed.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .basic_auth("admin", Some(&self.password))
            .header("Tenant", "default_tenant")
    }

    /// Sends a call and reads its JSON.
    ///
    /// # Errors
    /// Anything but success, with what the service said.
    pub async fn call(&self, request: RequestBuilder) -> Result<Value> {
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    /// GET; asked again while no node answers, as careful clients do.
    ///
    /// # Errors
    /// As [`Self::call`], and when nobody answers for half a minute.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.ask(path).await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    async fn ask(&self, path: &str) -> Result<reqwest::Response> {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = self.request(Method::GET, path).send().await;
            let away = match &asked {
                Ok(response) => {
                    matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
                }
                Err(_) => true,
            };
            if !away || Instant::now() > until {
                return Ok(asked?);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The bytes of a file; `None` when it is not there.
    ///
    /// # Errors
    /// Anything else than success and 404.
    pub async fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let response = self.ask(path).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(response.bytes().await?.to_vec())),
            status => bail!("{status}: {}", response.text().await?),
        }
    }

    /// Every item of a list, page by page.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn all(&self, path: &str) -> Result<Vec<Value>> {
        const PAGE: usize = 500;
        let mut items = Vec::new();
        loop {
            let sep = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{sep}_size={PAGE}&_offset={}", items.len())).await?;
            let new = page["items"].as_array().cloned().unwrap_or_default();
            let last = new.len() < PAGE;
            items.extend(new);
            if last {
                return Ok(items);
            }
        }
    }
}
