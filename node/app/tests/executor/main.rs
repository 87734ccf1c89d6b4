//! Executions carried out on a real database: through duplicates, takeovers, lost workers and cancels.

mod fleet;

use std::sync::Arc;
use std::time::Duration;

use fleet::{Fleet, admin, events, executor, remote, until};
use quorate_app::executions::{Action, Execution, StartExecution};
use quorate_app::testing::{TestApp, app, deployment};
use quorate_app::{App, Code};
use quorate_store::deployment_views;
use quorate_types::Epoch;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An app with the deployment `d`, its fleet and an executor.
struct Rig {
    test: TestApp,
    fleet: Arc<Fleet>,
    deployment: i64,
    stop: CancellationToken,
    executor: JoinHandle<()>,
}

impl Rig {
    async fn new(workers: &[&str], nodes: Value) -> Self {
        let test = app().await;
        let deployment = deployment(&test.app, "d", nodes.as_array().unwrap()).await;
        let fleet = Fleet::new(&test.app, workers);
        let stop = CancellationToken::new();
        let executor = executor(&test.app, &test.executor, &fleet, &stop);
        Self { test, fleet, deployment, stop, executor }
    }

    fn app(&self) -> &App {
        &self.test.app
    }

    async fn install(&self) -> String {
        self.start("install", Map::new(), false).await.unwrap().id
    }

    async fn start(&self, workflow: &str, parameters: Map<String, Value>, queue: bool) -> Result<Execution, Code> {
        let new = StartExecution {
            deployment_id: "d".into(),
            workflow_id: workflow.into(),
            parameters,
            allow_custom_parameters: false,
            force: false,
            dry_run: false,
            queue,
            wait_after_fail: 5,
        };
        let actor = admin(self.app()).await;
        self.app().executions().start(&actor, new).await.map_err(|error| error.code)
    }

    async fn ended(&self, id: &str) -> Execution {
        self.reaches(id, &["terminated", "failed", "cancelled"]).await
    }

    async fn reaches(&self, id: &str, statuses: &[&str]) -> Execution {
        let actor = admin(self.app()).await;
        until("the execution's status", async || {
            let row = self.app().executions().get(&actor, id).await.unwrap();
            statuses.contains(&row.status.as_str()).then_some(row)
        })
        .await
    }

    async fn runs(&self, count: usize) {
        until("operations that run", async || (self.fleet.ran().len() >= count).then_some(())).await;
    }

    /// Distinct states of the node instances.
    async fn states(&self) -> Vec<String> {
        let mut reader = self.app().store().read().await.unwrap();
        let instances = deployment_views::instances(&mut reader, self.deployment).await.unwrap();
        let mut states: Vec<String> = instances.iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect();
        states.sort();
        states.dedup();
        states
    }
}

/// `app` waits for `db` and `host`; each has create and start.
fn three() -> Value {
    let operations = json!({"create": "p.create", "start": "p.start"});
    json!([
        {"id": "host", "operations": operations},
        {"id": "db", "operations": operations, "after": ["host"]},
        {"id": "app", "operations": operations, "after": ["host", "db"]},
    ])
}

/// Two nodes side by side whose creation waits for the gate, and one that waits for them.
fn gated() -> Value {
    json!([
        {"id": "a", "operations": {"create": "p.gate"}},
        {"id": "b", "operations": {"create": "p.gate"}},
        {"id": "c", "operations": {"create": "p.create"}, "after": ["a", "b"]},
    ])
}

fn count(events: &[(String, String)], kind: &str) -> usize {
    events.iter().filter(|(known, _)| known == kind).count()
}

/// Each operation began once, and one result of it is recorded.
async fn recorded_once(rig: &Rig, execution: &str, operations: usize) {
    let events = events(rig.app(), execution).await;
    let task = |kind: &str| events.iter().filter(|(known, text)| known == kind && text.starts_with("Task ")).count();
    assert_eq!((task("task_started"), task("task_succeeded")), (operations, operations), "{events:#?}");
    let rows = remote(rig.app(), execution).await;
    assert_eq!(rows.len(), operations);
    assert!(rows.iter().all(|row| row.state == "succeeded" && row.agent_name.is_some()));
    assert_eq!((count(&events, "workflow_started"), count(&events, "workflow_succeeded")), (1, 1));
}

#[tokio::test]
async fn three_nodes_are_installed_in_order() {
    let rig = Rig::new(&["w1", "w2"], three()).await;
    let id = rig.install().await;
    let row = rig.ended(&id).await;
    assert_eq!((row.status.as_str(), row.error.as_deref()), ("terminated", Some("")));
    assert_eq!(row.total_operations, row.finished_operations);
    assert!(row.started_at.is_some() && row.ended_at.is_some());
    let expected = ["host_1 create", "host_1 start", "db_1 create", "db_1 start", "app_1 create", "app_1 start"];
    assert_eq!(rig.fleet.ran(), expected);
    assert_eq!(rig.states().await, ["started"]);
    recorded_once(&rig, &id, 6).await;
    let told = events(rig.app(), &id).await;
    assert_eq!(told.first().unwrap().1, "Starting 'install' workflow execution");
    assert_eq!(told.last().unwrap().1, "'install' workflow execution succeeded");
    until("all replies acknowledged", async || (rig.fleet.unacked() == 0).then_some(())).await;
    // Its tokens are worth nothing any more, and the deployment may be uninstalled, not installed again.
    assert_eq!(rig.start("install", Map::new(), false).await.unwrap_err(), Code::UnavailableWorkflow);
    let id = rig.start("uninstall", Map::new(), false).await.unwrap().id;
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(rig.states().await, ["deleted"]);
}

#[tokio::test]
async fn a_second_reply_changes_nothing() {
    let rig = Rig::new(&["w1"], three()).await;
    rig.fleet.answer_twice();
    let id = rig.install().await;
    assert_eq!(rig.ended(&id).await.status, "terminated");
    until("all replies acknowledged", async || (rig.fleet.unacked() == 0).then_some(())).await;
    recorded_once(&rig, &id, 6).await;
}

#[tokio::test]
async fn a_new_epoch_goes_on_with_what_workers_have() {
    let mut rig = Rig::new(&["w1", "w2"], gated()).await;
    let id = rig.install().await;
    rig.runs(2).await;
    // The node dies: nothing is said to anybody.
    rig.executor.abort();
    let _ = (&mut rig.executor).await;
    rig.fleet.gate.send_replace(true);
    until("replies that nobody takes", async || (rig.fleet.unacked() == 2).then_some(())).await;
    let next = rig.test.take_over(Epoch(2)).await;
    rig.fleet.call(&next);
    rig.fleet.reconnect();
    let _second = executor(&next, &rig.test.executor, &rig.fleet, &rig.stop);
    assert_eq!(rig.ended(&id).await.status, "terminated");
    let mut ran = rig.fleet.ran();
    ran.sort();
    assert_eq!(ran, ["a_1 create", "b_1 create", "c_1 create"]);
    recorded_once(&rig, &id, 3).await;
    // Those it took over went to the worker they had.
    let mut by_task = std::collections::HashMap::new();
    for (worker, task) in rig.fleet.sent() {
        assert_eq!(by_task.entry(task).or_insert_with(|| worker.clone()), &worker);
    }
}

#[tokio::test]
async fn an_executor_that_is_cut_anywhere_leaves_nothing_behind() {
    let mut rig = Rig::new(&["w1", "w2"], three()).await;
    let id = rig.install().await;
    let actor = admin(rig.app()).await;
    let mut app = rig.app().clone();
    // Bounded: each life of some milliseconds gets a little further, as commits are never lost.
    for epoch in 2..400 {
        tokio::time::sleep(Duration::from_millis(15 + epoch % 7)).await;
        rig.executor.abort();
        let _ = (&mut rig.executor).await;
        if app.executions().get(&actor, &id).await.unwrap().status == "terminated" {
            break;
        }
        app = rig.test.take_over(Epoch(epoch)).await;
        rig.fleet.call(&app);
        rig.fleet.reconnect();
        rig.executor = executor(&app, &rig.test.executor, &rig.fleet, &rig.stop);
    }
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(rig.fleet.ran().len(), 6, "{:?}", rig.fleet.ran());
    recorded_once(&rig, &id, 6).await;
}

#[tokio::test]
async fn an_executor_of_an_old_epoch_writes_nothing_and_ends() {
    let mut rig = Rig::new(&["w1"], gated()).await;
    let id = rig.install().await;
    rig.runs(2).await;
    let next = rig.test.take_over(Epoch(2)).await;
    let (before, told) = (remote(&next, &id).await, events(&next, &id).await);
    rig.fleet.call(&next);
    rig.fleet.gate.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), &mut rig.executor).await.expect("it ends by itself").unwrap();
    let after = remote(&next, &id).await;
    let results = |rows: &[quorate_app::operations::Operation]| {
        rows.iter().filter(|row| ["succeeded", "failed"].contains(&row.state.as_str())).count()
    };
    assert_eq!((results(&before), results(&after), before.len()), (0, 0, after.len()));
    assert_eq!(events(&next, &id).await, told);
    assert!(!rig.stop.is_cancelled(), "it stops nobody else");
    // What is not recorded is not acknowledged; an answer may come after the executor's end.
    until("both replies", async || (rig.fleet.unacked() == 2).then_some(())).await;
}

#[tokio::test]
async fn operations_of_a_lost_worker_go_to_another() {
    let rig = Rig::new(&["w1"], json!([{"id": "a", "operations": {"create": "p.create"}}])).await;
    rig.fleet.deafen("w1");
    let id = rig.install().await;
    until("a message to w1", async || (!rig.fleet.sent().is_empty()).then_some(())).await;
    rig.fleet.set_alive(&["w2"]);
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(rig.fleet.ran(), ["a_1 create"]);
    let sent = rig.fleet.sent();
    assert_eq!(sent.last().unwrap().0, "w2");
    assert!(sent.iter().all(|(_, task)| *task == sent[0].1), "the id stays");
    assert_eq!(remote(rig.app(), &id).await[0].agent_name.as_deref(), Some("w2"));
    recorded_once(&rig, &id, 1).await;
}

#[tokio::test]
async fn a_worker_that_lost_its_operation_must_not_begin_it() {
    use quorate_app::operations::{Progress, Reporter};
    let rig = Rig::new(&["w1"], json!([{"id": "a", "operations": {"create": "p.gate"}}])).await;
    rig.fleet.deafen("w1");
    let id = rig.install().await;
    until("a message to w1", async || (!rig.fleet.sent().is_empty()).then_some(())).await;
    rig.fleet.set_alive(&["w2"]);
    rig.runs(1).await;
    let actor = admin(rig.app()).await;
    let task = rig.fleet.sent()[0].1.clone();
    let start = async |worker: &str| {
        let reporter = Reporter { agent: Some(worker), manager: None };
        rig.app().operations().report(&actor, &task, Progress::Started, reporter).await.map_err(|error| error.code)
    };
    assert_eq!(start("w1").await, Err(Code::Conflict));
    assert_eq!(start("w2").await, Ok(()), "delivered again to the one that has it");
    rig.fleet.gate.send_replace(true);
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(start("w2").await, Err(Code::Conflict), "it has its result");
    recorded_once(&rig, &id, 1).await;
}

#[tokio::test]
async fn operations_wait_for_a_worker() {
    let rig = Rig::new(&[], three()).await;
    let id = rig.install().await;
    rig.reaches(&id, &["started"]).await;
    rig.fleet.set_alive(&["late"]);
    assert_eq!(rig.ended(&id).await.status, "terminated");
}

#[tokio::test]
async fn a_cancelled_execution_waits_for_what_runs_and_can_go_on() {
    let rig = Rig::new(&["w1"], gated()).await;
    let id = rig.install().await;
    rig.runs(2).await;
    let actor = admin(rig.app()).await;
    let asked = rig.app().executions().act(&actor, &id, Action::Cancel).await.unwrap();
    assert_eq!(asked.status, "cancelling");
    rig.fleet.gate.send_replace(true);
    assert_eq!(rig.ended(&id).await.status, "cancelled");
    assert_eq!(events(rig.app(), &id).await.last().unwrap().1, "'install' workflow execution cancelled");
    assert_eq!(rig.fleet.ran().len(), 2);
    rig.app().executions().act(&actor, &id, Action::Resume).await.unwrap();
    let row = rig.ended(&id).await;
    assert_eq!((row.status.as_str(), row.resume), ("terminated", true));
    assert_eq!(rig.fleet.ran().len(), 3);
    assert_eq!(rig.states().await, ["started"]);
    let told = events(rig.app(), &id).await;
    assert!(told.iter().any(|(_, text)| text == "Resuming 'install' workflow execution"), "{told:#?}");
}

#[tokio::test]
async fn results_after_a_forced_cancel_are_kept_for_a_resume() {
    let rig = Rig::new(&["w1"], gated()).await;
    let id = rig.install().await;
    rig.runs(2).await;
    let actor = admin(rig.app()).await;
    rig.app().executions().act(&actor, &id, Action::ForceCancel).await.unwrap();
    assert_eq!(rig.ended(&id).await.status, "cancelled");
    rig.fleet.gate.send_replace(true);
    until("late results", async || {
        let rows = remote(rig.app(), &id).await;
        rows.iter().filter(|row| row.state == "succeeded").count().eq(&2).then_some(())
    })
    .await;
    rig.app().executions().act(&actor, &id, Action::Resume).await.unwrap();
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(rig.fleet.ran().len(), 3, "{:?}", rig.fleet.ran());
}

#[tokio::test]
async fn a_kill_reaches_the_workers_and_their_tokens() {
    let rig = Rig::new(&["w1"], gated()).await;
    let id = rig.install().await;
    rig.runs(2).await;
    let actor = admin(rig.app()).await;
    rig.app().executions().act(&actor, &id, Action::Kill).await.unwrap();
    let row = rig.ended(&id).await;
    assert_eq!(row.status, "cancelled");
    assert_eq!(rig.fleet.cancelled(), [("w1".to_owned(), id.clone())]);
    let states: Vec<String> = remote(rig.app(), &id).await.into_iter().map(|row| row.state).collect();
    assert_eq!(states.iter().filter(|state| *state == "failed").count(), 2, "{states:?}");
    // What ran answers all the same; it is too late.
    rig.fleet.gate.send_replace(true);
    until("all replies acknowledged", async || (rig.fleet.unacked() == 0).then_some(())).await;
    rig.app().executions().act(&actor, &id, Action::Resume).await.unwrap();
    assert_eq!(rig.ended(&id).await.status, "terminated");
    assert_eq!(rig.fleet.ran().len(), 5, "both gates ran again: {:?}", rig.fleet.ran());
}

#[tokio::test]
async fn a_failed_operation_fails_the_execution_with_its_text() {
    let nodes = json!([
        {"id": "a", "operations": {"create": "p.fail"}},
        {"id": "b", "operations": {"create": "p.create"}, "after": ["a"]},
    ]);
    let rig = Rig::new(&["w1"], nodes).await;
    let id = rig.install().await;
    let row = rig.ended(&id).await;
    assert_eq!(row.status, "failed");
    let expected =
        "Task failed: p.fail (a_1:cloudify.interfaces.lifecycle.create): NonRecoverableError `it is broken`\ntb";
    assert_eq!(row.error.as_deref(), Some(expected));
    assert_eq!(rig.fleet.ran(), ["a_1 create"]);
    let told = events(rig.app(), &id).await;
    assert_eq!(told.last().unwrap().0, "workflow_failed");
    assert_eq!(count(&told, "task_failed"), 2, "the task and its sub-graph: {told:#?}");
}

#[tokio::test]
async fn a_recoverable_failure_is_tried_again() {
    let rig = Rig::new(&["w1"], json!([{"id": "a", "operations": {"create": "p.flaky"}}])).await;
    let id = rig.install().await;
    let row = rig.ended(&id).await;
    assert_eq!((row.status.as_str(), row.total_operations), ("terminated", row.finished_operations));
    assert_eq!(rig.fleet.ran().len(), 2);
    let rows = remote(rig.app(), &id).await;
    assert_eq!((rows[0].state.as_str(), rows[1].state.as_str()), ("failed", "succeeded"));
    assert_ne!(rows[0].id, rows[1].id);
}

#[tokio::test]
async fn a_queued_execution_begins_when_its_deployment_is_free() {
    let rig = Rig::new(&["w1"], gated()).await;
    let first = rig.install().await;
    rig.runs(2).await;
    let parameters = json!({"operation": "cloudify.interfaces.lifecycle.create"}).as_object().unwrap().clone();
    let refused = rig.start("execute_operation", parameters.clone(), false).await.unwrap_err();
    assert_eq!(refused, Code::ExistingRunningExecution);
    let second = rig.start("execute_operation", parameters, true).await.unwrap();
    assert_eq!(second.status, "queued");
    rig.fleet.gate.send_replace(true);
    assert_eq!(rig.ended(&first).await.status, "terminated");
    assert_eq!(rig.ended(&second.id).await.status, "terminated");
    assert_eq!(rig.fleet.ran().len(), 6);
}

#[tokio::test]
async fn a_dry_run_only_tells() {
    let rig = Rig::new(&["w1"], three()).await;
    let actor = admin(rig.app()).await;
    let new = StartExecution {
        deployment_id: "d".into(),
        workflow_id: "install".into(),
        parameters: Map::new(),
        allow_custom_parameters: false,
        force: false,
        dry_run: true,
        queue: false,
        wait_after_fail: 5,
    };
    let id = rig.app().executions().start(&actor, new).await.unwrap().id;
    let row = rig.ended(&id).await;
    assert_eq!((row.status.as_str(), row.is_dry_run), ("terminated", true));
    assert!(rig.fleet.sent().is_empty() && remote(rig.app(), &id).await.is_empty());
    assert_eq!(rig.states().await, ["uninitialized"]);
    let told = events(rig.app(), &id).await;
    assert!(told.iter().all(|(_, text)| text.ends_with(" (dry run)")), "{told:#?}");
    assert_eq!(count(&told, "task_succeeded"), 9, "six tasks in three sub-graphs");
}

#[tokio::test]
async fn a_workflow_that_is_not_built_in_fails_with_its_name() {
    let rig = Rig::new(&["w1"], json!([])).await;
    let workflows = json!({"own": {"plugin": "p", "operation": "flows.own", "parameters": {}}});
    quorate_store::testing::deployment(rig.app().store(), "e", workflows, &[]).await;
    let new = StartExecution {
        deployment_id: "e".into(),
        workflow_id: "own".into(),
        parameters: Map::new(),
        allow_custom_parameters: false,
        force: false,
        dry_run: false,
        queue: false,
        wait_after_fail: 5,
    };
    let actor = admin(rig.app()).await;
    let id = rig.app().executions().start(&actor, new).await.unwrap().id;
    let row = rig.ended(&id).await;
    assert_eq!(row.status, "failed");
    assert!(row.error.unwrap().contains("flows.own"));
}
