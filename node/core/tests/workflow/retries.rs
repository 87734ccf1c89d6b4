//! Failures, retries, cancels.

use quorate_core::workflow::{
    CancelKind, FailureKind, Run, RunOptions, TaskOutcome, TaskProgress, TaskState, Verdict, resume,
};
use serde_json::{Value, json};

use crate::support::{Worker, World, failure, instance, next_id, node, operations, recoverable, two_nodes};

fn fatal() -> TaskOutcome {
    failure(FailureKind::NonRecoverable, "NonRecoverableError", "no way")
}

/// Instances of nodes with `create` only; each depends on the ones named.
fn creators(list: &[(&str, &[&str])], max_retries: Value) -> (Vec<Value>, Vec<Value>) {
    let mut nodes = Vec::new();
    let mut instances = Vec::new();
    for (id, targets) in list {
        let mut own = operations(&["cloudify.interfaces.lifecycle.create", "cloudify.interfaces.lifecycle.delete"]);
        for operation in own.as_object_mut().unwrap().values_mut() {
            operation["max_retries"] = max_retries.clone();
        }
        nodes.push(node(id, own, json!([])));
        let targets: Vec<(String, &str)> = targets.iter().map(|t| (format!("{t}_1"), *t)).collect();
        let targets: Vec<(&str, &str)> = targets.iter().map(|(i, n)| (i.as_str(), *n)).collect();
        instances.push(instance(&format!("{id}_1"), id, "uninitialized", &targets));
    }
    (nodes, instances)
}

fn task_lines(world: &World) -> Vec<&str> {
    let log = world.store.log.iter().map(String::as_str);
    log.filter(|line| line.contains("Task ") && !line.contains("Sending")).collect()
}

#[test]
fn a_recoverable_failure_is_retried_after_the_interval() {
    let worker =
        Worker::default().say("a_1:create", [recoverable(None), recoverable(Some(2.5)), recoverable(Some(0.0))]);
    let mut world = World::new("install", &creators(&[("a", &[])], Value::Null), json!({}), worker);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.waits, [15_000, 2_500]);
    assert_eq!(
        task_lines(&world),
        [
            "task_started a_1: Task started 'p.create'",
            "task_failed a_1: Task failed 'p.create' -> try later",
            "task_started a_1: Task started 'p.create' [retry 1/60]",
            "task_failed a_1: Task failed 'p.create' -> try later [retry 1/60]",
            "task_started a_1: Task started 'p.create' [retry 2/60]",
            "task_failed a_1: Task failed 'p.create' -> try later [retry 2/60]",
            "task_started a_1: Task started 'p.create' [retry 3/60]",
            "task_succeeded a_1: Task succeeded 'p.create' [retry 3/60]",
        ]
    );
    let (total, finished) = world.store.totals;
    assert_eq!((total, finished), (world.store.rows.len() as u32, total));
    let last = world.store.rows.last().unwrap();
    assert_eq!(last.parameters["current_retries"], 3);
    let context = &last.parameters["task_kwargs"]["kwargs"]["__cloudify_context"];
    assert_eq!(context["operation"]["retry_number"], 3);
    assert_eq!(context["task_id"], last.id.as_str());
}

#[test]
fn retries_run_out() {
    let worker = Worker::default().say("a_1:create", [recoverable(None), recoverable(None), recoverable(None)]);
    let mut world = World::new("install", &creators(&[("a", &[])], json!(1)), json!({}), worker);
    let Verdict::Failed { error, traceback } = world.run_out() else { panic!("must fail") };
    assert_eq!(error, "Task failed: p.create (a_1:cloudify.interfaces.lifecycle.create): RecoverableError `try later`");
    assert_eq!(traceback, "tb");
    assert_eq!(world.worker.ran.len(), 2);
    assert_eq!(world.store.log.last().unwrap(), "task_failed: Subgraph failed 'install_a_1'");
    assert_eq!(world.store.instances["a_1"], "creating");
}

#[test]
fn endless_retries_say_so() {
    let worker = Worker::default().say("a_1:create", (0..100).map(|_| recoverable(Some(1.0))));
    let mut world = World::new("install", &creators(&[("a", &[])], json!(-1)), json!({}), worker);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.worker.ran.len(), 101);
    let last = "task_succeeded a_1: Task succeeded 'p.create' [retry 100]";
    assert_eq!(task_lines(&world).last(), Some(&last));
}

#[test]
fn an_operation_may_ask_to_run_again() {
    let again = failure(FailureKind::Reschedule { retry_after: Some(3.0) }, "OperationRetry", "wait");
    let worker = Worker::default().say("a_1:create", [again]);
    let mut world = World::new("install", &creators(&[("a", &[])], json!(1)), json!({}), worker);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.waits, [3_000]);
    assert_eq!(world.store.count(TaskState::Rescheduled), 1);
    assert_eq!(task_lines(&world)[1], "task_rescheduled a_1: Task rescheduled 'p.create' -> wait");
}

#[test]
fn a_fatal_failure_stops_what_depends_on_it_only() {
    let list: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("c", &[]), ("d", &["c"])];
    let worker = Worker::default().say("a_1:create", [fatal()]);
    let mut world = World::new("install", &creators(list, Value::Null), json!({}), worker);
    let Verdict::Failed { error, .. } = world.run_out() else { panic!("must fail") };
    assert!(error.ends_with("NonRecoverableError `no way`"), "{error}");
    assert_eq!(world.worker.ran, ["a_1:create", "c_1:create", "d_1:create"]);
    assert_eq!(world.store.instances.get("b_1"), None);
    assert_eq!(world.store.instances["d_1"], "started");
}

#[test]
fn all_errors_are_listed() {
    let worker = Worker::default().say("a_1:create", [fatal()]).say("b_1:create", [fatal()]);
    let list: &[(&str, &[&str])] = &[("a", &[]), ("b", &[])];
    let mut world = World::new("install", &creators(list, Value::Null), json!({}), worker);
    let Verdict::Failed { error, .. } = world.run_out() else { panic!("must fail") };
    assert!(error.starts_with("2 operation errors:\n"), "{error}");
    assert!(error.contains("(a_1:") && error.contains("(b_1:"), "{error}");
}

#[test]
fn waiting_for_other_branches_has_an_end() {
    let list: &[(&str, &[&str])] = &[("a", &[]), ("b", &[]), ("c", &["b"])];
    let worker = Worker::default().say("a_1:create", [fatal()]).say("b_1:create", (0..60).map(|_| recoverable(None)));
    let mut world = World::new("install", &creators(list, Value::Null), json!({}), worker);
    world.options = RunOptions { wait_after_fail_ms: 20_000 };
    world.fail_over(CancelKind::None);
    assert!(matches!(world.run_out(), Verdict::Failed { .. }));
    assert_eq!(world.waits, [15_000, 5_000]);
    assert_eq!(world.worker.ran, ["a_1:create", "b_1:create", "b_1:create"]);
}

#[test]
fn ignored_failures_do_not_stop_an_uninstall() {
    let worker = Worker::default()
        .say("app_1:stop", [TaskOutcome::Succeeded(Value::Null), recoverable(None)])
        .say("app_1:unlink", [fatal()])
        .say("app_1:delete", [fatal(), fatal()]);
    let parameters = json!({"ignore_failure": true});
    let mut world = World::new("uninstall", &two_nodes("started"), parameters, worker);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.waits, [0_i64; 0]);
    assert_eq!(world.store.instances["app_1"], "deleted");
    let ignored = world.store.log.iter().filter(|line| line.contains("Ignoring task")).count();
    assert_eq!(ignored, 4);
    assert!(world.store.log.contains(&"workflow_node_event app_1: Ignoring task p.delete failure".to_owned()));
}

#[test]
fn results_are_taken_once() {
    for first in [TaskOutcome::Succeeded(json!(1)), fatal(), recoverable(None)] {
        let world = creators(&[("a", &[])], Value::Null);
        let mut world = World::new("install", &world, json!({}), Worker::default());
        while world.run.in_flight() == 0 {
            assert!(world.apply_step());
        }
        let (id, _) = world.worker.next().unwrap();
        let mut ids = 100;
        let mut fresh = || next_id(&mut ids);
        assert!(world.run.record("nobody", recoverable(None), world.now, &mut fresh).is_empty());
        assert!(!world.run.record(&id, first, world.now, &mut fresh).is_empty());
        let next = |run: &Run| (run.clone().step(i64::MAX), run.totals(), run.next_wake_ms());
        let before = next(&world.run);
        for outcome in [TaskOutcome::Succeeded(json!(1)), fatal(), recoverable(None)] {
            assert!(world.run.record(&id, outcome, world.now, &mut fresh).is_empty());
        }
        assert!(world.run.progress(&id, TaskProgress::Started).is_empty());
        assert_eq!(next(&world.run), before);
    }
}

#[test]
fn a_result_of_a_task_never_handed_out_is_refused() {
    let world = creators(&[("a", &[])], Value::Null);
    let mut world = World::new("install", &world, json!({}), Worker::default());
    for row in world.store.graph().operations {
        let outcome = TaskOutcome::Succeeded(Value::Null);
        assert!(world.run.record(&row.id, outcome, world.now, &mut String::new).is_empty());
    }
}

#[test]
fn progress_never_goes_back() {
    let world = creators(&[("a", &[])], Value::Null);
    let mut world = World::new("install", &world, json!({}), Worker::default());
    while world.run.in_flight() == 0 {
        assert!(world.apply_step());
    }
    let (id, outcome) = world.worker.next().unwrap();
    for progress in [TaskProgress::ResponseSent, TaskProgress::Started, TaskProgress::Sent] {
        let changes = world.run.progress(&id, progress);
        world.store.apply(changes);
    }
    assert_eq!(world.store.row(&id).state, TaskState::ResponseSent);
    world.reply(&id, outcome);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(task_lines(&world).len(), 2, "one start, one success");
}

#[test]
fn a_graceful_cancel_lets_running_operations_end() {
    let list: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"])];
    let mut world = World::new("install", &creators(list, Value::Null), json!({}), Worker::default());
    while world.run.in_flight() == 0 {
        assert!(world.apply_step());
    }
    world.run.cancel(CancelKind::Graceful);
    assert_eq!(world.run.finished(), None);
    let log = world.store.log.len();
    assert_eq!(world.run_out(), Verdict::Cancelled);
    assert_eq!(world.worker.ran, ["a_1:create"]);
    assert_eq!(world.store.log.len(), log + 2, "started and succeeded of the one running task");

    // A resume goes on with what is left.
    world.fail_over(CancelKind::None);
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.worker.ran, ["a_1:create", "b_1:create"]);
}

#[test]
fn a_cancel_survives_a_failover_and_still_finds_lost_messages() {
    let mut world = World::new("install", &creators(&[("a", &[])], Value::Null), json!({}), Worker::default());
    while world.run.in_flight() == 0 {
        assert!(world.apply_step());
    }
    world.fail_over(CancelKind::Graceful);
    assert_eq!(world.run.finished(), None);
    assert_eq!(world.run_out(), Verdict::Cancelled);
    assert_eq!(world.worker.ran, ["a_1:create"]);
}

#[test]
fn a_forced_cancel_waits_for_nobody_but_takes_late_results() {
    for kind in [CancelKind::Force, CancelKind::Kill] {
        let mut world = World::new("install", &creators(&[("a", &[])], Value::Null), json!({}), Worker::default());
        while world.run.in_flight() == 0 {
            assert!(world.apply_step());
        }
        world.run.cancel(kind);
        world.run.cancel(CancelKind::Graceful);
        assert_eq!(world.run.finished(), Some(Verdict::Cancelled));
        assert_eq!(world.run.next_wake_ms(), None);
        assert!(!world.apply_step());
        let (id, outcome) = world.worker.next().unwrap();
        world.reply(&id, outcome);
        assert_eq!(world.store.row(&id).state, TaskState::Succeeded);
    }
}

#[test]
fn a_failed_execution_resumes_with_new_ids() {
    let list: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"])];
    let worker = Worker::default().say("a_1:create", [fatal(), fatal()]);
    let mut world = World::new("install", &creators(list, Value::Null), json!({}), worker);
    for _ in 0..2 {
        assert!(matches!(world.run_out(), Verdict::Failed { .. }));
        let changes = resume(world.store.graph(), false, &mut || next_id(&mut world.ids)).unwrap();
        world.store.apply(changes);
        world.run = Run::restore(world.store.graph(), CancelKind::None, world.options).unwrap();
        assert_eq!(world.store.totals, world.run.totals());
    }
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.worker.ran, ["a_1:create", "a_1:create", "a_1:create", "b_1:create"]);
    let (total, finished) = world.store.totals;
    assert_eq!(total, finished);
}
