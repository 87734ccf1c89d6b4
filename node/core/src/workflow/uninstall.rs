//! Uninstall: one sub-graph per node instance, sources of relationships first.

use std::collections::HashMap;

use super::build::{Builder, Draft, Sequence};
use super::install::{COMPUTE, LIFECYCLE, install_method};
use super::model::BuildError;
use super::relationships;

/// Adds the sub-graphs and answers their rows.
pub(super) fn uninstall(
    b: &mut Builder<'_, '_>,
    chosen: &[usize],
    ignore_failure: bool,
) -> Result<Vec<usize>, BuildError> {
    let index = b.index;
    let before = std::mem::replace(&mut b.ignore_failure, ignore_failure);
    let mut order = index.in_order(chosen)?;
    order.reverse();
    // Sub-graphs of the sources an instance must wait for, gathered while the sources are placed.
    let mut waits: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut ends = Vec::with_capacity(order.len());
    for instance in order {
        let after = waits.remove(&instance).unwrap_or_default();
        let mut sequence = b.subgraph(index.instances[instance].id, &after);
        one(b, &mut sequence, instance);
        ends.push(sequence.subgraph);
        for relationship in &index.instances[instance].relationships {
            waits.entry(relationship.target).or_default().push(sequence.subgraph);
        }
    }
    b.ignore_failure = before;
    Ok(ends)
}

fn one(b: &mut Builder<'_, '_>, s: &mut Sequence, i: usize) {
    let state = b.index.instances[i].state;
    stop(b, s, i, state);
    b.then(s, vec![b.state(i, "stopped")]);
    delete(b, s, i, state);
    b.then(s, vec![b.state(i, "deleted"), b.event(i, "Deleted node instance")]);
}

fn stop(b: &mut Builder<'_, '_>, s: &mut Sequence, i: usize, state: &str) {
    let nothing_validated = "Validating node instance after deletion: nothing to do";
    if matches!(state, "stopped" | "deleting" | "deleted" | "uninitialized" | "configured") {
        b.then(s, vec![b.event(i, nothing_validated)]);
        b.then(s, vec![b.event(i, &format!("Stop: instance already {state}"))]);
        return;
    }
    let lifecycle = |b: &Builder<'_, '_>, name: &str| b.operation(i, &format!("{LIFECYCLE}.{name}"));
    b.then(s, vec![b.state(i, "stopping"), b.event(i, "Stopping node instance")]);
    match b.operation(i, "cloudify.interfaces.validation.delete") {
        Some(task) => {
            b.then(s, vec![b.event(i, "Validating node instance before deletion")]);
            b.then(s, vec![task]);
            b.then(s, vec![b.event(i, "Node instance validated before deletion")]);
        }
        None => {
            b.then(s, vec![b.event(i, nothing_validated)]);
        }
    }
    let monitor = b.operation(i, "cloudify.interfaces.monitoring.stop");
    b.then(s, monitor.into_iter().collect());
    if let Some(task) = lifecycle(b, "prestop") {
        b.then(s, vec![b.event(i, "Prestopping node instance")]);
        b.then(s, vec![task]);
        b.then(s, vec![b.event(i, "Node instance prestopped")]);
    }
    for drafts in host_pre_stop(b, i) {
        b.then(s, drafts);
    }
    match lifecycle(b, "stop") {
        Some(task) => {
            b.then(s, vec![task]);
            b.then(s, vec![b.event(i, "Stopped node instance")]);
        }
        None => {
            b.then(s, vec![b.event(i, "Stopped node instance: nothing to do")]);
        }
    }
}

fn delete(b: &mut Builder<'_, '_>, s: &mut Sequence, i: usize, state: &str) {
    if matches!(state, "deleted" | "uninitialized") {
        b.then(s, vec![b.event(i, &format!("Delete: instance already {state}"))]);
        return;
    }
    let mut groups = relationships::groups(b, i, "unlink");
    groups.reverse();
    let texts = ("Unlinking relationships", "Relationships unlinked");
    relationships::step(b, s, i, "unlink", groups, texts);
    match b.operation(i, &format!("{LIFECYCLE}.delete")) {
        Some(task) => {
            b.then(s, vec![b.state(i, "deleting"), b.event(i, "Deleting node instance")]);
            b.then(s, vec![task]);
        }
        None => {
            b.then(s, vec![b.event(i, "Deleting node instance: nothing to do")]);
        }
    }
    if let Some(task) = b.operation(i, &format!("{LIFECYCLE}.postdelete")) {
        b.then(s, vec![b.event(i, "Postdeleting node instance")]);
        b.then(s, vec![task]);
        b.then(s, vec![b.event(i, "Node instance postdeleted")]);
    }
}

/// Steps of a host before its stop: monitoring agent and agent go.
fn host_pre_stop(b: &Builder<'_, '_>, i: usize) -> Vec<Vec<Draft>> {
    let node = b.index.node_of(i);
    if !node.is_a(COMPUTE) {
        return Vec::new();
    }
    let agent = |name: &str| b.operation(i, &format!("cloudify.interfaces.cloudify_agent.{name}"));
    let monitor = |name: &str| b.operation(i, &format!("cloudify.interfaces.monitoring_agent.{name}"));
    let mut steps: Vec<Vec<Draft>> = Vec::new();
    steps.extend(monitor("stop").map(|task| vec![task]));
    steps.extend(monitor("uninstall").map(|task| vec![task]));
    let method = install_method(node.value);
    if method == "none" {
        return steps;
    }
    let stop = if method == "remote" { agent("stop") } else { agent("stop_amqp") };
    if let Some(task) = stop {
        steps.push(vec![b.event(i, "Stopping agent")]);
        steps.push(vec![task]);
    }
    if let Some(task) = agent("delete") {
        steps.push(vec![b.event(i, "Deleting agent")]);
        steps.push(vec![task]);
        steps.push(vec![b.event(i, "Agent deleted")]);
    }
    steps
}
