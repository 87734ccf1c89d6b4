//! Blueprints and deployments, up to what an install needs.

use std::path::Path;

use quorate_app::testing::{ADMIN_PASSWORD, app};
use serde_json::json;

use crate::support::{Cfy, Server};

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_cfy), ignore = "QUORATE_VENV is not set: `make test` sets it")]
async fn the_sample_is_uploaded_and_deployed_with_the_command_line() {
    let test = app().await;
    let server = Server::start(quorate_api::rest::router(test.app.clone())).await;
    let cfy = Cfy::new();
    cfy.log_in(&server, "admin", ADMIN_PASSWORD, "default_tenant").await.ok();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/demo/sample/blueprint.yaml");
    let sample = sample.to_str().unwrap();

    let uploaded = cfy.run(&["blueprints", "upload", "-b", "shop", sample, "--labels", "kind:sample"]).await.ok();
    assert!(uploaded.says("workflow execution succeeded") && uploaded.says("Blueprint uploaded"), "{uploaded:#?}");
    cfy.run(&["blueprints", "upload", "-b", "shop", sample]).await.fails_with("already exists");
    let broken = cfy.home().join("broken.yaml");
    std::fs::write(&broken, "tosca_definitions_version: cloudify_dsl_1_3\nnode_templates: { a: { type: none } }\n")
        .unwrap();
    let broken = broken.to_str().unwrap();
    cfy.run(&["blueprints", "upload", "-b", "broken", broken]).await.fails_with("none");

    let listed = cfy.json(&["blueprints", "list"]).await;
    assert_eq!((&listed[0]["id"], &listed[0]["state"]), (&json!("shop"), &json!("uploaded")));
    assert!(cfy.run(&["blueprints", "get", "shop"]).await.ok().says("Three nodes"));
    assert!(cfy.run(&["blueprints", "inputs", "shop"]).await.ok().says("greeting"));
    cfy.run(&["blueprints", "get", "nothing"]).await.fails_with("not found");
    let saved = cfy.home().join("saved.tar.gz");
    cfy.run(&["blueprints", "download", "shop", "-o", saved.to_str().unwrap()]).await.ok();
    let stored = test.resources.path().join("uploaded-blueprints/default_tenant/shop/shop.tar.gz");
    assert_eq!(std::fs::read(saved).unwrap(), std::fs::read(stored).unwrap());

    cfy.run(&["deployments", "create", "-b", "shop", "d1", "-i", "nothing=1"])
        .await
        .fails_with("unknown inputs: nothing");
    cfy.run(&["deployments", "create", "-b", "shop", "d1", "-i", "{port: 81}"]).await.ok();
    let listed = cfy.json(&["deployments", "list"]).await;
    assert_eq!((&listed[0]["id"], &listed[0]["blueprint_id"]), (&json!("d1"), &json!("shop")));
    assert!(cfy.run(&["deployments", "inputs", "d1"]).await.ok().says("81"));
    assert!(cfy.run(&["deployments", "outputs", "d1"]).await.ok().says("endpoint"));
    cfy.run(&["deployments", "capabilities", "d1"]).await.ok();
    assert!(cfy.run(&["workflows", "list", "-d", "d1"]).await.ok().says("install"));
    assert!(cfy.run(&["nodes", "list", "-d", "d1"]).await.ok().says("sample.Machine"));
    assert!(cfy.run(&["nodes", "get", "-d", "d1", "machine"]).await.ok().says("512"));
    let instances = cfy.json(&["node-instances", "list", "-d", "d1"]).await;
    assert_eq!(instances.as_array().unwrap().len(), 3);
    let id = instances[0]["id"].as_str().unwrap();
    assert!(cfy.run(&["node-instances", "get", id]).await.ok().says("uninitialized"));

    cfy.run(&["blueprints", "delete", "shop"]).await.fails_with("There exist deployments");
    assert!(cfy.run(&["deployments", "delete", "d1"]).await.ok().says("Deployment deleted"));
    assert_eq!(cfy.json(&["deployments", "list"]).await, json!([]));
    for blueprint in ["shop", "broken"] {
        assert!(cfy.run(&["blueprints", "delete", blueprint]).await.ok().says("Blueprint deleted"));
    }
    assert_eq!(cfy.json(&["blueprints", "list"]).await, json!([]));
}
