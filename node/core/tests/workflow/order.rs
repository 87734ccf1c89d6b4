//! The order of events clients know.

use quorate_core::workflow::{TaskOutcome, Verdict};
use serde_json::json;

use crate::support::{Worker, World, two_nodes};

/// Expands the short notation: `T name` is one task with its three events, `R name` a relationship's two sides.
fn expand(lines: &[&str], results: &[(&str, &str)]) -> Vec<String> {
    let mut out = Vec::new();
    for line in lines {
        let (kind, rest) = line.split_once(' ').unwrap();
        match kind {
            "T" => {
                let result = results.iter().find(|(name, _)| *name == rest).map_or("", |(_, text)| *text);
                out.push(format!("sending_task app_1: Sending task '{rest}'"));
                out.push(format!("task_started app_1: Task started '{rest}'"));
                out.push(format!("task_succeeded app_1: Task succeeded '{rest}'{result}"));
            }
            "R" => {
                let name = format!("cloudify.interfaces.relationship_lifecycle.{rest}_subgraph");
                out.push(format!("task_started: Subgraph started '{name}'"));
                for _ in 0..2 {
                    out.push(format!("sending_task app_1->db_1: Sending task 'p.{rest}'"));
                }
                for _ in 0..2 {
                    out.push(format!("task_started app_1->db_1: Task started 'p.{rest}'"));
                    out.push(format!("task_succeeded app_1->db_1: Task succeeded 'p.{rest}'"));
                }
                out.push(format!("task_succeeded: Subgraph succeeded '{name}'"));
            }
            "S+" => out.push(format!("task_started: Subgraph started '{rest}'")),
            "S-" => out.push(format!("task_succeeded: Subgraph succeeded '{rest}'")),
            "app" | "db" if rest.starts_with("-> ") => out.push(format!("{kind}_1 {rest}")),
            node => out.push(format!("workflow_node_event {node}_1: {rest}")),
        }
    }
    out
}

#[test]
fn install_tells_its_events_in_the_known_order() {
    let created = TaskOutcome::Succeeded(json!({"k": "v"}));
    let worker = Worker::default().say("app_1:create", [TaskOutcome::Succeeded(json!(null)), created]);
    let mut world = World::new("install", &two_nodes("uninstantiated"), json!({}), worker);
    assert_eq!(world.run_out(), Verdict::Terminated);
    let expected = expand(
        &[
            "S+ install_db_1",
            "db -> started",
            "db Node instance started (nothing to do)",
            "S- install_db_1",
            "S+ install_app_1",
            "app -> initializing",
            "app Validating node instance before creation",
            "T p.create",
            "app Node instance validated before creation",
            "app Precreating node instance",
            "T p.precreate",
            "app Node instance precreated",
            "app Creating node instance",
            "app -> creating",
            "T p.create",
            "app Node instance created",
            "app -> created",
            "app Pre-configuring relationships",
            "R preconfigure",
            "app Relationships pre-configured",
            "app -> configuring",
            "app Configuring node instance",
            "T p.configure",
            "app -> configured",
            "app Node instance configured",
            "app Post-configuring relationships",
            "R postconfigure",
            "app Relationships post-configured",
            "app -> starting",
            "app Starting node instance",
            "T p.start",
            "app Poststarting node instance",
            "T p.poststart",
            "app Node instance poststarted",
            "T p.start",
            "app Establishing relationships",
            "R establish",
            "app Relationships established",
            "app -> started",
            "app Node instance started",
            "S- install_app_1",
        ],
        &[],
    );
    // The second `create` is lifecycle.create and has a result.
    let mut log = world.store.log.clone();
    let with_result = "task_succeeded app_1: Task succeeded 'p.create' - {'k': 'v'}";
    let at = log.iter().position(|line| line == with_result).expect("the result is shown");
    log[at] = "task_succeeded app_1: Task succeeded 'p.create'".to_owned();
    assert_eq!(log, expected);
    assert_eq!(world.store.instances["app_1"], "started");
    let (total, finished) = world.store.totals;
    assert_eq!(total, finished);
    assert_eq!(total as usize, world.store.rows.len());
}

#[test]
fn uninstall_tells_its_events_in_the_known_order() {
    let mut world = World::new("uninstall", &two_nodes("started"), json!({}), Worker::default());
    assert_eq!(world.run_out(), Verdict::Terminated);
    let expected = expand(
        &[
            "S+ app_1",
            "app -> stopping",
            "app Stopping node instance",
            "app Validating node instance before deletion",
            "T p.delete",
            "app Node instance validated before deletion",
            "T p.stop",
            "app Prestopping node instance",
            "T p.prestop",
            "app Node instance prestopped",
            "T p.stop",
            "app Stopped node instance",
            "app -> stopped",
            "app Unlinking relationships",
            "R unlink",
            "app Relationships unlinked",
            "app -> deleting",
            "app Deleting node instance",
            "T p.delete",
            "app Postdeleting node instance",
            "T p.postdelete",
            "app Node instance postdeleted",
            "app -> deleted",
            "app Deleted node instance",
            "S- app_1",
            "S+ db_1",
            "db -> stopping",
            "db Stopping node instance",
            "db Validating node instance after deletion: nothing to do",
            "db Stopped node instance: nothing to do",
            "db -> stopped",
            "db Deleting node instance: nothing to do",
            "db -> deleted",
            "db Deleted node instance",
            "S- db_1",
        ],
        &[],
    );
    assert_eq!(world.store.log, expected);
}

#[test]
fn an_install_goes_on_where_the_instance_stands() {
    let steps = |state: &str| {
        let mut world = World::new("install", &two_nodes(state), json!({}), Worker::default());
        assert_eq!(world.run_out(), Verdict::Terminated);
        world.worker.ran.into_iter().filter(|at| at.starts_with("app_1")).collect::<Vec<_>>()
    };
    let all = steps("uninitialized");
    assert_eq!(all.len(), 10);
    assert_eq!(steps("creating"), all[2..]);
    assert_eq!(steps("created"), all[3..]);
    assert_eq!(steps("configuring"), all[3..]);
    assert_eq!(steps("configured"), all[5..]);
    assert_eq!(steps("starting"), all[5..]);
    assert_eq!(steps("started"), Vec::<String>::new());
}

#[test]
fn an_uninstall_skips_what_is_gone() {
    let mut world = World::new("uninstall", &two_nodes("deleted"), json!({}), Worker::default());
    assert_eq!(world.run_out(), Verdict::Terminated);
    assert_eq!(world.worker.ran, Vec::<String>::new());
    let app: Vec<&str> =
        world.store.log.iter().filter_map(|line| line.strip_prefix("workflow_node_event app_1: ")).collect();
    assert_eq!(
        app,
        [
            "Validating node instance after deletion: nothing to do",
            "Stop: instance already deleted",
            "Delete: instance already deleted",
            "Deleted node instance",
        ]
    );
}
