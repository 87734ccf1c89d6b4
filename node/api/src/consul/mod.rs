//! The Consul-shaped API: the part of Consul's HTTP interface that its unmodified clients need from us.
//!
//! Status, members, key-value store, health and catalog. Deliberately absent: sessions and everything that hangs on
//! them (locks), writes to the catalog, transactions, filter expressions, and TLS, which is the caller's. A path that
//! is not served is answered as Consul answers an unknown one.
//!
//! *Invariants*: a read that is not `?stale` sees every write that was acknowledged before it; an index never falls
//! while the process runs; no token is logged or sent back.

mod agent;
mod catalog;
mod health;
mod kv;
mod reply;
mod request;
mod services;
mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use http::{HeaderValue, Method};
use quorate_consensus::Consensus;
use quorate_types::NodeId;
use tokio::sync::Semaphore;

use reply::Refusal;
use request::Query;
use services::Watched;

/// Blocking queries that may wait at once.
pub const WAITING_MAX: usize = 1024;

/// What the API stands on.
pub struct ConsulApi {
    /// Agreement and the key-value store.
    pub consensus: Consensus,
    /// Who answers.
    pub node: NodeInfo,
    /// What runs where.
    pub services: Arc<dyn Services>,
    /// Who may do what.
    pub tokens: Arc<dyn Tokens>,
}

/// The node that answers, as `agent/self` shows it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// Its host name.
    pub name: String,
    /// The one datacenter that exists; `?dc=` must name it.
    pub datacenter: String,
    /// The program's version.
    pub version: String,
    /// Where status and members say that Raft listens.
    pub raft_port: u16,
    /// Where members say that gossip listens.
    pub gossip_port: u16,
}

/// What the node knows about services. Asked at every request and four times a second for each waiting one: keep both
/// methods cheap and free of I/O.
pub trait Services: Send + Sync + 'static {
    /// Every instance of every service, on all nodes, in a stable order. The servers' own service `consul` is added.
    fn services(&self) -> Vec<ServiceInfo>;
    /// Whether gossip believes that the node lives.
    fn alive(&self, node: NodeId) -> bool;
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Where it runs. An instance on a node that is no member is not shown.
    pub node: NodeId,
    /// Unique on its node.
    pub id: String,
    /// What it is asked for by.
    pub name: String,
    /// Its roles, such as `primary`.
    pub tags: Vec<String>,
    /// Its own address. `None`: the node's.
    pub address: Option<IpAddr>,
    /// Where it listens; 0: nowhere.
    pub port: u16,
    /// Free text by key.
    pub meta: BTreeMap<String, String>,
    /// Besides the node's own check, which is added.
    pub checks: Vec<CheckInfo>,
}

/// One check of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckInfo {
    /// Unique on its node.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it found.
    pub status: CheckStatus,
    /// One line about it. Clients that wait are woken when it changes, so it holds no clock or counter.
    pub output: String,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStatus {
    /// It works.
    Passing,
    /// It works, but somebody should look.
    Warning,
    /// It does not work.
    Critical,
}

impl CheckStatus {
    /// Consul's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Who may do what.
pub trait Tokens: Send + Sync + 'static {
    /// Whether the bearer of the token may; `None`: the request has none. A blocking query asks again after its wait.
    fn allowed<'a>(&'a self, token: Option<&'a str>, access: Access<'a>) -> BoxFuture<'a, bool>;
}

/// What a request is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// Read this key, or every key with this prefix.
    KeyRead(&'a str),
    /// Write or remove this key, or every key with this prefix.
    KeyWrite(&'a str),
    /// Read members, services and their health.
    NodeRead,
    /// Read who leads and who votes.
    StatusRead,
}

/// The state behind every request.
struct Api {
    consensus: Consensus,
    node: NodeInfo,
    watched: Watched,
    tokens: Arc<dyn Tokens>,
    waiting: Semaphore,
}

impl Api {
    async fn allow(&self, query: &Query, access: Access<'_>) -> Result<(), Refusal> {
        if self.tokens.allowed(query.token(), access).await { Ok(()) } else { Err(Refusal::Denied) }
    }
}

/// The whole port 8500, to be served over TLS by the caller.
pub fn router(api: ConsulApi) -> Router {
    let ConsulApi { consensus, node, services, tokens } = api;
    let watched = Watched::new(consensus.clone(), services, node.raft_port);
    let api = Api { consensus, node, watched, tokens, waiting: Semaphore::new(WAITING_MAX) };
    Router::new().fallback(answer).with_state(Arc::new(api))
}

/// What a path names.
enum Resource<'a> {
    Root,
    Leader,
    Peers,
    AgentSelf,
    AgentMembers,
    CatalogServices,
    /// The name as it stands in the path.
    Health(&'a str),
    /// The key as it stands in the path.
    Key(&'a str),
}

impl<'a> Resource<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if path == "/" {
            return Some(Self::Root);
        }
        let path = path.strip_prefix("/v1/")?;
        if let Some(key) = path.strip_prefix("kv/") {
            return Some(Self::Key(key));
        }
        if let Some(name) = path.strip_prefix("health/service/") {
            return Some(Self::Health(name));
        }
        match path {
            "kv" => Some(Self::Key("")),
            "status/leader" => Some(Self::Leader),
            "status/peers" => Some(Self::Peers),
            "agent/self" => Some(Self::AgentSelf),
            "agent/members" => Some(Self::AgentMembers),
            "catalog/services" => Some(Self::CatalogServices),
            _ => None,
        }
    }

    /// The verbs that it takes, as `Allow` lists them.
    fn allow(&self) -> &'static str {
        match self {
            Self::Key(_) => "OPTIONS,GET,PUT,DELETE",
            _ => "OPTIONS,GET",
        }
    }
}

async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response {
    let mut response = serve(&api, request).await.unwrap_or_else(IntoResponse::into_response);
    response.headers_mut().insert("x-consul-default-acl-policy", HeaderValue::from_static("deny"));
    response
}

async fn serve(api: &Api, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let resource = Resource::of(parts.uri.path()).ok_or(Refusal::Unknown)?;
    let allow = resource.allow();
    if parts.method == Method::OPTIONS {
        return Ok(([("allow", allow)], ()).into_response());
    }
    if !allow.split(',').any(|verb| verb == parts.method.as_str()) {
        return Err(Refusal::Method { method: parts.method, allow });
    }
    let query = Query::read(&parts)?;
    query.check_place(&api.node.datacenter)?;
    match resource {
        Resource::Root => Ok(reply::text("Consul Agent")),
        Resource::Leader => status::leader(api, &query).await,
        Resource::Peers => status::peers(api, &query).await,
        Resource::AgentSelf => agent::this(api, &query).await,
        Resource::AgentMembers => agent::members(api, &query).await,
        Resource::CatalogServices => catalog::services(api, &query).await,
        Resource::Health(name) => health::service(api, &query, &request::decode(name)?).await,
        Resource::Key(key) => {
            let key = request::key(key)?;
            match parts.method {
                Method::PUT => kv::put(api, &query, key, body).await,
                Method::DELETE => kv::delete(api, &query, key).await,
                _ => kv::get(api, &query, &key).await,
            }
        }
    }
}
