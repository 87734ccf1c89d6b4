use axum::routing::{get, post};

use super::*;
use crate::pki::tls::Tls;

const HOLD: Duration = Duration::from_millis(300);

fn edge(first: Serving) -> (watch::Sender<Serving>, Edge) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let toml = format!("name = \"a\"\ndata_dir = {:?}\n[address]\nnode = \"127.0.0.1\"\n", dir.path());
    let config = quorate_config::Config::parse(&toml, std::path::Path::new("node.toml")).unwrap();
    crate::commands::cluster::init::init(&config, None).unwrap();
    let identity = crate::pki::Identity::load(dir.path()).unwrap();
    let tls = Tls::new(&identity).unwrap();
    let (sender, receiver) = watch::channel(first);
    let forwarder = Forwarder::new(&tls.cluster_client, identity.node);
    (sender, Edge::new(receiver, forwarder, HOLD, 1))
}

fn here() -> (Serving, CancellationToken) {
    let router = Router::new()
        .route("/fast", get(|| async { "done" }))
        .route("/echo", post(|body: String| async move { body }))
        .route("/slow", post(std::future::pending::<String>));
    let reign = CancellationToken::new();
    (Serving::Here(router, reign.clone()), reign)
}

fn request(method: Method, path: &str, body: &'static str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_waits_for_an_active_node_with_its_body() {
    let (sender, edge) = edge(Serving::Nobody);
    let waiting = tokio::spawn(edge.handle(request(Method::POST, "/echo", "kept")));
    tokio::time::sleep(HOLD / 5).await;
    sender.send(here().0).unwrap();
    let response = waiting.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(response).await, "kept");
}

#[tokio::test]
async fn the_wait_is_bounded_in_time_and_number() {
    let (_sender, edge) = edge(Serving::Nobody);
    let first = tokio::spawn(edge.clone().handle(request(Method::GET, "/fast", "")));
    tokio::time::sleep(HOLD / 5).await;
    let second = edge.handle(request(Method::GET, "/fast", "")).await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(second).await.contains("too many"));
    let first = first.await.unwrap();
    assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(first.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn a_write_cut_off_by_the_end_of_the_reign_has_an_unknown_outcome() {
    let (serving, reign) = here();
    let (_sender, edge) = edge(serving);
    let running = tokio::spawn(edge.clone().handle(request(Method::POST, "/slow", "")));
    let mut in_flight = edge.in_flight.subscribe();
    tokio::time::timeout(HOLD, in_flight.wait_for(|running| *running == 1)).await.unwrap().unwrap();
    assert!(!edge.drained(HOLD / 5).await, "the request must still run");
    reign.cancel();
    let response = running.await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(text(response).await.contains("outcome_unknown_error"));
    assert!(edge.drained(HOLD).await);
}

#[tokio::test]
async fn a_passed_on_request_is_never_passed_on_again() {
    let (_sender, edge) = edge(Serving::There(NodeId(2), "127.0.0.1:9".parse().unwrap()));
    let mut passed_on = request(Method::GET, "/fast", "");
    passed_on.headers_mut().insert(PASSED_ON, HeaderValue::from_static("n3"));
    let response = edge.handle(passed_on).await;
    assert!(response.headers().contains_key(NOT_ACTIVE));
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_asked_again_until_another_is_active() {
    let (sender, edge) = edge(Serving::There(NodeId(2), "127.0.0.1:9".parse().unwrap()));
    let waiting = tokio::spawn(edge.handle(request(Method::POST, "/echo", "kept")));
    tokio::time::sleep(HOLD / 5).await;
    sender.send(here().0).unwrap();
    assert_eq!(text(waiting.await.unwrap()).await, "kept");
}
