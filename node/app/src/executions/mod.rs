//! Executions: starting them, asking them to stop or to go on. Carrying them out is [`crate::executor`]'s work.

mod actions;
mod availability;
mod parameters;

use quorate_store::executions as rows;
use quorate_store::{ListQuery, Listing, Tx, deployment_views, deployments};
use serde_json::{Map, Value};
use tracing::info;
use uuid::Uuid;

pub use actions::Action;
pub(crate) use actions::renew_token;
pub use availability::is_available;
pub use quorate_store::executions::Execution;

use crate::{Actor, App, AppError, Code, Permission};

/// Executions of these workflows are carried out by whoever makes them, not by the executor.
pub const NOT_THE_EXECUTORS: [&str; 3] =
    ["upload_blueprint", "create_deployment_environment", "delete_deployment_environment"];
/// Seconds that other branches may go on after a failure, unless the caller says otherwise.
pub const WAIT_AFTER_FAIL_SECONDS: i32 = 600;
/// What an execution is in while it works, or is about to.
pub(crate) const ACTIVE: [&str; 5] = ["pending", "started", "cancelling", "force_cancelling", "kill_cancelling"];

/// What to execute.
#[derive(Debug)]
pub struct StartExecution {
    /// On which deployment.
    pub deployment_id: String,
    /// Which of its workflows.
    pub workflow_id: String,
    /// What differs from the workflow's defaults.
    pub parameters: Map<String, Value>,
    /// Let parameters through that the workflow does not name.
    pub allow_custom_parameters: bool,
    /// Start even when another execution runs, or the workflow is not available.
    pub force: bool,
    /// Do nothing really.
    pub dry_run: bool,
    /// Wait while another execution runs, instead of an error.
    pub queue: bool,
    /// Seconds that other branches may go on after a failure; 0 or more.
    pub wait_after_fail: i32,
}

/// The use cases.
pub struct Executions<'a>(pub(crate) &'a App);

impl Executions<'_> {
    /// Lists executions; `system`: hidden ones too, `everywhere`: of all tenants the actor may list them in.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for unknown fields.
    pub async fn list(
        &self,
        actor: &Actor,
        query: &ListQuery,
        system: bool,
        everywhere: bool,
    ) -> Result<Listing<Execution>, AppError> {
        actor.require(Permission::ExecutionList)?;
        let scope = if everywhere { actor.readable_everywhere(Permission::ExecutionList) } else { actor.readable() };
        Ok(rows::list(&mut *self.0.store().read().await?, query, &scope, system).await?)
    }

    /// One execution.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn get(&self, actor: &Actor, id: &str) -> Result<Execution, AppError> {
        actor.require(Permission::ExecutionGet)?;
        let found = rows::find(&mut *self.0.store().read().await?, &actor.readable(), id).await?;
        found.ok_or_else(|| AppError::not_found("Execution", id))
    }

    /// Starts, or queues, an execution of a workflow.
    ///
    /// # Errors
    /// `not_found_error` for the deployment, `nonexistent_workflow_error`, `unavailable_workflow_error`,
    /// `illegal_execution_parameters_error`, `existing_running_execution_error`, and what says that the deployment is
    /// not made yet.
    pub async fn start(&self, actor: &Actor, new: StartExecution) -> Result<Execution, AppError> {
        actor.require(Permission::ExecutionStart)?;
        let mut tx = self.0.store().begin().await?;
        let deployment = deployment_views::find(&mut tx, &actor.writable(), &new.deployment_id).await?;
        let deployment = deployment.ok_or_else(|| AppError::not_found("Deployment", &new.deployment_id))?;
        deployments::lock(&mut tx, deployment.key).await?;
        is_made(deployment.environment_status.as_deref(), deployment.environment_error.as_deref(), &deployment.id)?;
        let workflow = deployment.workflows.get(&new.workflow_id).ok_or_else(|| {
            let message = format!("Workflow {} does not exist in deployment {}", new.workflow_id, deployment.id);
            AppError::new(Code::NonexistentWorkflow, message)
        })?;
        let installed = deployment_views::installed(&mut tx, deployment.key).await?;
        if !new.force && !is_available(&workflow["availability_rules"], &installed) {
            let message = format!("Workflow not available: {}", new.workflow_id);
            return Err(AppError::new(Code::UnavailableWorkflow, message));
        }
        let merged =
            parameters::merge(&new.workflow_id, &workflow["parameters"], new.parameters, new.allow_custom_parameters)?;
        let running = running(&mut tx, deployment.key).await?;
        let status = match (running.is_empty() || new.force, new.queue) {
            (true, _) => "pending",
            (false, true) => "queued",
            (false, false) => return Err(already_running(&deployment.id, &running)),
        };
        let id = Uuid::new_v4().to_string();
        let row = rows::NewExecution {
            id: &id,
            tenant_key: deployment.tenant_key,
            creator_key: actor.login.user,
            visibility: &deployment.visibility,
            deployment_key: Some(deployment.key),
            workflow_id: &new.workflow_id,
            parameters: Value::Object(merged).into(),
            status,
            is_system_workflow: false,
            is_dry_run: new.dry_run,
            allow_custom_parameters: new.allow_custom_parameters,
            wait_after_fail_seconds: new.wait_after_fail.max(0),
        };
        let key = rows::insert(&mut tx, row).await?;
        deployment_views::set_latest_execution(&mut tx, deployment.key, key).await?;
        let made = found(&mut tx, key).await?;
        tx.commit().await?;
        info!(execution = id, workflow = new.workflow_id, deployment = deployment.id, status, "execution asked for");
        self.0.ports().executor.wake();
        Ok(made)
    }
}

/// Ids of what runs on a deployment.
async fn running(tx: &mut Tx, deployment: i64) -> Result<Vec<String>, AppError> {
    let rows = rows::unfinished_of(tx, deployment).await?;
    Ok(rows.into_iter().filter(|row| ACTIVE.contains(&row.status.as_str())).map(|row| row.id).collect())
}

fn already_running(deployment: &str, running: &[String]) -> AppError {
    let message = format!(
        "Deployment {deployment} already has running executions: {}. Pass force to start another one anyway, or queue \
         to let it wait",
        running.join(", ")
    );
    AppError::new(Code::ExistingRunningExecution, message)
}

async fn found(tx: &mut Tx, key: i64) -> Result<Execution, AppError> {
    let row = rows::get(tx, key).await?;
    row.ok_or_else(|| AppError::new(Code::Internal, "an execution that was just written is gone"))
}

/// Whether the deployment's nodes are there.
fn is_made(status: Option<&str>, error: Option<&str>, deployment: &str) -> Result<(), AppError> {
    let (code, message) = match status {
        None | Some("terminated") => return Ok(()),
        Some("pending" | "queued" | "scheduled") => {
            let message = format!("Deployment environment creation of {deployment} is still pending, try again soon");
            (Code::EnvironmentPending, message)
        }
        Some("failed" | "cancelled") => {
            let why = error.unwrap_or_default();
            let message = format!("No executions while environment creation for deployment {deployment} failed: {why}");
            (Code::DeploymentCreation, message)
        }
        Some(_) => {
            let message = format!("Deployment environment creation of {deployment} is in progress, try again soon");
            (Code::EnvironmentInProgress, message)
        }
    };
    Err(AppError::new(code, message))
}
