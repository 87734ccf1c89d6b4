//! From a plan and inputs to a deployment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Object, Operation, Plan, PlanNode};
use crate::errors::{EvalError, PrepareError};
use crate::functions::{self, Attributes, Name, Scope, python_text, resolve};
use crate::instances::{self, NodeInstance};
use crate::model::{self, constraints};

/// Which secrets exist.
#[derive(Clone, Debug, Default)]
pub enum Secrets {
    /// Not checked: every secret counts as there.
    #[default]
    Unchecked,
    /// Only these.
    Only(BTreeSet<String>),
    /// `get_secret` is refused.
    Unsupported,
}

/// How a plan is prepared.
#[derive(Clone, Debug, Default)]
pub struct PrepareOptions {
    /// Text is turned into the declared integer, float or boolean where it reads as one.
    pub correct_types: bool,
    /// No function is evaluated before run time.
    pub runtime_only: bool,
    pub secrets: Secrets,
}

/// A plan with its inputs filled in and its functions evaluated as far as they can be, and its first instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeploymentPlan {
    /// Here `inputs` holds values, not schemas.
    pub plan: Plan,
    pub node_instances: Vec<NodeInstance>,
    pub inter_deployment_functions: Vec<InterDeploymentFunction>,
}

/// A use of another deployment's capability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterDeploymentFunction {
    /// Where the function stands.
    pub function_identifier: String,
    /// The id when it is known, and the first argument of the function.
    pub target_deployment: (Option<String>, Value),
    /// `self`, `source`, `target`: ids of node instances.
    pub context: BTreeMap<String, String>,
}

/// Inputs and properties while they are being evaluated.
struct Snapshot {
    inputs: Object,
    properties: HashMap<String, Object>,
    /// Names of the inputs that were read.
    read: RefCell<BTreeSet<String>>,
}

impl Attributes for Snapshot {
    fn input(&self, name: &str) -> Option<Value> {
        let value = self.inputs.get(name)?;
        self.read.borrow_mut().insert(name.to_owned());
        Some(value.clone())
    }

    fn properties(&self, node: &str) -> Option<Object> {
        self.properties.get(node).cloned()
    }
}

impl Plan {
    /// Fills in the inputs, evaluates what can be evaluated and creates the node instances.
    ///
    /// `new_suffix` gives the random part of instance ids: six characters of `[a-z0-9]`.
    pub fn prepare_deployment(
        &self,
        inputs: &Map<String, Value>,
        options: &PrepareOptions,
        new_suffix: &mut dyn FnMut() -> String,
    ) -> Result<DeploymentPlan, PrepareError> {
        let mut plan = self.clone();
        plan.inputs = self.fill_inputs(inputs, options.correct_types)?;
        if options.runtime_only {
            plan.mark_functions();
        } else {
            plan.evaluate()?;
        }
        plan.check_secrets(&options.secrets)?;
        let node_instances = instances::create(&plan, new_suffix)?;
        let inter_deployment_functions = plan.uses_of_capabilities(&node_instances);
        Ok(DeploymentPlan { plan, node_instances, inter_deployment_functions })
    }

    fn fill_inputs(&self, given: &Object, correct_types: bool) -> Result<Object, PrepareError> {
        let expected = || self.inputs.keys().cloned().collect();
        let mut filled = Object::new();
        let mut missing = Vec::new();
        for (name, schema) in &self.inputs {
            let declared = schema.get("type").and_then(Value::as_str);
            let value = match given.get(name) {
                Some(value) => {
                    let value = match declared {
                        Some(declared) if correct_types => corrected(value, declared),
                        _ => value.clone(),
                    };
                    self.check_input(name, schema, declared, value)?
                }
                None => match schema.get("default").filter(|value| !value.is_null()) {
                    Some(value) => value.clone(),
                    None => {
                        let built = declared
                            .and_then(|name| model::default_of(name, &self.data_types))
                            .filter(|value| value.as_object().is_some_and(|map| !map.is_empty()));
                        match built {
                            Some(value) => value,
                            None if schema.get("required") == Some(&Value::Bool(false)) => Value::Null,
                            None => {
                                missing.push(name.clone());
                                continue;
                            }
                        }
                    }
                },
            };
            filled.insert(name.clone(), value);
        }
        if !missing.is_empty() {
            return Err(PrepareError::MissingInputs { missing, expected: expected() });
        }
        let unknown: Vec<String> = given.keys().filter(|name| !self.inputs.contains_key(*name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(PrepareError::UnknownInputs { unknown, expected: expected() });
        }
        Ok(filled)
    }

    fn check_input(
        &self,
        name: &str,
        schema: &Value,
        declared: Option<&str>,
        value: Value,
    ) -> Result<Value, PrepareError> {
        let wrong = |expected: &str, value: &Value| PrepareError::InputType {
            name: name.to_owned(),
            expected: expected.to_owned(),
            value: python_text(value),
        };
        let value = match declared {
            Some(declared) => model::fit(declared, &value, &self.data_types).map_err(|_| wrong(declared, &value))?,
            None => value,
        };
        let item_type = schema.get("item_type").and_then(Value::as_str);
        let listed = item_type.is_some() && value.is_array();
        let one = std::slice::from_ref(&value);
        let items = value.as_array().filter(|_| listed).map_or(one, Vec::as_slice);
        for item in items {
            if let Some(item_type) = item_type.filter(|_| listed) {
                model::fit(item_type, item, &self.data_types).map_err(|_| PrepareError::ItemType {
                    name: name.to_owned(),
                    expected: item_type.to_owned(),
                    value: python_text(item),
                })?;
            }
            let list = schema.get("constraints").and_then(Value::as_array);
            for constraint in list.into_iter().flatten() {
                if functions::is_function(item) {
                    return Err(PrepareError::FunctionInput { name: name.to_owned() });
                }
                if !constraints::holds(constraint, item) {
                    return Err(PrepareError::InputConstraint {
                        name: name.to_owned(),
                        value: python_text(item),
                        constraint: python_text(constraint),
                    });
                }
            }
        }
        Ok(value)
    }

    /// Evaluates in place: nodes in the order of the plan, then everything that reads them.
    fn evaluate(&mut self) -> Result<(), EvalError> {
        let mut known = Snapshot {
            inputs: self.inputs.clone(),
            properties: self.nodes.iter().map(|node| (node.name.clone(), node.properties.clone())).collect(),
            read: RefCell::default(),
        };
        for node in &mut self.nodes {
            let scope = Scope { itself: Some(&node.name), ..Scope::default() };
            let names: Vec<String> = node.properties.keys().cloned().collect();
            for name in names {
                let value = resolve(&node.properties[&name], &known, scope, false)?;
                if let Some(properties) = known.properties.get_mut(&node.name) {
                    properties.insert(name.clone(), value.clone());
                }
                node.properties.insert(name, value);
            }
            evaluate_map(&mut node.capabilities.scalable.properties, &known, scope)?;
            for operation in node.operations.values_mut() {
                evaluate_operation(operation, &known, scope)?;
            }
            for relationship in &mut node.relationships {
                let scope = Scope { itself: None, source: Some(&node.name), target: Some(&relationship.target_id) };
                let operations =
                    relationship.source_operations.values_mut().chain(relationship.target_operations.values_mut());
                for operation in operations {
                    evaluate_operation(operation, &known, scope)?;
                }
            }
        }
        let nobody = Scope::default();
        for section in [&mut self.outputs, &mut self.capabilities, &mut self.labels, &mut self.deployment_settings] {
            evaluate_map(section, &known, nobody)?;
        }
        for policy in self.policies.values_mut() {
            if let Some(Value::Object(properties)) = policy.get_mut("properties") {
                evaluate_map(properties, &known, nobody)?;
            }
        }
        for group in self.scaling_groups.values_mut() {
            evaluate_map(&mut group.properties, &known, nobody)?;
        }
        // Defaults that were read are shown evaluated, except for a function that is the whole default.
        let read = known.read.borrow().clone();
        for name in read {
            let Some(value) = self.inputs.get_mut(&name) else {
                continue;
            };
            let whole = functions::as_function(value).map(|function| function.name.text());
            match whole {
                Some(function) => {
                    if let Some(arguments) = value.get_mut(function) {
                        *arguments = resolve(arguments, &known, nobody, false)?;
                    }
                }
                None => *value = resolve(value, &known, nobody, false)?,
            }
        }
        Ok(())
    }

    /// Says of each operation whether functions are left in its inputs.
    fn mark_functions(&mut self) {
        for node in &mut self.nodes {
            let of_relationships = node.relationships.iter_mut().flat_map(|relationship| {
                relationship.source_operations.values_mut().chain(relationship.target_operations.values_mut())
            });
            for operation in node.operations.values_mut().chain(of_relationships) {
                operation.has_intrinsic_functions = operation.inputs.values().any(functions::holds_function);
            }
        }
    }

    fn check_secrets(&self, secrets: &Secrets) -> Result<(), PrepareError> {
        let mut missing = BTreeSet::new();
        let mut unsupported = false;
        let outcome: Result<(), EvalError> = self.visit_functions(&mut |found| {
            if found.function.name != Name::GetSecret {
                return Ok(());
            }
            unsupported |= matches!(secrets, Secrets::Unsupported);
            let name = match found.function.arguments {
                Value::Array(items) => items.first().and_then(Value::as_str),
                one => one.as_str(),
            };
            if let (Some(name), Secrets::Only(known)) = (name, secrets)
                && !known.contains(name)
            {
                missing.insert(name.to_owned());
            }
            Ok(())
        });
        outcome?;
        if unsupported {
            return Err(PrepareError::NoSecretStore);
        }
        if missing.is_empty() { Ok(()) } else { Err(PrepareError::UnknownSecrets(missing.into_iter().collect())) }
    }

    fn uses_of_capabilities(&self, instances: &[NodeInstance]) -> Vec<InterDeploymentFunction> {
        let mut uses = Vec::new();
        let visited: Result<(), EvalError> = self.visit_functions(&mut |found| {
            if found.function.name != Name::GetCapability {
                return Ok(());
            }
            let first =
                found.function.arguments.as_array().and_then(|items| items.first()).cloned().unwrap_or(Value::Null);
            let id = first.as_str().map(str::to_owned);
            let contexts: Vec<BTreeMap<String, String>> = match found.node {
                None => vec![BTreeMap::new()],
                Some(node) => instances
                    .iter()
                    .filter(|instance| instance.node_id == node.name)
                    .map(|instance| {
                        let mut context = BTreeMap::from([("self".to_owned(), instance.id.clone())]);
                        if let Some(target) = found.target {
                            context.insert("source".to_owned(), instance.id.clone());
                            let reached =
                                instance.relationships.iter().find(|relationship| relationship.target_name == target);
                            if let Some(reached) = reached {
                                context.insert("target".to_owned(), reached.target_id.clone());
                            }
                        }
                        context
                    })
                    .collect(),
            };
            for context in contexts {
                uses.push(InterDeploymentFunction {
                    function_identifier: found.path.to_owned(),
                    target_deployment: (id.clone(), first.clone()),
                    context,
                });
            }
            Ok(())
        });
        // The closure has no error to give.
        debug_assert!(visited.is_ok());
        uses
    }
}

fn evaluate_map(map: &mut Object, known: &dyn Attributes, scope: Scope<'_>) -> Result<(), EvalError> {
    for value in map.values_mut() {
        *value = resolve(value, known, scope, false)?;
    }
    Ok(())
}

fn evaluate_operation(operation: &mut Operation, known: &dyn Attributes, scope: Scope<'_>) -> Result<(), EvalError> {
    evaluate_map(&mut operation.inputs, known, scope)?;
    operation.has_intrinsic_functions = operation.inputs.values().any(functions::holds_function);
    Ok(())
}

/// Text that reads as the declared type, as that type.
fn corrected(value: &Value, declared: &str) -> Value {
    let Some(text) = value.as_str() else {
        return value.clone();
    };
    match declared {
        "integer" => text.trim().parse::<i64>().map_or(json!(text), |number| json!(number)),
        "float" => text.trim().parse::<f64>().map_or(json!(text), |number| json!(number)),
        "boolean" => match text {
            "true" => json!(true),
            "false" => json!(false),
            _ => json!(text),
        },
        _ => json!(text),
    }
}

/// A function somewhere in the scanned parts of a plan.
pub(crate) struct Found<'a> {
    pub function: functions::Function<'a>,
    /// Ends with the function's name.
    pub path: &'a str,
    /// The node it belongs to.
    pub node: Option<&'a PlanNode>,
    /// The other end, when it belongs to a relationship.
    pub target: Option<&'a str>,
}

/// One of the values functions are looked for in.
pub(crate) struct Scanned<'a> {
    pub value: &'a Value,
    pub path: String,
    pub node: Option<&'a PlanNode>,
    pub target: Option<&'a str>,
}

impl Plan {
    /// Every value in which functions count.
    pub(crate) fn scanned(&self) -> Vec<Scanned<'_>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let mut add = |value, path, target| {
                all.push(Scanned { value, path, node: Some(node), target });
            };
            for (name, value) in &node.properties {
                add(value, format!("nodes.{}.properties.{name}", node.name), None);
            }
            for (name, value) in &node.capabilities.scalable.properties {
                add(value, format!("nodes.{}.capabilities.scalable.properties.{name}", node.name), None);
            }
            for (operation_name, operation) in &node.operations {
                for (name, value) in &operation.inputs {
                    add(value, format!("nodes.{}.operations.{operation_name}.inputs.{name}", node.name), None);
                }
            }
            for relationship in &node.relationships {
                let operations = relationship.source_operations.iter().chain(&relationship.target_operations);
                for (operation_name, operation) in operations {
                    for (name, value) in &operation.inputs {
                        add(
                            value,
                            format!("nodes.{}.{}.{operation_name}.inputs.{name}", node.name, relationship.type_name),
                            Some(&relationship.target_id),
                        );
                    }
                }
            }
        }
        let mut add = |value, path| {
            all.push(Scanned { value, path, node: None, target: None });
        };
        for (section, entries) in [("outputs", &self.outputs), ("capabilities", &self.capabilities)] {
            for (name, entry) in entries {
                if let Some(value) = entry.get("value") {
                    add(value, format!("{section}.{name}.value"));
                }
            }
        }
        for (name, policy) in &self.policies {
            if let Some(value) = policy.get("properties") {
                add(value, format!("policies.{name}.properties"));
            }
        }
        for (name, group) in &self.scaling_groups {
            for (property, value) in &group.properties {
                add(value, format!("scaling_groups.{name}.properties.{property}"));
            }
        }
        for (name, label) in &self.labels {
            if let Some(value) = label.get("values") {
                add(value, format!("labels.{name}.values"));
            }
        }
        for (name, value) in &self.deployment_settings {
            add(value, format!("deployment_settings.{name}"));
        }
        all
    }

    /// Calls `seen` for every function of the plan.
    pub(crate) fn visit_functions<E>(&self, seen: &mut dyn FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
        for scanned in self.scanned() {
            functions::visit(scanned.value, &scanned.path, &mut |function, path| {
                seen(Found { function, path, node: scanned.node, target: scanned.target })
            })?;
        }
        Ok(())
    }
}
