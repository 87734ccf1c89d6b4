//! Python: plugins through `cloudify.dispatch` of the worker's Python environment, and plain scripts without one.
//!
//! With `<dir>/venv` (or a plugin's own environment below `<dir>/plugins`) every Python task runs there, in
//! cloudify-common's own dispatcher. Without it, Python *scripts* still run: under the machine's `python3`, with a small
//! stand-in for `cloudify` that speaks to the worker as the `ctx` command does. Plugins then fail, saying so.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::logs::Logger;
use crate::python_text;
use crate::resources::write_private;
use crate::run::command::{Command, Output};
use crate::run::script::{Script, TASK_NAME};
use crate::run::{Ended, Operation};
use crate::settings::RESULT_BYTES_MAX;
use crate::wire::{Failure, Object, text};

/// Files of the stand-in, by path.
pub(crate) const SHIM: [(&str, &str); 6] = [
    ("run.py", include_str!("shim/run.py")),
    ("cloudify/__init__.py", include_str!("shim/cloudify/__init__.py")),
    ("cloudify/state.py", include_str!("shim/cloudify/state.py")),
    ("cloudify/exceptions.py", include_str!("shim/cloudify/exceptions.py")),
    ("cloudify/decorators.py", include_str!("shim/cloudify/decorators.py")),
    ("cloudify/manager.py", include_str!("shim/cloudify/manager.py")),
];

/// Plugins that are part of cloudify-common or of the worker, never in an environment of their own.
const BUILT_IN: [&str; 8] = [
    "agent",
    "diamond",
    "script",
    "cfy_extensions",
    "default_workflows",
    "worker_installer",
    "cloudify_system_workflows",
    "agent_installer",
];

impl Operation {
    /// The interpreter with cloudify-common that runs this operation's plugin.
    pub(crate) fn dispatcher(&self) -> Option<PathBuf> {
        let plugin = |key: &str| self.context.nested("plugin", key).as_str().map(str::to_owned);
        let is_built_in = plugin("name").is_none_or(|name| BUILT_IN.contains(&name.as_str()));
        if !is_built_in && let Some(package) = plugin("package_name") {
            let version = plugin("package_version");
            let managed = self.home.plugins().join(self.context.tenant()).join(plain(&package)?);
            if let Some(found) = environment(&managed, version.as_deref()) {
                return Some(found);
            }
            let deployment = self.context.text("deployment_id").unwrap_or_default();
            let source = self.home.source_plugins().join(self.context.tenant()).join(plain(&deployment)?);
            if let Some(found) = environment(&source.join(plain(&package)?), version.as_deref()) {
                return Some(found);
            }
        }
        let shared = self.home.venv().join("bin/python");
        shared.exists().then_some(shared)
    }

    /// Runs the task in cloudify-common's dispatcher.
    pub(crate) async fn dispatch(
        &self,
        interpreter: &Path,
        args: &[Value],
        kwargs: &Object,
        logger: &Logger,
    ) -> Result<Value, Ended> {
        let failed = |error: std::io::Error| Failure::recoverable("OSError", format!("prepare the dispatch: {error}"));
        let dir = self.scratch.join("dispatch");
        std::fs::create_dir(&dir).map_err(failed)?;
        let mut context = self.context.raw().clone();
        if self.is_resumed && self.context.text("task_name").as_deref() != Some(TASK_NAME) {
            // The dispatcher refuses functions that are not marked resumable; scripts are simply run again.
            context.insert("resume".into(), Value::Bool(true));
        }
        let input = json!({"cloudify_context": context, "args": args, "kwargs": kwargs});
        write_private(&dir.join("input.json"), input.to_string().as_bytes(), 0o600).map_err(failed)?;
        let command = Command {
            program: interpreter.to_owned(),
            args: vec!["-u".into(), "-m".into(), "cloudify.dispatch".into(), dir.clone().into()],
            env: self.dispatch_environment(interpreter),
            cwd: self.home.work(),
            stdout: Output::Quiet,
            stderr: Output::Quiet,
        };
        let finished = self.run(command, logger).await.map_err(|error| self.ended(error))?;
        let output = dir.join("output.json");
        let size = std::fs::metadata(&output).map_or(0, |metadata| metadata.len());
        if finished.code != 0 || size == 0 {
            let text = format!("Process terminated (rc={}): {}", finished.code, finished.stderr);
            return Err(Failure::fatal(text).into());
        }
        if size > 2 * RESULT_BYTES_MAX as u64 {
            return Err(Failure::fatal(format!("the result is larger than {RESULT_BYTES_MAX} bytes")).into());
        }
        let bytes = tokio::fs::read(&output).await.map_err(failed)?;
        let mut output: Object = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::fatal(format!("the dispatcher's output is not JSON: {error}")))?;
        let payload = output.remove("payload").unwrap_or_default();
        match (text(&output, "type").as_deref(), payload) {
            (Some("error"), Value::Object(payload)) => Err(Failure::from_payload(&payload).into()),
            (_, payload) => Ok(payload),
        }
    }

    fn dispatch_environment(&self, interpreter: &Path) -> Vec<(String, String)> {
        let show = |path: PathBuf| path.display().to_string();
        let mut env: Vec<(String, String)> = Vec::new();
        if let Value::Object(extra) = self.context.value("execution_env") {
            env.extend(extra.iter().map(|(name, value)| (name.clone(), python_text::str(value))));
        }
        if self.context.is_true("bypass_maintenance") {
            env.push(("BYPASS_MAINTENANCE".into(), "True".into()));
        }
        if let Some(name) = &self.runner.manager_name {
            env.push(("MANAGER_NAME".into(), name.clone()));
            env.push(("MGMTWORKER_HOME".into(), show(self.home.work())));
        }
        if let Some(name) = &self.runner.agent_name {
            env.push(("AGENT_NAME".into(), name.clone()));
        }
        let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
        let path = self.home.search_path(path);
        let bin = interpreter.parent().map(|bin| format!("{}:", bin.display())).unwrap_or_default();
        env.extend([
            ("PATH".into(), format!("{bin}{path}")),
            ("CLOUDIFY_DISPATCH".into(), "true".into()),
            ("AGENT_WORK_DIR".into(), show(self.home.work())),
            ("AGENT_LOG_DIR".into(), show(self.home.work())),
            ("AGENT_LOG_LEVEL".into(), "INFO".into()),
            ("AGENT_LOG_MAX_BYTES".into(), (5 << 20).to_string()),
            ("AGENT_LOG_MAX_HISTORY".into(), "7".into()),
            ("REST_HOST".into(), self.rest_target.hosts.join(",")),
            ("REST_PORT".into(), self.rest_target.port.to_string()),
            ("REST_PROTOCOL".into(), "https".into()),
            ("MANAGER_FILE_SERVER_SCHEME".into(), "https".into()),
            ("LOCAL_REST_CERT_FILE".into(), show(self.home.rest_ca())),
            ("CFY_PLUGINS_ROOT".into(), show(self.home.root())),
            ("CFY_EXEC_TEMP".into(), show(self.scratch.clone())),
            ("KERBEROS_ENV".into(), "false".into()),
        ]);
        env
    }
}

/// Why a task that is neither a script nor has an environment cannot run.
pub(crate) fn no_environment(operation: &Operation) -> Failure {
    let task = operation.context.text("task_name").unwrap_or_default();
    Failure::fatal(format!(
        "{task} is Python code of a plugin: this worker needs an environment with cloudify-common in {}",
        operation.home.venv().display()
    ))
}

/// The command for a Python script without cloudify-common. Inputs go by file: they may be secret, or large.
pub(crate) fn shim_command(
    operation: &Operation,
    script: &Script,
    file: &Path,
    mut env: Vec<(String, String)>,
) -> Result<Command, Failure> {
    let failed = |error: std::io::Error| Failure::recoverable("OSError", format!("prepare the script: {error}"));
    let inputs = operation.scratch.join("inputs.json");
    let body = Value::Object(script.inputs.clone()).to_string();
    write_private(&inputs, body.as_bytes(), 0o600).map_err(failed)?;
    env.push(("PYTHONPATH".into(), operation.home.shim().display().to_string()));
    env.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
    Ok(Command {
        program: operation.home.interpreter(),
        args: vec!["-u".into(), operation.home.shim().join("run.py").into(), file.into(), inputs.into()],
        env,
        cwd: operation.cwd(script),
        stdout: Output::Log("<out> "),
        stderr: Output::Log("<err> "),
    })
}

/// A name that is one directory, not a way out of it.
fn plain(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..").then_some(name)
}

/// The interpreter of an installed plugin: the version asked for, else the highest. An installation is whole when it
/// holds `plugin.id`.
fn environment(package: &Path, version: Option<&str>) -> Option<PathBuf> {
    let whole = |dir: &Path| dir.join("plugin.id").exists() && dir.join("bin/python").exists();
    let dir = match version {
        Some(version) => Some(package.join(plain(version)?)).filter(|dir| whole(dir)),
        None => std::fs::read_dir(package)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .filter(|dir| whole(dir))
            .max_by_key(|dir| numbers(dir)),
    };
    dir.map(|dir| dir.join("bin/python"))
}

fn numbers(dir: &Path) -> Vec<u64> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}
