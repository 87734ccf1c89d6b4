//! Schemas of properties, inputs, operation inputs and workflow parameters.

use serde_json::{Map, Value};

use super::fit::{OBJECTS, is_primitive};
use super::{constraints, fit};
use crate::errors::{CompileError, Compiled, ErrorClass, Position};
use crate::functions::is_function;
use crate::plan::Object;
use crate::shape;
use crate::version::DslVersion;
use crate::yaml::Node;

/// What a schema belongs to, which decides its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Property,
    Input,
    /// Inputs of operations of types, and workflow parameters.
    Parameter,
}

const PROPERTY_KEYS: [&str; 4] = ["required", "default", "description", "type"];
const PARAMETER_KEYS: [&str; 6] = ["required", "default", "description", "type", "item_type", "constraints"];
const INPUT_KEYS: [&str; 9] =
    ["required", "default", "description", "type", "item_type", "constraints", "display_label", "hidden", "display"];

/// What schemas are read against.
pub(crate) struct Types<'a> {
    /// `None` does not hold constructs against the version.
    pub version: Option<DslVersion>,
    /// Finished data types, and names of those that are not finished yet.
    pub data_types: &'a Object,
    pub names: &'a dyn Fn(&str) -> bool,
}

impl Types<'_> {
    /// A construct that came with a later version.
    pub fn since(&self, what: &str, since: DslVersion, at: &Position) -> Compiled<()> {
        match self.version {
            Some(version) if version < since => Err(shape::too_old(what, version, since, at)),
            _ => Ok(()),
        }
    }

    /// A type name must be known; `unknown` is the code if it is not.
    pub fn check_type(&self, node: &Node, unknown: i16) -> Compiled<()> {
        let name = shape::text(node)?;
        if OBJECTS.contains(&name) {
            let since = if name == "operation_name" { DslVersion::V1_5 } else { DslVersion::V1_4 };
            return self.since(&format!("type '{name}'"), since, &node.at);
        }
        if is_primitive(name) || (self.names)(name) {
            return Ok(());
        }
        Err(CompileError::logic(unknown, &node.at, format!("Illegal type name '{name}'"))
            .with_remedy("declare it under data_types or use a basic type"))
    }

    /// Schemas by name. Defaults are checked but left as written.
    pub fn schemas(&self, node: &Node, kind: Kind) -> Compiled<Object> {
        let mut found = Map::new();
        for (key, node) in shape::map(node)?.iter() {
            found.insert(key.name.clone(), self.schema(&key.name, node, kind)?);
        }
        Ok(found)
    }

    fn schema(&self, name: &str, node: &Node, kind: Kind) -> Compiled<Value> {
        if node.is_null() {
            return Ok(Value::Object(Map::new()));
        }
        let keys: &[&str] = match kind {
            Kind::Property => &PROPERTY_KEYS,
            Kind::Input => &INPUT_KEYS,
            Kind::Parameter => &PARAMETER_KEYS,
        };
        let map = shape::fields(node, keys)?;
        if let Some(required) = map.given("required") {
            self.since("required", DslVersion::V1_2, &required.at)?;
            shape::boolean(required)?;
        }
        if let Some(hidden) = map.given("hidden") {
            self.since("hidden", DslVersion::V1_3, &hidden.at)?;
            shape::boolean(hidden)?;
        }
        if let Some(label) = map.given("display_label") {
            self.since("display_label", DslVersion::V1_3, &label.at)?;
            shape::text(label)?;
        }
        if let Some(description) = map.given("description") {
            shape::text(description)?;
        }
        if let Some(type_node) = map.given("type") {
            self.check_type(type_node, 103)?;
        }
        let type_name = map.given("type").and_then(Node::as_text);
        if let Some(item_type) = map.given("item_type") {
            self.since("item_type", DslVersion::V1_4, &item_type.at)?;
            if type_name != Some("list") {
                return Err(CompileError::logic(218, &item_type.at, format!("item_type of '{name}' needs type: list")));
            }
            self.check_type(item_type, 217)?;
        }
        if let Some(display) = map.given("display") {
            let fields = shape::fields(display, &["rows"])?;
            if let Some(rows) = fields.given("rows") {
                shape::integer(rows)?;
            }
            if type_name != Some("textarea") {
                return Err(CompileError::new(
                    ErrorClass::InputType,
                    Some(216),
                    Some(&display.at),
                    format!("display of '{name}' needs type: textarea"),
                ));
            }
        }
        if let Some(list) = map.given("constraints") {
            constraints::check(list, self.version)?;
        }
        let mut schema = Map::new();
        for (key, value) in map.iter() {
            schema.insert(key.name.clone(), value.to_json());
        }
        if kind == Kind::Input
            && schema.get("hidden") == Some(&Value::Bool(true))
            && schema.get("required") != Some(&Value::Bool(false))
            && map.given("default").is_none()
        {
            return Err(CompileError::logic(
                215,
                &node.at,
                format!("the input '{name}' is hidden and required but has no default"),
            )
            .with_remedy("add a default or required: false"));
        }
        Ok(Value::Object(schema))
    }

    /// Checks and completes the defaults of schemas of data types, and against constraints.
    pub fn check_defaults(&self, schemas: &mut Object, node: &Node, kind: Kind) -> Compiled<()> {
        for (name, schema) in schemas {
            let at = node.as_map().and_then(|map| map.get(name)).map_or(&node.at, |node| &node.at);
            let Some(default) = schema.get("default").cloned() else {
                continue;
            };
            let type_name = schema.get("type").and_then(Value::as_str);
            if default.is_null() && kind != Kind::Input {
                continue;
            }
            let check = |type_name: &str, value: &Value| {
                fit::fit(type_name, value, self.data_types).map_err(|misfit| {
                    let at_field = misfit.path.iter().map(|step| format!(".{step}")).collect::<String>();
                    CompileError::logic(
                        misfit.code,
                        at,
                        format!("Property type validation failed in '{name}': default{at_field}: {}", misfit.message),
                    )
                    .with_remedy("correct the default or the type")
                })
            };
            if let Some(type_name) = type_name.filter(|_| !default.is_null()) {
                let complete = match check(type_name, &default) {
                    // What a default leaves out may be given by who uses the type.
                    Err(error) if kind == Kind::Property && error.code == Some(107) => continue,
                    found => found?,
                };
                if kind == Kind::Parameter
                    && let Some(slot) = schema.get_mut("default")
                {
                    *slot = complete;
                }
            }
            let item_type = schema.get("item_type").and_then(Value::as_str);
            let items = match (&default, item_type) {
                (Value::Array(items), Some(item_type)) => {
                    for item in items {
                        check(item_type, item)?;
                    }
                    items.as_slice()
                }
                (one, _) => std::slice::from_ref(one),
            };
            if kind != Kind::Input {
                continue;
            }
            // Clients know checked constraints without their messages.
            if let Some(Value::Array(list)) = schema.get_mut("constraints") {
                for constraint in list.iter_mut().filter_map(Value::as_object_mut) {
                    constraint.remove("error_message");
                }
            }
            let list = schema.get("constraints").and_then(Value::as_array);
            for constraint in list.into_iter().flatten() {
                for item in items {
                    if is_function(item) {
                        return Err(CompileError::parsing(
                            213,
                            at,
                            format!("the default of '{name}' is a function and cannot have constraints"),
                        ));
                    }
                    if !constraints::holds(constraint, item) {
                        return Err(CompileError::new(
                            ErrorClass::Constraint,
                            None,
                            Some(at),
                            format!("the default of '{name}' violates a constraint"),
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
