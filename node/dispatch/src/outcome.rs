//! Bodies of replies.

use serde_json::{Number, Value, json};

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Well, with this result.
    Succeeded(Value),
    /// Not well.
    Failed {
        /// Whether a retry makes sense.
        recoverable: bool,
        /// What happened.
        error: TaskError,
    },
    /// It asked to run again.
    Rescheduled(TaskError),
}

/// An error as workers tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskError {
    /// Name of the Python class. Only in `causes` is it that of the plugin.
    pub exception_type: String,
    /// Its text.
    pub message: String,
    /// Seconds to wait instead of the operation's interval, finite and not negative. Without meaning where no retry
    /// follows.
    pub retry_after: Option<f64>,
    /// List of `{type, message, traceback}`.
    pub causes: Vec<Value>,
    /// The worker's own; plugins' are in `causes`.
    pub traceback: Option<String>,
}

impl TaskError {
    /// An error of this Python class and text, with nothing else known.
    pub fn new(exception_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            exception_type: exception_type.into(),
            message: message.into(),
            retry_after: None,
            causes: Vec::new(),
            traceback: None,
        }
    }
}

impl Outcome {
    /// The body that `cloudify-common` rebuilds the same result from.
    #[must_use]
    pub fn to_wire(&self) -> Value {
        match self {
            Self::Succeeded(result) => json!({"ok": true, "result": result}),
            Self::Failed { recoverable: true, error } => failure("RecoverableError", error, true),
            Self::Failed { recoverable: false, error } => failure("NonRecoverableError", error, false),
            Self::Rescheduled(error) => failure("OperationRetry", error, true),
        }
    }

    /// Reads a body. One that is neither a result nor an error payload is a recoverable failure: the worker broke
    /// before it could say more.
    #[must_use]
    pub fn from_wire(body: &Value) -> Self {
        if body.get("ok").and_then(Value::as_bool) == Some(true) {
            return Self::Succeeded(body.get("result").cloned().unwrap_or(Value::Null));
        }
        let bare =
            |message: &str| Self::Failed { recoverable: true, error: TaskError::new("RecoverableError", message) };
        let payload = match body.get("error") {
            Some(payload @ Value::Object(_)) => payload,
            Some(Value::String(text)) => return bare(text),
            _ => return bare("the worker sent a reply without a result"),
        };
        let text = |key: &str| payload.get(key).and_then(Value::as_str);
        let known = text("known_exception_type").or_else(|| text("exception_type")).unwrap_or("RecoverableError");
        let args = payload.get("known_exception_type_args");
        let retryable = matches!(known, "RecoverableError" | "OperationRetry" | "CloudifySerializationRetry");
        let error = TaskError {
            exception_type: text("exception_type").unwrap_or(known).to_owned(),
            message: text("message").unwrap_or_default().to_owned(),
            retry_after: args
                .and_then(|args| args.get(0))
                .and_then(Value::as_f64)
                .filter(|seconds| retryable && seconds.is_finite() && *seconds >= 0.0),
            causes: payload
                .pointer("/known_exception_type_kwargs/causes")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            traceback: text("traceback").map(str::to_owned),
        };
        match known {
            // An agent that was told to end is not a failure.
            "StopAgent" => Self::Succeeded(Value::Null),
            "OperationRetry" => Self::Rescheduled(error),
            "NonRecoverableError" | "HttpException" | "ProcessKillCancelled" => {
                Self::Failed { recoverable: false, error }
            }
            _ => Self::Failed { recoverable: true, error },
        }
    }
}

fn failure(known: &str, error: &TaskError, retried: bool) -> Value {
    let mut payload = json!({
        "exception_type": error.exception_type,
        "message": message(error, retried),
        "known_exception_type": known,
        "known_exception_type_args": if retried { json!([error.retry_after.and_then(number)]) } else { json!([]) },
        "known_exception_type_kwargs": {"causes": error.causes},
        "append_message": false,
    });
    if let Some(traceback) = &error.traceback {
        payload["traceback"] = json!(traceback);
    }
    json!({"ok": false, "error": payload})
}

/// Python's recoverable errors carry the wait in their text, once.
fn message(error: &TaskError, retried: bool) -> String {
    match error.retry_after.and_then(number) {
        Some(seconds) if retried => {
            let suffix = format!("[retry_after={seconds}]");
            if error.message.contains(&suffix) { error.message.clone() } else { format!("{} {suffix}", error.message) }
        }
        _ => error.message.clone(),
    }
}

/// Whole seconds without a fraction, as Python's own are.
fn number(seconds: f64) -> Option<Number> {
    /// Up to here every whole number is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if seconds.fract() == 0.0 && (0.0..=EXACT).contains(&seconds) {
        // In range and whole, as checked above.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        return Some(Number::from(seconds as u64));
    }
    Number::from_f64(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(retry_after: Option<f64>) -> TaskError {
        TaskError {
            exception_type: "RecoverableError".into(),
            message: "try later".into(),
            retry_after,
            causes: vec![json!({"type": "ProcessException", "message": "m", "traceback": "File"})],
            traceback: Some("Traceback".into()),
        }
    }

    #[test]
    fn a_result_is_told_as_it_is() {
        let outcome = Outcome::Succeeded(json!({"k": [1, 2.5, "x"]}));
        assert_eq!(outcome.to_wire(), json!({"ok": true, "result": {"k": [1, 2.5, "x"]}}));
        assert_eq!(Outcome::from_wire(&outcome.to_wire()), outcome);
        assert_eq!(Outcome::from_wire(&json!({"ok": true})), Outcome::Succeeded(Value::Null));
    }

    #[test]
    fn a_recoverable_failure_carries_the_wait_twice() {
        let outcome = Outcome::Failed { recoverable: true, error: error(Some(3.0)) };
        let expected = json!({"ok": false, "error": {
            "exception_type": "RecoverableError",
            "message": "try later [retry_after=3]",
            "known_exception_type": "RecoverableError",
            "known_exception_type_args": [3],
            "known_exception_type_kwargs": {
                "causes": [{"type": "ProcessException", "message": "m", "traceback": "File"}],
            },
            "append_message": false,
            "traceback": "Traceback",
        }});
        assert_eq!(outcome.to_wire(), expected);
        let read = Outcome::from_wire(&expected);
        assert_eq!(read.to_wire(), expected, "the suffix is not added again");
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let mut plain = error(None);
        for outcome in [
            Outcome::Failed { recoverable: true, error: plain.clone() },
            Outcome::Failed { recoverable: false, error: plain.clone() },
            Outcome::Rescheduled(plain.clone()),
        ] {
            assert_eq!(Outcome::from_wire(&outcome.to_wire()), outcome);
        }
        plain.retry_after = Some(0.5);
        plain.message = "try later [retry_after=0.5]".into();
        let outcome = Outcome::Rescheduled(plain);
        assert_eq!(Outcome::from_wire(&outcome.to_wire()), outcome);
    }

    #[test]
    fn what_workers_say_of_themselves_is_read() {
        let payload = |known: &str, args: Value| {
            json!({"ok": false, "error": {"exception_type": known, "message": "m", "known_exception_type": known,
                "known_exception_type_args": args, "known_exception_type_kwargs": {"causes": []},
                "append_message": true}})
        };
        let read = |known, args| Outcome::from_wire(&payload(known, args));
        assert!(matches!(
            read("HttpException", json!(["u", 404])),
            Outcome::Failed { recoverable: false, error: TaskError { retry_after: None, .. } }
        ));
        assert!(matches!(
            read("ValueError", json!([9])),
            Outcome::Failed { recoverable: true, error: TaskError { retry_after: None, .. } }
        ));
        assert!(matches!(
            read("OperationRetry", json!([-1])),
            Outcome::Rescheduled(TaskError { retry_after: None, .. })
        ));
        assert_eq!(read("StopAgent", json!([])), Outcome::Succeeded(Value::Null));
        for body in [json!({"ok": false, "error": "boom"}), json!({"ok": false}), json!([]), json!({"time": 1.5})] {
            assert!(matches!(Outcome::from_wire(&body), Outcome::Failed { recoverable: true, .. }), "{body}");
        }
    }
}
