//! The other workflows, what operations are told, and wrong input.

use std::time::{Duration, Instant};

use quorate_core::workflow::{
    BuildError, CancelKind, Deployment, Graph, Operation, RestoreError, Run, RunOptions, Step, Target, TaskOutcome,
    TaskState, Verdict, build,
};
use serde_json::{Value, json};

use crate::support::{START_MS, Store, Worker, World, context, instance, next_id, node, operations, two_nodes};

const LIFECYCLE: &str = "cloudify.interfaces.lifecycle.";

fn try_build(workflow: &str, world: &(Vec<Value>, Vec<Value>), parameters: Value) -> Result<Graph, BuildError> {
    let mut ids = 0;
    let deployment = Deployment { id: "dep", nodes: &world.0, instances: &world.1 };
    build(workflow, &deployment, &context(workflow, parameters), &mut || next_id(&mut ids))
}

fn remote(graph: &Graph) -> Vec<&Operation> {
    graph.operations.iter().filter(|row| row.kind == "RemoteWorkflowTask").collect()
}

/// A chain `c` → `b` → `a` (sources to targets), each with start and stop.
fn chain() -> (Vec<Value>, Vec<Value>) {
    let own = operations(&[&format!("{LIFECYCLE}start"), &format!("{LIFECYCLE}stop")]);
    let nodes = ["c", "b", "a"].map(|id| node(id, own.clone(), json!([]))).to_vec();
    let instances = vec![
        instance("c_1", "c", "started", &[("b_1", "b")]),
        instance("b_1", "b", "started", &[("a_1", "a")]),
        instance("a_1", "a", "started", &[]),
    ];
    (nodes, instances)
}

#[test]
fn execute_operation_runs_on_the_chosen_only() {
    let parameters = json!({
        "operation": format!("{LIFECYCLE}start"), "node_ids": ["a", "c"], "run_by_dependency_order": true,
        "operation_kwargs": {"b": "x"}, "type_names": [], "node_instance_ids": null,
    });
    let mut world = World::new("execute_operation", &chain(), parameters, Worker::default());
    assert_eq!(world.store.name, format!("execute_operation_{LIFECYCLE}start"));
    let kwargs = &remote(&world.store.graph())[0].parameters["task_kwargs"]["kwargs"].clone();
    assert_eq!((&kwargs["a"], &kwargs["b"]), (&json!(1), &json!("x")));
    assert_eq!(world.run_out(), Verdict::Terminated);
    // b is not chosen but its empty sub-graph keeps c behind a.
    assert_eq!(world.worker.ran, ["a_1:start", "c_1:start"]);
    let log = &world.store.log;
    let text =
        format!("workflow_node_event a_1: Starting operation {LIFECYCLE}start (Operation parameters: {{'b': 'x'}})");
    assert!(log.contains(&text), "{log:#?}");
    assert!(log.contains(&format!("workflow_node_event c_1: Finished operation {LIFECYCLE}start")));
    assert!(world.store.instances.is_empty(), "states do not change");
}

#[test]
fn execute_operation_guards_declared_inputs() {
    let mut parameters = json!({"operation": format!("{LIFECYCLE}start"), "operation_kwargs": {"a": 2}});
    let error = try_build("execute_operation", &chain(), parameters.clone()).unwrap_err();
    assert!(matches!(error, BuildError::DuplicateParameters { ref names, .. } if names == "a"), "{error}");
    parameters["allow_kwargs_override"] = json!(true);
    let graph = try_build("execute_operation", &chain(), parameters).unwrap();
    assert_eq!(remote(&graph)[0].parameters["task_kwargs"]["kwargs"]["a"], 2);
}

#[test]
fn start_and_stop_follow_dependencies() {
    let ran = |workflow: &str| {
        let mut world = World::new(workflow, &chain(), json!({}), Worker::default());
        assert_eq!(world.run_out(), Verdict::Terminated);
        world.worker.ran
    };
    assert_eq!(ran("start"), ["a_1:start", "b_1:start", "c_1:start"]);
    assert_eq!(ran("stop"), ["c_1:stop", "b_1:stop", "a_1:stop"]);
    let restart = ["c_1:stop", "b_1:stop", "a_1:stop", "a_1:start", "b_1:start", "c_1:start"];
    assert_eq!(ran("restart"), restart);
    assert_eq!(ran("reinstall"), restart);
}

#[test]
fn an_operation_is_told_who_it_is() {
    let graph = try_build("install", &two_nodes("uninitialized"), json!({"p": 1})).unwrap();
    let tasks = remote(&graph);
    let context = |row: &Operation| row.parameters["task_kwargs"]["kwargs"]["__cloudify_context"].clone();
    let create = context(tasks[2]);
    assert_eq!(create["operation"]["name"], format!("{LIFECYCLE}create"));
    assert_eq!(create["operation"]["max_retries"], 60);
    assert_eq!(create["task_name"], "p.create");
    assert_eq!((&create["node_id"], &create["node_name"]), (&json!("app_1"), &json!("app")));
    assert_eq!(create["workflow_parameters"], json!({"p": 1}));
    assert_eq!(create["plugin"]["package_name"], "pkg");
    assert_eq!(create["plugin"]["properties"], json!({}));
    assert_eq!(create["execution_env"], json!({}));
    for secret in ["rest_token", "execution_token"] {
        assert_eq!(create.get(secret), None, "tokens are not stored");
    }
    let source = context(tasks[3]);
    assert_eq!(source["related"], json!({"node_id": "db_1", "node_name": "db", "is_target": true}));
    assert_eq!(source["operation"]["relationship"], "source");
    let target = context(tasks[4]);
    assert_eq!(target["node_id"], "db_1");
    assert_eq!(target["related"], json!({"node_id": "app_1", "node_name": "app", "is_target": false}));
    assert_eq!(target["operation"]["relationship"], "target");
    assert_eq!(tasks[2].parameters["total_retries"], 60);
    assert_eq!(tasks[2].parameters["retry_interval"], 15);
}

#[test]
fn agents_run_what_is_theirs() {
    let mut own = operations(&[&format!("{LIFECYCLE}create")]);
    let sent = |own: &Value, host: Value| {
        let mut one = instance("a_1", "a", "uninitialized", &[]);
        one["host_id"] = host;
        let graph = try_build("install", &(vec![node("a", own.clone(), json!([]))], vec![one]), json!({})).unwrap();
        let mut run = Run::restore(graph, CancelKind::None, RunOptions::default()).unwrap();
        let steps = run.step(START_MS);
        let verdict = run.finished();
        (
            steps.into_iter().find_map(|step| match step {
                Step::Send { target, .. } => Some(target),
                Step::Apply(_) => None,
            }),
            verdict,
        )
    };
    let executor = |own: &mut Value, name: &str| own[format!("{LIFECYCLE}create")]["executor"] = json!(name);
    assert_eq!(sent(&own, json!("h_1")).0, Some(Target::Central));
    executor(&mut own, "auto");
    assert_eq!(sent(&own, Value::Null).0, Some(Target::Central));
    assert_eq!(sent(&own, json!("h_1")).0, Some(Target::Agent("h_1".into())));
    executor(&mut own, "host_agent");
    assert_eq!(sent(&own, json!("h_1")).0, Some(Target::Agent("h_1".into())));
    let (target, verdict) = sent(&own, Value::Null);
    assert_eq!(target, None);
    assert!(matches!(verdict, Some(Verdict::Failed { error, .. }) if error.contains("has no host")));
}

#[test]
fn a_host_gets_its_agent_after_its_start() {
    let mut own = operations(&[
        &format!("{LIFECYCLE}start"),
        "cloudify.interfaces.cloudify_agent.create",
        "cloudify.interfaces.cloudify_agent.start",
        "cloudify.interfaces.cloudify_agent.stop",
        "cloudify.interfaces.cloudify_agent.delete",
        "cloudify.interfaces.monitoring_agent.install",
    ]);
    own["create"] = json!({"plugin": "", "operation": ""});
    let host = |method: &str| {
        let mut host = node("h", own.clone(), json!([]));
        host["type_hierarchy"] = json!(["cloudify.nodes.Root", "cloudify.nodes.Compute"]);
        host["properties"] = json!({"agent_config": {"install_method": method}});
        host
    };
    let names = |workflow: &str, method: &str, state: &str| {
        let world = (vec![host(method)], vec![instance("h_1", "h", state, &[])]);
        let graph = try_build(workflow, &world, json!({})).unwrap();
        remote(&graph).iter().map(|row| row.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("install", "none", "uninitialized"), ["p.start", "p.install"]);
    assert_eq!(names("install", "remote", "uninitialized"), ["p.start", "p.create", "p.install"]);
    assert_eq!(names("install", "init_script", "uninitialized"), ["p.start", "p.create", "p.start", "p.install"]);
    assert_eq!(names("uninstall", "remote", "started"), ["p.stop", "p.delete"]);
    assert_eq!(names("uninstall", "none", "started"), Vec::<String>::new());
}

#[test]
fn relationships_run_group_by_group_in_blueprint_order() {
    let establish = |task: &str| {
        let mut side = operations(&["cloudify.interfaces.relationship_lifecycle.establish"]);
        side["cloudify.interfaces.relationship_lifecycle.establish"]["operation"] = json!(task);
        side
    };
    let relationship = |target: &str, task: &str| {
        json!({
            "type": "connected", "type_hierarchy": ["connected"], "target_id": target, "properties": {},
            "source_operations": establish(task), "target_operations": {},
        })
    };
    let nodes = vec![
        node("s", json!({}), json!([relationship("x", "p.x"), relationship("y", "p.y")])),
        node("x", json!({}), json!([])),
        node("y", json!({}), json!([])),
    ];
    let instances = vec![
        instance("s_1", "s", "uninitialized", &[("y_1", "y"), ("x_1", "x"), ("x_2", "x"), ("gone", "x")]),
        instance("x_1", "x", "uninitialized", &[]),
        instance("x_2", "x", "uninitialized", &[]),
        instance("y_1", "y", "uninitialized", &[]),
    ];
    let graph = try_build("install", &(nodes, instances), json!({})).unwrap();
    let tasks = remote(&graph);
    let names: Vec<&str> = tasks.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["p.x", "p.x", "p.y"]);
    assert_eq!(tasks[0].dependencies.len(), 1, "the group's tasks run side by side");
    assert_eq!(tasks[2].dependencies[1..], [tasks[0].id.clone(), tasks[1].id.clone()]);
}

#[test]
fn a_relationship_may_wait_for_one_operation_only() {
    let both = operations(&[&format!("{LIFECYCLE}create"), &format!("{LIFECYCLE}start")]);
    let relationship = json!([{
        "type": "connected", "target_id": "a",
        "type_hierarchy": ["cloudify.relationships.depends_on_lifecycle_operation", "connected"],
        "properties": {"operation": "create"}, "source_operations": {}, "target_operations": {},
    }]);
    let nodes = vec![node("b", both.clone(), relationship), node("a", both, json!([]))];
    let instances =
        vec![instance("b_1", "b", "uninitialized", &[("a_1", "a")]), instance("a_1", "a", "uninitialized", &[])];
    let mut world = World::new("install", &(nodes, instances), json!({}), Worker::default());
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.worker.ran, ["a_1:create", "a_1:start", "b_1:create", "b_1:start"]);
    let at = |line: &str| world.store.log.iter().position(|l| l == line).unwrap();
    assert!(
        at("task_started: Subgraph started 'install_b_1'") < at("task_succeeded: Subgraph succeeded 'install_a_1'")
    );
}

#[test]
fn wrong_input_is_named() {
    let cycle = (
        vec![node("a", json!({}), json!([])), node("b", json!({}), json!([]))],
        vec![instance("a_1", "a", "", &[("b_1", "b")]), instance("b_1", "b", "", &[("a_1", "a")])],
    );
    assert_eq!(try_build("install", &cycle, json!({})).unwrap_err(), BuildError::Cycle("a_1".into()));
    assert_eq!(try_build("dance", &cycle, json!({})).unwrap_err(), BuildError::UnknownWorkflow("dance".into()));
    for (workflow, parameters) in [
        ("execute_operation", json!({})),
        ("execute_operation", json!({"operation": "x", "operation_kwargs": [1]})),
        ("install", json!({"node_ids": [1]})),
        ("uninstall", json!({"ignore_failure": 7})),
    ] {
        let error = try_build(workflow, &chain(), parameters).unwrap_err();
        assert!(matches!(error, BuildError::Parameter { .. }), "{error}");
    }
    let lost = (vec![], vec![instance("a_1", "a", "", &[])]);
    assert!(matches!(try_build("install", &lost, json!({})).unwrap_err(), BuildError::UnknownNode { .. }));
}

#[test]
fn rows_of_others_are_refused_with_their_id() {
    let good = try_build("install", &two_nodes("uninitialized"), json!({})).unwrap();
    let restore = |change: &dyn Fn(&mut Vec<Operation>)| {
        let mut graph = good.clone();
        change(&mut graph.operations);
        Run::restore(graph, CancelKind::None, RunOptions::default()).unwrap_err()
    };
    let kind = restore(&|rows| rows[0].kind = "a.b.Class".into());
    assert!(matches!(kind, RestoreError::UnknownKind { .. }), "{kind}");
    let missing = restore(&|rows| rows[1].dependencies.push("gone".into()));
    assert!(matches!(missing, RestoreError::UnknownReference { .. }), "{missing}");
    let twice = restore(&|rows| rows[1].id = rows[0].id.clone());
    assert!(matches!(twice, RestoreError::Duplicate(_)), "{twice}");
    let parameters = restore(&|rows| rows[1].parameters = json!([]));
    assert!(matches!(parameters, RestoreError::Parameters { .. }), "{parameters}");
}

#[test]
fn an_empty_deployment_is_done_at_once() {
    let mut world = World::new("install", &(vec![], vec![]), json!({}), Worker::default());
    assert_eq!(world.run_out(), Verdict::Terminated);
}

/// 10,000 operations in a wide and a deep graph. The time limit only tells linear from quadratic.
#[test]
fn ten_thousand_operations_take_linear_time() {
    let own = operations(&[
        &format!("{LIFECYCLE}create"),
        &format!("{LIFECYCLE}configure"),
        &format!("{LIFECYCLE}start"),
        &format!("{LIFECYCLE}delete"),
    ]);
    let nodes = vec![node("a", own, json!([]))];
    for deep in [false, true] {
        let instances: Vec<Value> = (0..3_400)
            .map(|i| {
                let before = format!("a_{}", i - 1);
                let targets = if deep && i > 0 { vec![(before.as_str(), "a")] } else { vec![] };
                instance(&format!("a_{i}"), "a", "uninitialized", &targets)
            })
            .collect();
        let began = Instant::now();
        let graph = try_build("install", &(nodes.clone(), instances), json!({})).unwrap();
        let built = began.elapsed();
        let mut store = Store::new(graph.clone());
        let mut run = Run::restore(graph, CancelKind::None, RunOptions::default()).unwrap();
        let restored = began.elapsed();
        let mut replies = std::collections::VecDeque::new();
        let mut operations = 0;
        loop {
            let steps = run.step(START_MS);
            let idle = steps.is_empty();
            for step in steps {
                match step {
                    Step::Apply(changes) => {
                        assert!(changes.len() < 1_100, "a step stays small");
                        store.apply(changes);
                    }
                    Step::Send { task_id, .. } => replies.push_back(task_id),
                }
            }
            if let Some(id) = replies.pop_front() {
                operations += 1;
                store.apply(run.record(&id, TaskOutcome::Succeeded(Value::Null), START_MS, &mut String::new));
            } else if idle {
                break;
            }
        }
        assert_eq!(run.finished(), Some(Verdict::Terminated));
        assert_eq!(operations, 10_200);
        assert_eq!(store.count(TaskState::Succeeded), store.rows.len());
        let all = began.elapsed();
        println!("deep={deep}: {} rows, built {built:?}, restored {restored:?}, all {all:?}", store.rows.len());
        assert!(all < Duration::from_secs(60), "{all:?}");
    }
}
