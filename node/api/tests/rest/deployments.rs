//! Deployments, their nodes and instances, and functions evaluated for them.

use http::StatusCode;
use quorate_app::testing::{TestApp, app};
use serde_json::{Value, json};

use crate::archives::{of, parts, sample};
use crate::support::Client;

async fn uploaded(client: &Client, id: &str, archive: &[u8]) {
    let (kind, body) = parts("{}", archive);
    let answer = client.send("PUT", &format!("/blueprints/{id}"), &kind, body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.json());
}

/// The sample as blueprint `shop`.
async fn with_shop() -> (TestApp, Client) {
    let test = app().await;
    let admin = Client::admin(&test.app);
    uploaded(&admin, "shop", &sample()).await;
    (test, admin)
}

fn code(error: &Value) -> &str {
    error["error_code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_deployment_is_made_read_and_removed() {
    let (_test, admin) = with_shop().await;
    let body = json!({ "blueprint_id": "shop", "visibility": "tenant", "inputs": { "port": 81 }, "display_name": "one",
                       "skip_plugins_validation": false, "runtime_only_evaluation": false, "labels": [{ "A": "b" }] });
    let (status, made) = admin.call("PUT", "/deployments/d1", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["inputs"], json!({ "greeting": "hello", "port": 81 }));
    assert_eq!((&made["display_name"], &made["blueprint_id"]), (&json!("one"), &json!("shop")));
    assert_eq!(made["installation_status"], "inactive");
    assert_eq!(made["deployment_status"], "requires_attention");
    assert_eq!(made["latest_execution_workflow_id"], "create_deployment_environment");
    assert_eq!(made["latest_execution_status"], "completed");
    assert_eq!(made["create_execution"], made["latest_execution"]);
    assert_eq!((&made["unavailable_instances"], &made["labels"][0]["key"]), (&json!(3), &json!("a")));
    let execution = made["create_execution"].as_str().unwrap();
    let (_, execution_row) = admin.get(&format!("/executions/{execution}")).await;
    assert_eq!(execution_row["status"], "terminated");
    assert_eq!(execution_row["parameters"]["inputs"], json!({ "port": 81 }));
    let (_, events) = admin.get(&format!("/events?execution_id={execution}&_sort=reported_timestamp")).await;
    let texts: Vec<&str> = events["items"].as_array().unwrap().iter().map(|e| e["message"].as_str().unwrap()).collect();
    assert_eq!(texts.first().unwrap(), &"Starting 'create_deployment_environment' workflow execution");
    assert_eq!(texts.last().unwrap(), &"'create_deployment_environment' workflow execution succeeded");
    assert!(texts.contains(&"Creating 3 nodes"), "{texts:?}");

    let (status, error) = admin.call("PUT", "/deployments/d1", body).await;
    assert_eq!((status, code(&error)), (StatusCode::CONFLICT, "conflict_error"));
    let (_, page) = admin.get("/deployments?_search_name=ON&_include=id,workflows&blueprint_id=shop").await;
    assert_eq!(page["items"][0]["id"], "d1");
    let workflows = page["items"][0]["workflows"].as_array().unwrap();
    let available = |name: &str| workflows.iter().find(|w| w["name"] == name).unwrap()["is_available"].clone();
    // Rules came with version 1_4 of the language; the sample is older.
    assert_eq!((available("install"), available("uninstall")), (json!(true), json!(true)));
    let (_, shown) = admin.get("/deployments/d1?all_sub_deployments=True&_include=blueprint_id").await;
    assert_eq!(shown, json!({ "blueprint_id": "shop" }));
    let (_, changed) = admin.call("PATCH", "/deployments/d1", json!({ "display_name": "two" })).await;
    assert_eq!((&changed["display_name"], &changed["labels"][0]["value"]), (&json!("two"), &json!("b")));

    let (status, error) = admin.call("DELETE", "/blueprints/shop", Value::Null).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "dependent_exists_error"));
    assert!(error["message"].as_str().unwrap().contains("d1"), "{error}");

    let path = "/deployments/d1?force=False&delete_logs=False&recursive=False";
    let (status, _) = admin.call("DELETE", path, Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    for path in [format!("/executions/{execution}"), "/deployments/d1".to_owned()] {
        let (status, error) = admin.get(&path).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(error["message"].as_str().unwrap().contains("not found"));
    }
    let (_, page) = admin.get("/node-instances").await;
    assert_eq!(page["items"], json!([]));
    let (status, _) = admin.call("DELETE", "/blueprints/shop", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_cannot_be_deployed_is_refused_with_its_code() {
    let (_test, admin) = with_shop().await;
    let strict = "tosca_definitions_version: cloudify_dsl_1_3\ninputs:\n  need: {}\n  size:\n    type: integer\n    \
                  default: 1\n    constraints: [{ less_than: 5 }]\n";
    uploaded(&admin, "strict", &of(&[("blueprint.yaml", strict)])).await;
    let cases = [
        ("shop", json!({ "x": 1 }), "unknown_deployment_input_error", "Cannot create deployment - unknown inputs: x"),
        ("shop", json!({ "port": "x" }), "deployment_input_evaluation_error", "port"),
        ("strict", json!({}), "missing_required_deployment_input_error", "need"),
        ("strict", json!({ "need": 1, "size": 7 }), "constraint_error", "size"),
        ("none", json!({}), "not_found_error", "not found"),
    ];
    for (blueprint, inputs, expected, says) in cases {
        let body = json!({ "blueprint_id": blueprint, "inputs": inputs });
        let (status, error) = admin.call("PUT", "/deployments/d1", body).await;
        assert!(status.is_client_error());
        assert_eq!(code(&error), expected, "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    let (_, page) = admin.get("/deployments").await;
    assert_eq!(page["items"], json!([]));
    let (status, error) = admin.call("PUT", "/deployments/a%20b", json!({ "blueprint_id": "shop" })).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "bad_parameters_error"));
    let private = admin.send("PUT", "/blueprints/own?visibility=private", "application/json", sample()).await;
    assert_eq!(private.status, StatusCode::CREATED);
    let (status, error) = admin.call("PUT", "/deployments/d1", json!({ "blueprint_id": "own" })).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "illegal_action_error"));
    let body = json!({ "blueprint_id": "own", "visibility": "private" });
    let (status, _) = admin.call("PUT", "/deployments/d1", body).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn instances_are_written_by_who_read_them_last() {
    let (test, admin) = with_shop().await;
    let (status, _) = admin.call("PUT", "/deployments/d1", json!({ "blueprint_id": "shop" })).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, nodes) = admin.get("/nodes?deployment_id=d1&id=application&_evaluate_functions=True").await;
    let node = &nodes["items"][0];
    assert_eq!((&node["type"], &node["properties"]["port"]), (&json!("sample.Application"), &json!(8080)));
    assert!(node["operations"]["cloudify.interfaces.lifecycle.start"]["operation"].is_string(), "{node}");
    assert_eq!(node["relationships"][1]["target_id"], "database");
    let (_, nodes) = admin.get("/nodes?_include=id,type&_sort=id").await;
    assert_eq!(nodes["items"][0], json!({ "id": "application", "type": "sample.Application" }));

    let (_, page) = admin.get("/node-instances?deployment_id=d1&node_id=machine").await;
    let instance = &page["items"][0];
    let id = instance["id"].as_str().unwrap();
    assert!(id.starts_with("machine_") && id.len() == "machine_".len() + 6, "{id}");
    assert_eq!((&instance["version"], &instance["state"]), (&json!(1), &json!("uninitialized")));
    let path = format!("/node-instances/{id}");
    let address = json!({ "address": "10.0.0.1", "deep": { "a": [1.50, null] } });
    let body = json!({ "version": 1, "runtime_properties": address, "state": "started" });
    let (status, changed) = admin.call("PATCH", &path, body.clone()).await;
    assert_eq!((status, &changed["version"]), (StatusCode::OK, &json!(2)), "{changed}");
    assert_eq!(changed["runtime_properties"], address);
    let (status, error) = admin.call("PATCH", &path, body.clone()).await;
    assert_eq!((status, code(&error)), (StatusCode::CONFLICT, "conflict_error"));
    let (status, changed) = admin.call("PATCH", &format!("{path}?force=True"), body).await;
    assert_eq!((status, &changed["version"]), (StatusCode::OK, &json!(3)));
    let check = json!({ "version": 3, "system_properties": { "status": { "ok": false } } });
    let (_, changed) = admin.call("PATCH", &path, check).await;
    assert_eq!((&changed["is_status_check_ok"], &changed["state"]), (&json!(false), &json!("started")));
    let (status, _) = admin.call("PATCH", &path, json!({ "state": "started" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    let (status, error) = admin.call("DELETE", "/deployments/d1", Value::Null).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "dependent_exists_error"));
    assert!(error["message"].as_str().unwrap().contains(id), "{error}");

    let (_, outputs) = admin.get("/deployments/d1/outputs").await;
    assert_eq!(outputs["outputs"]["endpoint"], "http://10.0.0.1:8080", "{outputs}");
    assert_eq!(outputs["outputs"]["message"], Value::Null);
    let (_, capabilities) = admin.get("/deployments/d1/capabilities").await;
    assert_eq!(capabilities, json!({ "deployment_id": "d1", "capabilities": {} }));
    let asked = json!({ "deployment_id": "d1", "context": { "self": id },
        "payload": { "a": { "get_attribute": ["SELF", "address"] }, "b": { "get_input": "greeting" },
                     "c": { "get_sys": ["deployment", "id"] }, "d": [1] } });
    let (status, evaluated) = admin.call("POST", "/evaluate/functions", asked).await;
    assert_eq!(status, StatusCode::OK, "{evaluated}");
    assert_eq!(evaluated["payload"], json!({ "a": "10.0.0.1", "b": "hello", "c": "d1", "d": [1] }));
    let asked = json!({ "deployment_id": "d1", "payload": { "get_input": "nothing" } });
    let (status, error) = admin.call("POST", "/evaluate/functions", asked).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "functions_evaluation_error"));

    // Another tenant sees nothing of it.
    admin.call("POST", "/tenants/blue", Value::Null).await;
    let blue = Client { tenant: "blue".to_owned(), ..Client::admin(&test.app) };
    for path in [path.as_str(), "/deployments/d1", "/deployments/d1/outputs", "/blueprints/shop"] {
        assert_eq!(blue.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/nodes", "/node-instances", "/deployments", "/blueprints"] {
        assert_eq!(blue.get(path).await.1["items"], json!([]), "{path}");
        assert_ne!(blue.get(&format!("{path}?_all_tenants=True")).await.1["items"], json!([]), "{path}");
    }
    let (status, _) = blue.call("PATCH", &path, json!({ "version": 9 })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = admin.call("DELETE", "/deployments/d1?force=True", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}
