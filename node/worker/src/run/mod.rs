//! One operation from its message to its result.

mod command;
mod python;
mod script;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::ctx::Ctx;
use crate::home::Home;
use crate::journal::{Entry, Journal, JournalError};
use crate::logs::{Logger, Runner};
use crate::process::ProcessMark;
use crate::resources::Resources;
use crate::rest::{Caller, Rest, RestError};
use crate::settings::{RESULT_BYTES_MAX, RestTarget};
use crate::wire::{Failure, Object, Task};
use command::CommandError;
pub(crate) use command::either;
pub(crate) use python::SHIM;
use script::{Script, TASK_NAME};

/// How an operation ended.
pub(crate) enum Ended {
    Failed(Failure),
    /// Cut by a cancel or by the worker's stop: no result.
    Cut,
    /// Nobody waits for it any more: its execution was cancelled, or its result is already recorded.
    Dropped,
    /// Another worker has begun it and may be at it still.
    Foreign,
    /// It was refused before it began: given to another worker meanwhile. It may come back one day.
    NotMine,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What all operations of a worker share.
pub(crate) struct Shared {
    pub(crate) home: Arc<Home>,
    pub(crate) rest: Arc<Rest>,
    pub(crate) rest_target: RestTarget,
    pub(crate) journal: Journal,
    pub(crate) runner: Runner,
    pub(crate) stop: CancellationToken,
}

/// One operation while it runs. No `Debug`: it holds tokens and inputs.
pub(crate) struct Operation {
    pub(crate) home: Arc<Home>,
    rest: Arc<Rest>,
    rest_target: RestTarget,
    journal: Journal,
    runner: Runner,
    stop: CancellationToken,
    cancel: CancellationToken,
    pub(crate) task: String,
    pub(crate) context: Arc<Context>,
    caller: Caller,
    args: Vec<Value>,
    kwargs: Object,
    entry: Entry,
    scratch: PathBuf,
    timeout: Option<Duration>,
    /// Whether it was begun before, here or elsewhere.
    is_resumed: bool,
    /// Whether another worker may be at it, so that one that was begun elsewhere is not begun here.
    may_be_foreign: bool,
    /// Whether the manager knows the operation, so that its states are reported.
    is_stored: bool,
}

impl Operation {
    pub(crate) fn new(
        shared: &Shared,
        task: Task,
        entry: Entry,
        scratch: PathBuf,
        cancel: CancellationToken,
        may_be_foreign: bool,
    ) -> Self {
        let context = Context::new(task.context);
        let timeout = context.value("timeout").as_f64().filter(|seconds| *seconds > 0.0);
        Self {
            home: shared.home.clone(),
            rest: shared.rest.clone(),
            rest_target: shared.rest_target.clone(),
            journal: shared.journal.clone(),
            runner: shared.runner.clone(),
            stop: shared.stop.clone(),
            cancel,
            task: task.id,
            caller: context.caller(),
            context: Arc::new(context),
            args: task.args,
            kwargs: task.kwargs,
            is_resumed: entry.attempt > 1,
            entry,
            scratch,
            timeout: timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            may_be_foreign,
            is_stored: false,
        }
    }

    /// Runs the operation to its end. Everything it has to say to the manager is said, or given up, when this returns,
    /// but for [`Operation::report_ended`].
    pub(crate) async fn perform(&mut self) -> Result<Value, Ended> {
        self.admit().await?;
        if self.context.is_true("has_intrinsic_functions") {
            self.kwargs = self.evaluate().await?;
        }
        let (logger, sender) =
            Logger::start(self.rest.clone(), self.caller.clone(), &self.context, &self.task, &self.runner);
        let outcome = self.execute(&logger).await;
        if let Err(Ended::Failed(failure)) = &outcome {
            logger.log("error", &format!("Task {} failed: {}: {}", self.task, failure.raised, failure.message));
        }
        tokio::select! {
            () = sender.finish() => {}
            // A stopping worker does not wait for a manager that is away.
            () = self.stop.cancelled() => {}
        }
        let value = outcome?;
        if value.to_string().len() > RESULT_BYTES_MAX {
            return Err(Failure::fatal(format!("the result is larger than {RESULT_BYTES_MAX} bytes")).into());
        }
        Ok(value)
    }

    /// Asks the manager whether the operation is still wanted, and says that it starts.
    async fn admit(&mut self) -> Result<(), Ended> {
        let execution = self.context.execution();
        if !execution.is_empty() {
            match self.rest.get(&self.caller, &["executions", &execution], &[]).await {
                Ok(found) if found.get("status").and_then(Value::as_str) == Some("cancelled") => {
                    return Err(Ended::Dropped);
                }
                Ok(_) => {}
                // A resume gave the execution a new token: this message is of its former life.
                Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED) => return Err(Ended::Dropped),
                Err(error) => return Err(error.failure().into()),
            }
        }
        if self.context.value("type") == "hook" {
            return Ok(());
        }
        match self.rest.get(&self.caller, &["operations", &self.task], &[]).await {
            Ok(found) => match found.get("state").and_then(Value::as_str) {
                Some("succeeded" | "failed" | "rescheduled") => return Err(Ended::Dropped),
                Some("started" | "response-sent") if self.may_be_foreign => return Err(Ended::Foreign),
                Some("started") => self.is_resumed = true,
                _ => {}
            },
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return Ok(()),
            Err(error) => return Err(error.failure().into()),
        }
        self.is_stored = true;
        match self.report("started").await {
            // It was given to another worker while it waited here, or its end is recorded: that is for others to tell.
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Err(Ended::NotMine),
            other => other.map_err(|error| error.failure().into()),
        }
    }

    async fn report(&self, state: &str) -> Result<(), RestError> {
        let body = json!({
            "state": state, "manager_name": self.runner.manager_name, "agent_name": self.runner.agent_name,
        });
        self.rest.patch(&self.caller, &["operations", &self.task], &body).await.map(|_| ())
    }

    /// Tells the manager that the result is on its way. The result itself does not depend on it.
    pub(crate) async fn report_ended(&self) {
        if self.is_stored
            && let Err(error) = self.report("response-sent").await
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, task = self.task, "report an ended operation");
        }
    }

    async fn evaluate(&self) -> Result<Object, Failure> {
        let body = json!({
            "deployment_id": self.context.value("deployment_id"),
            "context": self.context.evaluation(),
            "payload": self.kwargs,
        });
        let mut answer =
            self.rest.post(&self.caller, &["evaluate", "functions"], &body).await.map_err(|error| error.failure())?;
        match answer.get_mut("payload").map(Value::take) {
            Some(Value::Object(kwargs)) => Ok(kwargs),
            _ => Err(Failure::recoverable("ValueError", "the evaluated inputs are not an object")),
        }
    }

    async fn execute(&self, logger: &Logger) -> Result<Value, Ended> {
        let dispatcher = self.dispatcher();
        if self.context.text("task_name").as_deref() != Some(TASK_NAME) {
            return match dispatcher {
                Some(interpreter) => self.dispatch(&interpreter, &self.args, &self.kwargs, logger).await,
                None => Err(python::no_environment(self).into()),
            };
        }
        let script = Script::parse(&self.kwargs)?;
        let is_python = script.is_python(&self.home.interpreter()).await;
        if is_python && let Some(interpreter) = dispatcher {
            return self.dispatch(&interpreter, &self.args, &self.kwargs, logger).await;
        }
        let resources = Resources::new(
            self.rest.clone(),
            self.caller.clone(),
            self.context.clone(),
            &self.scratch,
            &self.cwd(&script),
        );
        let ctx = Ctx::new(self.rest.clone(), self.caller.clone(), self.context.clone(), logger.clone(), resources);
        let ctx = Arc::new(ctx);
        let outcome = self.run_script(&script, is_python, &ctx, logger).await;
        if matches!(outcome, Err(Ended::Cut)) {
            return outcome;
        }
        // Also after a failure: what the script has stored by then is true.
        match (ctx.update_all().await, outcome) {
            (Err(failure), Ok(_)) => Err(failure.into()),
            (Err(failure), outcome) => {
                logger.log("error", &format!("runtime properties were not stored: {}", failure.message));
                outcome
            }
            (Ok(()), outcome) => outcome,
        }
    }

    /// Records the process that runs the operation, for whoever has to end it.
    pub(crate) async fn record(&self, process: ProcessMark) -> Result<(), JournalError> {
        let mut entry = self.entry.clone();
        entry.process = Some(process);
        self.journal.write(entry).await
    }

    /// As the reference words an operation over its time.
    fn timed_out(&self, limit: Duration) -> Failure {
        let text = format!("Process killed due to timeout of {} seconds", limit.as_secs_f64());
        if self.context.is_true("timeout_recoverable") {
            Failure::recoverable("RecoverableError", text)
        } else {
            Failure::fatal(text)
        }
    }
}

impl Operation {
    /// A command's error as the operation's end.
    fn ended(&self, error: CommandError) -> Ended {
        match error {
            CommandError::Cut => Ended::Cut,
            CommandError::TimedOut(limit) => self.timed_out(limit).into(),
            CommandError::Spawn { program, source } => {
                Failure::recoverable("OSError", format!("start {}: {source}", program.display())).into()
            }
            other => Failure::recoverable("OSError", other.to_string()).into(),
        }
    }
}
