//! What clients ask before they work.

use http::StatusCode;
use quorate_app::testing::app;
use serde_json::{Value, json};

use crate::support::Client;

#[tokio::test]
async fn a_cluster_of_one_looks_like_a_single_manager() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let version = admin.get("/api/version").await.1;
    assert_eq!((&version["version"], &version["edition"]), (&json!("7.0.5"), &json!("community")));
    let (status, body) = admin.get("/status").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("OK")));
    assert_eq!(body["services"]["PostgreSQL"]["status"], "Active");
    assert_eq!(admin.get("/status?summary=True").await.1["services"], json!({}));
    assert_eq!(admin.get("/provider/context").await.1["context"], json!({}));
    assert_eq!(admin.get("/maintenance").await.1["status"], "deactivated");

    let manager = admin.get("/managers?hostname=node-1").await.1["items"][0].clone();
    let broker = admin.get("/brokers").await.1["items"][0].clone();
    let database = admin.get("/db-nodes").await.1["items"][0].clone();
    assert_eq!((&manager["private_ip"], &broker["host"]), (&database["host"], &database["host"]));
    assert_eq!(admin.get("/managers?hostname=other").await.1["metadata"]["pagination"]["total"], json!(0));
    let (status, cluster) = admin.get("/cluster-status?summary=False").await;
    assert_eq!((status, &cluster["status"]), (StatusCode::OK, &json!("OK")));
    assert_eq!(cluster["services"]["db"]["nodes"]["node-1"]["status"], "OK");
}

#[tokio::test]
async fn settings_and_permissions_are_listed() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let (_, config) = admin.get("/config?scope=workflow").await;
    assert_eq!(config["items"].as_array().unwrap().len(), 3);
    assert_eq!(config["authorization"]["permissions"]["tenant_create"], json!(["sys_admin"]));
    assert_eq!(admin.get("/config/workflow.task_retries").await.1["value"], json!(60));
    assert_eq!(admin.get("/config/max_workers").await.0, StatusCode::CONFLICT);
    assert_eq!(admin.get("/config/nothing").await.0, StatusCode::NOT_FOUND);
    let (_, of_viewer) = admin.get("/permissions/viewer?permission=node_list").await;
    assert_eq!(of_viewer["items"], json!([{ "role": "viewer", "permission": "node_list" }]));
    assert_eq!(admin.get("/permissions/nobody").await.0, StatusCode::NOT_FOUND);
    assert_eq!(admin.get("/user-groups").await.1["items"], json!([]));
    assert_eq!(admin.get("/license").await.1["items"], json!([]));
    assert_eq!(admin.get("/license-check").await.0, StatusCode::OK);
}

#[tokio::test]
async fn two_questions_need_no_login() {
    let test = app().await;
    let nobody = Client::new(&test.app, "nobody", "", "");
    assert_eq!(nobody.get("/ok").await, (StatusCode::OK, Value::Null));
    assert_eq!(nobody.get("/snapshot-status").await.1, json!({ "status": "not-running" }));
    assert_eq!(nobody.get("/status").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(nobody.get("/version").await.0, StatusCode::UNAUTHORIZED);
}
