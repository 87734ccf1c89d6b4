//! Runs one command of an operation in a process group of its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command as Process;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::journal::JournalError;
use crate::logs::Logger;
use crate::process::{ProcessMark, TASK_VARIABLE, end_group};
use crate::run::Operation;
use crate::settings::{KILL_GRACE, LINE_BYTES_MAX, OUTPUT_TAIL_BYTES};

/// How long output is read on after the command ended: what it started may hold the pipe for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// What becomes of a stream. Both are kept for the text of a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Each line is logged, with a prefix.
    Log(&'static str),
    Quiet,
}

/// What to run. No `Debug`: the environment carries inputs.
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// A command that ended by itself.
pub(crate) struct Finished {
    pub(crate) pid: u32,
    /// Exit code; a signal is its negative number.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("start {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("wait for the process")]
    Wait(#[source] io::Error),
    #[error("record the process")]
    Record(#[source] JournalError),
    /// By request, or because the worker stops.
    #[error("ended before its time")]
    Cut,
    #[error("it ran longer than {0:?}")]
    TimedOut(Duration),
}

impl Operation {
    /// Runs a command to its end. The group is ended when the operation is cancelled, the worker stops or the
    /// operation's time is over; otherwise what the command left running stays, as services started by scripts must.
    pub(crate) async fn run(&self, command: Command, logger: &Logger) -> Result<Finished, CommandError> {
        let program = command.program;
        let mut process = Process::new(&program);
        process.args(command.args).current_dir(command.cwd).process_group(0);
        // The worker's own settings are none of the operations' business.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_")) {
            process.env_remove(name);
        }
        process.envs(command.env).env(TASK_VARIABLE, &self.task);
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().map_err(|source| CommandError::Spawn { program, source })?;
        let pid = child.id().unwrap_or_default();
        if let Some(mark) = ProcessMark::of(pid)
            && let Err(error) = self.record(mark).await
        {
            // A process nobody could find again must not go on.
            end_group(mark.pid).await;
            return Err(CommandError::Record(error));
        }
        let (stdout, stderr) = (Tail::default(), Tail::default());
        let readers = [
            child.stdout.take().map(|pipe| tokio::spawn(read(pipe, command.stdout, logger.clone(), stdout.clone()))),
            child.stderr.take().map(|pipe| tokio::spawn(read(pipe, command.stderr, logger.clone(), stderr.clone()))),
        ];
        let deadline = async {
            match self.timeout {
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    CommandError::TimedOut(limit)
                }
                None => std::future::pending().await,
            }
        };
        let cut = tokio::select! {
            status = child.wait() => {
                let status = status.map_err(CommandError::Wait)?;
                for reader in readers.into_iter().flatten() {
                    // Not ended when it lasts: whoever writes on must not die of a closed pipe.
                    let _ = timeout(DRAIN, reader).await;
                }
                let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or_default());
                return Ok(Finished { pid, code, stdout: stdout.text(), stderr: stderr.text() });
            }
            () = self.cancel.cancelled() => CommandError::Cut,
            () = self.stop.cancelled() => CommandError::Cut,
            error = deadline => error,
        };
        end_group(i32::try_from(pid).unwrap_or_default()).await;
        if timeout(KILL_GRACE, child.wait()).await.is_err() {
            tracing::warn!(pid, "a killed operation has not ended yet");
        }
        Err(cut)
    }
}

/// The end of a stream.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(OUTPUT_TAIL_BYTES);
        kept.drain(..surplus);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

async fn read(mut pipe: impl AsyncRead + Unpin, output: Output, logger: Logger, tail: Tail) {
    let mut chunk = vec![0; 8192];
    let mut line = Vec::new();
    let log = |line: &mut Vec<u8>| {
        if let Output::Log(prefix) = output {
            let text = String::from_utf8_lossy(line);
            logger.info(&format!("{prefix}{}", text.trim_end_matches(['\r', '\n'])));
        }
        line.clear();
    };
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        tail.push(&chunk[..length]);
        for piece in chunk[..length].split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || line.len() >= LINE_BYTES_MAX {
                log(&mut line);
            }
        }
    }
    if !line.is_empty() {
        log(&mut line);
    }
}

/// Ends when either token does.
pub(crate) async fn either(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}
