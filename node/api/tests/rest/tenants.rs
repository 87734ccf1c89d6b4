//! Tenants: envelopes, errors, logins.

use http::StatusCode;
use quorate_app::testing::app;
use serde_json::{Value, json};

use crate::support::Client;

#[tokio::test]
async fn tenants_come_and_go() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let (status, made) = admin.call("POST", "/tenants/blue", Value::Null).await;
    assert_eq!((status, &made["name"]), (StatusCode::CREATED, &json!("blue")));
    assert_eq!(made["rabbitmq_vhost"], "rabbitmq_vhost_blue");
    let (status, error) = admin.call("POST", "/tenants/blue", Value::Null).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::CONFLICT, &json!("conflict_error")));
    assert_eq!(error["server_traceback"], Value::Null);

    let path = "/api/v2.1/tenants?_size=1&_offset=1&_include=name&_sort=-name";
    let (status, page) = admin.get(path).await;
    let expected = json!({
        "items": [{ "name": "blue" }],
        "metadata": { "pagination": { "total": 2, "size": 1, "offset": 1 }, "filtered": null },
    });
    assert_eq!((status, page), (StatusCode::OK, expected));

    let (status, error) = admin.get("/tenants?_include=x").await;
    assert_eq!((status, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("no_such_include_field_error")));
    let (status, error) = admin.get("/tenants?rabbitmq_password=x").await;
    assert_eq!((status, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("bad_parameters_error")));

    let (status, _) = admin.call("DELETE", "/tenants/blue", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, error) = admin.get("/tenants/blue").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error["message"].as_str().unwrap().contains("not found"));
    let (status, _) = admin.call("DELETE", "/tenants/default_tenant", Value::Null).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn who_is_not_logged_in_learns_nothing() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    for (password, path) in [("wrong", "/tenants"), ("", "/tenants/none")] {
        let (status, error) = Client::new(&test.app, "admin", password, "").get(path).await;
        assert_eq!((status, &error["error_code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized_error")));
    }
    let (status, error) = admin.get("/nothing").await;
    assert_eq!((status, &error["error_code"]), (StatusCode::NOT_FOUND, &json!("not_found_error")));
    let (status, _) = admin.call("POST", "/tenants", Value::Null).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, error) = admin.call("PUT", "/tenants/users", json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(error["message"], "Missing tenant_name in json request body");
}

#[tokio::test]
async fn an_account_locks_after_wrong_passwords() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    for _ in 0..=quorate_app::auth::FAILED_LOGINS_MAX {
        let (status, _) = Client::new(&test.app, "admin", "wrong", "").get("/tenants").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    let (status, _) = admin.get("/tenants").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
