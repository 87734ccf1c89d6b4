//! Evaluation, at deployment creation and at run time.

use serde_json::{Map, Value};

use super::check::unknown_input;
use super::shape::check_arguments;
use super::{Function, Name, as_function, holds_runtime, is_function, python_text};
use crate::errors::{ErrorClass, EvalError};

/// Functions inside functions, values they lead to included.
const MAX_DEPTH: usize = 50;

/// What functions can ask about a deployment. Methods a caller has no answer to keep the default.
pub trait Attributes {
    /// The value of a deployment input.
    fn input(&self, name: &str) -> Option<Value>;

    /// The properties of a node.
    fn properties(&self, node: &str) -> Option<Map<String, Value>>;

    /// Ids of the instances of a node.
    fn instances(&self, _node: &str) -> Vec<String> {
        Vec::new()
    }

    /// One instance, by id.
    fn instance(&self, _id: &str) -> Option<InstanceView> {
        None
    }

    /// The value of a secret.
    fn secret(&self, _name: &str) -> Option<Value> {
        None
    }

    /// A capability of another deployment.
    fn capability(&self, _deployment: &str, _name: &str) -> Option<Value> {
        None
    }

    /// A capability of every deployment of a group.
    fn group_capability(&self, _group: &str, _name: &str) -> Option<Value> {
        None
    }

    /// A capability of the environment this deployment runs in.
    fn environment_capability(&self, _name: &str) -> Option<Value> {
        None
    }

    /// The values of a label of this deployment.
    fn label(&self, _key: &str) -> Option<Vec<String>> {
        None
    }

    /// `get_sys`: ("tenant", "name"), ("deployment", "id"|"name"|"blueprint"|"owner").
    fn sys(&self, _entity: &str, _property: &str) -> Option<Value> {
        None
    }

    /// `get_consumers`: "ids", "names" or "count".
    fn consumers(&self, _what: &str) -> Option<Value> {
        None
    }
}

/// What functions read of a node instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceView {
    pub id: String,
    pub node: String,
    /// Counts from 1 within the node.
    pub index: u64,
    pub runtime_properties: Map<String, Value>,
    /// Ids of the instances this one has relationships to.
    pub targets: Vec<String>,
    /// Ids of the scaling group instances around it, innermost first.
    pub scaling_groups: Vec<String>,
}

/// Who asks. At run time these are ids of node instances, before that names of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope<'a> {
    pub itself: Option<&'a str>,
    pub source: Option<&'a str>,
    pub target: Option<&'a str>,
}

impl Scope<'_> {
    fn lookup(&self, reference: &str) -> Option<&str> {
        match reference {
            "SELF" => self.itself,
            "SOURCE" => self.source,
            "TARGET" => self.target,
            _ => None,
        }
    }
}

/// Evaluates every function in `value` for a running deployment.
pub fn evaluate(value: &Value, attributes: &dyn Attributes, scope: Scope<'_>) -> Result<Value, EvalError> {
    resolve(value, attributes, scope, true)
}

/// Evaluates what can be: with `runtime` everything, without it only what a plan and its inputs tell.
pub(crate) fn resolve(
    value: &Value,
    attributes: &dyn Attributes,
    scope: Scope<'_>,
    runtime: bool,
) -> Result<Value, EvalError> {
    let mut evaluator = Evaluator { attributes, runtime, properties: Vec::new() };
    evaluator.value(value, scope, 0)
}

struct Evaluator<'a> {
    attributes: &'a dyn Attributes,
    runtime: bool,
    /// Properties being evaluated, to find those that read each other.
    properties: Vec<(String, Vec<Value>)>,
}

impl Evaluator<'_> {
    fn value(&mut self, value: &Value, scope: Scope<'_>, depth: usize) -> Result<Value, EvalError> {
        if let Some(function) = as_function(value) {
            if depth >= MAX_DEPTH {
                return Err(EvalError::new(
                    ErrorClass::RecursionLimit,
                    format!("functions lead to functions more than {MAX_DEPTH} times"),
                ));
            }
            return self.function(value, function, scope, depth + 1);
        }
        match value {
            Value::Array(items) => items.iter().map(|item| self.value(item, scope, depth)).collect(),
            Value::Object(map) => Ok(Value::Object(
                map.iter()
                    .map(|(key, item)| Ok((key.clone(), self.value(item, scope, depth)?)))
                    .collect::<Result<_, EvalError>>()?,
            )),
            other => Ok(other.clone()),
        }
    }

    fn function(
        &mut self,
        written: &Value,
        function: Function<'_>,
        scope: Scope<'_>,
        depth: usize,
    ) -> Result<Value, EvalError> {
        // A merge looks at its parts itself: a part that is no function yet may be one as a whole.
        let arguments = self.value(function.arguments, scope, depth)?;
        let ready = Function { arguments: &arguments, ..function };
        let as_written = || {
            let mut map = written.as_object().cloned().unwrap_or_default();
            map.insert(function.name.text().to_owned(), arguments.clone());
            Value::Object(map)
        };
        if function.name.is_runtime() {
            if !self.runtime {
                return Ok(as_written());
            }
            check_arguments(ready)?;
            let found = self.at_run_time(ready, scope)?;
            return self.value(&found, scope, depth);
        }
        match function.name {
            Name::Concat | Name::Merge if !self.runtime && holds_runtime(&arguments) => {
                return Ok(as_written());
            }
            Name::GetInput | Name::GetProperty => {
                let open = match &arguments {
                    Value::Array(items) => items.iter().find(|item| is_function(item)),
                    one => Some(one).filter(|one| is_function(one)),
                };
                if let Some(open) = open {
                    return Err(EvalError::evaluation(format!(
                        "Unable to evaluate {}: found an unresolved argument: {}",
                        function.name.text(),
                        python_text(open)
                    )));
                }
            }
            Name::StringFind | Name::StringReplace | Name::StringSplit | Name::StringLower | Name::StringUpper => {
                let open = match &arguments {
                    Value::Array(items) => items.iter().find(|item| is_function(item)),
                    one => Some(one).filter(|one| is_function(one)),
                };
                if let Some(open) = open {
                    return Err(EvalError::evaluation(format!(
                        "Unable to evaluate {} function: an argument should not be a function ({})",
                        function.name.text(),
                        python_text(open)
                    )));
                }
            }
            _ => {}
        }
        check_arguments(ready)?;
        let items = arguments.as_array().map(Vec::as_slice).unwrap_or_default();
        match function.name {
            Name::GetInput => {
                let found = self.input(&arguments)?;
                let found = self.value(&found, scope, depth)?;
                if let Some(declared) = function.declared.and_then(Value::as_str)
                    && !is_function(&found)
                    && !crate::model::fits_primitive(declared, &found)
                {
                    return Err(EvalError::new(
                        ErrorClass::InputEvaluation,
                        format!(
                            "Value '{}' of input '{}' does not match data type declared: '{declared}'",
                            python_text(&found),
                            python_text(&arguments)
                        ),
                    ));
                }
                Ok(found)
            }
            Name::GetProperty => self.property(items, scope, depth, &as_written),
            Name::Concat => Ok(Value::String(items.iter().map(python_text).collect())),
            Name::Merge => {
                let mut merged = Map::new();
                for item in items {
                    for (key, value) in item.as_object().into_iter().flatten() {
                        merged.insert(key.clone(), value.clone());
                    }
                }
                Ok(Value::Object(merged))
            }
            _ => strings(function.name, &arguments, items),
        }
    }

    fn input(&self, arguments: &Value) -> Result<Value, EvalError> {
        let (name, path) = match arguments {
            Value::Array(items) => match items.split_first() {
                Some((name, path)) => (name, path),
                None => return Err(EvalError::value("get_input of an empty list")),
            },
            name => (name, &[] as &[Value]),
        };
        let text = python_text(name);
        let mut value = self.attributes.input(&text).ok_or_else(|| unknown_input(&text))?;
        let mut place = text;
        for (i, step) in path.iter().enumerate() {
            let wrong = |message: String| EvalError::new(ErrorClass::InputEvaluation, message);
            value = match (&value, step) {
                (Value::Object(map), step) => map.get(&python_text(step)).cloned().ok_or_else(|| {
                    wrong(format!("Input attribute '{}' of '{place}', doesn't exist.", python_text(step)))
                })?,
                (Value::Array(list), step) => {
                    let index = step.as_i64().ok_or_else(|| {
                        wrong(format!(
                            "Item in index {} in the get_input arguments list is expected to be an int but got {}",
                            i + 1,
                            python_text(step)
                        ))
                    })?;
                    at_index(list, index).cloned().ok_or_else(|| {
                        wrong(format!("List size of '{place}' is {} but index {index} is retrieved.", list.len()))
                    })?
                }
                (other, step) => {
                    return Err(EvalError::evaluation(format!(
                        "Unable to evaluate get_input function: Object {} has no attribute {}",
                        python_text(other),
                        python_text(step)
                    )));
                }
            };
            place = format!("{place}.{}", python_text(step));
        }
        Ok(value)
    }

    fn property(
        &mut self,
        items: &[Value],
        scope: Scope<'_>,
        depth: usize,
        as_written: &dyn Fn() -> Value,
    ) -> Result<Value, EvalError> {
        let Some((reference, path)) = items.split_first() else {
            return Ok(as_written());
        };
        let reference = python_text(reference);
        let (node, instance) = self.node_of(&reference, scope)?;
        let properties =
            self.attributes.properties(&node).ok_or_else(|| EvalError::key(format!("Node {node} does not exist")))?;
        let found = property_at(&node, &properties, path)?;
        let step = (node.clone(), path.to_vec());
        if let Some(place) = self.properties.iter().position(|other| *other == step) {
            // Reading itself is left as it stands; reading each other has no end.
            if self.properties.len() - place == 1 {
                return Ok(as_written());
            }
            let ring: Vec<String> = self.properties[place..].iter().map(|(node, path)| place_of(node, path)).collect();
            return Err(EvalError::evaluation(format!(
                "Unable to evaluate get_property function: the properties {} read each other; give one of them a value",
                ring.join(", ")
            )));
        }
        self.properties.push(step);
        let owner = instance.as_deref().unwrap_or(&node);
        let own_scope = Scope { itself: Some(owner), ..scope };
        let value = self.value(&found, own_scope, depth);
        self.properties.pop();
        let value = value?;
        if value == found && is_function(&value) && value == as_written() {
            return Ok(value);
        }
        Ok(value)
    }

    /// The node a reference means, and the instance when it names one.
    fn node_of(&self, reference: &str, scope: Scope<'_>) -> Result<(String, Option<String>), EvalError> {
        if !matches!(reference, "SELF" | "SOURCE" | "TARGET") {
            return Ok((reference.to_owned(), None));
        }
        let found = scope
            .lookup(reference)
            .ok_or_else(|| EvalError::value(format!("{reference} is not known where it is used")))?;
        if !self.runtime {
            return Ok((found.to_owned(), None));
        }
        match self.attributes.instance(found) {
            Some(instance) => Ok((instance.node, Some(found.to_owned()))),
            None => Ok((found.to_owned(), None)),
        }
    }

    fn at_run_time(&mut self, function: Function<'_>, scope: Scope<'_>) -> Result<Value, EvalError> {
        let name = function.name.text();
        let arguments = function.arguments;
        let items = arguments.as_array().map(Vec::as_slice).unwrap_or_default();
        let unknown = |what: String| EvalError::evaluation(format!("{name}: {what}"));
        let (head, path): (String, &[Value]) = match items.split_first() {
            Some((first, rest)) => (python_text(first), rest),
            None => (python_text(arguments), &[]),
        };
        match function.name {
            Name::GetAttribute => {
                let instance = self.instance_for(&head, scope)?;
                Ok(self.attribute(&instance, path))
            }
            Name::GetAttributesList => {
                let mut values = Vec::new();
                for id in self.all_instances(&head, scope) {
                    if let Some(instance) = self.attributes.instance(&id) {
                        values.push(self.attribute(&instance, path));
                    }
                }
                Ok(Value::Array(values))
            }
            Name::GetAttributesDict => {
                let mut by_id = Map::new();
                for id in self.all_instances(&head, scope) {
                    let Some(instance) = self.attributes.instance(&id) else {
                        continue;
                    };
                    let values = path
                        .iter()
                        .map(|one| {
                            let steps = one.as_array().cloned().unwrap_or_else(|| vec![one.clone()]);
                            let names: Vec<String> = steps.iter().map(python_text).collect();
                            (names.join("."), self.attribute(&instance, &steps))
                        })
                        .collect();
                    by_id.insert(id, Value::Object(values));
                }
                Ok(Value::Object(by_id))
            }
            Name::GetSecret => {
                let secret = self.attributes.secret(&head).ok_or_else(|| {
                    EvalError::new(
                        ErrorClass::UnknownSecret,
                        format!("Required secrets: [{head}] don't exist in this tenant"),
                    )
                })?;
                let parsed = match (&secret, path.is_empty()) {
                    (Value::String(text), false) => serde_json::from_str(text).unwrap_or_else(|_| secret.clone()),
                    _ => secret,
                };
                step_into(&parsed, path).ok_or_else(|| unknown(format!("the secret '{head}' has no such field")))
            }
            Name::GetCapability | Name::GetGroupCapability => {
                let Some((capability, rest)) = path.split_first() else {
                    return Err(unknown("no capability named".into()));
                };
                let capability = python_text(capability);
                let found = if function.name == Name::GetCapability {
                    self.attributes.capability(&head, &capability)
                } else {
                    self.attributes.group_capability(&head, &capability)
                };
                let found = found.ok_or_else(|| unknown(format!("'{head}' has no capability '{capability}'")))?;
                step_into(&found, rest)
                    .ok_or_else(|| unknown(format!("the capability '{capability}' of '{head}' has no such field")))
            }
            Name::GetEnvironmentCapability => {
                let found = self
                    .attributes
                    .environment_capability(&head)
                    .ok_or_else(|| unknown(format!("the environment has no capability '{head}'")))?;
                step_into(&found, path).ok_or_else(|| unknown(format!("the capability '{head}' has no such field")))
            }
            Name::GetLabel => {
                let values = self
                    .attributes
                    .label(&head)
                    .ok_or_else(|| unknown(format!("the deployment has no label '{head}'")))?;
                let values: Vec<Value> = values.into_iter().map(Value::String).collect();
                match path.first() {
                    None => Ok(Value::Array(values)),
                    Some(index) => python_text(index)
                        .parse()
                        .ok()
                        .and_then(|index| at_index(&values, index).cloned())
                        .ok_or_else(|| unknown(format!("no value {} of label '{head}'", python_text(index)))),
                }
            }
            Name::GetSys => {
                let property = path.first().map(python_text).unwrap_or_default();
                self.attributes
                    .sys(&head, &property)
                    .ok_or_else(|| unknown(format!("'{head} {property}' is not known here")))
            }
            _ => self.attributes.consumers(&head).ok_or_else(|| unknown("consumers are not known here".into())),
        }
    }

    fn all_instances(&self, reference: &str, scope: Scope<'_>) -> Vec<String> {
        match scope.lookup(reference) {
            Some(id) => vec![id.to_owned()],
            None => self.attributes.instances(reference),
        }
    }

    /// The instance a reference means: named by the scope, the only one, one the asker is related to, or one that
    /// shares the asker's innermost scaling group.
    fn instance_for(&self, reference: &str, scope: Scope<'_>) -> Result<InstanceView, EvalError> {
        let wrong = |what: &str| {
            EvalError::evaluation(format!("Unable to evaluate get_attribute function: {what} of node '{reference}'"))
        };
        if matches!(reference, "SELF" | "SOURCE" | "TARGET") {
            let id = scope
                .lookup(reference)
                .ok_or_else(|| EvalError::value(format!("{reference} is not known where it is used")))?;
            return self.attributes.instance(id).ok_or_else(|| wrong("there is no instance"));
        }
        let candidates = self.attributes.instances(reference);
        let chosen = match candidates.as_slice() {
            [] => return Err(wrong("there is no instance")),
            [only] => only.clone(),
            several => {
                self.nearest(several, scope).ok_or_else(|| wrong("there are several instances and none is nearer"))?
            }
        };
        self.attributes.instance(&chosen).ok_or_else(|| wrong("there is no instance"))
    }

    fn nearest(&self, candidates: &[String], scope: Scope<'_>) -> Option<String> {
        let askers: Vec<InstanceView> = [scope.itself, scope.source, scope.target]
            .into_iter()
            .flatten()
            .filter_map(|id| self.attributes.instance(id))
            .collect();
        for asker in &askers {
            if candidates.contains(&asker.id) {
                return Some(asker.id.clone());
            }
            let mut related = asker.targets.iter().filter(|id| candidates.contains(id));
            if let (Some(one), None) = (related.next(), related.next()) {
                return Some(one.clone());
            }
        }
        for asker in &askers {
            for group in &asker.scaling_groups {
                let mut inside = candidates.iter().filter(|id| {
                    self.attributes.instance(id).is_some_and(|other| other.scaling_groups.contains(group))
                });
                if let (Some(one), None) = (inside.next(), inside.next()) {
                    return Some(one.clone());
                }
            }
        }
        None
    }

    /// Runtime properties first, then the names every instance has, then the node's properties; else null.
    fn attribute(&self, instance: &InstanceView, path: &[Value]) -> Value {
        let runtime = Value::Object(instance.runtime_properties.clone());
        if let Some(found) = step_into(&runtime, path).filter(|found| !found.is_null()) {
            return found;
        }
        match path {
            [Value::String(name)] if name == "node_instance_id" => {
                return Value::String(instance.id.clone());
            }
            [Value::String(name)] if name == "node_instance_index" => {
                return Value::from(instance.index);
            }
            _ => {}
        }
        self.attributes
            .properties(&instance.node)
            .and_then(|properties| step_into(&Value::Object(properties), path))
            .unwrap_or(Value::Null)
    }
}

fn strings(name: Name, arguments: &Value, items: &[Value]) -> Result<Value, EvalError> {
    let text = |i: usize| items.get(i).and_then(Value::as_str).unwrap_or_default();
    let number = |i: usize| items.get(i).and_then(Value::as_i64);
    match name {
        Name::StringLower => Ok(python_text(arguments).to_lowercase().into()),
        Name::StringUpper => Ok(python_text(arguments).to_uppercase().into()),
        Name::StringFind => Ok(match text(0).find(text(1)) {
            Some(at) => Value::from(text(0)[..at].chars().count()),
            None => Value::from(-1),
        }),
        Name::StringReplace => Ok(match number(3) {
            Some(count) if count >= 0 => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                text(0).replacen(text(1), text(2), count).into()
            }
            _ => text(0).replace(text(1), text(2)).into(),
        }),
        _ => {
            if text(1).is_empty() {
                return Err(EvalError::value("string_split: empty separator"));
            }
            let parts: Vec<Value> = text(0).split(text(1)).map(Value::from).collect();
            match number(2) {
                None => Ok(Value::Array(parts)),
                Some(index) => at_index(&parts, index)
                    .cloned()
                    .ok_or_else(|| EvalError::value(format!("string_split: no part {index} of {}", parts.len()))),
            }
        }
    }
}

/// Python's indexing: negative counts from the end.
fn at_index(list: &[Value], index: i64) -> Option<&Value> {
    let index = if index < 0 {
        list.len().checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?
    } else {
        usize::try_from(index).ok()?
    };
    list.get(index)
}

fn step_into(value: &Value, path: &[Value]) -> Option<Value> {
    let mut value = value;
    for step in path {
        value = match value {
            Value::Object(map) => map.get(&python_text(step))?,
            Value::Array(list) => at_index(list, python_text(step).parse().ok()?)?,
            _ => return None,
        };
    }
    Some(value.clone())
}

fn place_of(node: &str, path: &[Value]) -> String {
    let steps: Vec<String> = path.iter().map(python_text).collect();
    format!("{node}.properties.{}", steps.join("."))
}

/// The value at a path of a node's properties. A path that enters a function answers the function and the next
/// step, as a list; further steps index that list.
pub(super) fn property_at(node: &str, properties: &Map<String, Value>, path: &[Value]) -> Result<Value, EvalError> {
    let missing = |what: &str| {
        EvalError::evaluation(format!(
            "Unable to evaluate get_property function: Node template property '{}' {what}",
            place_of(node, path)
        ))
    };
    let mut value = Value::Object(properties.clone());
    for step in path {
        value = if is_function(&value) {
            Value::Array(vec![value, step.clone()])
        } else {
            match &value {
                Value::Object(map) => map.get(&python_text(step)).cloned().ok_or_else(|| missing("doesn't exist"))?,
                Value::Array(list) => {
                    let index = step.as_i64().ok_or_else(|| missing("has a list where the path has a name"))?;
                    at_index(list, index).cloned().ok_or_else(|| missing("has a list that is shorter"))?
                }
                _ => return Err(missing("goes into a plain value")),
            }
        };
    }
    Ok(value)
}
