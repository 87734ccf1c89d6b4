//! What callers hear when this node's epoch is over or its database has gone.

use std::time::Duration;

use quorate_app::auth::Credentials;
use quorate_app::testing::{ADMIN_PASSWORD, app};
use quorate_app::{Code, ListQuery};
use quorate_store::{open_epoch, testing::EPOCH};

fn password() -> Credentials {
    Credentials::Password { username: "admin".into(), password: ADMIN_PASSWORD.into() }
}

#[tokio::test]
async fn nothing_is_written_after_the_epoch() {
    let test = app().await;
    let admin = test.app.login(password()).await.unwrap();
    open_epoch(&test.pool, EPOCH.next()).await.unwrap();
    let refused = test.app.tenants().create(&admin, "late", None).await.err().unwrap();
    assert_eq!(refused.code, Code::NoActiveNode);
    let tenants = test.app.tenants().list(&admin, &ListQuery::default(), false).await.unwrap();
    assert_eq!(tenants.total, 1);
}

#[tokio::test]
async fn a_database_that_has_gone_is_said_to_be_away() {
    let test = app().await;
    let admin = test.app.login(password()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), test.pool.close()).await.expect("no connection is held");
    let refused = test.app.login(password()).await.err().unwrap();
    assert_eq!(refused.code, Code::NoActiveNode);
    let refused = test.app.tenants().create(&admin, "late", None).await.err().unwrap();
    assert_eq!(refused.code, Code::NoActiveNode);
}

#[tokio::test]
async fn bootstrap_keeps_what_is_there() {
    let test = app().await;
    test.app.bootstrap("another-password").await.unwrap();
    assert!(test.app.login(password()).await.is_ok());
}
