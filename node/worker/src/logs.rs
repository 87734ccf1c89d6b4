//! Log lines and events of one operation, sent to the manager in batches while it runs.
//!
//! A manager that is away does not hold up the script: lines wait, up to a limit, and further ones are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::rest::{Caller, Rest};
use crate::settings::{LINE_BYTES_MAX, LOG_LINES_MAX};

/// Lines in one request.
const BATCH_MAX: usize = 100;

/// Who runs the operation, as events name it.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    pub(crate) manager_name: Option<String>,
    pub(crate) agent_name: Option<String>,
}

/// Takes lines; cheap to clone.
#[derive(Clone)]
pub(crate) struct Logger {
    lines: mpsc::Sender<Value>,
    dropped: Arc<AtomicUsize>,
    context: Arc<Value>,
    name: Arc<str>,
}

/// Sends lines until told to finish.
pub(crate) struct LogSender {
    task: JoinHandle<()>,
    last: CancellationToken,
}

impl Logger {
    pub(crate) fn start(
        rest: Arc<Rest>,
        caller: Caller,
        context: &Context,
        task: &str,
        runner: &Runner,
    ) -> (Self, LogSender) {
        let (lines, waiting) = mpsc::channel(LOG_LINES_MAX);
        let dropped = Arc::new(AtomicUsize::new(0));
        let envelope = json!({
            "events": null,
            "logs": null,
            "execution_id": context.value("execution_id"),
            "agent_name": runner.agent_name,
            "manager_name": runner.manager_name,
        });
        let logger = Self {
            lines,
            dropped: dropped.clone(),
            context: Arc::new(context.log_context()),
            name: format!("ctx.{task}").into(),
        };
        let (last_context, last_name) = (logger.context.clone(), logger.name.clone());
        let last = CancellationToken::new();
        let finish = last.clone();
        let task = tokio::spawn(async move {
            send(&rest, &caller, &envelope, waiting, &finish).await;
            let dropped = dropped.load(Ordering::Relaxed);
            if dropped > 0 {
                let text = format!("{dropped} log lines were dropped");
                let line = line(&last_context, &last_name, "warning", &text);
                post(&rest, &caller, &envelope, "logs", vec![line]).await;
            }
        });
        (logger, LogSender { task, last })
    }

    /// Logs a line. Levels are Python's, in lower case.
    pub(crate) fn log(&self, level: &str, text: &str) {
        self.queue(line(&self.context, &self.name, level, text));
    }

    pub(crate) fn info(&self, text: &str) {
        self.log("info", text);
    }

    /// Sends an event of the plugin.
    pub(crate) fn event(&self, text: &str) {
        self.queue(json!({
            "type": "cloudify_event", "event_type": "plugin_event", "timestamp": timestamp(), "message_code": null,
            "context": *self.context, "message": {"text": text, "arguments": null},
        }));
    }

    fn queue(&self, item: Value) {
        if self.lines.try_send(item).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl LogSender {
    /// Waits until all lines logged so far are sent or given up. Loggers may outlive this: a daemon that a script
    /// started can hold the other end of its output for ever.
    pub(crate) async fn finish(self) {
        self.last.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the sender of an operation's log lines ended early");
        }
    }
}

fn line(context: &Value, logger: &str, level: &str, text: &str) -> Value {
    let mut end = text.len().min(LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    json!({
        "type": "cloudify_log", "logger": logger, "level": level, "timestamp": timestamp(), "message_code": null,
        "context": context, "message": {"text": &text[..end]},
    })
}

async fn send(
    rest: &Rest,
    caller: &Caller,
    envelope: &Value,
    mut waiting: mpsc::Receiver<Value>,
    finish: &CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = waiting.recv_many(&mut batch, BATCH_MAX) => {}
            () = finish.cancelled() => {
                while batch.len() < BATCH_MAX && let Ok(item) = waiting.try_recv() {
                    batch.push(item);
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        let (events, logs) = batch.drain(..).partition(|item: &Value| item["type"] == "cloudify_event");
        post(rest, caller, envelope, "events", events).await;
        post(rest, caller, envelope, "logs", logs).await;
    }
}

async fn post(rest: &Rest, caller: &Caller, envelope: &Value, kind: &str, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    let lines = items.len();
    let mut body = envelope.clone();
    body[kind] = Value::Array(items);
    if let Err(error) = rest.post(caller, &["events"], &body).await {
        tracing::warn!(error = &error as &dyn std::error::Error, lines, "log lines of an operation are lost");
    }
}

fn timestamp() -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::now_utc().format(&format).unwrap_or_default()
}
