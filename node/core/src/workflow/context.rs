//! `__cloudify_context`: what an operation is told about itself.

use serde_json::{Map, Value, json};

use super::index::{Index, NodeView};
use super::model::ExecutionContext;

/// Queue of the cluster's own workers.
const CENTRAL_QUEUE: &str = "cloudify.management";

/// Which side of a relationship runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// One operation about to become a task.
pub(super) struct Call<'a> {
    /// Instance that runs it (index).
    pub instance: usize,
    /// `cloudify.interfaces.lifecycle.create`, …
    pub operation: &'a str,
    /// `{plugin, operation, executor, inputs, …}`.
    pub definition: &'a Value,
    /// The other instance of a relationship operation (index), and the side that runs.
    pub related: Option<(usize, Side)>,
}

/// The implementation of an operation, if it has one: undeclared ones have empty texts.
pub(super) fn implementation(definition: &Value) -> Option<&str> {
    let task = definition.get("operation").and_then(Value::as_str)?;
    let plugin = definition.get("plugin").and_then(Value::as_str).unwrap_or_default();
    (!task.is_empty() && !plugin.is_empty()).then_some(task)
}

/// Kwargs of a task without `task_id` (the builder adds it) and without addresses and tokens (the executor does).
pub(super) fn kwargs(
    index: &Index<'_>,
    context: &ExecutionContext,
    call: &Call<'_>,
    inputs: Map<String, Value>,
    max_retries: i64,
) -> Value {
    let instance = &index.instances[call.instance];
    let node = &index.nodes[instance.node];
    let definition = call.definition;
    let declared = definition.get("executor").and_then(Value::as_str).unwrap_or_default();
    // `auto`: on the host where there is one.
    let executor = match declared {
        "auto" if instance.host_id.is_some() => "host_agent",
        "auto" | "" => "central_deployment_agent",
        other => other,
    };
    let queue = match executor {
        "host_agent" => instance.host_id.unwrap_or_default(),
        _ => CENTRAL_QUEUE,
    };
    let field = |key: &str| definition.get(key).cloned().unwrap_or(Value::Null);
    let mut operation = json!({
        "name": call.operation, "retry_number": 0, "max_retries": max_retries,
    });
    let mut task = json!({
        "__cloudify_context": "0.3",
        "type": "operation",
        "task_id": null,
        "task_name": implementation(definition).unwrap_or_default(),
        "task_queue": queue, "task_target": queue,
        "execution_id": context.execution_id, "workflow_id": context.workflow_id,
        "workflow_parameters": context.parameters,
        "tenant": {"name": context.tenant},
        "blueprint_id": context.blueprint_id,
        "deployment_id": context.deployment_id,
        "deployment_display_name": context.deployment_display_name,
        "deployment_creator": context.deployment_creator,
        "deployment_resource_tags": context.deployment_resource_tags,
        "node_id": instance.id, "node_name": node.id, "host_id": instance.host_id,
        "executor": executor,
        "plugin": plugin(node, definition),
        "operation": null,
        "has_intrinsic_functions":
            definition.get("has_intrinsic_functions").and_then(Value::as_bool).unwrap_or(false),
        "timeout": field("timeout"), "timeout_recoverable": field("timeout_recoverable"),
        "local": false, "bypass_maintenance": context.bypass_maintenance,
        "execution_creator_username": context.creator,
    });
    if executor != "host_agent" {
        task["execution_env"] = json!({});
    }
    if let Some((other, side)) = call.related {
        let other = &index.instances[other];
        operation["relationship"] = side.as_str().into();
        task["related"] = json!({
            "node_id": other.id,
            "node_name": index.nodes[other.node].id,
            "is_target": side == Side::Source,
        });
    }
    task["operation"] = operation;
    let mut kwargs = inputs;
    kwargs.insert("__cloudify_context".to_owned(), task);
    Value::Object(kwargs)
}

fn plugin(node: &NodeView<'_>, definition: &Value) -> Value {
    let name = definition.get("plugin").and_then(Value::as_str).unwrap_or_default();
    let declared = node.plugins.get(name).copied();
    let field = |key: &str| declared.and_then(|plugin| plugin.get(key)).cloned().unwrap_or(Value::Null);
    json!({
        "name": name,
        "package_name": field("package_name"),
        "package_version": field("package_version"),
        "visibility": field("visibility"),
        "tenant_name": field("tenant_name"),
        "source": field("source"),
        "properties": declared
            .and_then(|plugin| plugin.get("properties"))
            .filter(|properties| properties.is_object())
            .cloned()
            .unwrap_or_else(|| json!({})),
    })
}
