//! Blueprints: uploads good and bad, and what becomes of them.

use std::path::Path;

use http::StatusCode;
use quorate_app::testing::{STAGING, TestApp, UPLOAD_LIMITS, app};
use serde_json::{Value, json};

use crate::archives::{of, parts, sample};
use crate::support::Client;

/// Two seconds.
const POLLS: u32 = 200;

async fn upload(client: &Client, id: &str, params: Value, archive: &[u8]) -> (StatusCode, Value) {
    let (kind, body) = parts(&params.to_string(), archive);
    let answer = client.send("PUT", &format!("/blueprints/{id}"), &kind, body).await;
    (answer.status, answer.json())
}

/// Waits until a blueprint is where it stays.
async fn settled(client: &Client, id: &str) -> Value {
    for _ in 0..POLLS {
        let (status, blueprint) = client.get(&format!("/blueprints/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{blueprint}");
        if !["uploading", "extracting", "parsing"].contains(&blueprint["state"].as_str().unwrap()) {
            return blueprint;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("`{id}` is not settled");
}

/// Nothing is left where uploads are received.
fn assert_nothing_staged(test: &TestApp) {
    let staging = test.resources.path().join(STAGING);
    let left = if staging.exists() { std::fs::read_dir(staging).unwrap().count() } else { 0 };
    assert_eq!(left, 0);
}

fn code(error: &Value) -> &str {
    error["error_code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn the_sample_is_uploaded_read_and_removed() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let archive = sample();
    let params = json!({ "visibility": "tenant", "async_upload": true, "application_file_name": "blueprint.yaml",
                         "labels": [{ "key": "Kind", "value": "sample" }] });
    let (status, made) = upload(&admin, "shop", params.clone(), &archive).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!((&made["state"], &made["plan"]), (&json!("uploading"), &Value::Null));
    assert_eq!(made["upload_execution"]["status"], "pending");
    assert_eq!(made["upload_execution"]["workflow_id"], "upload_blueprint");
    // The row is there, so the archive is.
    let stored = test.resources.path().join("uploaded-blueprints/default_tenant/shop/shop.tar.gz");
    assert_eq!(std::fs::read(stored).unwrap(), archive);

    let blueprint = settled(&admin, "shop").await;
    assert_eq!((&blueprint["state"], &blueprint["error"]), (&json!("uploaded"), &Value::Null));
    assert_eq!(blueprint["plan"]["inputs"]["port"]["default"], 8080);
    assert_eq!(blueprint["labels"][0]["key"], "kind");
    assert_eq!(blueprint["upload_execution"]["status"], "terminated");
    assert!(blueprint["description"].as_str().unwrap().starts_with("Three nodes"));
    let tree = test.resources.path().join("blueprints/default_tenant/shop");
    assert!(tree.join("scripts/machine_create.sh").is_file());

    let (_, page) = admin.get("/blueprints?_include=id,state&_sort=id").await;
    assert_eq!(page["items"], json!([{ "id": "shop", "state": "uploaded" }]));
    let (_, page) = admin.get("/blueprints?state=invalid").await;
    assert_eq!(page["metadata"]["pagination"]["total"], 0);

    let (status, error) = upload(&admin, "shop", params.clone(), &archive).await;
    assert_eq!((status, code(&error)), (StatusCode::CONFLICT, "conflict_error"));
    let answer = admin.send("GET", "/blueprints/shop/archive", "", vec![]).await;
    assert_eq!(answer.headers["content-length"], archive.len().to_string().as_str());
    assert_eq!(answer.headers["content-disposition"], "attachment; filename=shop.tar.gz");
    assert_eq!(answer.body, archive);

    let (status, changed) = admin.call("PATCH", "/blueprints/shop", json!({ "labels": [{ "a": "b" }] })).await;
    assert_eq!((status, &changed["labels"][0]["value"]), (StatusCode::OK, &json!("b")));

    let (status, _) = admin.call("DELETE", "/blueprints/shop?force=False", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(!tree.exists());
    let (status, _) = admin.get("/blueprints/shop").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_nothing_staged(&test);
    // The same id can be used again.
    let (status, _) = upload(&admin, "shop", params, &archive).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(settled(&admin, "shop").await["state"], "uploaded");
}

#[tokio::test]
async fn a_bad_blueprint_says_where_it_is_bad_and_may_be_replaced() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let wait = json!({ "application_file_name": "blueprint.yaml" });
    let version = "tosca_definitions_version: cloudify_dsl_1_3\n";
    let unknown = format!("{version}node_templates:\n  a:\n    type: nothing.of.the.kind\n");
    let escape = format!("{version}imports: [../../../../etc/passwd]\n");
    let remote = format!("{version}imports: ['http://127.0.38.9:1/types.yaml']\n");
    let bad = [
        ("blueprint.yaml", "a: [", "invalid", "blueprint.yaml:2:1"),
        ("blueprint.yaml", unknown.as_str(), "invalid", "nothing.of.the.kind"),
        ("blueprint.yaml", escape.as_str(), "invalid", "passwd"),
        ("blueprint.yaml", remote.as_str(), "invalid", "own archive"),
        ("other.yaml", version, "invalid", "blueprint.yaml"),
    ];
    for (file, text, state, says) in bad {
        let (status, error) = upload(&admin, "bad", wait.clone(), &of(&[(file, text)])).await;
        assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "invalid_blueprint_error"), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        let blueprint = settled(&admin, "bad").await;
        assert_eq!(blueprint["state"], state);
        assert_eq!(blueprint["error"], error["message"]);
        assert_eq!(blueprint["upload_execution"]["status"], "failed");
    }
    let (status, good) = upload(&admin, "bad", wait, &of(&[("blueprint.yaml", version)])).await;
    assert_eq!((status, &good["state"]), (StatusCode::CREATED, &json!("uploaded")), "{good}");
    assert_nothing_staged(&test);
}

#[tokio::test]
async fn an_archive_that_cannot_be_used_is_refused() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let (status, error) = upload(&admin, "a", json!({}), b"").await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "upload_missing_file"));
    let (status, error) = upload(&admin, "a", json!({}), b"not an archive").await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "bad_parameters_error"));
    let large = vec![0x1f; usize::try_from(UPLOAD_LIMITS.upload_bytes_max).unwrap() + 1];
    let (status, error) = upload(&admin, "a", json!({}), &large).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["message"].as_str().unwrap().contains("limit"), "{error}");
    for params in [
        json!({ "visibility": "nobody" }),
        json!({ "application_file_name": "../blueprint.yaml" }),
        json!({ "application_file_name": "%2e%2e/blueprint.yaml" }),
        json!({ "labels": ["a"] }),
        json!({ "blueprint_archive_url": "http://127.0.38.9/" }),
        json!([]),
    ] {
        let (status, error) = upload(&admin, "a", params.clone(), &sample()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{params} {error}");
    }
    for id in ["1a", "a%2Fb", "a%00b", "a%20b"] {
        let (status, _) = upload(&admin, id, json!({}), &sample()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{id}");
    }
    let (_, page) = admin.get("/blueprints").await;
    assert_eq!(page["items"], json!([]));
    assert!(!test.resources.path().join("uploaded-blueprints").exists());

    // What is found out only while it is unpacked.
    let bomb = "0".repeat(usize::try_from(UPLOAD_LIMITS.unpacked_bytes_max).unwrap() + 1);
    let (status, error) = upload(&admin, "bomb", json!({}), &of(&[("blueprint.yaml", &bomb)])).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "invalid_blueprint_error"));
    assert_eq!(settled(&admin, "bomb").await["state"], "failed_extracting");
    assert!(!test.resources.path().join("blueprints/default_tenant/bomb").exists());
    assert_nothing_staged(&test);
}

#[tokio::test]
async fn a_row_comes_only_after_its_archive() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    // Nothing can be placed.
    let directory = test.resources.path().join("uploaded-blueprints");
    std::fs::write(&directory, "in the way").unwrap();
    let (status, error) = upload(&admin, "shop", json!({}), &sample()).await;
    assert_eq!((status, code(&error)), (StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error"));
    let (_, page) = admin.get("/blueprints").await;
    assert_eq!(page["items"], json!([]));
    let (_, page) = admin.get("/executions").await;
    assert_eq!(page["items"], json!([]));
    std::fs::remove_file(&directory).unwrap();
    let (status, _) = upload(&admin, "shop", json!({}), &sample()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_nothing_staged(&test);
}

#[tokio::test]
async fn of_two_uploads_of_an_id_one_is_taken() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let archives = [sample(), of(&[("blueprint.yaml", "tosca_definitions_version: cloudify_dsl_1_3\n")])];
    let (one, other) =
        tokio::join!(upload(&admin, "a", json!({}), &archives[0]), upload(&admin, "a", json!({}), &archives[1]),);
    let mut statuses = [one.0, other.0];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::CONFLICT], "{one:?} {other:?}");
    let taken = &archives[usize::from(other.0 == StatusCode::CREATED)];
    let stored = test.resources.path().join("uploaded-blueprints/default_tenant/a/a.tar.gz");
    assert_eq!(&std::fs::read(stored).unwrap(), taken);
}

#[tokio::test]
async fn a_raw_body_with_its_parameters_in_the_query_is_an_upload_too() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let path = "/blueprints/raw?application_file_name=blueprint.yaml&visibility=private&async_upload=False";
    let answer = admin.send("PUT", path, "application/json", sample()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.json());
    assert_eq!((&answer.json()["visibility"], &answer.json()["state"]), (&json!("private"), &json!("uploaded")));
}

#[tokio::test]
async fn an_upload_that_the_last_active_node_began_is_finished() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let (status, _) = upload(&admin, "shop", json!({}), &sample()).await;
    assert_eq!(status, StatusCode::CREATED);
    // As a node leaves it that dies while it unpacks.
    let pool = &test.pool;
    let sql = "UPDATE blueprints SET state = 'extracting', plan = NULL; ";
    sqlx::raw_sql(&format!("{sql} UPDATE executions SET status = 'started', ended_at = NULL"))
        .execute(pool)
        .await
        .unwrap();
    std::fs::remove_dir_all(test.resources.path().join("blueprints")).unwrap();
    let (status, error) = admin.call("DELETE", "/blueprints/shop", Value::Null).await;
    assert_eq!((status, code(&error)), (StatusCode::BAD_REQUEST, "illegal_action_error"));
    test.app.resume_uploads().await.unwrap();
    assert_eq!(settled(&admin, "shop").await["state"], "uploaded");
    assert!(test.resources.path().join("blueprints/default_tenant/shop/blueprint.yaml").is_file());
}

#[tokio::test]
async fn files_are_read_by_those_who_may() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    admin.call("POST", "/tenants/blue", Value::Null).await;
    let ann = json!({ "username": "ann", "password": "ann-password", "role": "default" });
    admin.call("PUT", "/users", ann).await;
    let member = json!({ "tenant_name": "blue", "username": "ann", "role": "viewer" });
    let (status, _) = admin.call("PUT", "/tenants/users", member).await;
    assert_eq!(status, StatusCode::OK);
    let ann = Client::new(&test.app, "ann", "ann-password", "blue");
    let (status, _) = upload(&admin, "shop", json!({}), &sample()).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, error) = upload(&ann, "mine", json!({}), &sample()).await;
    assert_eq!((status, code(&error)), (StatusCode::FORBIDDEN, "forbidden_error"));
    let blue = Client { tenant: "blue".to_owned(), ..Client::admin(&test.app) };
    upload(&blue, "own", json!({}), &sample()).await;
    std::fs::create_dir_all(test.resources.path().join("global-resources")).unwrap();
    std::fs::write(test.resources.path().join("global-resources/note"), "hello").unwrap();
    std::fs::write(test.resources.path().join("secret"), "no").unwrap();

    let status = async |client: &Client, path: &str| client.send("GET", path, "", vec![]).await.status;
    let main = "/resources/blueprints/default_tenant/shop/blueprint.yaml";
    let read = admin.send("GET", main, "", vec![]).await;
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/demo/sample/blueprint.yaml");
    assert_eq!(read.body, std::fs::read(expected).unwrap());
    assert_eq!(read.headers["content-length"], read.body.len().to_string().as_str());
    let again = admin.send_with("GET", main, &[("if-none-match", read.headers["etag"].to_str().unwrap())]).await;
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));

    assert_eq!(status(&ann, main).await, StatusCode::FORBIDDEN);
    assert_eq!(status(&ann, "/resources/blueprints/none/shop/blueprint.yaml").await, StatusCode::FORBIDDEN);
    assert_eq!(status(&ann, "/resources/blueprints/blue/own/blueprint.yaml").await, StatusCode::OK);
    assert_eq!(status(&ann, "/resources/global-resources/note").await, StatusCode::OK);
    assert_eq!(status(&ann, "/resources/snapshots/x").await, StatusCode::FORBIDDEN);
    let wrong = Client::new(&test.app, "ann", "wrong", "blue");
    assert_eq!(status(&wrong, "/resources/global-resources/note").await, StatusCode::UNAUTHORIZED);
    for path in [
        "secret",
        "global-resources/../secret",
        "global-resources/%2e%2e/secret",
        "global-resources%2f..%2fsecret",
        "global-resources//note",
        "global-resources",
        "global-resources/",
        "global-resources/none",
        "global-resources/note%00",
        ".staging/x",
        "%2Fetc%2Fpasswd",
    ] {
        assert_eq!(status(&admin, &format!("/resources/{path}")).await, StatusCode::NOT_FOUND, "{path}");
    }
    let shown = json!({ "visibility": "global" });
    let (code, _) = admin.call("PATCH", "/blueprints/shop/set-visibility", shown).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(status(&ann, main).await, StatusCode::OK);
    let (code, _) = ann.get("/blueprints/shop").await;
    assert_eq!(code, StatusCode::OK);
    let (code, error) = blue.call("DELETE", "/blueprints/shop", Value::Null).await;
    assert_eq!((code, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("illegal_action_error")));
}
