//! The managers' REST service: a call is tried on every host in turn and repeated while none answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use crate::settings::{ANSWER_BYTES_MAX, RESOURCE_BYTES_MAX, RestTarget};
use crate::wire::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A manager that sends nothing for so long is taken for dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long an answer of 500 or 403 is doubted: a manager in the middle of a failover may give either.
const DOUBT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RestBuildError {
    #[error("the certificate authorities of the REST service are not PEM")]
    Authorities(#[source] rustls_pki_types::pem::Error),
    #[error("the certificate authorities of the REST service are unusable")]
    Tls(#[source] rustls::Error),
    #[error("no REST host is given")]
    NoHost,
    #[error("{0} is not a host name")]
    Host(String),
    #[error("build the REST client")]
    Client(#[source] reqwest::Error),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RestError {
    #[error("no manager answered {method} {path} for {patience:?}")]
    Unanswered {
        method: Method,
        path: String,
        patience: Duration,
        #[source]
        source: Option<reqwest::Error>,
    },
    #[error("{status} for {method} {path}: {message}")]
    Refused { method: Method, path: String, status: StatusCode, message: String },
    #[error("the answer to {method} {path} is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { method: Method, path: String },
    #[error("the answer to {method} {path} is not JSON")]
    NotJson {
        method: Method,
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the path {0} leads out of its directory")]
    Path(String),
    #[error("store a download in {path}")]
    Store {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the download {0} is larger than {RESOURCE_BYTES_MAX} bytes")]
    Download(String),
}

impl RestError {
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// As the operation's failure: what another try may mend is recoverable.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Refused { path, status, message, .. }
                if status.is_client_error() && *status != StatusCode::CONFLICT =>
            {
                Failure::http(path.clone(), status.as_u16(), message.clone())
            }
            Self::TooLarge { .. } | Self::Path(_) | Self::Download(_) => Failure::fatal(self.to_string()),
            _ => Failure::recoverable("CloudifyClientError", self.to_string()),
        }
    }
}

/// Who calls. No `Debug`: it holds the execution's token.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) token: String,
    pub(crate) tenant: String,
    pub(crate) bypass_maintenance: bool,
}

impl Caller {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(mut token) = HeaderValue::from_str(&self.token) {
            token.set_sensitive(true);
            headers.insert("Execution-Token", token);
        }
        if let Ok(tenant) = HeaderValue::from_str(&self.tenant) {
            headers.insert("Tenant", tenant);
        }
        if self.bypass_maintenance {
            headers.insert("X-BYPASS-MAINTENANCE", HeaderValue::from_static("True"));
        }
        headers
    }
}

/// One call. The path is given in segments, which are escaped here.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a [&'a str],
    pub(crate) query: &'a [(&'a str, &'a str)],
    pub(crate) body: Option<&'a Value>,
}

pub(crate) struct Rest {
    client: reqwest::Client,
    bases: Vec<Url>,
    /// The host that answered last.
    good: AtomicUsize,
    patience: Duration,
}

impl Rest {
    pub(crate) fn new(target: &RestTarget) -> Result<Self, RestBuildError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(target.ca_pem.as_bytes()) {
            roots.add(certificate.map_err(RestBuildError::Authorities)?).map_err(RestBuildError::Tls)?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(RestBuildError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .no_proxy()
            .build()
            .map_err(RestBuildError::Client)?;
        let mut bases = Vec::new();
        for host in &target.hosts {
            let name = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let base = Url::parse(&format!("https://{name}:{}", target.port))
                .map_err(|_| RestBuildError::Host(host.clone()))?;
            bases.push(base);
        }
        if bases.is_empty() {
            return Err(RestBuildError::NoHost);
        }
        Ok(Self { client, bases, good: AtomicUsize::new(0), patience: target.patience })
    }

    /// A call of the API; the answer's JSON, null for none.
    pub(crate) async fn api(&self, caller: &Caller, call: Call<'_>) -> Result<Value, RestError> {
        let mut path = vec!["api", "v3.1"];
        path.extend_from_slice(call.path);
        let (method, text) = (call.method.clone(), path.join("/"));
        let mut answer = self.send(caller, Call { path: &path, ..call }).await?;
        let mut bytes = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() > ANSWER_BYTES_MAX => {
                    return Err(RestError::TooLarge { method, path: text });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(source) => {
                    let patience = self.patience;
                    return Err(RestError::Unanswered {
                        method,
                        path: text,
                        patience,
                        source: Some(source.without_url()),
                    });
                }
            }
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|source| RestError::NotJson { method, path: text, source })
    }

    pub(crate) async fn get(&self, caller: &Caller, path: &[&str], query: &[(&str, &str)]) -> Result<Value, RestError> {
        self.api(caller, Call { method: Method::GET, path, query, body: None }).await
    }

    pub(crate) async fn patch(&self, caller: &Caller, path: &[&str], body: &Value) -> Result<Value, RestError> {
        self.api(caller, Call { method: Method::PATCH, path, query: &[], body: Some(body) }).await
    }

    pub(crate) async fn post(&self, caller: &Caller, path: &[&str], body: &Value) -> Result<Value, RestError> {
        self.api(caller, Call { method: Method::POST, path, query: &[], body: Some(body) }).await
    }

    /// Downloads `/resources/<path>` into a file, which is replaced.
    pub(crate) async fn download(&self, caller: &Caller, path: &[&str], to: &Path) -> Result<(), RestError> {
        let mut segments = vec!["resources"];
        segments.extend_from_slice(path);
        let text = segments.join("/");
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..") || segment.contains(['/', '\\', '\0'])) {
            return Err(RestError::Path(text));
        }
        let mut answer =
            self.send(caller, Call { method: Method::GET, path: &segments, query: &[], body: None }).await?;
        let store = |source| RestError::Store { path: to.display().to_string(), source };
        let mut file = tokio::fs::File::create(to).await.map_err(store)?;
        let mut left = RESOURCE_BYTES_MAX;
        loop {
            let chunk = answer.chunk().await.map_err(|source| RestError::Unanswered {
                method: Method::GET,
                path: text.clone(),
                patience: self.patience,
                source: Some(source.without_url()),
            })?;
            let Some(chunk) = chunk else { break };
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| RestError::Download(text.clone()))?;
            file.write_all(&chunk).await.map_err(store)?;
        }
        file.flush().await.map_err(store)
    }

    async fn send(&self, caller: &Caller, call: Call<'_>) -> Result<Response, RestError> {
        let path = call.path.join("/");
        if call.path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(RestError::Path(path));
        }
        let started = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let mut last = None;
            let first = self.good.load(Ordering::Relaxed);
            for turn in 0..self.bases.len() {
                let at = (first + turn) % self.bases.len();
                let mut url = self.bases[at].clone();
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.extend(call.path);
                }
                let mut request = self.client.request(call.method.clone(), url).headers(caller.headers());
                if !call.query.is_empty() {
                    request = request.query(call.query);
                }
                if let Some(body) = call.body {
                    request = request.json(body);
                }
                let answer = match request.send().await {
                    Ok(answer) => answer,
                    Err(error) => {
                        last = Some(Missed::Silent(error.without_url()));
                        continue;
                    }
                };
                let status = answer.status();
                if status.is_success() {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                let doubted = matches!(status.as_u16(), 500 | 403) && started.elapsed() < DOUBT.min(self.patience);
                let refused = refusal(&call, &path, answer).await;
                if !doubted && status.as_u16() < 501 {
                    return Err(refused);
                }
                last = Some(Missed::Refused(refused));
            }
            if started.elapsed() + pause > self.patience {
                let (method, patience) = (call.method, self.patience);
                return Err(match last {
                    Some(Missed::Refused(error)) => error,
                    Some(Missed::Silent(source)) => {
                        RestError::Unanswered { method, path, patience, source: Some(source) }
                    }
                    None => RestError::Unanswered { method, path, patience, source: None },
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

enum Missed {
    Silent(reqwest::Error),
    Refused(RestError),
}

/// The manager's own words for a refusal, cut short.
async fn refusal(call: &Call<'_>, path: &str, mut answer: Response) -> RestError {
    const WORDS_MAX: usize = 4096;
    let status = answer.status();
    let mut bytes = Vec::new();
    while bytes.len() < WORDS_MAX
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        bytes.extend_from_slice(&chunk);
    }
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|body| body.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| status.canonical_reason().unwrap_or("refused").to_owned());
    RestError::Refused { method: call.method.clone(), path: path.to_owned(), status, message }
}
