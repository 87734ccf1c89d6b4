//! The operation's context as the message gives it.

use serde_json::{Value, json};

use crate::rest::Caller;
use crate::wire::{Object, text};

/// Which end of a relationship, or the operation's own instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    Own,
    Source,
    Target,
}

/// A node instance and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) instance: String,
    pub(crate) node: String,
}

/// `__cloudify_context`. No `Debug`: it carries tokens.
pub(crate) struct Context(Object);

impl Context {
    pub(crate) fn new(map: Object) -> Self {
        Self(map)
    }

    pub(crate) fn raw(&self) -> &Object {
        &self.0
    }

    pub(crate) fn value(&self, key: &str) -> Value {
        self.0.get(key).cloned().unwrap_or(Value::Null)
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        text(&self.0, key)
    }

    pub(crate) fn execution(&self) -> String {
        self.text("execution_id").unwrap_or_default()
    }

    pub(crate) fn tenant(&self) -> String {
        self.0
            .get("tenant")
            .and_then(|tenant| tenant.get("name"))
            .and_then(Value::as_str)
            .unwrap_or("default_tenant")
            .to_owned()
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller {
            token: self.text("execution_token").or_else(|| self.text("rest_token")).unwrap_or_default(),
            tenant: self.tenant(),
            bypass_maintenance: self.is_true("bypass_maintenance"),
        }
    }

    pub(crate) fn is_true(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Something of a nested object, null when there is none.
    pub(crate) fn nested(&self, object: &str, key: &str) -> Value {
        self.0.get(object).and_then(|object| object.get(key)).cloned().unwrap_or(Value::Null)
    }

    /// How Python names the kind of context.
    pub(crate) fn kind(&self) -> &'static str {
        if self.0.get("related").is_some_and(Value::is_object) {
            "relationship-instance"
        } else if self.text("node_id").is_some() {
            "node-instance"
        } else {
            "deployment"
        }
    }

    /// The sides this operation has.
    pub(crate) fn sides(&self) -> &'static [Side] {
        match self.kind() {
            "relationship-instance" => &[Side::Source, Side::Target],
            "node-instance" => &[Side::Own],
            _ => &[],
        }
    }

    pub(crate) fn subject(&self, side: Side) -> Option<Subject> {
        if !self.sides().contains(&side) {
            return None;
        }
        let of = |map: &Object| Some(Subject { instance: text(map, "node_id")?, node: text(map, "node_name")? });
        let related = self.0.get("related").and_then(Value::as_object);
        let related_is_target = self.nested("related", "is_target").as_bool().unwrap_or(false);
        match side {
            Side::Own => of(&self.0),
            Side::Source if related_is_target => of(&self.0),
            Side::Target if !related_is_target => of(&self.0),
            Side::Source | Side::Target => of(related?),
        }
    }

    /// Whom functions in inputs are evaluated for.
    pub(crate) fn evaluation(&self) -> Value {
        match (self.subject(Side::Own), self.subject(Side::Source), self.subject(Side::Target)) {
            (Some(own), ..) => json!({"self": own.instance}),
            (_, Some(source), Some(target)) => json!({
                "source": source.instance, "target": target.instance,
                "source_node": source.node, "target_node": target.node,
            }),
            _ => json!({}),
        }
    }

    /// What log lines carry.
    pub(crate) fn log_context(&self) -> Value {
        let mut context = json!({
            "blueprint_id": self.value("blueprint_id"),
            "deployment_id": self.value("deployment_id"),
            "execution_id": self.value("execution_id"),
            "workflow_id": self.value("workflow_id"),
            "task_id": self.value("task_id"),
            "task_name": self.value("task_name"),
            "task_queue": self.value("task_queue"),
            "task_target": self.value("task_target"),
            "operation": self.nested("operation", "name"),
            "plugin": self.nested("plugin", "name"),
            "tenant": {"name": self.tenant()},
        });
        let mut add = |side, node: &str, name: &str| {
            if let Some(subject) = self.subject(side) {
                context[node] = json!(subject.instance);
                context[name] = json!(subject.node);
            }
        };
        add(Side::Own, "node_id", "node_name");
        add(Side::Source, "source_id", "source_name");
        add(Side::Target, "target_id", "target_name");
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(value: Value) -> Context {
        let Value::Object(map) = value else { panic!("an object") };
        Context::new(map)
    }

    #[test]
    fn the_running_side_is_the_source_when_the_related_one_is_the_target() {
        let context = context(json!({
            "node_id": "app_1", "node_name": "app",
            "related": {"node_id": "db_1", "node_name": "db", "is_target": true},
        }));
        assert_eq!(context.subject(Side::Source).map(|s| s.instance).as_deref(), Some("app_1"));
        assert_eq!(context.subject(Side::Target).map(|s| s.instance).as_deref(), Some("db_1"));
        assert_eq!(context.subject(Side::Own), None);
        assert_eq!(context.kind(), "relationship-instance");
    }

    #[test]
    fn an_operation_without_an_instance_is_the_deployments() {
        let context = context(json!({"deployment_id": "d"}));
        assert_eq!(context.kind(), "deployment");
        assert_eq!(context.evaluation(), json!({}));
    }
}
