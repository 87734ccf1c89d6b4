//! Takes results and gives each to its execution; those of executions that nobody carries out any more are recorded
//! here, so that a resume knows them.

use std::sync::Arc;
use std::time::Duration;

use quorate_core::workflow::{CancelKind, Run, RunOptions, TaskProgress};
use quorate_store::{StoreError, executions, operations, tasks_graphs};
use uuid::Uuid;

use super::changes::{self, ApplyError, Target};
use super::{Input, Reply, Shared, now_ms};

/// Between tries of a result that cannot be recorded.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes results until the executor ends.
pub(super) async fn take(shared: Arc<Shared>) {
    loop {
        let reply = tokio::select! {
            () = shared.stop.cancelled() => return,
            reply = shared.settings.transport.next_reply() => reply,
        };
        settle(&shared, reply).await;
    }
}

/// Delivers a result, again and again; not at all when the executor ends.
async fn settle(shared: &Arc<Shared>, reply: Reply) {
    let mut waiting = Some(reply);
    while let Some(reply) = waiting.take() {
        let Err((reply, error)) = deliver(shared, reply).await else { return };
        if let ApplyError::Store(error) = &error
            && shared.is_over(error)
        {
            return;
        }
        tracing::warn!(error = &error as &dyn std::error::Error, task = reply.task_id, "record a result, tried again");
        if shared.pause(PAUSE).await {
            waiting = Some(reply);
        }
    }
}

/// Records, or gives to the execution's next run, what an ended run left.
pub(super) async fn leave(shared: &Arc<Shared>, replies: Vec<Reply>) {
    for reply in replies {
        settle(shared, reply).await;
    }
}

async fn deliver(shared: &Arc<Shared>, reply: Reply) -> Result<(), (Reply, ApplyError)> {
    let key = match execution_of(shared, &reply.task_id).await {
        Ok(Some(key)) => key,
        Ok(None) => {
            tracing::info!(task = reply.task_id, "a result of an operation that is gone is dropped");
            (reply.ack)().await;
            return Ok(());
        }
        Err(error) => return Err((reply, error.into())),
    };
    let run = shared.runs().get(&key).cloned();
    let reply = match run {
        Some(run) => match run.send(Input::Reply(reply)).await {
            Ok(()) => return Ok(()),
            Err(refused) => match refused.0 {
                Input::Reply(reply) => reply,
                Input::Cancel(_) => return Ok(()),
            },
        },
        None => reply,
    };
    match record_late(shared, key, &reply).await {
        Ok(()) => {
            (reply.ack)().await;
            Ok(())
        }
        Err(error) => Err((reply, error)),
    }
}

async fn execution_of(shared: &Shared, task: &str) -> Result<Option<i64>, StoreError> {
    let ids = [task.to_owned()];
    let found = operations::executions_of(&mut *shared.settings.app.store().read().await?, &ids).await?;
    Ok(found.into_iter().next().map(|(_, key)| key))
}

/// Records a result of an execution that is not carried out: it was cancelled, or gave up waiting.
async fn record_late(shared: &Shared, key: i64, reply: &Reply) -> Result<(), ApplyError> {
    let mut tx = shared.settings.app.store().begin().await?;
    let Some(graph) = tasks_graphs::of_execution(&mut tx, key, None).await?.into_iter().next() else { return Ok(()) };
    let deployment = executions::get(&mut tx, key).await?.and_then(|row| row.deployment_key);
    let has_begun = !operations::begun(&mut tx, std::slice::from_ref(&reply.task_id)).await?.is_empty();
    let rows = operations::of_graph(&mut tx, graph.key).await?;
    let restored = changes::graph(&graph.name, rows)
        .map_err(|error| error.to_string())
        .and_then(|graph| Run::restore(graph, CancelKind::Force, RunOptions::default()).map_err(|e| e.to_string()));
    let mut run = match restored {
        Ok(run) => run,
        Err(error) => {
            tracing::error!(error, task = reply.task_id, "the graph of a result cannot be read, it is dropped");
            return Ok(());
        }
    };
    if has_begun {
        // The event of the start is there already.
        run.progress(&reply.task_id, TaskProgress::Started);
    }
    let new = run.record(&reply.task_id, reply.outcome.clone(), now_ms(), &mut || Uuid::new_v4().to_string());
    if new.is_empty() {
        return Ok(());
    }
    changes::apply(&mut tx, &Target { execution: key, deployment, graph: graph.key }, &new).await?;
    Ok(tx.commit().await?)
}
