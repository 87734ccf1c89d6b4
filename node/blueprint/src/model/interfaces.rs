//! Interfaces and operations: reading, deriving, and resolving implementations to plugins.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fit;
use super::plugins::{CENTRAL, HOST};
use super::schema::{Kind, Types};
use crate::errors::{CompileError, Compiled, Position};
use crate::plan::{Object, Operation, Plugin};
use crate::shape;
use crate::sources::Sources;
use crate::version::DslVersion;
use crate::yaml::{Node, Yaml};

const KEYS: [&str; 7] =
    ["implementation", "inputs", "executor", "max_retries", "retry_interval", "timeout", "timeout_recoverable"];
const SCRIPT_PATH: &str = "script_path";
const SCRIPT_SOURCE: &str = "script_source";

/// An operation as declared. In types `inputs` holds schemas, in templates values.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    pub implementation: String,
    pub inputs: Object,
    pub executor: Option<String>,
    pub max_retries: Option<i64>,
    pub retry_interval: Option<Value>,
    pub timeout: Option<Value>,
    pub timeout_recoverable: Option<bool>,
    pub at: Position,
}

/// Operations by interface and name.
pub(crate) type TypeInterfaces = BTreeMap<String, BTreeMap<String, Declared>>;

impl Declared {
    fn nothing(at: &Position) -> Self {
        Self {
            implementation: String::new(),
            inputs: Object::new(),
            executor: None,
            max_retries: None,
            retry_interval: None,
            timeout: None,
            timeout_recoverable: None,
            at: at.clone(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.implementation.is_empty()
            && self.inputs.is_empty()
            && self.executor.is_none()
            && self.max_retries.is_none()
            && self.retry_interval.is_none()
            && self.timeout.is_none()
            && self.timeout_recoverable.is_none()
    }

    fn to_json(&self) -> Value {
        json!({
            "implementation": self.implementation,
            "inputs": self.inputs,
            "executor": self.executor,
            "max_retries": self.max_retries,
            "retry_interval": self.retry_interval,
            "timeout": self.timeout,
            "timeout_recoverable": self.timeout_recoverable,
        })
    }
}

pub(crate) fn to_json(interfaces: &TypeInterfaces) -> Object {
    interfaces
        .iter()
        .map(|(name, operations)| {
            let operations: Object =
                operations.iter().map(|(name, operation)| (name.clone(), operation.to_json())).collect();
            (name.clone(), Value::Object(operations))
        })
        .collect()
}

/// Interfaces of a type.
pub(crate) fn read_type(node: &Node, types: &Types<'_>) -> Compiled<TypeInterfaces> {
    read(node, types, true)
}

/// Interfaces of a node template or of one of its relationships.
pub(crate) fn read_template(node: &Node, types: &Types<'_>) -> Compiled<TypeInterfaces> {
    read(node, types, false)
}

fn read(node: &Node, types: &Types<'_>, of_type: bool) -> Compiled<TypeInterfaces> {
    let mut interfaces = TypeInterfaces::new();
    for (key, node) in shape::map(node)?.iter() {
        let mut operations = BTreeMap::new();
        if !node.is_null() {
            for (key, node) in shape::map(node)?.iter() {
                operations.insert(key.name.clone(), operation(node, types, of_type)?);
            }
        }
        interfaces.insert(key.name.clone(), operations);
    }
    Ok(interfaces)
}

fn operation(node: &Node, types: &Types<'_>, of_type: bool) -> Compiled<Declared> {
    let mut declared = Declared::nothing(&node.at);
    if node.is_null() {
        return Ok(declared);
    }
    if let Some(text) = node.as_text() {
        declared.implementation = text.to_owned();
        return Ok(declared);
    }
    let map = shape::fields(node, &KEYS)?;
    if let Some(node) = map.given("implementation") {
        declared.implementation = shape::text(node)?.to_owned();
    }
    if let Some(node) = map.given("inputs") {
        if of_type {
            declared.inputs = types.schemas(node, Kind::Parameter)?;
            types.check_defaults(&mut declared.inputs, node, Kind::Parameter)?;
        } else {
            declared.inputs = shape::map(node)?.to_json();
        }
    }
    if let Some(node) = map.given("executor") {
        let name = shape::text(node)?;
        if ![CENTRAL, HOST].contains(&name) {
            return Err(CompileError::logic(28, &node.at, format!("'{name}' is an illegal executor of an operation"))
                .with_remedy(format!("use {CENTRAL} or {HOST}")));
        }
        declared.executor = Some(name.to_owned());
    }
    if let Some(node) = map.given("max_retries") {
        types.since("max_retries", DslVersion::V1_1, &node.at)?;
        let count = shape::integer(node)?;
        if count < -1 {
            return Err(CompileError::value(
                &node.at,
                "'max_retries' value must be either -1 or a non negative number",
            )
            .with_remedy("-1 retries for ever"));
        }
        declared.max_retries = Some(count);
    }
    if let Some(node) = map.given("retry_interval") {
        types.since("retry_interval", DslVersion::V1_1, &node.at)?;
        declared.retry_interval = Some(seconds("retry_interval", node)?);
    }
    if let Some(node) = map.given("timeout") {
        declared.timeout = Some(seconds("timeout", node)?);
    }
    if let Some(node) = map.given("timeout_recoverable") {
        declared.timeout_recoverable = Some(shape::boolean(node)?);
    }
    Ok(declared)
}

fn seconds(what: &str, node: &Node) -> Compiled<Value> {
    let value = match node.yaml {
        Yaml::Float(value) => value,
        _ => shape::integer(node)? as f64,
    };
    if value < 0.0 {
        return Err(CompileError::value(&node.at, format!("'{what}' value must be a non negative number")));
    }
    Ok(node.to_json())
}

/// A type's operations over its parent's: each replaces the parent's whole.
pub(crate) fn derive(parent: &TypeInterfaces, own: TypeInterfaces) -> TypeInterfaces {
    let mut all = parent.clone();
    for (name, operations) in own {
        all.entry(name).or_default().extend(operations);
    }
    all
}

/// What a template makes of the operations of its type. `owner` names the template in messages.
pub(crate) fn instantiate(
    of_type: &TypeInterfaces,
    own: TypeInterfaces,
    owner: &str,
    types: &Types<'_>,
) -> Compiled<TypeInterfaces> {
    let mut all = TypeInterfaces::new();
    for (name, operations) in of_type {
        let mut flat = BTreeMap::new();
        for (operation_name, operation) in operations {
            let written = own.get(name).is_some_and(|operations| operations.contains_key(operation_name));
            if !written {
                let nothing = Declared::nothing(&operation.at);
                let place = format!("'{owner}' operation '{name}.{operation_name}'");
                flat.insert(operation_name.clone(), overlaid(operation, nothing, &place, types)?);
            }
        }
        all.insert(name.clone(), flat);
    }
    for (interface, operations) in own {
        let target = all.entry(interface.clone()).or_default();
        for (name, operation) in operations {
            let typed = of_type.get(&interface).and_then(|operations| operations.get(&name));
            let place = format!("'{owner}' operation '{interface}.{name}'");
            let result = match typed {
                Some(typed) if !operation.is_nothing() && !typed.is_nothing() => {
                    overlaid(typed, operation, &place, types)?
                }
                _ => operation,
            };
            target.insert(name, result);
        }
    }
    Ok(all)
}

/// Workers learn the declared type of a mapping from a `type` key in it.
fn with_type(mut value: Value, schema: &Value) -> Value {
    if let Some(declared) = schema.get("type").filter(|declared| !declared.is_null())
        && let Some(map) = value.as_object_mut()
    {
        map.insert("type".into(), declared.clone());
    }
    value
}

fn overlaid(typed: &Declared, own: Declared, place: &str, types: &Types<'_>) -> Compiled<Declared> {
    let implementation =
        if own.implementation.is_empty() { typed.implementation.clone() } else { own.implementation.clone() };
    if implementation != typed.implementation {
        return Ok(own);
    }
    let mut inputs = Object::new();
    for (name, schema) in &typed.inputs {
        let given = own.inputs.get(name);
        let value = fit::property_value(schema, given, types.data_types, false).map_err(|misfit| {
            let path: String = misfit.path.iter().map(|step| format!(".{step}")).collect();
            CompileError::logic(misfit.code, &own.at, format!("{place}: input '{name}{path}': {}", misfit.message))
                .with_remedy("give the input a value that fits its declaration")
        })?;
        if let Some(value) = value {
            inputs.insert(name.clone(), with_type(value, schema));
        }
    }
    for (name, value) in own.inputs {
        inputs.entry(name).or_insert(value);
    }
    Ok(Declared {
        implementation,
        inputs,
        executor: own.executor.or_else(|| typed.executor.clone()),
        max_retries: own.max_retries.or(typed.max_retries),
        retry_interval: own.retry_interval.or_else(|| typed.retry_interval.clone()),
        timeout: own.timeout.or_else(|| typed.timeout.clone()),
        timeout_recoverable: own.timeout_recoverable.or(typed.timeout_recoverable),
        at: own.at,
    })
}

/// What an implementation text means.
pub(crate) enum Mapping<'a> {
    Task { plugin: &'a Plugin, task: String },
    ScriptFile { plugin: &'a Plugin, path: String },
    ScriptText { plugin: &'a Plugin },
}

/// Resolves implementations.
pub(crate) struct Mapper<'a> {
    pub plugins: &'a [Plugin],
    pub sources: &'a dyn Sources,
    /// Namespaces of imported blueprints, whose scripts are not among the files of this one.
    pub blueprints: &'a Object,
}

impl<'a> Mapper<'a> {
    /// `place` names what is resolved in messages, `code` is what "cannot be resolved" is there.
    pub fn resolve(&self, text: &str, at: &Position, code: i16, place: &str) -> Compiled<Mapping<'a>> {
        let bare = text.rsplit_once("--").map_or(text, |(_, bare)| bare);
        let several_lines = text.trim_end().contains('\n');
        let is_path =
            text.contains("://") || (!several_lines && (self.sources.has_file(text) || self.sources.has_file(bare)));
        if is_path || several_lines {
            return self.script(text, is_path, at, place);
        }
        let mut fitting = self.plugins.iter().filter_map(|plugin| {
            let task = text.strip_prefix(plugin.name.as_str())?.strip_prefix('.')?;
            Some((plugin, task))
        });
        match (fitting.next(), fitting.next()) {
            (Some((plugin, task)), None) => Ok(Mapping::Task {
                plugin,
                task: task.to_owned(),
            }),
            (Some((one, _)), Some((other, _))) => Err(CompileError::logic(
                91,
                at,
                format!(
                    "{place}: '{text}' may belong to the plugin '{}' or '{}'",
                    one.name, other.name
                ),
            )
            .with_remedy("rename one of the plugins")),
            (None, _) if self.of_blueprint(text) => self.script(text, true, at, place),
            (None, _) => Err(CompileError::logic(
                code,
                at,
                format!(
                    "Could not extract plugin or a script resource is not found from operation mapping/script-path '{text}', which is declared for {place}"
                ),
            )
            .with_remedy("name a declared plugin, as in plugin.module.task, or a file of the blueprint")),
        }
    }

    fn of_blueprint(&self, text: &str) -> bool {
        text.rsplit_once("--").is_some_and(|(namespace, _)| self.blueprints.contains_key(namespace))
    }

    fn script(&self, text: &str, is_path: bool, at: &Position, place: &str) -> Compiled<Mapping<'a>> {
        let plugin = self.plugins.iter().find(|plugin| plugin.name.ends_with("script")).ok_or_else(|| {
            CompileError::logic(61, at, format!("{place} is a script, but no script plugin is defined"))
                .with_remedy("import cloudify/types/types.yaml")
        })?;
        Ok(if is_path { Mapping::ScriptFile { plugin, path: text.to_owned() } } else { Mapping::ScriptText { plugin } })
    }

    /// Every `interface.operation`, and the bare name of those only one interface has.
    pub fn operations(
        &self,
        interfaces: &TypeInterfaces,
        code: i16,
        owner: &str,
    ) -> Compiled<BTreeMap<String, Operation>> {
        let mut all = BTreeMap::new();
        let mut bare: BTreeMap<&str, Option<Operation>> = BTreeMap::new();
        for (interface, operations) in interfaces {
            for (name, declared) in operations {
                let full = format!("{interface}.{name}");
                let operation = self.operation(declared, code, &format!("operation '{full}' of '{owner}'"))?;
                bare.entry(name).and_modify(|other| *other = None).or_insert_with(|| Some(operation.clone()));
                all.insert(full, operation);
            }
        }
        for (name, operation) in bare {
            if let Some(operation) = operation {
                all.insert(name.to_owned(), operation);
            }
        }
        Ok(all)
    }

    fn operation(&self, declared: &Declared, code: i16, place: &str) -> Compiled<Operation> {
        let mut operation = Operation {
            plugin: String::new(),
            operation: String::new(),
            executor: None,
            inputs: Object::new(),
            has_intrinsic_functions: false,
            max_retries: None,
            retry_interval: None,
            timeout: None,
            timeout_recoverable: None,
            inputs_types: None,
        };
        if declared.implementation.is_empty() {
            return Ok(operation);
        }
        operation.inputs = declared.inputs.clone();
        operation.max_retries = declared.max_retries;
        operation.retry_interval = declared.retry_interval.clone();
        operation.timeout = declared.timeout.clone();
        operation.timeout_recoverable = declared.timeout_recoverable;
        let types: Object = declared
            .inputs
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.as_object()?.get("type")?.clone())))
            .collect();
        operation.inputs_types = (!types.is_empty()).then_some(types);
        let mapping = self.resolve(&declared.implementation, &declared.at, code, place)?;
        let (plugin, default_executor) = match mapping {
            Mapping::Task { plugin, task } => {
                operation.operation = task;
                (plugin, plugin.executor.as_str())
            }
            Mapping::ScriptFile { plugin, path } => {
                operation.operation = "script_runner.tasks.run".into();
                refuse_script_inputs(&operation.inputs, &declared.at, place)?;
                operation.inputs.insert(SCRIPT_PATH.into(), path.into());
                (plugin, "auto")
            }
            Mapping::ScriptText { plugin } => {
                operation.operation = "script_runner.tasks.run".into();
                refuse_script_inputs(&operation.inputs, &declared.at, place)?;
                operation.inputs.insert(SCRIPT_SOURCE.into(), declared.implementation.clone().into());
                (plugin, "auto")
            }
        };
        operation.plugin = plugin.name.clone();
        let executor = declared.executor.as_deref().unwrap_or(default_executor);
        operation.executor = Some(executor.to_owned());
        Ok(operation)
    }
}

/// The inputs a script gets its own text or path in must not be taken.
pub(crate) fn refuse_script_inputs(inputs: &Object, at: &Position, place: &str) -> Compiled<()> {
    for name in [SCRIPT_PATH, SCRIPT_SOURCE] {
        if inputs.contains_key(name) {
            return Err(CompileError::logic(
                60,
                at,
                format!("{place}: cannot define '{name}' for a script, it is set from the implementation"),
            )
            .with_remedy(format!("remove '{name}'")));
        }
    }
    Ok(())
}

/// The parameter a script workflow is given.
pub(crate) fn script_parameter(mapping: &Mapping<'_>, text: &str) -> Option<(&'static str, Value)> {
    match mapping {
        Mapping::Task { .. } => None,
        Mapping::ScriptFile { path, .. } => Some((
            SCRIPT_PATH,
            json!({"default": path, "description": "Workflow script executed by the script plugin"}),
        )),
        Mapping::ScriptText { .. } => Some((
            SCRIPT_SOURCE,
            json!({"default": text, "description": "Workflow script executed by the script plugin"}),
        )),
    }
}
