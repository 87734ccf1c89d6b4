//! Finds executions that wait for somebody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use quorate_core::workflow::CancelKind;
use quorate_store::executions::{self, Unfinished};
use quorate_store::{StoreError, deployment_views, deployments, events};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{INBOX_MAX, Input, Shared, changes, run};
use crate::executions::{ACTIVE, NOT_THE_EXECUTORS, is_available, renew_token};

/// Executions taken out of the queue in one round.
const DEQUEUED_AT_ONCE_MAX: usize = 20;

/// Looks until the executor ends; owns the tasks of all executions.
pub(super) async fn look(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut told: HashMap<i64, CancelKind> = HashMap::new();
    loop {
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(error = &error as &dyn std::error::Error, "an execution's task ended badly");
            }
        }
        if let Err(error) = round(&shared, &mut tasks, &mut told).await
            && !shared.is_over(&error)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "look for executions, tried again");
        }
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = shared.settings.wake.notified() => {}
            () = tokio::time::sleep(shared.settings.limits.look_every) => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn round(
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    told: &mut HashMap<i64, CancelKind>,
) -> Result<(), StoreError> {
    // Read behind the fence: an executor that writes nothing at the moment must learn too that its time is over.
    let mut tx = shared.settings.app.store().begin().await?;
    let rows = executions::unfinished(&mut tx, &[]).await?;
    drop(tx);
    let ours = |row: &&Unfinished| !NOT_THE_EXECUTORS.contains(&row.workflow_id.as_str());
    told.retain(|key, _| rows.iter().any(|row| row.key == *key));
    for row in rows.iter().filter(ours) {
        let cancel = cancel_kind(&row.status);
        let running = shared.runs().get(&row.key).cloned();
        match running {
            Some(run) => {
                if cancel > told.get(&row.key).copied().unwrap_or_default() {
                    told.insert(row.key, cancel);
                    // It has ended if it does not hear; then it is not among the rows of the next round.
                    let _ = run.send(Input::Cancel(cancel)).await;
                }
            }
            None if row.status == "queued" || row.status == "scheduled" => {}
            // What was begun goes on however many there are; what is new waits.
            None if row.status == "pending" && tasks.len() >= shared.settings.limits.executions_max => {}
            None => {
                told.insert(row.key, cancel);
                let (inbox, waiting) = mpsc::channel(INBOX_MAX);
                shared.runs().insert(row.key, inbox);
                tasks.spawn(run::carry_out(shared.clone(), row.key, waiting));
            }
        }
    }
    dequeue(shared, &rows).await
}

/// How strongly an execution in this status was asked to stop.
pub(super) fn cancel_kind(status: &str) -> CancelKind {
    match status {
        "cancelling" => CancelKind::Graceful,
        "force_cancelling" => CancelKind::Force,
        "kill_cancelling" => CancelKind::Kill,
        _ => CancelKind::None,
    }
}

/// Lets queued executions begin whose deployment is free: one of each deployment, oldest first.
async fn dequeue(shared: &Arc<Shared>, rows: &[Unfinished]) -> Result<(), StoreError> {
    let mut busy: HashSet<Option<i64>> = HashSet::new();
    let active = |row: &Unfinished| ACTIVE.contains(&row.status.as_str());
    busy.extend(rows.iter().filter(|row| active(row)).map(|row| row.deployment_key));
    let mut begun = 0;
    for row in rows.iter().filter(|row| row.status == "queued") {
        if begun < DEQUEUED_AT_ONCE_MAX && busy.insert(row.deployment_key) {
            begun += 1;
            begin(shared, row).await?;
        }
    }
    if begun > 0 {
        shared.settings.wake.notify_one();
    }
    Ok(())
}

async fn begin(shared: &Arc<Shared>, row: &Unfinished) -> Result<(), StoreError> {
    let mut tx = shared.settings.app.store().begin().await?;
    let mut available = true;
    if let Some(key) = row.deployment_key {
        if !deployments::lock(&mut tx, key).await? {
            return Ok(());
        }
        // Somebody may have started one since the rows were read.
        let now = executions::unfinished_of(&mut tx, key).await?;
        if now.iter().any(|other| other.key != row.key && ACTIVE.contains(&other.status.as_str())) {
            return Ok(());
        }
        let deployment = deployment_views::get(&mut tx, key).await?;
        let rules =
            deployment.and_then(|found| Some(found.workflows.get(&row.workflow_id)?["availability_rules"].clone()));
        let installed = deployment_views::installed(&mut tx, key).await?;
        available = is_available(&rules.unwrap_or_default(), &installed);
    }
    if available {
        executions::set_status(&mut tx, row.key, &["queued"], "pending").await?;
    } else {
        let why = format!("Error dequeueing execution: Workflow not available: {}", row.workflow_id);
        executions::finish(&mut tx, row.key, "failed", &why).await?;
        let event = quorate_core::workflow::workflow_failed(&row.workflow_id, &why);
        events::insert(&mut tx, row.key, &[changes::event(event)]).await?;
    }
    tx.commit().await
}

/// The token of an execution; made when it has none.
pub(super) async fn token(shared: &Shared, key: i64) -> Result<String, crate::AppError> {
    let store = shared.settings.app.store();
    if let Some(token) = executions::token(&mut *store.read().await?, key).await? {
        return Ok(token);
    }
    let mut tx = store.begin().await?;
    renew_token(&mut tx, key).await?;
    let token = executions::token(&mut tx, key).await?;
    tx.commit().await?;
    Ok(token.unwrap_or_default())
}
