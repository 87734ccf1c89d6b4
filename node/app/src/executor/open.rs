//! From an execution's rows to its run: a graph is built and stored the first time, and read ever after.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_core::workflow::{
    CancelKind, Change, Deployment, ExecutionContext, Graph, Run, RunOptions, Step, TaskKind, TaskOutcome, Verdict,
    build, workflow_started,
};
use quorate_store::deployment_views::{self, DeploymentView};
use quorate_store::executions::{self, Execution};
use quorate_store::{StoreError, events, operations, tasks_graphs};
use serde_json::Value;

use super::changes::{self, Target};
use super::look::{cancel_kind, token};
use super::run::{Broken, finish, new_id};
use super::{Address, Shared, now_ms};
use crate::config::{TASK_RETRIES, TASK_RETRY_INTERVAL_SECONDS};

/// Where the original keeps its built-in workflows.
const BUILT_IN: &str = "cloudify.plugins.workflows.";

/// An execution that can go on.
pub(super) struct Opened {
    pub row: Execution,
    pub target: Target,
    pub run: Run,
    /// Which worker may have which operation.
    pub at: BTreeMap<String, Address>,
    pub token: String,
}

/// Opens an execution. `None`: it has ended.
pub(super) async fn open(shared: &Arc<Shared>, key: i64) -> Result<Option<Opened>, Broken> {
    let store = shared.settings.app.store();
    let mut reader = store.read().await?;
    let Some(row) = executions::get(&mut reader, key).await? else { return Ok(None) };
    if matches!(row.status.as_str(), "terminated" | "failed" | "cancelled") {
        return Ok(None);
    }
    let stored = tasks_graphs::of_execution(&mut reader, key, None).await?.into_iter().next();
    drop(reader);
    let cancel = cancel_kind(&row.status);
    let graph_key = match stored {
        Some(graph) => {
            if row.status == "pending" {
                begin_again(shared, &row).await?;
            }
            graph.key
        }
        None if cancel != CancelKind::None => {
            let mut tx = store.begin().await?;
            finish(&mut tx, &row, &Verdict::Cancelled).await?;
            tx.commit().await?;
            return Ok(None);
        }
        None => {
            let graph = made(shared, &row).await?;
            if row.is_dry_run {
                rehearse(shared, &row, graph).await?;
                return Ok(None);
            }
            begin(shared, &row, &graph).await?
        }
    };
    let mut reader = store.read().await?;
    let rows = operations::of_graph(&mut reader, graph_key).await?;
    drop(reader);
    let mut at = BTreeMap::new();
    for operation in rows.iter().filter(|operation| operation.kind == TaskKind::Remote.as_str()) {
        let in_flight = matches!(operation.state.as_str(), "sending" | "sent" | "started" | "response-sent");
        if let (true, Some(worker)) = (in_flight, &operation.agent_name) {
            let on_host = &operation.parameters["task_kwargs"]["kwargs"]["__cloudify_context"]["executor"];
            let tenant = (on_host == "host_agent").then(|| row.tenant.clone());
            at.insert(operation.id.clone(), Address { tenant, worker: worker.clone() });
        }
    }
    let graph = changes::graph("", rows)?;
    let options = RunOptions { wait_after_fail_ms: i64::from(row.wait_after_fail_seconds) * 1000 };
    let run = Run::restore(graph, cancel, options).map_err(|error| Broken::Never(error.to_string()))?;
    let token = token(shared, key).await?;
    let target = Target { execution: key, deployment: row.deployment_key, graph: graph_key };
    Ok(Some(Opened { row, target, run, at, token }))
}

async fn begin_again(shared: &Arc<Shared>, row: &Execution) -> Result<(), StoreError> {
    let mut tx = shared.settings.app.store().begin().await?;
    if executions::begin(&mut tx, row.key, &["pending"]).await? {
        let event = changes::event(workflow_started(&row.workflow_id, row.resume));
        events::insert(&mut tx, row.key, &[event]).await?;
    }
    tx.commit().await
}

/// Stores a new graph, and that the execution began, at once.
async fn begin(shared: &Arc<Shared>, row: &Execution, graph: &Graph) -> Result<i64, Broken> {
    let counted = Run::restore(graph.clone(), CancelKind::None, RunOptions::default());
    let (total, ended) = counted.map_err(|error| Broken::Never(error.to_string()))?.totals();
    let mut tx = shared.settings.app.store().begin().await?;
    if !executions::begin(&mut tx, row.key, &["pending", "started"]).await? {
        return Err(Broken::Doubt("the execution was cancelled before it began".into()));
    }
    let event = changes::event(workflow_started(&row.workflow_id, row.resume));
    events::insert(&mut tx, row.key, &[event]).await?;
    let key = tasks_graphs::insert(&mut tx, &new_id(), row.key, &graph.name).await?;
    let rows: Vec<_> = graph.operations.iter().map(changes::row).collect();
    operations::insert(&mut tx, key, &rows).await?;
    executions::set_progress(&mut tx, row.key, total, ended).await?;
    crate::executions::renew_token(&mut tx, row.key).await?;
    tx.commit().await?;
    tracing::info!(execution = row.id, workflow = row.workflow_id, operations = total, "execution began");
    Ok(key)
}

async fn made(shared: &Arc<Shared>, row: &Execution) -> Result<Graph, Broken> {
    let mut reader = shared.settings.app.store().read().await?;
    let deployment = match row.deployment_key {
        Some(key) => deployment_views::get(&mut reader, key).await?,
        None => None,
    };
    let Some(deployment) = deployment else {
        return Err(Broken::Never(format!("workflow '{}' needs a deployment", row.workflow_id)));
    };
    let nodes = deployment_views::nodes(&mut reader, deployment.key).await?;
    let instances = deployment_views::instances(&mut reader, deployment.key).await?;
    drop(reader);
    let built_in = built_in(&deployment, &row.workflow_id)?;
    let context = context(row, &deployment);
    let view = Deployment { id: &deployment.id, nodes: &nodes, instances: &instances };
    build(&built_in, &view, &context, &mut new_id).map_err(|error| Broken::Never(error.to_string()))
}

/// Which built-in workflow a deployment means by a name.
fn built_in(deployment: &DeploymentView, workflow: &str) -> Result<String, Broken> {
    let operation = deployment.workflows.get(workflow).and_then(|declared| declared["operation"].as_str());
    match operation {
        None => Ok(workflow.to_owned()),
        Some(operation) => operation.strip_prefix(BUILT_IN).map(str::to_owned).ok_or_else(|| {
            Broken::Never(format!(
                "workflow '{workflow}' is a program of its own ({operation}), which is not supported"
            ))
        }),
    }
}

fn context(row: &Execution, deployment: &DeploymentView) -> ExecutionContext {
    #[allow(clippy::cast_precision_loss)]
    let interval = TASK_RETRY_INTERVAL_SECONDS as f64;
    ExecutionContext {
        execution_id: row.id.clone(),
        workflow_id: row.workflow_id.clone(),
        parameters: row.parameters.0.clone(),
        tenant: row.tenant.clone(),
        blueprint_id: deployment.blueprint_id.clone(),
        deployment_id: deployment.id.clone(),
        deployment_display_name: deployment.display_name.clone(),
        deployment_creator: deployment.creator.clone(),
        deployment_resource_tags: deployment.resource_tags.0.clone(),
        creator: row.creator.clone(),
        task_retries: TASK_RETRIES,
        task_retry_interval: interval,
        bypass_maintenance: None,
    }
}

/// A dry run: every operation succeeds at once, and only events are written, all in one transaction.
async fn rehearse(shared: &Arc<Shared>, row: &Execution, graph: Graph) -> Result<(), Broken> {
    let restored = Run::restore(graph, CancelKind::None, RunOptions::default());
    let mut run = restored.map_err(|error| Broken::Never(error.to_string()))?;
    let mut told = vec![changes::event(workflow_started(&row.workflow_id, row.resume))];
    let mut tell = |changes: Vec<Change>| {
        for change in changes {
            if let Change::Event(event) = change {
                told.push(changes::event(event));
            }
        }
    };
    loop {
        let steps = run.step(now_ms());
        if steps.is_empty() {
            break;
        }
        for step in steps {
            match step {
                Step::Apply(changes) => tell(changes),
                Step::Send { task_id, .. } => {
                    tell(run.record(&task_id, TaskOutcome::Succeeded(Value::Null), now_ms(), &mut new_id));
                }
            }
        }
    }
    for event in &mut told {
        event.message.push_str(" (dry run)");
    }
    let verdict = run.finished().unwrap_or(Verdict::Cancelled);
    let (total, ended) = run.totals();
    let mut tx = shared.settings.app.store().begin().await?;
    if !executions::begin(&mut tx, row.key, &["pending", "started"]).await? {
        return Err(Broken::Doubt("the execution was cancelled before it began".into()));
    }
    events::insert(&mut tx, row.key, &told).await?;
    executions::set_progress(&mut tx, row.key, total, ended).await?;
    finish(&mut tx, row, &verdict).await?;
    Ok(tx.commit().await?)
}
