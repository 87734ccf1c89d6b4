//! Answers and refusals as Consul words them: clients compare status codes and the beginnings of texts.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use quorate_consensus::{Machine, ProposeError};
use serde::Serialize;

use super::Api;
use super::request::{Blocking, Consistency, Query};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Malformed(String),
    #[error("Permission denied")]
    Denied,
    /// The path, or nothing under the key. Consul sends no text.
    #[error("")]
    Unknown,
    #[error("method {method} not allowed")]
    Method { method: Method, allow: &'static str },
    #[error("Request body took too long")]
    Slow,
    #[error("Request body too large, max size: {max} bytes")]
    TooLarge { max: usize },
    #[error("Too many blocking queries")]
    Busy,
    /// Clients try again only after a 500, so it must not be a 503.
    #[error("No cluster leader")]
    NoLeader,
    #[error("No path to datacenter")]
    NoPath,
    /// Clients look for this beginning.
    #[error("invalid session \"{0}\"")]
    NoSession(String),
    #[error("{0}")]
    Failed(String),
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoLeader => Self::NoLeader,
            ProposeError::Unknown(_) | ProposeError::Refused(_) => Self::Failed(error.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unknown => return StatusCode::NOT_FOUND.into_response(),
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::NoLeader | Self::NoPath | Self::NoSession(_) | Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = text(self.to_string());
        *response.status_mut() = status;
        if let Self::Method { allow, .. } = self {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// Plain text; a browser must not take what a client sent us for a page.
pub fn text(text: impl Into<String>) -> Response {
    let headers = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")];
    (headers, text.into()).into_response()
}

/// JSON, indented if the request says `?pretty`.
pub fn json(query: &Query, value: &impl Serialize) -> Result<Response, Refusal> {
    let text = if query.has("pretty") {
        serde_json::to_string_pretty(value).map(|text| text + "\n")
    } else {
        serde_json::to_string(value)
    };
    let text = text.map_err(|error| Refusal::Failed(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// A read that Raft may have to confirm and that may wait.
pub struct Read {
    consistency: Consistency,
    blocking: Option<Blocking>,
}

impl Read {
    /// Reads the flags, and confirms what is applied here unless a stale answer will do.
    pub async fn begin(api: &Api, query: &Query) -> Result<Self, Refusal> {
        let (consistency, blocking) = (query.consistency()?, query.blocking()?);
        let confirm = match consistency {
            Consistency::Default | Consistency::Consistent => true,
            Consistency::Stale(bound) => bound.is_some_and(|bound| api.consensus.leader_silent_for() > bound),
        };
        if confirm {
            api.consensus.read_barrier().await?;
        }
        Ok(Self { consistency, blocking })
    }

    /// The index and the longest wait, if it shall wait.
    pub fn blocking(&self) -> Option<Blocking> {
        self.blocking
    }

    /// Waits until what `changed` looks at has changed in the key-value store. Returns whether it may have waited.
    pub async fn wait_for_kv(&self, api: &Api, changed: impl Fn(&Machine) -> u64) -> Result<bool, Refusal> {
        let Some(Blocking { index, wait }) = self.blocking else {
            return Ok(false);
        };
        let _place = api.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        let deadline = tokio::time::Instant::now() + wait;
        let mut table = api.consensus.kv_index();
        // An index that was never reached comes from another cluster: no use in waiting for it.
        if index > (*table.borrow_and_update()).max(1) {
            return Ok(false);
        }
        while api.consensus.read(&changed).max(1) <= index {
            match tokio::time::timeout_at(deadline, table.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok(true)
    }

    /// Adds the headers that every such read carries, its 404 too.
    pub fn finish(&self, api: &Api, index: u64, mut response: Response) -> Response {
        let leads = api.consensus.leadership().borrow().is_self;
        let known = api.consensus.known_leader().is_some();
        let silent = if leads && known { Duration::ZERO } else { api.consensus.leader_silent_for() };
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: HeaderValue| {
            headers.insert(HeaderName::from_static(name), value);
        };
        set("x-consul-index", HeaderValue::from(index.max(1)));
        set("x-consul-knownleader", HeaderValue::from_static(if known { "true" } else { "false" }));
        let millis = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        set("x-consul-lastcontact", HeaderValue::from(millis));
        set("x-consul-effective-consistency", HeaderValue::from_static(self.consistency.word()));
        response
    }
}
