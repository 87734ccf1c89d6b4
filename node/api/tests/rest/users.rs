//! Users, tokens, and the walls between tenants.

use axum::body::Body;
use http::{Request, StatusCode};
use quorate_app::testing::app;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::Client;

async fn make_user(admin: &Client, name: &str, tenant: Option<(&str, &str)>) -> Client {
    let new = json!({ "username": name, "password": format!("{name}-password"), "role": "default" });
    assert_eq!(admin.call("PUT", "/users", new).await.0, StatusCode::CREATED);
    if let Some((tenant, role)) = tenant {
        admin.call("POST", &format!("/tenants/{tenant}"), Value::Null).await;
        let member = json!({ "tenant_name": tenant, "username": name, "role": role });
        assert_eq!(admin.call("PUT", "/tenants/users", member).await.0, StatusCode::OK);
    }
    Client::new(&admin.app, name, &format!("{name}-password"), tenant.map_or("", |(tenant, _)| tenant))
}

#[tokio::test]
async fn users_see_their_tenants_only() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let ann = make_user(&admin, "ann", Some(("blue", "user"))).await;
    let bob = make_user(&admin, "bob", Some(("red", "viewer"))).await;

    let (status, mine) = ann.get("/tenants").await;
    assert_eq!((status, mine["metadata"]["pagination"]["total"].as_i64()), (StatusCode::OK, Some(1)));
    assert_eq!(mine["items"][0]["name"], "blue");
    assert_eq!(mine["items"][0]["rabbitmq_vhost"], "rabbitmq_vhost_blue");
    // A viewer may not have the broker's password.
    assert_eq!(bob.get("/tenants").await.1["items"][0]["rabbitmq_password"], Value::Null);
    assert_eq!(ann.get("/tenants/blue").await.0, StatusCode::OK);
    // Other tenants cannot be told from tenants that do not exist.
    for (path, other) in [("/tenants/red", "red"), ("/tenants/none", "none")] {
        let (status, error) = ann.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(error["message"].as_str().unwrap().contains("not found"), "{error}");
        let inside = Client::new(&test.app, "ann", "ann-password", other).get("/managers").await;
        assert_eq!((inside.0, &inside.1["error_code"]), (StatusCode::FORBIDDEN, &json!("forbidden_error")));
    }
    let without = Client::new(&test.app, "ann", "ann-password", "").get("/managers").await;
    assert_eq!(
        (without.0, without.1["message"].as_str()),
        (StatusCode::FORBIDDEN, Some("Authorization failed: tenant not provided"))
    );
    assert_eq!(ann.get("/managers").await.0, StatusCode::OK);

    for (method, path, body) in [
        ("GET", "/users", Value::Null),
        ("GET", "/users/ann", Value::Null),
        ("POST", "/tenants/green", Value::Null),
        ("DELETE", "/tenants/blue", Value::Null),
        ("PUT", "/tenants/users", json!({ "tenant_name": "red", "username": "ann", "role": "manager" })),
        ("POST", "/users/ann", json!({ "role": "sys_admin" })),
        ("POST", "/users/bob", json!({ "password": "stolen" })),
        ("GET", "/tenants?_get_data=True", Value::Null),
        ("GET", "/user-groups", Value::Null),
    ] {
        let (status, error) = ann.call(method, path, body).await;
        assert_eq!(
            (status, &error["error_code"]),
            (StatusCode::FORBIDDEN, &json!("forbidden_error")),
            "{method} {path}"
        );
    }
    assert_eq!(ann.get("/user?_get_data=True").await.1["tenant_roles"]["direct"], json!({ "blue": "user" }));

    let gone = json!({ "tenant_name": "blue", "username": "ann" });
    assert_eq!(admin.call("DELETE", "/tenants/users", gone.clone()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(admin.call("DELETE", "/tenants/users", gone).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ann.get("/managers").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn users_are_made_changed_and_removed() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let ann = make_user(&admin, "ann", None).await;
    let again = json!({ "username": "ann", "password": "another" });
    assert_eq!(admin.call("PUT", "/users", again).await.0, StatusCode::CONFLICT);
    for bad in [json!({ "username": "1st", "password": "long enough" }), json!({ "username": "u", "password": "1234" })]
    {
        assert_eq!(admin.call("PUT", "/users", bad).await.0, StatusCode::BAD_REQUEST);
    }

    let (status, changed) = ann.call("POST", "/users/ann", json!({ "password": "changed" })).await;
    assert_eq!((status, &changed["password_hash"]), (StatusCode::OK, &Value::Null));
    assert_eq!(ann.get("/user").await.0, StatusCode::UNAUTHORIZED);
    let ann = Client::new(&test.app, "ann", "changed", "");
    assert_eq!(ann.get("/user").await.0, StatusCode::OK);

    assert_eq!(admin.call("POST", "/users/active/ann", json!({ "action": "deactivate" })).await.0, StatusCode::OK);
    assert_eq!(ann.get("/user").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        admin.call("POST", "/users/active/ann", json!({ "action": "deactivate" })).await.0,
        StatusCode::CONFLICT
    );
    assert_eq!(admin.call("POST", "/users/active/ann", json!({ "action": "activate" })).await.0, StatusCode::OK);

    for _ in 0..=quorate_app::auth::FAILED_LOGINS_MAX {
        Client::new(&test.app, "ann", "wrong", "").get("/user").await;
    }
    // The remembered password does not open a locked account.
    assert_eq!(ann.get("/user").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(admin.get("/users/ann").await.1["is_locked"], json!(true));
    assert_eq!(admin.call("POST", "/users/unlock/ann", Value::Null).await.0, StatusCode::OK);
    assert_eq!(admin.call("POST", "/users/unlock/ann", Value::Null).await.0, StatusCode::CONFLICT);
    assert_eq!(ann.get("/user").await.0, StatusCode::OK);

    for last in [json!({ "role": "default" })] {
        assert_eq!(admin.call("POST", "/users/admin", last).await.0, StatusCode::CONFLICT);
    }
    assert_eq!(
        admin.call("POST", "/users/active/admin", json!({ "action": "deactivate" })).await.0,
        StatusCode::CONFLICT
    );
    assert_eq!(admin.call("DELETE", "/users/admin", Value::Null).await.0, StatusCode::CONFLICT);
    assert_eq!(admin.call("DELETE", "/users/ann", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(admin.call("DELETE", "/users/ann", Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ann.get("/user").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn tokens_log_in_until_they_end() {
    let test = app().await;
    let admin = Client::admin(&test.app);
    let ann = make_user(&admin, "ann", Some(("blue", "user"))).await;
    let with_token = async |token: &str| {
        let request = Request::get("/api/v3.1/tenants").header("Authentication-Token", token).body(Body::empty());
        let router = quorate_api::rest::router(test.app.clone());
        router.oneshot(request.unwrap()).await.unwrap().status()
    };

    let new = json!({ "description": "for scripts", "expiration_date": "+10h" });
    let (status, made) = ann.call("POST", "/tokens", new).await;
    assert_eq!(status, StatusCode::OK);
    let value = made["value"].as_str().unwrap();
    assert_eq!((value.len(), value.starts_with("ctok-")), (4 + 1 + 10 + 1 + 40, true));
    assert_eq!(with_token(value).await, StatusCode::OK);
    for bad in ["ctok", "ctok-a-b", "x-y-z", &format!("{value}-x"), &value[..value.len() - 1]] {
        assert_eq!(with_token(bad).await, StatusCode::UNAUTHORIZED, "{bad}");
    }

    let id = made["id"].as_str().unwrap();
    let (_, mine) = ann.get("/tokens").await;
    assert_eq!(mine["items"][0]["value"], json!(format!("ctok-{id}-********")));
    assert_ne!(mine["items"][0]["last_used"], Value::Null);
    let bob = make_user(&admin, "bob", None).await;
    assert_eq!(bob.get("/tokens").await.1["items"], json!([]));
    assert_eq!(bob.call("DELETE", &format!("/tokens/{id}"), Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(admin.get("/tokens").await.1["items"][0]["username"], "ann");
    assert_eq!(
        ann.call("POST", "/tokens", json!({ "expiration_date": "2020-01-01 00:00" })).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(ann.call("DELETE", &format!("/tokens/{id}"), Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(with_token(value).await, StatusCode::UNAUTHORIZED);
}
