//! Task messages and replies, byte for byte those of cloudify-common.

use serde_json::{Map, Value, json};

use crate::python_text;

/// An object of JSON.
pub(crate) type Object = Map<String, Value>;

/// What a message asks for. No `Debug`: the context carries tokens, the inputs may carry secrets.
pub(crate) enum Request {
    Operation(Box<Task>),
    Service { task_name: String, kwargs: Object },
}

/// One operation.
pub(crate) struct Task {
    /// The task id, also the stored operation's.
    pub(crate) id: String,
    /// `__cloudify_context`.
    pub(crate) context: Object,
    pub(crate) args: Vec<Value>,
    pub(crate) kwargs: Object,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("a message of {0} bytes")]
    TooLarge(usize),
    #[error("the message is not a JSON object")]
    NotJson(#[source] serde_json::Error),
    #[error("the message has neither cloudify_task nor service_task, or no task id")]
    Shape,
}

impl Request {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, RequestError> {
        if body.len() > crate::settings::MESSAGE_BYTES_MAX {
            return Err(RequestError::TooLarge(body.len()));
        }
        let mut message: Object = serde_json::from_slice(body).map_err(RequestError::NotJson)?;
        if let Some(Value::Object(mut service)) = message.remove("service_task") {
            let task_name = text(&service, "task_name").ok_or(RequestError::Shape)?;
            let kwargs = object(service.remove("kwargs"));
            return Ok(Self::Service { task_name, kwargs });
        }
        let Some(Value::Object(mut task)) = message.remove("cloudify_task") else { return Err(RequestError::Shape) };
        let mut kwargs = object(task.remove("kwargs"));
        let context = object(kwargs.remove("__cloudify_context"));
        let id = text(&message, "id").or_else(|| text(&context, "task_id")).ok_or(RequestError::Shape)?;
        let args = match task.remove("args") {
            Some(Value::Array(args)) => args,
            _ => Vec::new(),
        };
        Ok(Self::Operation(Box::new(Task { id, context, args, kwargs })))
    }
}

fn object(value: Option<Value>) -> Object {
    match value {
        Some(Value::Object(map)) => map,
        _ => Object::new(),
    }
}

/// A non-empty text of an object.
pub(crate) fn text(map: &Object, key: &str) -> Option<String> {
    map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The exceptions the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Recoverable,
    NonRecoverable,
    Retry,
    Http,
}

impl Known {
    fn name(self) -> &'static str {
        match self {
            Self::Recoverable => "RecoverableError",
            Self::NonRecoverable => "NonRecoverableError",
            Self::Retry => "OperationRetry",
            Self::Http => "HttpException",
        }
    }
}

/// How an operation failed, before it is put on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) known: Known,
    pub(crate) message: String,
    /// Seconds, as given by the script: a number.
    pub(crate) retry_after: Option<Box<Value>>,
    /// Address and status of an HTTP failure.
    pub(crate) http: Option<Box<(String, u16)>>,
    /// The class that was raised; the known one when it is that.
    pub(crate) raised: String,
    pub(crate) traceback: Option<String>,
    /// Causes that came with it.
    pub(crate) causes: Vec<Value>,
}

impl Failure {
    pub(crate) fn recoverable(raised: &str, message: impl Into<String>) -> Self {
        Self::of(Known::Recoverable, raised, message)
    }

    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self::of(Known::NonRecoverable, Known::NonRecoverable.name(), message)
    }

    pub(crate) fn http(url: impl Into<String>, code: u16, message: impl Into<String>) -> Self {
        let url = url.into();
        Self { http: Some(Box::new((url, code))), ..Self::of(Known::Http, Known::Http.name(), message) }
    }

    /// `ctx.operation.retry`. Seconds given as a word are accepted; the engine computes with them, so the wire has a number.
    pub(crate) fn retry(message: Option<String>, retry_after: Option<Value>) -> Self {
        let retry_after = retry_after.and_then(|after| match after {
            Value::String(word) => word
                .trim()
                .parse::<f64>()
                .ok()
                .filter(|s| s.is_finite())
                .map(|seconds| if seconds.fract() == 0.0 { json!(seconds as i64) } else { json!(seconds) }),
            number @ Value::Number(_) => Some(number),
            _ => None,
        });
        Self {
            retry_after: retry_after.map(Box::new),
            ..Self::of(Known::Retry, Known::Retry.name(), message.unwrap_or_else(|| "None".into()))
        }
    }

    fn of(known: Known, raised: &str, message: impl Into<String>) -> Self {
        Self {
            known,
            message: message.into(),
            retry_after: None,
            http: None,
            raised: raised.to_owned(),
            traceback: None,
            causes: Vec::new(),
        }
    }

    /// From the `payload` that `cloudify.dispatch` writes for an exception.
    pub(crate) fn from_payload(payload: &Object) -> Self {
        let args = payload.get("known_exception_type_args").and_then(Value::as_array).cloned().unwrap_or_default();
        let message = payload.get("message").map(python_text::str).unwrap_or_default();
        let raised = text(payload, "exception_type").unwrap_or_else(|| "Exception".into());
        let first = args.first().filter(|arg| !arg.is_null()).cloned();
        let mut failure = match payload.get("known_exception_type").and_then(Value::as_str) {
            Some("NonRecoverableError" | "WorkflowFailed" | "StopAgent") => {
                Self::of(Known::NonRecoverable, &raised, message)
            }
            Some("OperationRetry") => Self::retry(Some(message), first),
            Some("HttpException") => {
                let code = args.get(1).and_then(Value::as_u64).unwrap_or_default();
                let url = first.as_ref().map(python_text::str).unwrap_or_default();
                Self::http(url, u16::try_from(code).unwrap_or_default(), message)
            }
            _ => Self { retry_after: first.map(Box::new), ..Self::of(Known::Recoverable, &raised, message) },
        };
        failure.raised = raised;
        failure.traceback = text(payload, "traceback");
        let causes = payload.get("known_exception_type_kwargs").and_then(|kwargs| kwargs.get("causes"));
        failure.causes = causes.and_then(Value::as_array).cloned().unwrap_or_default();
        failure
    }

    fn payload(&self) -> Value {
        let mut message = self.message.clone();
        if let Some(after) = &self.retry_after {
            let suffix = format!("[retry_after={}]", python_text::str(after));
            if !message.contains(&suffix) {
                message = format!("{message} {suffix}");
            }
        }
        let after = || json!([self.retry_after]);
        let args = match (self.known, self.http.as_deref()) {
            (Known::Recoverable | Known::Retry, _) => after(),
            (Known::Http, Some((url, code))) => json!([url, code]),
            _ => json!([]),
        };
        let mut causes = self.causes.clone();
        causes.push(json!({"type": self.raised, "message": self.message, "traceback": self.traceback}));
        let mut payload = json!({
            "exception_type": self.known.name(),
            "message": message,
            "known_exception_type": self.known.name(),
            "known_exception_type_args": args,
            "known_exception_type_kwargs": {"causes": causes},
            "append_message": self.known == Known::Http,
        });
        if self.known != Known::Retry {
            payload["traceback"] = json!(self.traceback.as_deref().unwrap_or_default());
        }
        payload
    }
}

/// The body of a reply.
pub(crate) fn reply(outcome: &Result<Value, Failure>) -> Value {
    match outcome {
        Ok(result) => json!({"ok": true, "result": result}),
        Err(failure) => json!({"ok": false, "error": failure.payload()}),
    }
}

/// The body of a reply to something the worker could not even begin.
pub(crate) fn crash(reason: &str) -> Value {
    json!({"ok": false, "error": reason})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_recoverable_and_names_its_class_as_cause() {
        let failure = Failure::recoverable("ProcessException", "command: run.sh, exit_code: 3");
        let body = reply(&Err(failure));
        assert_eq!(body["ok"], json!(false));
        assert_eq!(body["error"]["exception_type"], json!("RecoverableError"));
        assert_eq!(body["error"]["known_exception_type_args"], json!([null]));
        assert_eq!(body["error"]["known_exception_type_kwargs"]["causes"][0]["type"], json!("ProcessException"));
        assert_eq!(body["error"]["append_message"], json!(false));
    }

    #[test]
    fn a_retry_has_no_traceback_and_takes_seconds_as_a_word() {
        let body = reply(&Err(Failure::retry(Some("later".into()), Some(json!("7")))));
        assert_eq!(body["error"]["known_exception_type"], json!("OperationRetry"));
        assert_eq!(body["error"]["known_exception_type_args"], json!([7]));
        assert_eq!(body["error"]["message"], json!("later [retry_after=7]"));
        assert!(body["error"].get("traceback").is_none());
    }

    #[test]
    fn an_http_failure_appends_its_message() {
        let body = reply(&Err(Failure::http("https://m/x", 404, "gone")));
        assert_eq!(body["error"]["known_exception_type_args"], json!(["https://m/x", 404]));
        assert_eq!(body["error"]["append_message"], json!(true));
    }
}
