//! What a worker's reply means.

use serde_json::Value;

/// The result of one run of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskOutcome {
    /// Ended well with this result.
    Succeeded(Value),
    /// Did not.
    Failed(Failure),
}

/// How a failed operation is to be taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FailureKind {
    /// Retried while retries are left.
    Recoverable {
        /// Seconds to wait instead of the operation's interval.
        retry_after: Option<f64>,
    },
    /// The operation asked to run again.
    Reschedule {
        /// Seconds to wait instead of the operation's interval.
        retry_after: Option<f64>,
    },
    /// Never retried.
    NonRecoverable,
}

/// An operation that did not end well.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What follows.
    pub kind: FailureKind,
    /// Python class name.
    pub exception_type: String,
    /// Its text.
    pub message: String,
    /// List of `{type, message, traceback}`.
    pub causes: Value,
}

impl Failure {
    /// A failure the manager itself finds.
    pub fn non_recoverable(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::NonRecoverable,
            exception_type: "NonRecoverableError".to_owned(),
            message: message.into(),
            causes: Value::Array(Vec::new()),
        }
    }

    /// Traceback of the first cause.
    pub(super) fn traceback(&self) -> Option<String> {
        self.causes.get(0)?.get("traceback")?.as_str().map(str::to_owned)
    }
}

impl TaskOutcome {
    /// Reads the body of a reply. A body that is neither a success nor an error payload counts as recoverable: the
    /// worker broke before it could say more.
    pub fn from_reply(reply: &Value) -> Self {
        if reply.get("ok").and_then(Value::as_bool) == Some(true) {
            return Self::Succeeded(reply.get("result").cloned().unwrap_or(Value::Null));
        }
        let recoverable = |message: String| {
            Self::Failed(Failure {
                kind: FailureKind::Recoverable { retry_after: None },
                exception_type: "RecoverableError".to_owned(),
                message,
                causes: Value::Array(Vec::new()),
            })
        };
        let error = match reply.get("error") {
            Some(Value::Object(error)) => error,
            Some(Value::String(text)) => return recoverable(text.clone()),
            _ => return recoverable("the worker sent a reply without a result".to_owned()),
        };
        let text = |key: &str| error.get(key).and_then(Value::as_str);
        let known = text("known_exception_type").or_else(|| text("exception_type"));
        let known = known.unwrap_or("RecoverableError");
        let retry_after = error
            .get("known_exception_type_args")
            .and_then(|args| args.get(0))
            .and_then(Value::as_f64)
            .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let kind = match known {
            "StopAgent" => return Self::Succeeded(Value::Null),
            "NonRecoverableError" | "HttpException" => FailureKind::NonRecoverable,
            "OperationRetry" => FailureKind::Reschedule { retry_after },
            "RecoverableError" => FailureKind::Recoverable { retry_after },
            _ => FailureKind::Recoverable { retry_after: None },
        };
        let causes = error
            .get("known_exception_type_kwargs")
            .and_then(|kwargs| kwargs.get("causes"))
            .filter(|causes| causes.is_array())
            .cloned()
            .unwrap_or_else(|| Value::Array(Vec::new()));
        Self::Failed(Failure {
            kind,
            exception_type: text("exception_type").unwrap_or(known).to_owned(),
            message: text("message").unwrap_or_default().to_owned(),
            causes,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(known: &str, args: Value) -> Option<FailureKind> {
        let reply = json!({"ok": false, "error": {
            "exception_type": known, "message": "m", "known_exception_type": known,
            "known_exception_type_args": args,
            "known_exception_type_kwargs": {"causes": [{"type": "T", "message": "m", "traceback": "tb"}]},
        }});
        match TaskOutcome::from_reply(&reply) {
            TaskOutcome::Failed(failure) => {
                assert_eq!(failure.traceback().as_deref(), Some("tb"));
                Some(failure.kind)
            }
            TaskOutcome::Succeeded(_) => None,
        }
    }

    #[test]
    fn each_known_type_has_its_reaction() {
        let after = |s| Some(FailureKind::Recoverable { retry_after: s });
        assert_eq!(kind("RecoverableError", json!([null])), after(None));
        assert_eq!(kind("RecoverableError", json!([0])), after(Some(0.0)));
        assert_eq!(kind("SomethingElse", json!([7])), after(None));
        assert_eq!(kind("NonRecoverableError", json!([])), Some(FailureKind::NonRecoverable));
        assert_eq!(kind("HttpException", json!(["u", 404])), Some(FailureKind::NonRecoverable));
        let reschedule = Some(FailureKind::Reschedule { retry_after: Some(2.5) });
        assert_eq!(kind("OperationRetry", json!([2.5])), reschedule);
        assert_eq!(kind("StopAgent", json!([])), None);
    }

    #[test]
    fn bare_replies_are_read() {
        assert_eq!(TaskOutcome::from_reply(&json!({"ok": true})), TaskOutcome::Succeeded(Value::Null));
        for reply in [json!({"ok": false, "error": "boom"}), json!({"ok": false}), json!([])] {
            let TaskOutcome::Failed(failure) = TaskOutcome::from_reply(&reply) else {
                panic!("{reply} is no success");
            };
            assert_eq!(failure.kind, FailureKind::Recoverable { retry_after: None });
        }
    }
}
