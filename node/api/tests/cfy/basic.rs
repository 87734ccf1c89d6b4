//! Profiles, status, tenants, users, tokens.

use quorate_app::testing::{ADMIN_PASSWORD, app, app_of};
use serde_json::Value;

use crate::support::{ADDRESSES, Cfy, Server};

fn names<'a>(rows: &'a Value, key: &str) -> Vec<&'a str> {
    rows.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_cfy), ignore = "QUORATE_VENV is not set: `make test` sets it")]
async fn an_administrator_and_a_user_work_with_the_command_line() {
    let test = app().await;
    let server = Server::start(quorate_api::rest::router(test.app.clone())).await;

    let admin = Cfy::new();
    admin.log_in(&server, "admin", "wrong-password", "default_tenant").await.fails_with("redentials");
    admin.log_in(&server, "admin", ADMIN_PASSWORD, "default_tenant").await.ok();
    let status = admin.run(&["status"]).await.ok();
    assert!(status.says("PostgreSQL") && status.says("Active") && !status.says("Inactive"), "{status:#?}");
    assert!(admin.run(&["--version"]).await.ok().says("7.0.5"));
    assert!(admin.run(&["cluster", "status"]).await.ok().says("OK"));

    admin.run(&["tenants", "create", "blue"]).await.ok();
    admin.run(&["tenants", "create", "blue"]).await.fails_with("already exists");
    assert_eq!(names(&admin.json(&["tenants", "list"]).await, "name"), ["blue", "default_tenant"]);
    assert_eq!(names(&admin.json(&["tenants", "list", "--descending"]).await, "name"), ["default_tenant", "blue"]);

    admin.run(&["users", "create", "ann", "-p", "ann-password", "-t", "blue", "-l", "user"]).await.ok();
    admin.run(&["users", "create", "bob", "-p", "bob-password"]).await.ok();
    admin.run(&["tenants", "add-user", "bob", "-t", "blue", "-r", "viewer"]).await.ok();
    // The command line turns 409 into this.
    let again = admin.run(&["tenants", "add-user", "bob", "-t", "blue", "-r", "viewer"]).await.ok();
    assert!(again.says("already associated"), "{again:#?}");
    assert_eq!(names(&admin.json(&["users", "list"]).await, "username"), ["admin", "ann", "bob"]);
    let table = admin.run(&["users", "list", "--get-data"]).await.ok();
    assert!(table.says("ann") && table.says("blue"), "{table:#?}");
    let blue = admin.run(&["tenants", "get", "blue", "--get-data"]).await.ok();
    assert!(blue.says("bob") && blue.says("viewer"), "{blue:#?}");

    let ann = Cfy::new();
    Cfy::new().log_in(&server, "ann", "ann-password", "default_tenant").await.fails_with("tenant name: default_tenant");
    ann.log_in(&server, "ann", "ann-password", "blue").await.ok();
    ann.run(&["status"]).await.ok();
    assert_eq!(names(&ann.json(&["tenants", "list"]).await, "name"), ["blue"]);
    ann.run(&["users", "list"]).await.fails_with("not permitted");
    ann.run(&["tenants", "create", "green"]).await.fails_with("not permitted");
    ann.run(&["tenants", "get", "default_tenant"]).await.fails_with("not found");
    assert!(ann.run(&["users", "get", "ann"]).await.ok().says("ann"));

    let token = ann.json(&["tokens", "create", "--description", "for scripts", "--expiry", "+10h"]).await;
    let value = token["value"].as_str().unwrap();
    assert_eq!(names(&ann.json(&["tokens", "list"]).await, "description"), ["for scripts"]);
    let script = Cfy::new();
    script.use_profile(&server, &["-T", value, "-t", "blue"]).await.ok();
    assert_eq!(names(&script.json(&["tenants", "list"]).await, "name"), ["blue"]);

    admin.run(&["users", "set-password", "ann", "-p", "another-password"]).await.ok();
    ann.run(&["tenants", "list"]).await.fails_with("wrong credentials");
    admin.run(&["tenants", "remove-user", "ann", "-t", "blue"]).await.ok();
    script.run(&["status"]).await.ok();
    assert_eq!(script.json(&["tenants", "list"]).await, serde_json::json!([]));
    admin.run(&["users", "delete", "ann"]).await.ok();
    script.run(&["tenants", "list"]).await.fails_with("401");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_cfy), ignore = "QUORATE_VENV is not set: `make test` sets it")]
async fn a_profile_of_a_cluster_outlives_the_node_it_was_made_at() {
    let test = app_of(&ADDRESSES.map(|address| address.parse().unwrap())).await;
    let mut server = Server::start_at(quorate_api::rest::router(test.app.clone()), &ADDRESSES).await;
    let admin = Cfy::new();
    let made = admin.log_in(&server, "admin", ADMIN_PASSWORD, "default_tenant").await.ok();
    assert!(made.says("9 nodes"), "{made:#?}");
    assert_eq!(names(&admin.json(&["cluster", "managers", "list"]).await, "private_ip"), ADDRESSES);
    server.close(0).await;
    let after = admin.run(&["tenants", "list"]).await.ok();
    assert!(after.says("Could not connect to manager 127.0.33.1") && after.says("default_tenant"), "{after:#?}");
}
