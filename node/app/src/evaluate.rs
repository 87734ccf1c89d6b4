//! Intrinsic functions of deployments that are there.

use std::collections::HashMap;

use quorate_blueprint::{Attributes, EvalError, InstanceView, Object, Scope};
use quorate_store::deployments::{self, Deployment};
use quorate_store::node_instances::{self, NodeInstance};
use quorate_store::{PgConnection, nodes};
use serde_json::{Map, Value};

use crate::deployments::found;
use crate::{Actor, App, AppError, Code, Permission};

/// Who asks: ids of node instances.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// `SELF`.
    pub itself: Option<String>,
    /// `SOURCE`.
    pub source: Option<String>,
    /// `TARGET`.
    pub target: Option<String>,
}

impl App {
    /// Evaluates the functions in a value for a deployment.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `functions_evaluation_error`.
    pub async fn evaluate_functions(
        &self,
        actor: &Actor,
        deployment_id: &str,
        context: &Context,
        payload: &Value,
    ) -> Result<Value, AppError> {
        actor.require(Permission::FunctionsEvaluate)?;
        let mut reader = self.store().read().await?;
        let row = found(&mut reader, actor, deployment_id).await?;
        Known::load(&mut reader, &row).await?.evaluate(payload, context)
    }
}

/// What functions can ask about a deployment, read once.
pub(crate) struct Known {
    inputs: Object,
    properties: HashMap<String, Object>,
    /// In the order they were made.
    by_node: HashMap<String, Vec<String>>,
    instances: HashMap<String, InstanceView>,
    labels: HashMap<String, Vec<String>>,
    system: [(&'static str, &'static str, String); 5],
}

impl Known {
    pub async fn load(connection: &mut PgConnection, row: &Deployment) -> Result<Self, AppError> {
        let mut by_node: HashMap<String, Vec<String>> = HashMap::new();
        let mut instances = HashMap::new();
        for instance in node_instances::of_deployment(connection, row.key).await? {
            by_node.entry(instance.node_id.clone()).or_default().push(instance.id.clone());
            instances.insert(instance.id.clone(), view(instance));
        }
        let nodes = nodes::of_deployment(connection, row.key).await?;
        let mut labels: HashMap<String, Vec<String>> = HashMap::new();
        for label in deployments::labels_of(connection, &[row.key]).await? {
            labels.entry(label.name).or_default().push(label.value);
        }
        Ok(Self {
            inputs: object(row.inputs.0.clone()),
            properties: nodes.into_iter().map(|node| (node.id, object(node.properties.0))).collect(),
            by_node,
            instances,
            labels,
            system: [
                ("tenant", "name", row.tenant.clone()),
                ("deployment", "id", row.id.clone()),
                ("deployment", "name", row.display_name.clone()),
                ("deployment", "blueprint", row.blueprint_id.clone()),
                ("deployment", "owner", row.creator.clone()),
            ],
        })
    }

    pub fn evaluate(&self, value: &Value, context: &Context) -> Result<Value, AppError> {
        let scope = Scope {
            itself: context.itself.as_deref(),
            source: context.source.as_deref(),
            target: context.target.as_deref(),
        };
        quorate_blueprint::evaluate(value, self, scope).map_err(refused)
    }

    /// Of outputs or capabilities the values: name to `{value: …}`.
    pub fn values(&self, section: &Value) -> Result<Object, AppError> {
        let mut found = Object::new();
        for (name, entry) in section.as_object().into_iter().flatten() {
            let value = entry.get("value").unwrap_or(&Value::Null);
            found.insert(name.clone(), self.evaluate(value, &Context::default())?);
        }
        Ok(found)
    }
}

impl Attributes for Known {
    fn input(&self, name: &str) -> Option<Value> {
        self.inputs.get(name).cloned()
    }

    fn properties(&self, node: &str) -> Option<Map<String, Value>> {
        self.properties.get(node).cloned()
    }

    fn instances(&self, node: &str) -> Vec<String> {
        self.by_node.get(node).cloned().unwrap_or_default()
    }

    fn instance(&self, id: &str) -> Option<InstanceView> {
        self.instances.get(id).cloned()
    }

    fn label(&self, key: &str) -> Option<Vec<String>> {
        self.labels.get(key).cloned()
    }

    fn sys(&self, entity: &str, property: &str) -> Option<Value> {
        let mut known = self.system.iter();
        known.find(|(e, p, _)| *e == entity && *p == property).map(|(_, _, value)| value.as_str().into())
    }
}

fn refused(error: EvalError) -> AppError {
    AppError::caused(Code::FunctionsEvaluation, error.message.clone(), error)
}

fn view(instance: NodeInstance) -> InstanceView {
    let texts = |items: &Value, key: &str| -> Vec<String> {
        let items = items.as_array().into_iter().flatten();
        items.filter_map(|item| item.get(key)?.as_str().map(str::to_owned)).collect()
    };
    InstanceView {
        targets: texts(&instance.relationships, "target_id"),
        scaling_groups: texts(&instance.scaling_groups, "id"),
        id: instance.id,
        node: instance.node_id,
        index: u64::try_from(instance.index).unwrap_or_default(),
        runtime_properties: object(instance.runtime_properties.0),
    }
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(map) => map,
        _ => Object::new(),
    }
}
