//! How blueprints come: received, placed on a majority, then unpacked and compiled in the background.
//!
//! *Invariants*: the archive is on a majority of disks before the row that names it is committed; a blueprint is
//! `uploaded` only after its unpacked files are on a majority, too. What is committed and not ended is found in the
//! database and finished by whoever is active next ([`App::resume_uploads`]).

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use quorate_blueprint::{CompileOptions, Plan};
use quorate_store::blueprints::{self as rows, Blueprint, NewBlueprint};
use quorate_store::events::{self, NewEvent};
pub use quorate_store::executions::Execution;
use quorate_store::executions::{self, NewExecution};
use quorate_store::{Document, NewLabel, Tx};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::archives::{ExtractError, Format, extract};
use crate::blueprints::{self, ARCHIVES, BlueprintDetails, TREES, UPLOADED};
use crate::ports::{ContentError, PlaceRequest, Staging};
use crate::sources::TreeSources;
use crate::{Actor, App, AppError, Code, Permission, Visibility, labels, names};

/// The workflow that unpacks and compiles.
pub const UPLOAD_WORKFLOW: &str = "upload_blueprint";
/// Uploads that are received at once.
pub(crate) const RECEIVED_MAX: usize = 16;
/// Blueprints that are unpacked and compiled at once. The others wait as rows.
pub(crate) const JOBS_MAX: usize = 2;
/// How long a client waits for the end when it asks to.
const WAIT: Duration = Duration::from_secs(120);
/// Attempts while the database or the other nodes cannot be reached, and the time between two.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// What comes beside the archive.
pub struct UploadParams {
    /// Who will see it.
    pub visibility: Visibility,
    /// The file to compile, relative to the archive's folder.
    pub main_file: String,
    /// Labels as clients send them.
    pub labels: Value,
    /// Wait until it is compiled.
    pub wait: bool,
}

/// An archive that is being received. Dropped, it leaves nothing.
pub struct Upload {
    app: App,
    actor: Actor,
    id: String,
    _name: NameLock,
    _turn: OwnedSemaphorePermit,
    staging: Box<dyn Staging>,
    file: tokio::fs::File,
    received: u64,
}

/// Keeps others from uploading or removing the same blueprint: the files of two would replace each other.
pub(crate) struct NameLock {
    app: App,
    name: (i64, String),
}

impl Drop for NameLock {
    fn drop(&mut self) {
        self.app.busy().remove(&self.name);
    }
}

impl App {
    pub(crate) fn lock_blueprint(&self, actor: &Actor, id: &str) -> Result<NameLock, AppError> {
        let name = (actor.tenant, id.to_owned());
        if self.busy().insert(name.clone()) {
            return Ok(NameLock { app: self.clone(), name });
        }
        Err(AppError::new(Code::Conflict, format!("Blueprint `{id}` is being uploaded or removed at the moment")))
    }

    /// Begins to receive a blueprint.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for the id; `conflict_error` when it is taken, unless by an upload
    /// that failed; `file_sync_service_error` while too many others are received.
    pub async fn begin_upload(&self, actor: &Actor, id: &str) -> Result<Upload, AppError> {
        actor.require(Permission::BlueprintUpload)?;
        names::check("blueprint_id", id)?;
        let name = self.lock_blueprint(actor, id)?;
        check_free(&mut *self.store().read().await?, actor, id, false).await?;
        let Ok(turn) = self.0.receiving.clone().try_acquire_owned() else {
            let message = format!("{RECEIVED_MAX} uploads are being received already; try again");
            return Err(AppError::new(Code::FileSync, message));
        };
        let staging = self.ports().content.staging().await?;
        tokio::fs::create_dir(staging.path()).await.map_err(ContentError::Disk)?;
        let file = tokio::fs::File::create_new(staging.path().join("received")).await.map_err(ContentError::Disk)?;
        Ok(Upload {
            app: self.clone(),
            actor: actor.clone(),
            id: id.to_owned(),
            _name: name,
            _turn: turn,
            staging,
            file,
            received: 0,
        })
    }

    /// Goes on with what the active node before left unfinished. Call it once after a start; returns at once.
    ///
    /// # Errors
    /// `no_active_node_error`.
    pub async fn resume_uploads(&self) -> Result<(), AppError> {
        for key in rows::unfinished(&mut *self.store().read().await?).await? {
            self.spawn_job(key);
        }
        Ok(())
    }

    fn spawn_job(&self, key: i64) -> JoinHandle<()> {
        tokio::spawn(self.clone().run_job(key))
    }

    async fn run_job(self, key: i64) {
        // Closed never.
        let Ok(_turn) = self.0.upload_jobs.acquire().await else { return };
        for attempt in 1..=ATTEMPTS {
            let Err(failed) = (Job { app: &self, key }).run().await else { return };
            report(key, attempt, &failed);
            drop(failed);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Upload {
    /// Takes the next part of the archive.
    ///
    /// # Errors
    /// `bad_parameters_error` beyond the limit.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AppError> {
        self.received += bytes.len() as u64;
        let max = self.app.0.limits.upload_bytes_max;
        if self.received > max {
            return Err(AppError::bad(format!("The upload has more than {max} bytes, which is the limit")));
        }
        Ok(self.file.write_all(bytes).await.map_err(ContentError::Disk)?)
    }

    /// Answers when a majority has the archive and the blueprint's row is committed; with `wait` when it is compiled.
    ///
    /// # Errors
    /// `upload_missing_file`, `bad_parameters_error`, `forbidden_error`, `conflict_error`; `file_sync_service_error`
    /// when no majority could be reached; with `wait` `invalid_blueprint_error`.
    pub async fn finish(mut self, params: UploadParams) -> Result<BlueprintDetails, AppError> {
        if params.visibility == Visibility::Global {
            self.actor.require(Permission::CreateGlobalResource)?;
        }
        check_main_file(&params.main_file)?;
        let labels = labels::parse(&params.labels)?;
        if self.received == 0 {
            return Err(AppError::new(Code::UploadMissingFile, "No blueprint archive was sent"));
        }
        self.file.flush().await.map_err(ContentError::Disk)?;
        let format = self.format().await?;
        let directory = self.staging.path();
        let name = format!("{}.{}", self.id, format.extension());
        tokio::fs::rename(directory.join("received"), directory.join(name)).await.map_err(ContentError::Disk)?;
        let path: PathBuf = [ARCHIVES, &self.actor.tenant_name, &self.id].iter().collect();
        // Whoever has this id gave up or is ourselves; nobody else can come while we hold the name.
        let is_global = params.visibility == Visibility::Global;
        check_free(&mut *self.app.store().read().await?, &self.actor, &self.id, is_global).await?;
        self.app.ports().content.place(PlaceRequest { path, staged: directory }).await?;
        let key = self.commit(&params, &labels).await?;
        info!(blueprint = self.id, tenant = self.actor.tenant_name, bytes = self.received, "blueprint received");
        let shown = self.app.details(key).await?;
        let job = self.app.spawn_job(key);
        if !params.wait {
            return Ok(shown);
        }
        if tokio::time::timeout(WAIT, job).await.is_err() {
            let message = format!("Blueprint `{}` is still being compiled after {WAIT:?}; look at it later", self.id);
            return Err(AppError::new(Code::InvalidBlueprint, message));
        }
        let details = self.app.details(key).await?;
        if details.row.state == UPLOADED {
            return Ok(details);
        }
        Err(AppError::new(Code::InvalidBlueprint, details.row.error.unwrap_or(details.row.state)))
    }

    async fn format(&self) -> Result<Format, AppError> {
        let path = self.staging.path().join("received");
        let detect = move || Format::detect(&mut File::open(path)?);
        let format = blocking(detect).await?.map_err(ContentError::Disk)?;
        format.ok_or_else(|| AppError::bad("The blueprint archive is no zip, tar or tar.gz archive"))
    }

    async fn commit(&self, params: &UploadParams, labels: &[NewLabel]) -> Result<i64, AppError> {
        let (actor, id) = (&self.actor, self.id.as_str());
        let mut tx = self.app.store().begin().await?;
        let failed = check_free(&mut tx, actor, id, params.visibility == Visibility::Global).await?;
        if let Some(failed) = failed {
            rows::delete(&mut tx, failed.key).await?;
        }
        let execution = NewExecution {
            id: &Uuid::new_v4().to_string(),
            tenant_key: actor.tenant,
            creator_key: actor.login.user,
            visibility: params.visibility.as_str(),
            deployment_key: None,
            workflow_id: UPLOAD_WORKFLOW,
            parameters: json!({ "blueprint_id": id, "app_file_name": params.main_file }).into(),
            status: "pending",
            is_system_workflow: false,
            is_dry_run: false,
            allow_custom_parameters: false,
            wait_after_fail_seconds: 0,
        };
        let upload_execution_key = executions::insert(&mut tx, execution).await?;
        let new = NewBlueprint {
            id,
            tenant_key: actor.tenant,
            creator_key: actor.login.user,
            visibility: params.visibility.as_str(),
            main_file_name: &params.main_file,
            state: "uploading",
            upload_execution_key,
        };
        let key = rows::insert(&mut tx, new).await.map_err(|error| blueprints::taken(actor, id, error))?;
        rows::add_labels(&mut tx, key, actor.login.user, labels).await?;
        tx.commit().await?;
        Ok(key)
    }
}

impl App {
    async fn details(&self, key: i64) -> Result<BlueprintDetails, AppError> {
        let mut reader = self.store().read().await?;
        let row = rows::get(&mut reader, key).await?;
        let row = row.ok_or_else(|| AppError::not_found("Blueprint", "of this upload"))?;
        blueprints::one(&mut reader, row).await
    }
}

fn report(blueprint_key: i64, attempt: u32, error: &AppError) {
    let error = error as &dyn std::error::Error;
    if attempt < ATTEMPTS {
        warn!(blueprint_key, attempt, error, "an upload is not finished yet, trying again");
    } else {
        // The next active node, or this one after a restart, finds it again.
        error!(blueprint_key, error, "an upload could not be finished");
    }
}

/// Whether an execution is over.
pub(crate) fn is_ended(execution: &Execution) -> bool {
    matches!(execution.status.as_str(), "terminated" | "failed" | "cancelled")
}

/// Gives the failed blueprint that a new one of this id replaces.
async fn check_free(
    connection: &mut quorate_store::PgConnection,
    actor: &Actor,
    id: &str,
    is_global: bool,
) -> Result<Option<Blueprint>, AppError> {
    let Some(row) = rows::holder(connection, actor.tenant, id, is_global).await? else { return Ok(None) };
    let has_failed = row.state == "invalid" || row.state.starts_with("failed");
    if has_failed && row.tenant_key == actor.tenant && !is_held(connection, &row).await? {
        return Ok(Some(row));
    }
    Err(AppError::taken("Blueprint", id, &actor.tenant_name))
}

/// Whether a deployment uses it all the same.
async fn is_held(connection: &mut quorate_store::PgConnection, row: &Blueprint) -> Result<bool, AppError> {
    Ok(!rows::deployments_of(connection, row.key).await?.is_empty())
}

fn check_main_file(path: &str) -> Result<(), AppError> {
    let is_plain = |name: &str| !name.is_empty() && name != "." && name != "..";
    if path.len() <= 1024 && !path.contains('\0') && path.split('/').all(is_plain) {
        return Ok(());
    }
    Err(AppError::bad("application_file_name must be a path inside the blueprint's folder"))
}

/// Unpacks and compiles one blueprint. May be repeated from any point.
struct Job<'a> {
    app: &'a App,
    key: i64,
}

/// The blueprint is at fault.
struct Fault {
    state: &'static str,
    message: String,
}

enum JobError {
    Fault(Fault),
    /// We are.
    Ours(AppError),
}

impl<E: Into<AppError>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Ours(error.into())
    }
}

impl Job<'_> {
    async fn run(&self) -> Result<(), AppError> {
        let mut reader = self.app.store().read().await?;
        let Some(blueprint) = rows::get(&mut reader, self.key).await? else { return Ok(()) };
        let Some(execution_key) = blueprint.upload_execution_key else { return Ok(()) };
        let Some(execution) = executions::get(&mut reader, execution_key).await? else { return Ok(()) };
        drop(reader);
        if is_ended(&execution) {
            return Ok(());
        }
        let fault = match self.work(&blueprint, &execution).await {
            Ok(()) => return Ok(()),
            Err(JobError::Ours(error)) => return Err(error),
            Err(JobError::Fault(fault)) => fault,
        };
        info!(blueprint = blueprint.id, tenant = blueprint.tenant, fault.state, fault.message, "upload failed");
        let mut tx = self.app.store().begin().await?;
        rows::set_state(&mut tx, self.key, fault.state, Some(&fault.message)).await?;
        let message = format!("'{UPLOAD_WORKFLOW}' workflow execution failed: {}", fault.message);
        events::insert(&mut tx, execution.key, &[event("workflow_failed", message)]).await?;
        executions::finish(&mut tx, execution.key, "failed", &fault.message).await?;
        Ok(tx.commit().await?)
    }

    async fn work(&self, blueprint: &Blueprint, execution: &Execution) -> Result<(), JobError> {
        let mut tx = self.app.store().begin().await?;
        if !executions::begin(&mut tx, execution.key, &["pending", "started"]).await? {
            let message = "the upload was cancelled".to_owned();
            return Err(JobError::Fault(Fault { state: "failed_extracting", message }));
        }
        rows::set_state(&mut tx, self.key, "extracting", None).await?;
        let mut news = Vec::new();
        if execution.status == "pending" {
            news.push(event("workflow_started", format!("Starting '{UPLOAD_WORKFLOW}' workflow execution")));
        }
        news.push(log(format!("Extracting the archive of blueprint `{}`", blueprint.id)));
        events::insert(&mut tx, execution.key, &news).await?;
        tx.commit().await?;

        let staging = self.app.ports().content.staging().await?;
        self.extract(blueprint, staging.path()).await?;
        let parsing = log(format!("Parsing blueprint `{}`", blueprint.id));
        self.note("parsing", execution, parsing).await?;
        let plan = self.compile(blueprint, staging.path()).await?;
        let invalid = |error: AppError| JobError::Fault(Fault { state: "invalid", message: error.message });
        let declared = labels::declared(&plan.blueprint_labels).map_err(invalid)?;
        let path: PathBuf = [TREES, &blueprint.tenant, &blueprint.id].iter().collect();
        self.app.ports().content.place(PlaceRequest { path, staged: staging.path() }).await?;
        self.finish(blueprint, execution, &plan, &declared).await
    }

    async fn note(&self, state: &str, execution: &Execution, log: NewEvent) -> Result<(), AppError> {
        let mut tx = self.app.store().begin().await?;
        rows::set_state(&mut tx, self.key, state, None).await?;
        events::insert(&mut tx, execution.key, &[log]).await?;
        Ok(tx.commit().await?)
    }

    async fn extract(&self, blueprint: &Blueprint, into: PathBuf) -> Result<(), JobError> {
        let fault = |message: String| JobError::Fault(Fault { state: "failed_extracting", message });
        let Some(archive) = self.app.open_archive(blueprint).await? else {
            return Err(fault("the uploaded archive is gone; upload it again".to_owned()));
        };
        let limits = self.app.0.limits;
        match blocking(move || extract(archive.file, &into, &limits)).await? {
            Ok(()) => Ok(()),
            Err(ExtractError::Disk(error)) => Err(ContentError::Disk(error).into()),
            Err(error) => Err(fault(format!("Failed extracting the blueprint archive: {error}"))),
        }
    }

    async fn compile(&self, blueprint: &Blueprint, tree: PathBuf) -> Result<Plan, JobError> {
        let main = blueprint.main_file_name.clone();
        let compile = move || {
            let options = CompileOptions::default();
            quorate_blueprint::compile(&main, &TreeSources::new(tree, options.limits.file_bytes), &options)
        };
        blocking(compile).await?.map_err(|error| {
            let invalid = error.class.is_invalid_blueprint();
            let (state, what) =
                if invalid { ("invalid", "Invalid blueprint") } else { ("failed_parsing", "Failed parsing blueprint") };
            JobError::Fault(Fault { state, message: format!("{what} - {error}") })
        })
    }

    async fn finish(
        &self,
        blueprint: &Blueprint,
        execution: &Execution,
        plan: &Plan,
        labels: &[NewLabel],
    ) -> Result<(), JobError> {
        let document = |value: Result<Value, serde_json::Error>| {
            let written = value.map_err(|error| AppError::caused(Code::Internal, "the plan cannot be written", error));
            written.map(Document)
        };
        let requirements = document(serde_json::to_value(&plan.requirements))?;
        let written = document(serde_json::to_value(plan))?;
        let mut tx: Tx = self.app.store().begin().await?;
        rows::set_plan(&mut tx, self.key, &written, plan.description.as_deref(), &requirements).await?;
        rows::set_state(&mut tx, self.key, UPLOADED, None).await?;
        rows::add_labels(&mut tx, self.key, blueprint.creator_key, labels).await?;
        let news = [
            log(format!("Updating the plan of blueprint `{}`", blueprint.id)),
            event("workflow_succeeded", format!("'{UPLOAD_WORKFLOW}' workflow execution succeeded")),
        ];
        events::insert(&mut tx, execution.key, &news).await?;
        executions::finish(&mut tx, execution.key, "terminated", "").await?;
        tx.commit().await?;
        info!(blueprint = blueprint.id, tenant = blueprint.tenant, "blueprint uploaded");
        Ok(())
    }
}

/// An event of an execution.
pub(crate) fn event(kind: &str, message: String) -> NewEvent {
    NewEvent { event_type: Some(kind.to_owned()), message, ..NewEvent::default() }
}

/// A log line of an execution.
pub(crate) fn log(message: String) -> NewEvent {
    NewEvent {
        is_log: true,
        level: Some("info".to_owned()),
        logger: Some("manager".to_owned()),
        message,
        ..NewEvent::default()
    }
}

/// Runs work on the disk or the processor beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, AppError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| AppError::caused(Code::Internal, "the work was not finished", error))
}
