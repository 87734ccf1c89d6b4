//! Event texts: clients and scripts read them, so they are exact.

use serde_json::Value;

use super::changes::EventRecord;
use super::model::{Parameters, TaskKind};
use super::outcome::Failure;
use super::pytext::python_str;

fn workflow_event(event_type: &str, message: String) -> EventRecord {
    EventRecord { event_type: event_type.to_owned(), message, ..EventRecord::default() }
}

/// The first event of an execution.
pub fn workflow_started(workflow: &str, resumed: bool) -> EventRecord {
    let verb = if resumed { "Resuming" } else { "Starting" };
    workflow_event("workflow_started", format!("{verb} '{workflow}' workflow execution"))
}

/// The last event of an execution that ended well.
pub fn workflow_succeeded(workflow: &str) -> EventRecord {
    workflow_event("workflow_succeeded", format!("'{workflow}' workflow execution succeeded"))
}

/// The last event of an execution that failed.
pub fn workflow_failed(workflow: &str, error: &str) -> EventRecord {
    workflow_event("workflow_failed", format!("'{workflow}' workflow execution failed: {error}"))
}

/// The last event of an execution that was cancelled.
pub fn workflow_cancelled(workflow: &str) -> EventRecord {
    workflow_event("workflow_cancelled", format!("'{workflow}' workflow execution cancelled"))
}

pub(super) fn node_event(instance: &str, message: String) -> EventRecord {
    EventRecord {
        event_type: "workflow_node_event".to_owned(),
        message,
        node_instance_id: Some(instance.to_owned()),
        ..EventRecord::default()
    }
}

/// The event of a task: what happened to which row.
pub(super) struct TaskText<'a> {
    pub kind: TaskKind,
    pub name: &'a str,
    pub parameters: &'a Parameters,
}

impl TaskText<'_> {
    fn subject(&self) -> &'static str {
        if self.kind == TaskKind::Subgraph { "Subgraph" } else { "Task" }
    }

    fn suffix(&self) -> String {
        let (now, total) = (self.parameters.current_retries, self.parameters.total_retries);
        match (now, total) {
            (0, _) => String::new(),
            (_, -1) => format!(" [retry {now}]"),
            _ => format!(" [retry {now}/{total}]"),
        }
    }

    fn event(&self, event_type: &str, text: &str) -> EventRecord {
        let mut event = workflow_event(event_type, format!("{text}{}", self.suffix()));
        let context = &self.parameters.task_kwargs["kwargs"]["__cloudify_context"];
        let string = |value: &Value| value.as_str().map(str::to_owned);
        event.operation = string(&context["operation"]["name"]);
        let own = string(&context["node_id"]);
        match string(&context["related"]["node_id"]) {
            None => event.node_instance_id = own,
            Some(related) if context["related"]["is_target"] == Value::Bool(true) => {
                (event.source_id, event.target_id) = (own, Some(related));
            }
            Some(related) => (event.source_id, event.target_id) = (Some(related), own),
        }
        event
    }

    pub fn sending(&self) -> EventRecord {
        self.event("sending_task", &format!("Sending task '{}'", self.name))
    }

    pub fn started(&self) -> EventRecord {
        self.event("task_started", &format!("{} started '{}'", self.subject(), self.name))
    }

    pub fn succeeded(&self, result: &Value) -> EventRecord {
        let mut text = format!("{} succeeded '{}'", self.subject(), self.name);
        if !result.is_null() {
            text.push_str(" - ");
            text.push_str(&python_str(result));
        }
        self.event("task_succeeded", &text)
    }

    pub fn failed(&self, failure: Option<&Failure>) -> EventRecord {
        self.unhappy("task_failed", "failed", failure)
    }

    pub fn rescheduled(&self, failure: &Failure) -> EventRecord {
        self.unhappy("task_rescheduled", "rescheduled", Some(failure))
    }

    fn unhappy(&self, event_type: &str, verb: &str, failure: Option<&Failure>) -> EventRecord {
        let mut text = format!("{} {verb} '{}'", self.subject(), self.name);
        if let Some(failure) = failure {
            text.push_str(" -> ");
            text.push_str(&failure.message);
        }
        let mut event = self.event(event_type, &text);
        event.error_causes = failure.map(|failure| failure.causes.clone());
        event
    }

    /// The event that stands for a failure nobody minds. It carries the causes, for nothing else keeps them.
    pub fn ignored(&self, failure: &Failure) -> EventRecord {
        let mut event = self.event("workflow_node_event", &format!("Ignoring task {} failure", self.name));
        event.operation = None;
        event.error_causes = Some(failure.causes.clone());
        event
    }
}
