//! Executions, events and operations as clients and workers call them.

use http::StatusCode;
use quorate_app::testing::{TestApp, app, deployment};
use serde_json::{Value, json};

use crate::support::Client;

async fn with_deployment() -> (TestApp, Client) {
    let test = app().await;
    deployment(&test.app, "d", &[json!({"id": "a", "operations": {"create": "p.create"}})]).await;
    let admin = Client::admin(&test.app);
    (test, admin)
}

/// As `cfy executions start` sends it.
fn body(workflow: &str) -> Value {
    json!({
        "deployment_id": "d", "workflow_id": workflow, "parameters": {}, "allow_custom_parameters": "false",
        "force": "false", "dry_run": "false", "queue": "false", "scheduled_time": null, "wait_after_fail": 600,
        "force_status": null, "created_by": null, "id": null, "error": null,
    })
}

#[tokio::test]
async fn an_execution_is_started_once_and_shown() {
    let (test, admin) = with_deployment().await;
    let (status, made) = admin.call("POST", "/executions", body("install")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!((&made["status"], &made["status_display"]), (&json!("pending"), &json!("pending")));
    assert_eq!(made["parameters"], json!({"type_names": [], "node_ids": [], "node_instance_ids": []}));
    assert_eq!((&made["started_at"], &made["error"]), (&Value::Null, &Value::Null));
    assert_eq!((&made["blueprint_id"], &made["created_by"]), (&json!("d-blueprint"), &json!("admin")));
    // Whoever made it told the executor to look.
    tokio::time::timeout(std::time::Duration::from_secs(5), test.executor.notified()).await.unwrap();

    let id = made["id"].as_str().unwrap();
    let (status, seen) = admin.get(&format!("/executions/{id}?_include=id,status")).await;
    assert_eq!((status, seen), (StatusCode::OK, json!({"id": id, "status": "pending"})));
    let (_, page) = admin.get("/executions?deployment_id=d&workflow_id=install&_sort=-created_at").await;
    assert_eq!((&page["metadata"]["pagination"]["total"], &page["items"][0]["id"]), (&json!(1), &json!(id)));

    let (status, error) = admin.call("POST", "/executions", body("install")).await;
    assert_eq!((status, &error["error_code"]), (StatusCode::BAD_REQUEST, &json!("existing_running_execution_error")));
    let mut queued = body("install");
    queued["queue"] = json!("True");
    let (_, queued) = admin.call("POST", "/executions", queued).await;
    assert_eq!(queued["status"], "queued");
    let path = format!("/executions/{}", queued["id"].as_str().unwrap());
    let (_, cancelled) = admin.call("POST", &path, json!({"action": "cancel"})).await;
    assert_eq!(cancelled["status"], "cancelled");
}

#[tokio::test]
async fn what_cannot_start_is_refused_with_its_code() {
    let (_test, admin) = with_deployment().await;
    let mut cases = vec![
        (body("uninstall"), 400, "unavailable_workflow_error"),
        (body("nothing"), 400, "nonexistent_workflow_error"),
        (body("execute_operation"), 400, "illegal_execution_parameters_error"),
        (json!({"deployment_id": "d"}), 400, "bad_parameters_error"),
        (json!({"deployment_id": "x", "workflow_id": "install"}), 404, "not_found_error"),
    ];
    let mut custom = body("install");
    custom["parameters"] = json!({"unheard": 1});
    cases.push((custom, 400, "illegal_execution_parameters_error"));
    for (body, status, code) in cases {
        let (got, error) = admin.call("POST", "/executions", body).await;
        assert_eq!((got.as_u16(), &error["error_code"]), (status, &json!(code)), "{error}");
    }
    let (_, error) = admin.call("POST", "/executions", body("uninstall")).await;
    assert_eq!(error["message"], "Workflow not available: uninstall");
    let (status, error) = admin.get("/executions/none").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error["message"].as_str().unwrap().contains("not found"));
}

#[tokio::test]
async fn an_execution_is_asked_to_stop_and_to_go_on() {
    let (_test, admin) = with_deployment().await;
    let (_, made) = admin.call("POST", "/executions", body("install")).await;
    let path = format!("/executions/{}", made["id"].as_str().unwrap());
    let ask = |action: &str| admin.call("POST", &path, json!({"action": action}));
    assert_eq!(ask("cancel").await.1["status"], "cancelling");
    let (status, error) = ask("cancel").await;
    assert_eq!((status.as_u16(), &error["error_code"]), (400, &json!("illegal_action_error")));
    assert_eq!(ask("force-cancel").await.1["status"], "force_cancelling");
    assert_eq!(ask("kill").await.1["status"], "kill_cancelling");
    let (status, error) = ask("resume").await;
    assert_eq!((status.as_u16(), &error["error_code"]), (409, &json!("conflict_error")));
    let (status, error) = ask("sing").await;
    assert_eq!((status.as_u16(), &error["error_code"]), (400, &json!("bad_parameters_error")));
}

#[tokio::test]
async fn workers_tell_events_and_logs() {
    let (_test, admin) = with_deployment().await;
    let (_, made) = admin.call("POST", "/executions", body("install")).await;
    let id = made["id"].as_str().unwrap();
    let context = json!({"execution_id": id, "node_id": "a_1", "operation": "create"});
    let log = json!({
        "events": null, "execution_id": id, "agent_name": "w", "manager_name": null,
        "logs": [{"type": "cloudify_log", "logger": "ctx.1", "level": "info", "timestamp": "2026-01-05T10:20:31.456Z",
            "context": context, "message": {"text": "listening\u{0}"}}],
    });
    let (status, answer) = admin.call("POST", "/events", log).await;
    assert_eq!((status, answer), (StatusCode::CREATED, Value::Null));
    let event = json!({
        "events": [{"event_type": "plugin_event", "context": context, "message": {"text": "hello", "arguments": null}}],
        "logs": null, "execution_id": id, "agent_name": "w", "manager_name": null,
    });
    admin.call("POST", "/events", event).await;
    let path = format!(
        "/events?_offset=0&_size=100&execution_id={id}&type=cloudify_event&type=cloudify_log&_sort=reported_timestamp"
    );
    let (status, page) = admin.get(&path).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert_eq!(page["metadata"], json!({"pagination": {"total": 2, "size": 100, "offset": 0}}));
    let (log, event) = (&page["items"][0], &page["items"][1]);
    assert_eq!(
        (&log["message"], &log["level"], &log["logger"]),
        (&json!("listening<NUL>"), &json!("info"), &json!("ctx.1"))
    );
    assert_eq!((&log["timestamp"], &log["node_name"]), (&json!("2026-01-05T10:20:31.456Z"), &json!("a")));
    assert_eq!((&event["event_type"], &event["operation"]), (&json!("plugin_event"), &Value::Null));
    assert_eq!((&event["error_causes"], &event["deployment_id"]), (&Value::Null, &json!("d")));
    let (_, page) = admin.get("/events?execution_id=unknown&message.text=*ello*").await;
    assert_eq!(page["items"], json!([]));
    let (_, page) = admin.get(&format!("/events?execution_id={id}&message.text=*ello*&_sort=@timestamp")).await;
    assert_eq!(page["metadata"]["pagination"]["total"], 1);
}
