//! Executions act for their creator, in their tenant, while they run.

use quorate_app::auth::{Credentials, sha256_hex};
use quorate_app::testing::{TestApp, app};
use quorate_app::{AppError, Code, Login, SystemRole, TenantRole};
use quorate_store::executions::{self, NewExecution};
use quorate_store::{tenants, users};
use serde_json::json;

const TOKEN: &str = "a token of an execution";

/// Starts an execution of ann, who belongs to blue and red, in blue; returns its key.
async fn execution_of_ann(test: &TestApp) -> i64 {
    let password =
        Credentials::Password { username: "admin".into(), password: quorate_app::testing::ADMIN_PASSWORD.into() };
    let admin = test.app.login(password).await.unwrap();
    test.app.users().create(&admin, "ann", "ann-password", SystemRole::Default).await.unwrap();
    for tenant in ["blue", "red"] {
        test.app.tenants().create(&admin, tenant, None).await.unwrap();
        test.app.tenants().add_user(&admin, tenant, "ann", TenantRole::User).await.unwrap();
    }
    let mut tx = test.app.store().begin().await.unwrap();
    let tenant_key = tenants::find(&mut tx, "blue").await.unwrap().unwrap().key;
    let creator_key = users::find(&mut tx, "ann").await.unwrap().unwrap().key;
    let new = NewExecution {
        id: "e1",
        tenant_key,
        creator_key,
        visibility: "tenant",
        deployment_key: None,
        workflow_id: "install",
        parameters: json!({}).into(),
        status: "started",
        is_system_workflow: false,
        is_dry_run: false,
        allow_custom_parameters: false,
        wait_after_fail_seconds: 600,
    };
    let key = executions::insert(&mut tx, new).await.unwrap();
    executions::set_token(&mut tx, key, TOKEN, &sha256_hex(TOKEN)).await.unwrap();
    tx.commit().await.unwrap();
    key
}

async fn log_in(test: &TestApp) -> Result<Login, AppError> {
    // Old workers send it under the name of the other kind of token.
    let either = test.app.login(Credentials::Token(TOKEN.into())).await;
    let own = test.app.login(Credentials::ExecutionToken(TOKEN.into())).await;
    assert_eq!(either.is_ok(), own.is_ok());
    own
}

#[tokio::test]
async fn an_execution_acts_in_its_tenant_while_it_runs() {
    let test = app().await;
    assert_eq!(log_in(&test).await.err().unwrap().code, Code::Unauthorized);
    let execution = execution_of_ann(&test).await;
    let login = log_in(&test).await.unwrap();
    assert_eq!(login.username, "ann");
    // It cannot leave its tenant, although its creator belongs to the other one too.
    let actor = test.app.actor(login, Some("red")).await.unwrap();
    assert_eq!(actor.tenant_name, "blue");

    let mut tx = test.app.store().begin().await.unwrap();
    executions::set_status(&mut tx, execution, &["started"], "terminated").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(log_in(&test).await.err().unwrap().code, Code::Unauthorized);
}
