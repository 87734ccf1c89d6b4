//! Install: one sub-graph per node instance, targets of relationships first.

use std::collections::HashMap;

use serde_json::Value;

use super::build::{Builder, Draft, Sequence};
use super::index::waits_for_operation;
use super::model::BuildError;
use super::relationships;

pub(super) const LIFECYCLE: &str = "cloudify.interfaces.lifecycle";
pub(super) const COMPUTE: &str = "cloudify.nodes.Compute";

/// Rows of an instance others may wait for.
struct Placed {
    subgraph: usize,
    /// Rows right after a lifecycle operation, by its short name.
    after: HashMap<&'static str, Vec<usize>>,
}

/// Adds the sub-graphs. `fresh` = take every instance as not installed, whatever its state says.
pub(super) fn install(
    b: &mut Builder<'_, '_>,
    chosen: &[usize],
    barrier: Option<usize>,
    fresh: bool,
) -> Result<(), BuildError> {
    let index = b.index;
    let mut placed: HashMap<usize, Placed> = HashMap::with_capacity(chosen.len());
    for instance in index.in_order(chosen)? {
        let mut waits: Vec<usize> = barrier.into_iter().collect();
        for relationship in &index.instances[instance].relationships {
            let Some(target) = placed.get(&relationship.target) else {
                continue;
            };
            let short =
                waits_for_operation(relationship).map(|operation| operation.rsplit('.').next().unwrap_or(operation));
            match short.and_then(|short| target.after.get(short)) {
                Some(rows) => waits.extend(rows),
                None => waits.push(target.subgraph),
            }
        }
        let name = format!("install_{}", index.instances[instance].id);
        let mut sequence = b.subgraph(&name, &waits);
        let state = if fresh { "uninitialized" } else { index.instances[instance].state };
        let after = one(b, &mut sequence, instance, state);
        placed.insert(instance, Placed { subgraph: sequence.subgraph, after });
    }
    Ok(())
}

/// How many of the steps 1 to 5 an earlier, broken install already did.
fn skipped_steps(state: &str) -> u8 {
    match state {
        "starting" | "configured" => 5,
        "configuring" | "created" => 3,
        "creating" => 2,
        _ => 0,
    }
}

struct Work {
    validate: Option<Draft>,
    precreate: Option<Draft>,
    create: Option<Draft>,
    preconfigure: Vec<Vec<Draft>>,
    configure: Option<Draft>,
    postconfigure: Vec<Vec<Draft>>,
    start: Option<Draft>,
    host: Vec<Vec<Draft>>,
    poststart: Option<Draft>,
    monitor: Option<Draft>,
    establish: Vec<Vec<Draft>>,
}

impl Work {
    fn of(b: &Builder<'_, '_>, instance: usize) -> Self {
        let lifecycle = |name: &str| b.operation(instance, &format!("{LIFECYCLE}.{name}"));
        let related = |name: &str| relationships::groups(b, instance, name);
        Self {
            validate: b.operation(instance, "cloudify.interfaces.validation.create"),
            precreate: lifecycle("precreate"),
            create: lifecycle("create"),
            preconfigure: related("preconfigure"),
            configure: lifecycle("configure"),
            postconfigure: related("postconfigure"),
            start: lifecycle("start"),
            host: host_post_start(b, instance),
            poststart: lifecycle("poststart"),
            monitor: b.operation(instance, "cloudify.interfaces.monitoring.start"),
            establish: related("establish"),
        }
    }

    fn is_empty(&self) -> bool {
        self.validate.is_none()
            && self.precreate.is_none()
            && self.create.is_none()
            && self.preconfigure.is_empty()
            && self.configure.is_none()
            && self.postconfigure.is_empty()
            && self.start.is_none()
            && self.host.is_empty()
            && self.poststart.is_none()
            && self.monitor.is_none()
            && self.establish.is_empty()
    }
}

/// The steps of one instance; answers the rows right after each lifecycle operation.
fn one(b: &mut Builder<'_, '_>, s: &mut Sequence, i: usize, state: &str) -> HashMap<&'static str, Vec<usize>> {
    let mut after: HashMap<&'static str, Vec<usize>> = HashMap::new();
    let work = Work::of(b, i);
    if work.is_empty() {
        let event = b.event(i, "Node instance started (nothing to do)");
        b.then(s, vec![b.state(i, "started"), event]);
        return after;
    }
    if state == "started" {
        b.then(s, vec![b.state(i, "started"), b.event(i, "Node instance started")]);
        return after;
    }
    let done = skipped_steps(state);
    if done == 0 {
        b.then(s, vec![b.state(i, "initializing")]);
    }
    if done < 1 {
        let texts = ("Validating node instance before creation", "Node instance validated before creation");
        framed(b, s, i, work.validate, texts);
    }
    if done < 2 {
        let rows = framed(b, s, i, work.precreate, ("Precreating node instance", "Node instance precreated"));
        after.insert("precreate", rows);
    }
    if done < 3 {
        let rows = match work.create {
            Some(create) => {
                b.then(s, vec![b.event(i, "Creating node instance"), b.state(i, "creating")]);
                b.then(s, vec![create]);
                b.then(s, vec![b.event(i, "Node instance created"), b.state(i, "created")])
            }
            None => b.then(s, vec![b.event(i, "Creating node instance: nothing to do")]),
        };
        after.insert("create", rows);
    }
    if done < 4 {
        let texts = ("Pre-configuring relationships", "Relationships pre-configured");
        relationships::step(b, s, i, "preconfigure", work.preconfigure, texts);
    }
    if done < 5 {
        let rows = match work.configure {
            Some(configure) => {
                b.then(s, vec![b.state(i, "configuring"), b.event(i, "Configuring node instance")]);
                b.then(s, vec![configure]);
                b.then(s, vec![b.state(i, "configured"), b.event(i, "Node instance configured")])
            }
            None => b.then(s, vec![b.event(i, "Configuring node instance: nothing to do")]),
        };
        after.insert("configure", rows);
    }
    let texts = ("Post-configuring relationships", "Relationships post-configured");
    relationships::step(b, s, i, "postconfigure", work.postconfigure, texts);
    let rows = match work.start {
        Some(start) => {
            b.then(s, vec![b.state(i, "starting"), b.event(i, "Starting node instance")]);
            b.then(s, vec![start])
        }
        None => b.then(s, vec![b.event(i, "Starting node instance: nothing to do")]),
    };
    after.insert("start", rows);
    for drafts in work.host {
        b.then(s, drafts);
    }
    let rows = framed(b, s, i, work.poststart, ("Poststarting node instance", "Node instance poststarted"));
    after.insert("poststart", rows);
    b.then(s, work.monitor.into_iter().collect());
    let texts = ("Establishing relationships", "Relationships established");
    relationships::step(b, s, i, "establish", work.establish, texts);
    b.then(s, vec![b.state(i, "started"), b.event(i, "Node instance started")]);
    after
}

/// Event, task, event; without a task only "…: nothing to do". Answers the last rows.
fn framed(b: &mut Builder<'_, '_>, s: &mut Sequence, i: usize, task: Option<Draft>, texts: (&str, &str)) -> Vec<usize> {
    let Some(task) = task else {
        return b.then(s, vec![b.event(i, &format!("{}: nothing to do", texts.0))]);
    };
    b.then(s, vec![b.event(i, texts.0)]);
    b.then(s, vec![task]);
    b.then(s, vec![b.event(i, texts.1)])
}

/// How an agent comes onto a host, as `agent_config.install_method` says; nothing said means no agent.
pub(super) fn install_method(node: &Value) -> &str {
    let properties = node.get("properties");
    let config = |name| properties.and_then(|p| p.get(name)).and_then(|c| c.get("install_method"));
    config("agent_config")
        .or_else(|| config("cloudify_agent"))
        .and_then(Value::as_str)
        .filter(|method| !method.is_empty())
        .unwrap_or("none")
}

/// Steps of a host after its start: agent and monitoring agent. Operations nobody implements leave no trace.
fn host_post_start(b: &Builder<'_, '_>, i: usize) -> Vec<Vec<Draft>> {
    let node = b.index.node_of(i);
    if !node.is_a(COMPUTE) {
        return Vec::new();
    }
    let agent = |name: &str| b.operation(i, &format!("cloudify.interfaces.cloudify_agent.{name}"));
    let monitor = |name: &str| b.operation(i, &format!("cloudify.interfaces.monitoring_agent.{name}"));
    let mut steps: Vec<Vec<Draft>> = Vec::new();
    let method = install_method(node.value);
    if method != "none" {
        if let Some(create) = agent("create") {
            steps.push(vec![b.event(i, "Creating agent")]);
            steps.push(vec![create]);
            steps.push(vec![b.event(i, "Agent created")]);
        }
        if matches!(method, "init_script" | "plugin")
            && let Some(start) = agent("start")
        {
            steps.push(vec![b.event(i, "Waiting for agent to start")]);
            steps.push(vec![start]);
            steps.push(vec![b.event(i, "Agent started")]);
        }
    }
    steps.extend(monitor("install").map(|task| vec![task]));
    steps.extend(monitor("start").map(|task| vec![task]));
    steps
}
