//! `script_runner.tasks.run`: scripts that are executed, with their inputs in the environment.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command as Process;
use tokio::time::timeout;

use crate::ctx::Ctx;
use crate::ctx::client::SOCKET_URL;
use crate::ctx::server::CtxServer;
use crate::logs::Logger;
use crate::python_text;
use crate::resources::write_private;
use crate::run::command::{Command, Finished, Output};
use crate::run::{Ended, Operation, python};
use crate::settings::{RESOURCE_BYTES_MAX, TEMPLATE_BYTES_MAX};
use crate::wire::{Failure, Object, text};

/// The task this module runs.
pub(crate) const TASK_NAME: &str = "script_runner.tasks.run";
const POWERSHELL: &str = "powershell";
const SYNTAX_CHECK: Duration = Duration::from_secs(10);
const DOWNLOAD: Duration = Duration::from_secs(300);

/// The operation's inputs, taken apart.
pub(crate) struct Script {
    path: Option<String>,
    source: Option<String>,
    certificate: Option<String>,
    process: Object,
    /// What is left: the inputs proper.
    pub(crate) inputs: Object,
}

impl Script {
    pub(crate) fn parse(kwargs: &Object) -> Result<Self, Failure> {
        let mut inputs = kwargs.clone();
        let mut take = |key: &str| inputs.shift_remove(key).filter(|value| !python_text::is_falsy(value));
        let path = take("script_path").as_ref().map(python_text::str);
        let source = take("script_source").as_ref().map(python_text::str);
        let certificate = take("ssl_cert_content").as_ref().map(python_text::str);
        let process = match take("process") {
            Some(Value::Object(process)) => process,
            _ => Object::new(),
        };
        take("ctx");
        match (&path, &source) {
            (None, None) => return Err(Failure::fatal("the operation needs script_path or script_source")),
            (Some(_), Some(_)) => return Err(Failure::fatal("script_path and script_source exclude each other")),
            _ => {}
        }
        Ok(Self { path, source, certificate, process, inputs })
    }

    fn eval_python(&self) -> Option<bool> {
        self.process.get("eval_python").and_then(Value::as_bool)
    }

    /// Whether the script is run by Python rather than executed.
    pub(crate) async fn is_python(&self, interpreter: &Path) -> bool {
        match (self.eval_python(), &self.path, &self.source) {
            (Some(forced), ..) => forced,
            (None, Some(path), _) => path.to_lowercase().ends_with(".py"),
            (None, None, Some(source)) => parses_as_python(interpreter, &dedent(source)).await,
            (None, None, None) => false,
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.process.get(key).map_or(default, |value| !python_text::is_falsy(value))
    }

    /// Inputs as environment variables, `process.env` winning.
    fn environment(&self) -> Vec<(String, String)> {
        let mut all = self.inputs.clone();
        if let Some(Value::Object(env)) = self.process.get("env") {
            all.extend(env.clone());
        }
        let usable = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        let value = |value: Value| match value {
            structured @ (Value::Object(_) | Value::Array(_) | Value::Bool(_)) => python_text::json(&structured),
            plain => python_text::str(&plain),
        };
        all.into_iter().filter(|(name, _)| usable(name)).map(|(name, v)| (name, value(v))).collect()
    }
}

impl Operation {
    /// Where the script starts.
    pub(crate) fn cwd(&self, script: &Script) -> PathBuf {
        text(&script.process, "cwd").map_or_else(|| self.home.work(), |cwd| self.home.work().join(cwd))
    }

    /// Runs a script that is not Python, or Python without cloudify-common.
    pub(crate) async fn run_script(
        &self,
        script: &Script,
        is_python: bool,
        ctx: &Arc<Ctx>,
        logger: &Logger,
    ) -> Result<Value, Ended> {
        let file = self.fetch(script, is_python, ctx).await?;
        let proxy = match text(&script.process, "ctx_proxy_type").as_deref() {
            None | Some("auto" | "http") => {
                let started = CtxServer::start(ctx.clone()).await;
                Some(started.map_err(|error| Failure::recoverable("OSError", format!("listen for ctx: {error}")))?)
            }
            Some("none") if !is_python => None,
            Some(other) => return Err(Failure::fatal(format!("unsupported proxy type: {other}")).into()),
        };
        let mut env = script.environment();
        env.push((SOCKET_URL.into(), proxy.as_ref().map_or_else(String::new, |proxy| proxy.url.clone())));
        let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
        env.push(("PATH".into(), self.home.search_path(path)));

        let finished = if is_python {
            let command = python::shim_command(self, script, &file, env)?;
            self.run(command, logger).await.map_err(|error| self.ended(error))?
        } else {
            let (line, command) = self.shell_command(script, &file, env);
            let finished = self.run(command, logger).await.map_err(|error| self.ended(error))?;
            logger.info(&format!("Process {} ended, return code {}: {line}", finished.pid, finished.code));
            if finished.code == 0 {
                return Ok(ctx.conclude(None).await?);
            }
            return Ok(ctx.conclude(Some(process_failure(&line, &finished))).await?);
        };
        let raised = match &proxy {
            Some(proxy) => proxy.raised().await,
            None => None,
        };
        let failed =
            raised.or_else(|| (finished.code != 0).then(|| process_failure(&file.display().to_string(), &finished)));
        Ok(ctx.conclude(failed).await?)
    }

    fn shell_command(&self, script: &Script, file: &Path, env: Vec<(String, String)>) -> (String, Command) {
        let is_powershell = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("ps1"));
        let prefix = text(&script.process, "command_prefix").or_else(|| is_powershell.then(|| POWERSHELL.to_owned()));
        let mut line = quoted(file);
        if let Some(prefix) = prefix {
            line = format!("{prefix} {line}");
        }
        if let Some(Value::Array(args)) = script.process.get("args") {
            for arg in args {
                line.push(' ');
                line.push_str(&python_text::str(arg));
            }
        }
        let merged = script.flag("stderr_to_stdout", false);
        let run = if merged { format!("exec 2>&1\n{line}") } else { line.clone() };
        let show = |key: &str, prefix| if script.flag(key, true) { Output::Log(prefix) } else { Output::Quiet };
        let command = Command {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), run.into()],
            env,
            cwd: self.cwd(script),
            stdout: show("log_stdout", "<out> "),
            stderr: show("log_stderr", "<err> "),
        };
        (line, command)
    }

    /// Puts the script into the scratch space, executable for this user.
    async fn fetch(&self, script: &Script, is_python: bool, ctx: &Ctx) -> Result<PathBuf, Failure> {
        let failed = |path: &Path, error: std::io::Error| {
            Failure::recoverable("OSError", format!("{}: {error}", path.display()))
        };
        if let Some(source) = &script.source {
            let file = ctx.resources.place(if is_python { "script.py" } else { "script.sh" })?;
            write_private(&file, dedent(source).as_bytes(), 0o700).map_err(|error| failed(&file, error))?;
            return Ok(file);
        }
        let path = script.path.as_deref().unwrap_or_default();
        let name = path.rsplit(['/', '\\']).next().filter(|name| !matches!(*name, "" | "." | "..")).unwrap_or("script");
        let file = match path.split_once("://") {
            Some(("http" | "https", _)) => {
                let file = ctx.resources.place(name)?;
                download(path, script.certificate.as_deref(), &file).await?;
                file
            }
            Some(("file", local)) => {
                let file = ctx.resources.place(name)?;
                tokio::fs::copy(local, &file).await.map_err(|error| failed(Path::new(local), error))?;
                file
            }
            _ => ctx.resources.download(path, None).await?,
        };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        tokio::fs::set_permissions(&file, mode).await.map_err(|error| failed(&file, error))?;
        Ok(file)
    }
}

/// A script from somewhere else: only a plain 200 counts.
async fn download(url: &str, certificate: Option<&str>, to: &Path) -> Result<(), Failure> {
    let failed = |error: reqwest::Error| {
        Failure::recoverable("ConnectionError", format!("download a script: {}", error.without_url()))
    };
    let mut client = reqwest::Client::builder().timeout(DOWNLOAD);
    if let Some(pem) = certificate {
        client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?);
    }
    let mut answer = client.build().map_err(failed)?.get(url).send().await.map_err(failed)?;
    if answer.status() != reqwest::StatusCode::OK {
        let status = answer.status().as_u16();
        return Err(Failure::fatal(format!("the script {url} was not downloaded: status code {status}")));
    }
    let store = |error: std::io::Error| Failure::recoverable("OSError", format!("{}: {error}", to.display()));
    let mut file = tokio::fs::File::create(to).await.map_err(store)?;
    let mut left = RESOURCE_BYTES_MAX.min(TEMPLATE_BYTES_MAX * 8);
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        left = left
            .checked_sub(chunk.len() as u64)
            .ok_or_else(|| Failure::fatal(format!("the script {url} is too large")))?;
        file.write_all(&chunk).await.map_err(store)?;
    }
    file.flush().await.map_err(store)
}

fn process_failure(line: &str, finished: &Finished) -> Failure {
    let mut message = format!("command: {line}, exit_code: {}", finished.code);
    for (name, output) in [("stdout", &finished.stdout), ("stderr", &finished.stderr)] {
        if !output.is_empty() {
            message.push_str(&format!(", {name}: {output}"));
        }
    }
    Failure::recoverable("ProcessException", message)
}

/// For the shell; plain paths stay as they are, so that messages show them unadorned.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@%".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Takes away the blanks all lines begin with.
fn dedent(source: &str) -> String {
    let blanks = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let filled = || source.lines().filter(|line| !line.trim().is_empty());
    let common = filled().map(blanks).min().unwrap_or_default();
    let first = filled().next().unwrap_or_default();
    // Blanks and tabs are not counted as each other.
    let margin = &first[..common.min(first.len())];
    let lines: Vec<&str> = source.split('\n').map(|line| line.strip_prefix(margin).unwrap_or(line)).collect();
    lines.join("\n")
}

/// As the original guesses: whatever Python can parse is Python.
async fn parses_as_python(interpreter: &Path, source: &str) -> bool {
    let spawned = Process::new(interpreter)
        .args(["-I", "-c", "import ast, sys; ast.parse(sys.stdin.read())"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = spawned else { return false };
    let checked = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(source.as_bytes()).await?;
        }
        child.wait().await
    };
    matches!(timeout(SYNTAX_CHECK, checked).await, Ok(Ok(status)) if status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn script(value: Value) -> Result<Script, Failure> {
        let Value::Object(map) = value else { panic!("an object") };
        Script::parse(&map)
    }

    #[test]
    fn inputs_become_variables_and_process_env_wins() {
        let script = script(json!({
            "script_path": "a.sh", "port": 80, "flag": true, "list": [1, 2], "none": null, "name": "n",
            "process": {"env": {"name": "m"}},
        }))
        .expect("parse");
        let env = script.environment();
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("port"), Some("80"));
        assert_eq!(get("flag"), Some("true"));
        assert_eq!(get("list"), Some("[1, 2]"));
        assert_eq!(get("none"), Some("None"));
        assert_eq!(get("name"), Some("m"));
        assert_eq!(get("script_path"), None);
    }

    #[test]
    fn exactly_one_source_is_needed() {
        assert!(script(json!({})).is_err());
        assert!(script(json!({"script_path": "a", "script_source": "b"})).is_err());
    }

    #[test]
    fn common_blanks_are_taken_away() {
        assert_eq!(dedent("  a\n    b\n\n  c"), "a\n  b\n\nc");
        assert_eq!(quoted(Path::new("/a b/c.sh")), "'/a b/c.sh'");
    }
}
