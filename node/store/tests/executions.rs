//! Executions, operations, events as they are kept.

use quorate_store::operations::NewOperation;
use quorate_store::{
    Document, ListQuery, Scope, Store, deployment_views, events, executions, instance_states, operations, tasks_graphs,
    tenants, testing, users,
};
use serde_json::{Value, json};

async fn deployment() -> (Store, i64, i64) {
    let store = testing::store().await;
    let mut tx = store.begin().await.unwrap();
    let tenant = tenants::insert(&mut tx, "default_tenant", "x").await.unwrap();
    let admin = users::NewUser { key: Some(0), username: "admin", password_hash: "", role: "sys_admin" };
    users::insert(&mut tx, admin).await.unwrap();
    tx.commit().await.unwrap();
    let nodes = [json!({"id": "a", "operations": {}}), json!({"id": "b", "operations": {}, "after": ["a"]})];
    let key = testing::deployment(&store, "d", json!({"install": {}}), &nodes).await;
    (store, tenant, key)
}

async fn execution(store: &Store, tenant_key: i64, deployment_key: i64) -> i64 {
    let mut tx = store.begin().await.unwrap();
    let new = executions::NewExecution {
        id: "e",
        tenant_key,
        creator_key: 0,
        visibility: "tenant",
        deployment_key: Some(deployment_key),
        workflow_id: "install",
        parameters: Document(json!({"z": 1, "a": 2})),
        status: "pending",
        is_system_workflow: false,
        is_dry_run: false,
        allow_custom_parameters: false,
        wait_after_fail_seconds: 7,
    };
    let key = executions::insert(&mut tx, new).await.unwrap();
    tx.commit().await.unwrap();
    key
}

fn everything() -> Scope {
    Scope { user: 0, tenants: None, sees_private_in: None, with_global: true }
}

fn operation(id: &str, state: &str) -> NewOperation {
    NewOperation {
        id: id.into(),
        name: "p.run".into(),
        state: state.into(),
        kind: "RemoteWorkflowTask".into(),
        dependencies: vec!["x".into()],
        parameters: Document(Value::Null),
    }
}

#[tokio::test]
async fn an_execution_ends_once() {
    let (store, tenant, deployment) = deployment().await;
    let key = execution(&store, tenant, deployment).await;
    let mut tx = store.begin().await.unwrap();
    executions::set_token(&mut tx, key, "secret", "hash").await.unwrap();
    assert!(executions::begin(&mut tx, key, &["pending"]).await.unwrap());
    assert!(!executions::begin(&mut tx, key, &["pending"]).await.unwrap());
    assert_eq!(executions::unfinished(&mut tx, &[]).await.unwrap().len(), 1);
    assert!(executions::unfinished(&mut tx, &["install"]).await.unwrap().is_empty());
    assert_eq!(executions::token(&mut tx, key).await.unwrap().as_deref(), Some("secret"));
    assert!(executions::finish(&mut tx, key, "failed", "why").await.unwrap());
    assert!(!executions::finish(&mut tx, key, "terminated", "").await.unwrap());
    assert_eq!(executions::token(&mut tx, key).await.unwrap(), None);
    let row = executions::get(&mut tx, key).await.unwrap().unwrap();
    assert_eq!((row.status.as_str(), row.error.as_deref()), ("failed", Some("why")));
    assert_eq!(row.parameters.to_string(), r#"{"z":1,"a":2}"#);
    assert!(row.started_at.is_some() && row.ended_at.is_some());
    assert_eq!((row.deployment_id.as_deref(), row.blueprint_id.as_deref()), (Some("d"), Some("d-blueprint")));
    assert!(executions::reopen(&mut tx, key).await.unwrap());
    let row = executions::find(&mut tx, &everything(), "e").await.unwrap().unwrap();
    assert_eq!((row.status.as_str(), row.resume, row.ended_at), ("pending", true, None));
}

#[tokio::test]
async fn a_result_is_never_replaced() {
    let (store, tenant, deployment) = deployment().await;
    let key = execution(&store, tenant, deployment).await;
    let mut tx = store.begin().await.unwrap();
    let graph = tasks_graphs::insert(&mut tx, "g", key, "install").await.unwrap();
    let rows: Vec<NewOperation> = ["3", "1", "2"].iter().map(|id| operation(id, "sent")).collect();
    operations::insert(&mut tx, graph, &rows).await.unwrap();
    let all = ["3".to_owned(), "1".to_owned(), "2".to_owned()];
    assert_eq!(operations::set_states(&mut tx, &all[..1], &["succeeded".to_owned()]).await.unwrap(), 1);
    let failed = vec!["failed".to_owned(); 3];
    assert_eq!(operations::set_states(&mut tx, &all, &failed).await.unwrap(), 2);
    assert!(!operations::set_state(&mut tx, "3", "started").await.unwrap());
    let workers = vec!["w".to_owned(); 3];
    operations::assign(&mut tx, &all, &workers).await.unwrap();
    let documents = vec![Document(json!({"b": 1, "a": 1.5})); 3];
    operations::set_parameters(&mut tx, &all, &documents).await.unwrap();
    let rows = operations::of_graph(&mut tx, graph).await.unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.state.as_str())).collect();
    assert_eq!(seen, [("3", "succeeded"), ("1", "failed"), ("2", "failed")]);
    assert!(rows.iter().all(|row| row.agent_name.is_none() && row.execution_key == key));
    assert_eq!(rows[0].parameters.to_string(), r#"{"b":1,"a":1.5}"#);
    assert_eq!(operations::executions_of(&mut tx, &all[..1]).await.unwrap(), [("3".to_owned(), key)]);
}

#[tokio::test]
async fn a_killed_execution_waits_for_nobody() {
    let (store, tenant, deployment) = deployment().await;
    let key = execution(&store, tenant, deployment).await;
    let mut tx = store.begin().await.unwrap();
    let graph = tasks_graphs::insert(&mut tx, "g", key, "install").await.unwrap();
    let rows = [operation("1", "sent"), operation("2", "pending"), operation("3", "started")];
    operations::insert(&mut tx, graph, &rows).await.unwrap();
    let ids = ["1".to_owned(), "2".to_owned(), "3".to_owned()];
    assert_eq!(operations::begun(&mut tx, &ids).await.unwrap(), ["3"]);
    assert_eq!(operations::give_up(&mut tx, key).await.unwrap(), 2);
    assert_eq!(operations::find(&mut tx, "2").await.unwrap().unwrap().state, "pending");
}

#[tokio::test]
async fn events_know_their_node_and_keep_their_order() {
    let (store, tenant, deployment) = deployment().await;
    let key = execution(&store, tenant, deployment).await;
    let mut tx = store.begin().await.unwrap();
    let event = |message: &str, instance: Option<&str>| events::NewEvent {
        message: message.into(),
        event_type: Some("workflow_node_event".into()),
        node_instance_id: instance.map(str::to_owned),
        ..events::NewEvent::default()
    };
    let told = [event("1", Some("b_1")), event("2", Some("gone")), event("3", None)];
    events::insert(&mut tx, key, &told).await.unwrap();
    let log = events::NewEvent {
        is_log: true,
        level: Some("info".into()),
        timestamp: Some(time_of(5)),
        ..event("4", Some("a_1"))
    };
    events::insert(&mut tx, key, &[log]).await.unwrap();
    let sort = vec![quorate_store::Sort { field: "reported_timestamp".into(), descending: false }];
    let query = ListQuery { filters: vec![("execution_id".into(), vec!["e".into()])], sort, ..ListQuery::default() };
    let page = events::list(&mut tx, &query, &everything()).await.unwrap();
    let seen: Vec<_> = page.items.iter().map(|row| (row.message.as_str(), row.node_name.as_deref())).collect();
    assert_eq!(seen, [("1", Some("b")), ("2", None), ("3", None), ("4", Some("a"))]);
    assert_eq!(page.items[3].timestamp, time_of(5));
    assert_eq!((page.items[3].kind.as_str(), page.items[0].kind.as_str()), ("cloudify_log", "cloudify_event"));
}

fn time_of(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

#[tokio::test]
async fn instance_states_reset_what_they_end() {
    let (store, _, deployment) = deployment().await;
    let mut tx = store.begin().await.unwrap();
    let to = |state: &str| ("a_1".to_owned(), state.to_owned());
    instance_states::set(&mut tx, deployment, &[to("configured"), to("starting"), to("started")]).await.unwrap();
    let seen = deployment_views::installed(&mut tx, deployment).await.unwrap();
    assert_eq!((seen.instances, seen.started, seen.types), (2, 1, vec!["tests.Node".to_owned()]));
    let sql = "SELECT system_properties::text FROM node_instances WHERE id = 'a_1'";
    let properties: String = sqlx::query_scalar(sql).fetch_one(&mut *tx).await.unwrap();
    let properties: Value = serde_json::from_str(&properties).unwrap();
    assert_eq!(properties["configuration_drift"]["ok"], true);
    assert_eq!(properties["status"]["ok"], true);
    let view = deployment_views::find(&mut tx, &everything(), "d").await.unwrap().unwrap();
    assert_eq!((view.environment_status, view.creator.as_str()), (None, "admin"));
    let nodes = deployment_views::nodes(&mut tx, deployment).await.unwrap();
    assert_eq!(nodes[1]["relationships"][0]["target_id"], "a");
    let instances = deployment_views::instances(&mut tx, deployment).await.unwrap();
    assert_eq!(instances[1]["relationships"][0]["target_id"], "a_1");
    assert_eq!(instances[0]["state"], "started");
}
