//! The active node dies in the middle of an install of sixty operations.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::{SERVICE_LIMIT, WRITES_BEFORE};
use crate::cluster::Cluster;
use crate::load::Load;
use crate::rest::{Access, Rest};

/// Chains of nodes that depend on each other, and nodes in each.
const CHAINS: usize = 5;
const LENGTH: usize = 4;
/// Operations of each node: create, configure, start.
const OPERATIONS: [&str; 3] = ["create", "configure", "start"];
/// All of them: sixty.
pub const TOTAL: usize = CHAINS * LENGTH * OPERATIONS.len();
/// How long the whole install may take, the failover included.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the story measured.
pub struct Installed {
    /// The longest time without an acknowledged write.
    pub pause: Duration,
    /// From the start to the end of the install.
    pub took: Duration,
    /// How many operations had ended when the node died.
    pub killed_at: u64,
    /// Operations whose script ran more than once: those that the dead node's own worker had begun.
    pub ran_twice: usize,
    /// Rows that were acknowledged meanwhile, and found again.
    pub rows: usize,
}

/// A client on the client's host, for calls one after the other.
struct Caller {
    rest: Rest,
    runtime: tokio::runtime::Runtime,
}

impl Caller {
    fn new(access: &Access) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let rest = Rest::new(access, Duration::from_secs(30))?;
        Ok(Self { rest, runtime })
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.runtime.block_on(self.rest.get(path)).with_context(|| format!("GET {path}"))
    }

    fn all(&self, path: &str) -> Result<Vec<Value>> {
        self.runtime.block_on(self.rest.all(path)).with_context(|| format!("GET {path}"))
    }

    fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let what = format!("{method} {path}");
        self.runtime.block_on(self.rest.call(self.rest.request(method, path).json(body))).context(what)
    }

    /// Waits; a call that fails while the active node changes is simply repeated.
    fn until(&self, path: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + INSTALL_LIMIT;
        let mut last = Value::Null;
        while Instant::now() < until {
            if let Ok(value) = self.get(path) {
                if is_so(&value) {
                    return Ok(value);
                }
                last = value;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Err(anyhow!("{path} did not become what was waited for; last seen: {last}"))
    }
}

/// Plays the story: the node dies when about `kill_at` of the operations have ended; then it comes back.
///
/// # Errors
/// When the install does not end well, a result is recorded twice or not at all, or an acknowledged write is lost.
pub fn kill_during_install(cluster: &mut Cluster, name: &str, kill_at: u64) -> Result<Installed> {
    let active = cluster.active()?;
    let load = Load::start(cluster, &format!("{name}-w"))?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let (access, network) = (cluster.access()?, cluster.bed().client_network()?);
    let deployment = name.to_owned();
    let (killing, kill) = std::sync::mpsc::channel();
    let client = std::thread::spawn(move || -> Result<(Duration, BTreeMap<String, u64>)> {
        network.enter()?;
        let caller = Caller::new(&access)?;
        prepare(&caller, &deployment)?;
        let began = Instant::now();
        let body = json!({ "deployment_id": deployment, "workflow_id": "install" });
        let execution = caller.send(Method::POST, "/executions", &body)?;
        let id = execution["id"].as_str().context("an execution has an id")?.to_owned();
        let path = format!("/executions/{id}");
        let seen = caller.until(&path, |execution| execution["finished_operations"].as_u64() >= Some(kill_at))?;
        killing.send(seen["finished_operations"].as_u64().unwrap_or(0))?;
        let ended = ["terminated", "failed", "cancelled"];
        let done = caller
            .until(&path, |execution| execution["status"].as_str().is_some_and(|status| ended.contains(&status)))?;
        ensure!(done["status"] == "terminated", "the install ended as {}: {}", done["status"], done["error"]);
        let took = began.elapsed();
        Ok((took, check_records(&caller, &id, &deployment)?))
    });
    let killed_at = match kill.recv_timeout(INSTALL_LIMIT) {
        Ok(killed_at) => killed_at,
        // It failed before; its own error says why.
        Err(_) => {
            return Err(client
                .join()
                .map_err(|_| anyhow!("the client panicked"))?
                .err()
                .unwrap_or_else(|| anyhow!("the client never came to the kill")));
        }
    };
    let from = Instant::now();
    cluster.kill_everything(active)?;
    let (took, runs) = client.join().map_err(|_| anyhow!("the client panicked"))??;
    load.wait_for_more(10, SERVICE_LIMIT)?;
    let history = load.stop()?;
    let pause = history.longest_pause(from);
    cluster.start_daemon(active)?;
    cluster.wait_until_whole()?;
    let found = history.check(cluster)?;
    let ran_twice = runs.values().filter(|count| **count > 1).count();
    Ok(Installed { pause, took, killed_at, ran_twice, rows: found.rows })
}

fn prepare(caller: &Caller, deployment: &str) -> Result<()> {
    let blueprint = format!("{deployment}-blueprint");
    let path = format!("/blueprints/{blueprint}");
    let archive = crate::load::archive(&files())?;
    let params = json!({ "visibility": "tenant", "async_upload": true, "application_file_name": "blueprint.yaml" });
    let form = reqwest::multipart::Form::new()
        .text("params", params.to_string())
        .part("blueprint_archive", reqwest::multipart::Part::bytes(archive).file_name("b.tar.gz"));
    let request = caller.rest.request(Method::PUT, &path).multipart(form);
    caller.runtime.block_on(caller.rest.call(request)).context("upload the blueprint of sixty operations")?;
    let blueprint_now = caller.until(&path, |blueprint| {
        blueprint["state"]
            .as_str()
            .is_some_and(|state| state == "uploaded" || state == "invalid" || state.starts_with("failed"))
    })?;
    ensure!(blueprint_now["state"] == "uploaded", "the blueprint is {}", blueprint_now);
    let body = json!({ "blueprint_id": blueprint, "visibility": "tenant", "inputs": {} });
    caller.send(Method::PUT, &format!("/deployments/{deployment}"), &body).map(drop)
}

/// Every operation has exactly one recorded success, and every instance has what its scripts wrote. Returns how often
/// each script ran.
fn check_records(caller: &Caller, execution: &str, deployment: &str) -> Result<BTreeMap<String, u64>> {
    let events =
        caller.all(&format!("/events?execution_id={execution}&type=cloudify_event&_sort=reported_timestamp"))?;
    let mut recorded: BTreeMap<(String, String), usize> = BTreeMap::new();
    for event in events.iter().filter(|event| event["event_type"] == "task_succeeded") {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        if text("operation").starts_with("cloudify.interfaces.lifecycle.") {
            *recorded.entry((text("node_instance_id"), text("operation"))).or_default() += 1;
        }
    }
    ensure!(recorded.len() == TOTAL, "{} of {TOTAL} operations have a recorded result", recorded.len());
    let twice: Vec<_> = recorded.iter().filter(|(_, count)| **count != 1).collect();
    ensure!(twice.is_empty(), "results were recorded more than once: {twice:?}");
    let instances = caller.all(&format!("/node-instances?deployment_id={deployment}"))?;
    ensure!(instances.len() == CHAINS * LENGTH, "{} node instances", instances.len());
    let mut runs = BTreeMap::new();
    for instance in &instances {
        let id = instance["id"].as_str().unwrap_or_default();
        ensure!(instance["state"] == "started", "{id} is {}", instance["state"]);
        for operation in OPERATIONS {
            let count = &instance["runtime_properties"][operation];
            let count = count.as_u64().or_else(|| count.as_str()?.parse().ok());
            let count = count.with_context(|| format!("{id} has no trace of {operation}: {instance}"))?;
            runs.insert(format!("{id}.{operation}"), count);
        }
    }
    Ok(runs)
}

/// The blueprint and its script: each run adds one to a runtime property, so that a second run shows.
fn files() -> Vec<(&'static str, String)> {
    let mut text = String::from(
        "tosca_definitions_version: cloudify_dsl_1_3\nimports: [cloudify/types/types.yaml]\nnode_types:\n  counted:\n    \
         derived_from: cloudify.nodes.Root\n    interfaces:\n      cloudify.interfaces.lifecycle:\n",
    );
    for operation in OPERATIONS {
        let _ = write!(
            text,
            "        {operation}:\n          implementation: scripts/count.sh\n          \
             executor: central_deployment_agent\n          inputs:\n            operation: {{ default: {operation} }}\n"
        );
    }
    text.push_str("node_templates:\n");
    for chain in 0..CHAINS {
        for place in 0..LENGTH {
            let _ = write!(text, "  n{chain}x{place}:\n    type: counted\n");
            if place > 0 {
                let before = place - 1;
                let _ = write!(
                    text,
                    "    relationships:\n      - type: cloudify.relationships.depends_on\n        target: n{chain}x{before}\n"
                );
            }
        }
    }
    let script = "#!/bin/bash\nset -e\nbefore=$(ctx instance runtime-properties \"$operation\" 2>/dev/null || true)\n\
                  sleep 0.2\nctx instance runtime-properties \"$operation\" $(( ${before:-0} + 1 ))\n";
    vec![("blueprint.yaml", text), ("scripts/count.sh", script.to_owned())]
}
