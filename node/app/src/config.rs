//! Settings of the manager that clients ask for.

use serde_json::{Value, json};

/// One setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Unique in its scope.
    pub name: &'static str,
    /// Whom it concerns: rest, workflow, agent, mgmtworker.
    pub scope: &'static str,
    /// What it is.
    pub value: Value,
}

/// How often an operation that says nothing is repeated.
pub const TASK_RETRIES: i64 = 60;
/// Seconds between two tries of it.
pub const TASK_RETRY_INTERVAL_SECONDS: i64 = 15;
/// Items on a page when a client does not say.
pub const PAGE_SIZE: i64 = 1000;
/// Executions that run at once.
pub const CONCURRENT_WORKFLOWS_MAX: i64 = 20;

/// All settings.
#[must_use]
pub fn settings() -> Vec<Setting> {
    let setting = |scope, name, value| Setting { name, scope, value };
    vec![
        setting("rest", "default_page_size", json!(PAGE_SIZE)),
        setting("rest", "failed_logins_before_account_lock", json!(crate::auth::FAILED_LOGINS_MAX)),
        // -1: until an administrator unlocks it.
        setting("rest", "account_lock_period", json!(-1)),
        setting("rest", "file_server_type", json!("local")),
        setting("rest", "insecure_endpoints_disabled", json!(true)),
        setting("rest", "max_concurrent_workflows", json!(CONCURRENT_WORKFLOWS_MAX)),
        setting("workflow", "task_retries", json!(TASK_RETRIES)),
        setting("workflow", "task_retry_interval", json!(TASK_RETRY_INTERVAL_SECONDS)),
        setting("workflow", "subgraph_retries", json!(0)),
        setting("agent", "broker_port", json!(5671)),
        setting("agent", "min_workers", json!(2)),
        setting("agent", "max_workers", json!(5)),
        setting("agent", "heartbeat", json!(30)),
        setting("agent", "log_level", json!("INFO")),
        setting("mgmtworker", "min_workers", json!(2)),
        setting("mgmtworker", "max_workers", json!(100)),
    ]
}
