//! The commands' side of the operator's socket.

use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use quorate_config::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::socket_path;

/// The longest that a command waits for the daemon; a switchover is the slowest call.
const DEADLINE: Duration = Duration::from_secs(60);

/// Calls the local daemon.
pub async fn call<B: Serialize, R: DeserializeOwned>(
    config: &Config,
    method: &str,
    path: &str,
    body: Option<&B>,
) -> anyhow::Result<R> {
    tokio::time::timeout(DEADLINE, exchange(config, method, path, body))
        .await
        .map_err(|_| anyhow!("the daemon did not answer within {} s", DEADLINE.as_secs()))?
}

async fn exchange<B: Serialize, R: DeserializeOwned>(
    config: &Config,
    method: &str,
    path: &str,
    body: Option<&B>,
) -> anyhow::Result<R> {
    let socket = socket_path(config);
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!("reach the daemon at {} (does `quorate run` run on this node, and are you root?)", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let text = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "quorate")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(text)))?;
    let response = sender.send_request(request).await.context("send the request to the daemon")?;
    let status = response.status();
    let bytes = response.into_body().collect().await.context("read the daemon's answer")?.to_bytes();
    driver.abort();
    if !status.is_success() {
        return Err(anyhow!("{}", String::from_utf8_lossy(&bytes).trim()));
    }
    serde_json::from_slice(&bytes).context("understand the daemon's answer")
}
