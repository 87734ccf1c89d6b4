//! A run cut anywhere and read back from its rows has the same future.

use proptest::prelude::*;
use quorate_core::workflow::{CancelKind, FailureKind, Run, Step, TaskOutcome, Verdict};
use serde_json::{Value, json};

use crate::support::{START_MS, Worker, World, failure, instance, node, operations, recoverable, two_nodes};

/// What must not depend on where the process died.
#[derive(Debug, PartialEq)]
struct Ending {
    verdict: Verdict,
    instances: Vec<(String, String)>,
    ran: Vec<String>,
    log: Vec<String>,
    totals: (u32, u32),
}

fn ending(world: &mut World) -> Ending {
    let verdict = world.run_out();
    let mut ran = world.worker.ran.clone();
    ran.sort();
    let mut log = world.store.log.clone();
    log.sort();
    Ending {
        verdict,
        instances: world.store.instances.clone().into_iter().collect(),
        ran,
        log,
        totals: world.store.totals,
    }
}

/// The restored run does next what the living one would do next; only unknown tasks are handed out again.
fn assert_same_next_step(world: &World) {
    let mut restored = Run::restore(world.store.graph(), CancelKind::None, world.options).unwrap();
    let mut living = world.run.clone();
    let unknown = restored_sends(world);
    for now in [world.now, world.now + 1_000_000] {
        assert_eq!(restored.next_wake_ms(), living.next_wake_ms());
        let mut steps = restored.step(now);
        steps.retain(|step| !matches!(step, Step::Send { task_id, .. } if unknown.contains(task_id)));
        assert_eq!(steps, living.step(now));
    }
    assert_eq!(restored.totals(), living.totals());
    assert_eq!(restored.in_flight(), living.in_flight());
    assert_eq!(restored.finished(), living.finished());
}

fn restored_sends(world: &World) -> Vec<String> {
    let rows = world.store.rows.iter();
    rows.filter(|row| row.state.is_in_flight()).map(|row| row.id.clone()).collect()
}

fn cut_everywhere(start: &World) {
    let expected = ending(&mut start.clone());
    let mut world = start.clone();
    loop {
        assert_same_next_step(&world);
        // Before the worker saw the messages; and after it worked, with its replies lost.
        for worked in [false, true] {
            let mut other = world.clone();
            while worked && other.worker.next().is_some() {}
            other.fail_over(CancelKind::None);
            assert_eq!(ending(&mut other), expected);
        }
        if !world.tick() {
            break;
        }
    }
    // And with a new process before every single thing.
    let mut world = start.clone();
    let mut cuts = 0;
    loop {
        world.fail_over(CancelKind::None);
        // Hands out again what was lost; without it no reply would ever come.
        world.apply_step();
        cuts += 1;
        assert!(cuts < 10_000, "no end in sight");
        if !world.tick() {
            break;
        }
    }
    assert_eq!(ending(&mut world), expected);
}

#[test]
fn an_install_survives_a_failover_at_every_point() {
    let worker = Worker::default()
        .say("app_1:configure", [recoverable(None), recoverable(Some(0.0))])
        .say("app_1:preconfigure", [failure(FailureKind::Reschedule { retry_after: None }, "OperationRetry", "wait")]);
    let world = World::new("install", &two_nodes("uninitialized"), json!({}), worker);
    cut_everywhere(&world);
}

#[test]
fn a_failing_uninstall_survives_a_failover_at_every_point() {
    let fatal = failure(FailureKind::NonRecoverable, "NonRecoverableError", "no");
    let worker = Worker::default().say("db_1:unlink", [fatal]);
    for ignore in [false, true] {
        let parameters = json!({"ignore_failure": ignore});
        let world = World::new("uninstall", &two_nodes("started"), parameters, worker.clone());
        cut_everywhere(&world);
    }
}

#[derive(Debug, Clone)]
struct Plan {
    workflow: &'static str,
    nodes: Vec<(Vec<bool>, Vec<usize>, bool)>,
    outcomes: Vec<(usize, usize, Vec<u8>)>,
    ignore: bool,
}

const OPERATIONS: [&str; 5] = ["create", "configure", "start", "stop", "delete"];

fn plan() -> impl Strategy<Value = Plan> {
    let one = (
        proptest::collection::vec(any::<bool>(), OPERATIONS.len()),
        proptest::collection::vec(0..6_usize, 0..3),
        any::<bool>(),
    );
    let outcome = (0..6_usize, 0..OPERATIONS.len(), proptest::collection::vec(0..5_u8, 1..4));
    (
        prop_oneof![Just("install"), Just("uninstall"), Just("reinstall"), Just("restart")],
        proptest::collection::vec(one, 1..6),
        proptest::collection::vec(outcome, 0..5),
        any::<bool>(),
    )
        .prop_map(|(workflow, nodes, outcomes, ignore)| Plan { workflow, nodes, outcomes, ignore })
}

fn world(plan: &Plan) -> World {
    let mut nodes = Vec::new();
    let mut instances = Vec::new();
    let sides = operations(&["cloudify.interfaces.relationship_lifecycle.establish"]);
    for (i, (has, targets, relates)) in plan.nodes.iter().enumerate() {
        let names: Vec<String> = OPERATIONS
            .iter()
            .zip(has)
            .filter(|(_, has)| **has)
            .map(|(name, _)| format!("cloudify.interfaces.lifecycle.{name}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut own = operations(&names);
        for operation in own.as_object_mut().unwrap().values_mut() {
            operation["max_retries"] = json!(2);
        }
        let targets: Vec<String> =
            targets.iter().filter(|target| **target < i).map(|target| format!("n{target}")).collect();
        let relationships: Vec<Value> = targets
            .iter()
            .map(|target| {
                let mut relationship = json!({
                    "type": "connected", "type_hierarchy": ["connected"], "target_id": target, "properties": {},
                });
                if *relates {
                    relationship["source_operations"] = sides.clone();
                    relationship["target_operations"] = sides.clone();
                }
                relationship
            })
            .collect();
        nodes.push(node(&format!("n{i}"), own, json!(relationships)));
        let targets: Vec<(String, &str)> = targets.iter().map(|t| (format!("{t}_1"), t.as_str())).collect();
        let targets: Vec<(&str, &str)> = targets.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        let state = if plan.workflow == "install" { "uninitialized" } else { "started" };
        instances.push(instance(&format!("n{i}_1"), &format!("n{i}"), state, &targets));
    }
    let mut worker = Worker::default();
    for (node, operation, outcomes) in &plan.outcomes {
        let outcomes = outcomes.iter().map(|outcome| match outcome {
            0 => recoverable(None),
            1 => recoverable(Some(1.5)),
            2 => failure(FailureKind::Reschedule { retry_after: Some(4.0) }, "OperationRetry", "later"),
            3 => failure(FailureKind::NonRecoverable, "NonRecoverableError", "no"),
            _ => TaskOutcome::Succeeded(json!({"n": 1})),
        });
        worker = worker.say(&format!("n{node}_1:{}", OPERATIONS[*operation]), outcomes);
    }
    World::new(plan.workflow, &(nodes, instances), json!({"ignore_failure": plan.ignore}), worker)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_run_survives_a_failover_at_every_point(plan in plan()) {
        let world = world(&plan);
        prop_assert_eq!(world.now, START_MS);
        cut_everywhere(&world);
    }
}
