//! Cancelling, killing, resuming.

use std::str::FromStr;

use quorate_core::workflow::resume;
use quorate_store::{Tx, deployment_views, deployments, executions as rows, operations, tasks_graphs};
use tracing::info;
use uuid::Uuid;

use super::{Execution, Executions, already_running, found, running};
use crate::auth::sha256_hex;
use crate::executor::changes::{self, Target};
use crate::{Actor, AppError, Code, Permission, names};

/// Random characters of an execution's token.
const TOKEN_CHARACTERS: usize = 43;

/// What an execution is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start nothing more; end when what runs has ended.
    Cancel,
    /// End now; what runs goes on by itself.
    ForceCancel,
    /// End now, and end what runs.
    Kill,
    /// Go on where it failed or was cancelled.
    Resume,
    /// The same, and repeat what nobody has a result of.
    ForceResume,
}

impl FromStr for Action {
    type Err = AppError;

    fn from_str(text: &str) -> Result<Self, AppError> {
        Ok(match text {
            "cancel" => Self::Cancel,
            "force-cancel" => Self::ForceCancel,
            "kill" => Self::Kill,
            "resume" => Self::Resume,
            "force-resume" => Self::ForceResume,
            other => {
                let valid = "cancel, force-cancel, kill, resume, force-resume";
                return Err(AppError::bad(format!("Invalid action: {other}, valid actions are: {valid}")));
            }
        })
    }
}

impl Executions<'_> {
    /// Asks an execution to stop or to go on; the executor does it afterwards.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; in the wrong state `illegal_action_error` for stopping and
    /// `conflict_error` for resuming; `existing_running_execution_error`.
    pub async fn act(&self, actor: &Actor, id: &str, action: Action) -> Result<Execution, AppError> {
        let resuming = matches!(action, Action::Resume | Action::ForceResume);
        actor.require(if resuming { Permission::ExecutionStart } else { Permission::ExecutionCancel })?;
        let mut tx = self.0.store().begin().await?;
        let row = rows::find(&mut tx, &actor.writable(), id).await?;
        let row = row.ok_or_else(|| AppError::not_found("Execution", id))?;
        if let Some(deployment) = row.deployment_key {
            deployments::lock(&mut tx, deployment).await?;
        }
        if resuming {
            go_on(&mut tx, &row, action).await?
        } else {
            stop(&mut tx, &row, action).await?
        }
        let row = found(&mut tx, row.key).await?;
        tx.commit().await?;
        info!(execution = id, ?action, by = actor.login.username, status = row.status, "execution was asked");
        self.0.ports().executor.wake();
        Ok(row)
    }
}

async fn stop(tx: &mut Tx, row: &Execution, action: Action) -> Result<(), AppError> {
    // What never began needs nobody to stop it.
    if matches!(row.status.as_str(), "queued" | "scheduled") {
        rows::finish(tx, row.key, "cancelled", "").await?;
        return Ok(());
    }
    let (from, status): (&[&str], _) = match action {
        Action::Cancel => (&["pending", "started"], "cancelling"),
        Action::ForceCancel => (&["pending", "started", "cancelling"], "force_cancelling"),
        _ => (&["pending", "started", "cancelling", "force_cancelling"], "kill_cancelling"),
    };
    if !rows::set_status(tx, row.key, from, status).await? {
        let message = format!(
            "Can't {} execution {} because it's in status {}",
            if action == Action::Kill { "kill" } else { "cancel" },
            row.id,
            row.status
        );
        return Err(AppError::new(Code::IllegalAction, message));
    }
    if action == Action::Kill {
        // Whoever still runs shall change nothing any more.
        renew_token(tx, row.key).await?;
    }
    Ok(())
}

async fn go_on(tx: &mut Tx, row: &Execution, action: Action) -> Result<(), AppError> {
    // Somebody carries it out already, and will go on after whatever happens to this node.
    if row.status == "started" && action == Action::Resume {
        return Ok(());
    }
    if !rows::reopen(tx, row.key).await? {
        let message = format!("Cannot resume execution: `{}` in state: `{}`", row.id, row.status);
        return Err(AppError::new(Code::Conflict, message));
    }
    if let Some(deployment) = row.deployment_key {
        let others: Vec<String> = running(tx, deployment).await?.into_iter().filter(|id| *id != row.id).collect();
        if !others.is_empty() {
            return Err(already_running(row.deployment_id.as_deref().unwrap_or_default(), &others));
        }
        deployment_views::set_latest_execution(tx, deployment, row.key).await?;
    }
    if let Some(graph) = tasks_graphs::of_execution(tx, row.key, None).await?.into_iter().next() {
        let stored = changes::graph(&graph.name, operations::of_graph(tx, graph.key).await?)?;
        let again = resume(stored, action == Action::ForceResume, &mut || Uuid::new_v4().to_string());
        let again =
            again.map_err(|error| AppError::caused(Code::Internal, "the stored graph cannot be read", error))?;
        let target = Target { execution: row.key, deployment: row.deployment_key, graph: graph.key };
        changes::apply(tx, &target, &again).await?;
    }
    // Operations that still run go on with the token they have.
    match rows::token(tx, row.key).await? {
        Some(_) => Ok(()),
        None => renew_token(tx, row.key).await,
    }
}

/// Gives an execution a token; an earlier one is worth nothing any more.
pub(crate) async fn renew_token(tx: &mut Tx, key: i64) -> Result<(), AppError> {
    let token = names::random(TOKEN_CHARACTERS);
    Ok(rows::set_token(tx, key, &token, &sha256_hex(&token)).await?)
}
