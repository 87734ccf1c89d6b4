//! The Consul-shaped router over loopback, on a real consensus of one node.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use quorate_api::consul::{Access, CheckInfo, CheckStatus, ConsulApi, NodeInfo, ServiceInfo, Services, Tokens, router};
use quorate_consensus::{Consensus, Dial, Settings};
use quorate_types::{Member, NodeId};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

struct Nobody;

impl Dial for Nobody {
    fn channel(&self, _: NodeId, _: IpAddr) -> Channel {
        Endpoint::from_static("http://127.34.0.9:1").connect_lazy()
    }
}

struct Fixed {
    services: Mutex<Vec<ServiceInfo>>,
    alive: AtomicBool,
}

impl Services for Fixed {
    fn services(&self) -> Vec<ServiceInfo> {
        self.services.lock().unwrap().clone()
    }

    fn alive(&self, _: NodeId) -> bool {
        self.alive.load(Ordering::SeqCst)
    }
}

/// `writer` may do everything, no token may look at the status, `reader` may read below `open/`.
struct Named;

impl Tokens for Named {
    fn allowed<'a>(&'a self, token: Option<&'a str>, access: Access<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            match (token, access) {
                (Some("writer"), _) | (_, Access::StatusRead) => true,
                (Some("reader"), Access::KeyRead(key)) => key.starts_with("open/"),
                _ => false,
            }
        })
    }
}

struct Served {
    consensus: Consensus,
    services: Arc<Fixed>,
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    server: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn index(&self) -> u64 {
        self.header("x-consul-index").parse().unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

fn own_address() -> IpAddr {
    IpAddr::from([127, 34, 0, 1])
}

impl Served {
    async fn founded() -> Self {
        let served = Self::unfounded().await;
        let first = Member {
            id: NodeId(1),
            name: "node1".into(),
            address: own_address(),
            public_key_sha256: String::new(),
            voter: true,
        };
        served.consensus.found("c".into(), first).await.unwrap();
        served
    }

    async fn unfounded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            node: NodeId(1),
            directory: directory.path().to_owned(),
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
        };
        let consensus = Consensus::open(settings, Arc::new(Nobody)).await.unwrap();
        let services =
            Arc::new(Fixed { services: Mutex::new(vec![postgres(CheckStatus::Passing)]), alive: true.into() });
        let node = NodeInfo {
            name: "node1".into(),
            datacenter: "dc1".into(),
            version: "0.1.0".into(),
            raft_port: 8300,
            gossip_port: 8301,
        };
        let router = router(ConsulApi {
            consensus: consensus.clone(),
            node,
            services: services.clone(),
            tokens: Arc::new(Named),
        });
        let listener = tokio::net::TcpListener::bind((own_address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { consensus, services, address, client, server, _directory: directory }
    }

    async fn end(self) {
        self.server.abort();
        self.consensus.shutdown().await;
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("x-consul-token", token)
            .body(Full::new(body.into()))
            .unwrap();
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        assert_eq!(parts.headers["x-consul-default-acl-policy"], "deny");
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "writer", "").await
    }

    async fn put(&self, path: &str, value: &str) -> Value {
        let answer = self.send(Method::PUT, path, "writer", value.to_owned()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    async fn delete(&self, path: &str) -> Value {
        let answer = self.send(Method::DELETE, path, "writer", "").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    /// Starts a blocking query, does something, and hands back the query's answer and how long it took from there.
    async fn while_waiting(&self, path: &str, act: impl AsyncFnOnce()) -> (Answer, Duration) {
        let act = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            act().await;
            Instant::now()
        };
        let asked = async { (self.get(path).await, Instant::now()) };
        let ((answer, answered), acted) = tokio::join!(asked, act);
        (answer, answered.saturating_duration_since(acted))
    }
}

fn postgres(status: CheckStatus) -> ServiceInfo {
    let check = CheckInfo { id: "pg".into(), name: "PostgreSQL".into(), status, output: String::new() };
    ServiceInfo {
        node: NodeId(1),
        id: "postgres".into(),
        name: "postgres".into(),
        tags: vec!["primary".into()],
        address: None,
        port: 5432,
        meta: [("epoch".to_owned(), "1".to_owned())].into(),
        checks: vec![check],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_written_compared_and_removed() {
    let served = Served::founded().await;
    let missing = served.get("/v1/kv/a/b").await;
    assert_eq!((missing.status, missing.text()), (StatusCode::NOT_FOUND, ""));
    assert!(missing.index() >= 1);
    assert_eq!(missing.header("x-consul-knownleader"), "true");
    assert_eq!(missing.header("x-consul-lastcontact"), "0");
    assert_eq!(missing.header("x-consul-effective-consistency"), "leader");

    assert_eq!(served.put("/v1/kv/a/b?cas=0&flags=18446744073709551615", "1").await, true);
    assert_eq!(served.put("/v1/kv/a/b?cas=0", "2").await, false);
    let found = served.get("/v1/kv/a%2Fb?consistent").await;
    assert_eq!(found.header("x-consul-effective-consistency"), "consistent");
    let index = found.index();
    let expected = json!([{"LockIndex": 0, "Key": "a/b", "Flags": u64::MAX, "Value": "MQ==",
        "CreateIndex": index, "ModifyIndex": index}]);
    assert_eq!(found.json(), expected);
    assert_eq!(served.put("/v1/kv/a/b?flags=18446744073709551615", "1").await, true);
    assert_eq!(served.get("/v1/kv/a/b").await.index(), index, "the same again is no change");
    assert_eq!(served.put(&format!("/v1/kv/a/b?cas={index}"), "").await, true);
    assert_eq!(served.get("/v1/kv/a/b").await.json()[0]["Value"], Value::Null);
    assert_eq!(served.delete(&format!("/v1/kv/a/b?cas={index}")).await, false);
    assert_eq!(served.delete("/v1/kv/a/b?cas=0").await, false);

    served.put("/v1/kv/a/c", "<script>").await;
    let raw = served.get("/v1/kv/a/c?raw").await;
    assert_eq!((raw.text(), raw.header("content-type")), ("<script>", "text/plain"));
    assert_eq!(raw.header("content-security-policy"), "sandbox");
    let pretty = served.get("/v1/kv/a/?keys&pretty").await;
    assert_eq!(pretty.text(), "[\n  \"a/b\",\n  \"a/c\"\n]\n");
    assert_eq!(served.get("/v1/kv/a?keys&separator=/").await.json(), json!(["a/"]));
    assert_eq!(served.get("/v1/kv/?recurse=").await.json().as_array().unwrap().len(), 2);
    assert_eq!(served.delete("/v1/kv/?recurse").await, true);
    assert_eq!(served.get("/v1/kv/?recurse").await.status, StatusCode::NOT_FOUND);
    let none = served.get("/v1/kv/?keys").await;
    assert_eq!((none.status, none.json()), (StatusCode::OK, json!([])));
    assert_eq!(served.delete("/v1/kv/a/b?cas=5").await, true);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_query_ends_with_the_change_or_the_wait() {
    let served = Served::founded().await;
    served.put("/v1/kv/w/a", "1").await;
    let index = served.get("/v1/kv/w/a").await.index();
    let soon = Duration::from_secs(10);

    let path = format!("/v1/kv/w/a?index={index}&wait=60s");
    let (answer, after) = served.while_waiting(&path, async || drop(served.delete("/v1/kv/w/a").await)).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.index() > index && after < soon);

    let path = format!("/v1/kv/w/a?index={}&wait=60s", answer.index());
    let (answer, after) = served.while_waiting(&path, async || drop(served.put("/v1/kv/w/a", "2").await)).await;
    assert_eq!(answer.json()[0]["Value"], "Mg==");
    assert!(after < soon);

    let path = format!("/v1/kv/w/?recurse&index={}&wait=500ms", answer.index());
    let begun = Instant::now();
    let (same, _) = served.while_waiting(&path, async || drop(served.put("/v1/kv/other", "1").await)).await;
    assert!(begun.elapsed() >= Duration::from_millis(500), "a change elsewhere wakes nobody");
    assert_eq!((same.status, same.index()), (StatusCode::OK, answer.index()));

    let begun = Instant::now();
    served.get("/v1/kv/w/a?index=1000000&wait=60s").await;
    assert!(begun.elapsed() < soon, "an index that was never reached is not waited for");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_consuls() {
    let served = Served::founded().await;
    let cases = [
        (Method::GET, "/v1/session/list", "", StatusCode::NOT_FOUND, ""),
        (Method::GET, "/", "", StatusCode::OK, "Consul Agent"),
        (Method::POST, "/v1/kv/a", "writer", StatusCode::METHOD_NOT_ALLOWED, "method POST not allowed"),
        (Method::OPTIONS, "/v1/kv/a", "", StatusCode::OK, ""),
        (Method::GET, "/v1/kv/a", "", StatusCode::FORBIDDEN, "Permission denied"),
        (Method::PUT, "/v1/kv/open/a", "reader", StatusCode::FORBIDDEN, "Permission denied"),
        (Method::GET, "/v1/kv/open/a", "reader", StatusCode::NOT_FOUND, ""),
        (Method::GET, "/v1/kv/?recurse", "reader", StatusCode::FORBIDDEN, "Permission denied"),
        (Method::GET, "/v1/kv/a?dc=dc2", "writer", StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter"),
        (Method::GET, "/v1/kv/a?index=x", "writer", StatusCode::BAD_REQUEST, "Invalid index"),
        (Method::GET, "/v1/kv/a?index=1&wait=5", "writer", StatusCode::BAD_REQUEST, "Invalid wait time"),
        (Method::GET, "/v1/kv/", "writer", StatusCode::BAD_REQUEST, "Missing key name"),
        (Method::PUT, "/v1/kv/", "writer", StatusCode::BAD_REQUEST, "Missing key name"),
        (Method::PUT, "/v1/kv/a?cas=", "writer", StatusCode::BAD_REQUEST, "Invalid cas"),
        (Method::PUT, "/v1/kv/a?cas=1&acquire=s", "writer", StatusCode::BAD_REQUEST, "Conflicting flags: cas, acquire"),
        (
            Method::DELETE,
            "/v1/kv/a?cas=1&recurse",
            "writer",
            StatusCode::BAD_REQUEST,
            "Conflicting flags: recurse, cas",
        ),
        (Method::PUT, "/v1/kv/a?acquire=s", "writer", StatusCode::INTERNAL_SERVER_ERROR, "invalid session \"s\""),
        (Method::PUT, "/v1/kv/a?release=s", "writer", StatusCode::OK, "false"),
        (Method::GET, "/v1/health/service/", "writer", StatusCode::BAD_REQUEST, "Missing service name"),
        (Method::GET, "/v1/health/service/x", "reader", StatusCode::FORBIDDEN, "Permission denied"),
        (Method::GET, "/v1/health/service/x", "writer", StatusCode::OK, "[]"),
        (Method::GET, "/v1/agent/self", "", StatusCode::FORBIDDEN, "Permission denied"),
    ];
    for (method, path, token, status, text) in cases {
        let answer = served.send(method.clone(), path, token, "").await;
        assert_eq!((answer.status, answer.text()), (status, text), "{method} {path}");
        if matches!(method, Method::POST | Method::OPTIONS) {
            assert_eq!(answer.header("allow"), "OPTIONS,GET,PUT,DELETE");
        }
    }
    for (path, words) in [
        ("/v1/kv/a?stale&consistent", "Cannot specify"),
        ("/v1/kv/a%0ab", "Invalid key name"),
        ("/v1/health/service/x?filter=a==b", "Failed to create filter"),
        ("/v1/health/service/x?passing=maybe", "Invalid value for ?passing"),
        ("/v1/kv/a?ns=team", "Invalid query parameter"),
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.text().starts_with(words), "{path}: {}", answer.text());
    }
    let limit = 512 << 10;
    for (bytes, status) in [(limit, StatusCode::OK), (limit + 1, StatusCode::PAYLOAD_TOO_LARGE)] {
        let answer = served.send(Method::PUT, "/v1/kv/large", "writer", vec![7; bytes]).await;
        assert_eq!(answer.status, status);
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_services_are_told_with_their_health() {
    let served = Served::founded().await;
    assert_eq!(served.get("/v1/status/leader").await.json(), "127.34.0.1:8300");
    assert_eq!(served.get("/v1/status/peers").await.json(), json!(["127.34.0.1:8300"]));
    let this = served.get("/v1/agent/self").await.json();
    assert_eq!(this["Config"]["Datacenter"], "dc1");
    assert_eq!((&this["Member"]["Addr"], &this["Member"]["Port"]), (&json!("127.34.0.1"), &json!(8301)));
    assert_eq!(served.get("/v1/agent/members").await.json()[0]["Status"], 1);
    let names = json!({"consul": [], "postgres": ["primary"]});
    assert_eq!(served.get("/v1/catalog/services?stale").await.json(), names);

    let found = served.get("/v1/health/service/postgres?passing&tag=primary").await;
    let index = found.index();
    let [instance] = found.json().as_array().unwrap().clone().try_into().unwrap();
    assert_eq!((&instance["Service"]["Meta"]["epoch"], &instance["Service"]["Address"]), (&json!("1"), &json!("")));
    assert_eq!(instance["Checks"][1]["ServiceID"], "postgres");
    assert_eq!(served.get("/v1/health/service/postgres?tag=primary&tag=x").await.json(), json!([]));

    let path = format!("/v1/health/service/postgres?index={index}&wait=60s");
    let fail = async || *served.services.services.lock().unwrap() = vec![postgres(CheckStatus::Critical)];
    let (answer, after) = served.while_waiting(&path, fail).await;
    assert!(answer.index() > index && after < Duration::from_secs(10));
    assert_eq!(answer.json()[0]["Checks"][1]["Status"], "critical");
    assert_eq!(served.get("/v1/health/service/postgres?passing=1").await.json(), json!([]));
    assert_eq!(served.get("/v1/health/service/postgres?passing=false").await.json().as_array().unwrap().len(), 1);

    let path = format!("/v1/health/service/postgres?index={}&wait=60s", answer.index());
    let (gone, _) = served.while_waiting(&path, async || served.services.services.lock().unwrap().clear()).await;
    assert_eq!(gone.json(), json!([]));
    assert!(gone.index() > answer.index());
    assert_eq!(served.get("/v1/catalog/services").await.json(), json!({"consul": []}));

    served.services.alive.store(false, Ordering::SeqCst);
    assert_eq!(served.get("/v1/agent/members").await.json()[0]["Status"], 4);
    assert_eq!(served.get("/v1/health/service/consul?passing").await.json(), json!([]));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_only_stale_reads_are_answered() {
    let served = Served::unfounded().await;
    assert_eq!(served.get("/v1/status/leader").await.json(), "");
    assert_eq!(served.get("/v1/status/peers").await.json(), json!([]));
    let stale = served.get("/v1/kv/a?stale").await;
    assert_eq!((stale.status, stale.header("x-consul-knownleader")), (StatusCode::NOT_FOUND, "false"));
    assert_eq!((stale.header("x-consul-effective-consistency"), stale.index()), ("stale", 1));
    let (read, write, bounded) = tokio::join!(
        served.get("/v1/kv/a"),
        served.send(Method::PUT, "/v1/kv/a", "writer", "1"),
        served.get("/v1/health/service/x?max_stale=0s"),
    );
    for answer in [read, write, bounded] {
        assert_eq!((answer.status, answer.text()), (StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader"));
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn py_consul_finds_what_it_knows() {
    let Some(venv) = std::env::var_os("QUORATE_VENV") else {
        eprintln!("skipped: QUORATE_VENV does not say where py-consul is (make clients)");
        return;
    };
    let served = Served::founded().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/py_consul.py");
    let run = tokio::process::Command::new(Path::new(&venv).join("bin/python"))
        .arg(script)
        .args([served.address.ip().to_string(), served.address.port().to_string()])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    served.end().await;
}
