//! Bodies of messages to workers.

use std::fmt;

use serde_json::{Map, Value, json};

/// Under which key an operation is told about itself.
const CONTEXT: &str = "__cloudify_context";

/// An operation for a worker. Its `Debug` form shows neither inputs nor tokens.
#[derive(Clone, PartialEq)]
pub struct OperationMessage {
    /// The stored operation's id: the message's `correlation_id`, and that of its reply.
    pub task_id: String,
    /// Inputs, and the context under `__cloudify_context`.
    pub kwargs: Map<String, Value>,
}

/// How an operation reaches the manager's REST API.
#[derive(Clone, PartialEq, Eq)]
pub struct ManagerAccess {
    /// Addresses, tried in order.
    pub hosts: Vec<String>,
    /// The port for agents.
    pub port: u16,
    /// The execution's token, secret.
    pub token: String,
}

/// What is no operation message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    /// Something is missing or has another type.
    #[error("the operation message has no usable `{0}`")]
    Missing(&'static str),
    /// The ids inside and outside differ, so that the reply would not be found.
    #[error("the operation message is for task {outside} but its context says {inside}")]
    TwoIds {
        /// Of the message.
        outside: String,
        /// Of the context.
        inside: String,
    },
}

impl fmt::Debug for OperationMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationMessage")
            .field("task_id", &self.task_id)
            .field("task_name", &self.context().get("task_name"))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ManagerAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerAccess").field("hosts", &self.hosts).field("port", &self.port).finish_non_exhaustive()
    }
}

impl OperationMessage {
    /// From the engine's keyword arguments, which lack only how to reach the manager.
    ///
    /// # Errors
    /// When `kwargs` is no object with a context of this task.
    pub fn new(task_id: impl Into<String>, kwargs: Value, manager: &ManagerAccess) -> Result<Self, MessageError> {
        let Value::Object(mut kwargs) = kwargs else { return Err(MessageError::Missing("kwargs")) };
        let Some(Value::Object(context)) = kwargs.get_mut(CONTEXT) else { return Err(MessageError::Missing(CONTEXT)) };
        context.insert("rest_host".into(), json!(manager.hosts));
        context.insert("rest_port".into(), json!(manager.port));
        for name in ["rest_token", "execution_token"] {
            context.insert(name.into(), json!(manager.token));
        }
        Self::checked(task_id.into(), kwargs)
    }

    /// The body.
    #[must_use]
    pub fn to_wire(&self) -> Value {
        json!({"id": self.task_id, "cloudify_task": {"kwargs": self.kwargs}})
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is none of an operation.
    pub fn from_wire(body: Value) -> Result<Self, MessageError> {
        let Value::Object(mut body) = body else { return Err(MessageError::Missing("body")) };
        let Some(Value::String(task_id)) = body.remove("id") else { return Err(MessageError::Missing("id")) };
        let Some(Value::Object(mut task)) = body.remove("cloudify_task") else {
            return Err(MessageError::Missing("cloudify_task"));
        };
        let Some(Value::Object(kwargs)) = task.remove("kwargs") else { return Err(MessageError::Missing("kwargs")) };
        Self::checked(task_id, kwargs)
    }

    /// What the operation is told about itself.
    #[must_use]
    pub fn context(&self) -> &Value {
        self.kwargs.get(CONTEXT).unwrap_or(&Value::Null)
    }

    fn checked(task_id: String, kwargs: Map<String, Value>) -> Result<Self, MessageError> {
        let message = Self { task_id, kwargs };
        if !message.context().is_object() {
            return Err(MessageError::Missing(CONTEXT));
        }
        match message.context().get("task_id").and_then(Value::as_str) {
            Some(inside) if inside == message.task_id => Ok(message),
            Some(inside) => Err(MessageError::TwoIds { inside: inside.to_owned(), outside: message.task_id }),
            None => Err(MessageError::Missing("task_id")),
        }
    }
}

/// The body of the service task that ends an execution's operations: SIGTERM, after five seconds SIGKILL, no reply.
#[must_use]
pub fn cancel_operation(execution_id: &str) -> Value {
    json!({"service_task": {"task_name": "cancel-operation", "kwargs": {"execution_id": execution_id}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> ManagerAccess {
        ManagerAccess { hosts: vec!["10.0.0.1".into()], port: 53333, token: "s3cret".into() }
    }

    #[test]
    fn the_body_is_the_documented_one() {
        let kwargs = json!({"script_path": "a.sh", CONTEXT: {"task_id": "t1", "task_name": "script_runner.tasks.run"}});
        let message = OperationMessage::new("t1", kwargs, &access()).expect("a message");
        let expected = json!({
            "id": "t1",
            "cloudify_task": {"kwargs": {
                "script_path": "a.sh",
                "__cloudify_context": {
                    "task_id": "t1", "task_name": "script_runner.tasks.run",
                    "rest_host": ["10.0.0.1"], "rest_port": 53333, "rest_token": "s3cret", "execution_token": "s3cret",
                },
            }},
        });
        assert_eq!(message.to_wire(), expected);
        assert_eq!(OperationMessage::from_wire(expected), Ok(message.clone()));
        let shown = format!("{message:?} {:?}", access());
        assert!(!shown.contains("s3cret") && shown.contains("t1"), "{shown}");
    }

    #[test]
    fn what_is_no_operation_is_refused() {
        let missing = |body| OperationMessage::from_wire(body).expect_err("no message");
        assert_eq!(missing(json!([])), MessageError::Missing("body"));
        assert_eq!(missing(json!({"id": 3})), MessageError::Missing("id"));
        assert_eq!(missing(json!({"id": "a"})), MessageError::Missing("cloudify_task"));
        assert_eq!(missing(json!({"id": "a", "cloudify_task": {"kwargs": {}}})), MessageError::Missing(CONTEXT));
        let other = json!({CONTEXT: {"task_id": "b"}});
        let two = OperationMessage::new("a", other, &access()).expect_err("two ids");
        assert_eq!(two, MessageError::TwoIds { outside: "a".into(), inside: "b".into() });
    }

    #[test]
    fn a_cancel_names_the_execution() {
        let expected = json!({
            "service_task": {"task_name": "cancel-operation", "kwargs": {"execution_id": "e1"}},
        });
        assert_eq!(cancel_operation("e1"), expected);
    }
}
