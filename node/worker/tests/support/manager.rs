//! A manager's REST service as far as a worker needs it; it remembers every call.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::certificates;

#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub token: String,
    pub tenant: String,
    pub body: Value,
}

#[derive(Default)]
pub struct World {
    pub calls: Vec<Call>,
    pub files: HashMap<String, String>,
    /// Runtime properties and version of node instances.
    pub instances: HashMap<String, (Value, i64)>,
    /// Somebody else's change, put in just before the next PATCH of an instance.
    pub meddler: Option<(String, String, Value)>,
    /// States of stored operations; the others are unknown.
    pub operations: HashMap<String, String>,
    pub execution_status: Option<String>,
    /// Answers like a manager without a database.
    pub is_away: bool,
}

#[derive(Clone)]
pub struct Manager {
    pub address: SocketAddr,
    pub ca: String,
    world: Arc<Mutex<World>>,
}

impl Manager {
    pub async fn start(address: &str) -> Self {
        let ip = address.parse().expect("an address");
        let pem = certificates(ip);
        let chain = CertificateDer::pem_slice_iter(pem.cert.as_bytes()).collect::<Result<Vec<_>, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).expect("PEM");
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((ip, 0)).await.expect("listen");
        let address = listener.local_addr().expect("an address");
        let world = Arc::new(Mutex::new(World::default()));
        let router = Router::new().fallback(answer).with_state(world.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let http = hyper::server::conn::http1::Builder::new();
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        let manager = Self { address, ca: pem.ca, world };
        manager.world().instances.insert("web_1".into(), (json!({}), 1));
        manager.world().instances.insert("db_1".into(), (json!({"port": 5432}), 1));
        manager
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn file(&self, path: &str, text: &str) {
        self.world().files.insert(path.into(), text.into());
    }

    pub fn properties(&self, instance: &str) -> Value {
        self.world().instances[instance].0.clone()
    }

    /// States of an operation as they were reported.
    pub fn states(&self, task: &str) -> Vec<String> {
        let path = format!("/api/v3.1/operations/{task}");
        let world = self.world();
        let patches = world.calls.iter().filter(|call| call.method == Method::PATCH && call.path == path);
        patches.map(|call| call.body["state"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Texts of all log lines, with their levels.
    pub fn lines(&self) -> Vec<String> {
        let world = self.world();
        let logs = world.calls.iter().filter_map(|call| call.body["logs"].as_array()).flatten();
        logs.map(|line| {
            format!("{}: {}", line["level"].as_str().unwrap_or(""), line["message"]["text"].as_str().unwrap_or(""))
        })
        .collect()
    }
}

async fn answer(State(world): State<Arc<Mutex<World>>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 16 << 20).await.unwrap_or_default();
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let call = Call {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        token: header("execution-token"),
        tenant: header("tenant"),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    world.calls.push(call.clone());
    let (status, body) = act(&mut world, &call);
    match body {
        Value::String(text) => (status, text).into_response(),
        body => (status, axum::Json(body)).into_response(),
    }
}

fn act(world: &mut World, call: &Call) -> (StatusCode, Value) {
    let missing = (StatusCode::NOT_FOUND, json!({"message": "not found", "error_code": "not_found_error"}));
    if world.is_away {
        return (StatusCode::SERVICE_UNAVAILABLE, json!({"message": "no primary yet"}));
    }
    // The original names no tenant when it downloads.
    let is_download = call.path.starts_with("/resources/");
    if call.token != "the-token" || (call.tenant != "default_tenant" && !is_download) {
        return (StatusCode::UNAUTHORIZED, json!({"message": "unauthorized"}));
    }
    if let Some(path) = call.path.strip_prefix("/resources/") {
        return world.files.get(path).map_or(missing, |text| (StatusCode::OK, Value::String(text.clone())));
    }
    let path = call.path.trim_start_matches("/api/v3.1/").to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    match (call.method.as_str(), parts.as_slice()) {
        ("GET", ["executions", id]) => {
            let status = world.execution_status.clone().unwrap_or_else(|| "started".into());
            (StatusCode::OK, json!({"id": id, "status": status}))
        }
        ("GET", ["operations", id]) => {
            world.operations.get(*id).map_or(missing, |state| (StatusCode::OK, json!({"id": id, "state": state})))
        }
        // As of an operation that was given to another worker.
        ("PATCH", ["operations", id]) if world.operations.get(*id).is_some_and(|state| state == "reassigned") => {
            (StatusCode::CONFLICT, json!({"message": "must not start", "error_code": "conflict_error"}))
        }
        ("PATCH", ["operations", id]) => {
            world.operations.insert((*id).into(), call.body["state"].as_str().unwrap_or_default().into());
            (StatusCode::OK, json!({}))
        }
        ("GET", ["node-instances", id]) => match world.instances.get(*id) {
            Some(instance) => (StatusCode::OK, view(id, instance)),
            None => missing,
        },
        ("PATCH", ["node-instances", id]) => {
            if let Some((other, key, value)) = world.meddler.take_if(|(other, ..)| other == id) {
                let stored = world.instances.get_mut(&other).expect("an instance");
                stored.0[key] = value;
                stored.1 += 1;
            }
            let Some(stored) = world.instances.get_mut(*id) else { return missing };
            if stored.1 > call.body["version"].as_i64().unwrap_or_default() {
                return (StatusCode::CONFLICT, json!({"message": "conflict", "error_code": "conflict_error"}));
            }
            *stored = (call.body["runtime_properties"].clone(), stored.1 + 1);
            (StatusCode::OK, view(id, stored))
        }
        ("GET", ["nodes"]) => {
            let node = if call.query.contains("id=db") { "db" } else { "web" };
            let item = json!({
                "id": node, "type": "cloudify.nodes.Root", "type_hierarchy": ["cloudify.nodes.Root"],
                "number_of_instances": 1, "properties": {"port": 8080, "names": ["a", "b"], "ip": "10.0.0.7"},
            });
            (
                StatusCode::OK,
                json!({"items": [item], "metadata": {"pagination": {"total": 1, "size": 1000, "offset": 0}}}),
            )
        }
        ("GET", ["blueprints", id]) => (StatusCode::OK, json!({"id": id, "visibility": "tenant"})),
        ("POST", ["evaluate", "functions"]) => {
            let mut payload = call.body["payload"].clone();
            payload["evaluated"] = json!("yes");
            (StatusCode::OK, json!({"deployment_id": "dep", "payload": payload}))
        }
        ("POST", ["events"]) => (StatusCode::CREATED, Value::Null),
        _ => missing,
    }
}

fn view(id: &str, (properties, version): &(Value, i64)) -> Value {
    json!({
        "id": id, "node_id": id.trim_end_matches("_1"), "deployment_id": "dep", "host_id": "web_1", "index": 1,
        "state": "starting", "version": version, "runtime_properties": properties, "system_properties": {},
        "relationships": [{"target_id": "db_1", "target_name": "db", "type": "cloudify.relationships.connected_to"}],
        "scaling_groups": [],
    })
}
