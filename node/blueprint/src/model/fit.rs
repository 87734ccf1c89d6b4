//! Whether values fit declared types, and what defaults make of them.

use serde_json::{Map, Value};

use crate::functions::{is_function, python_text};

/// Data types inside data types.
const MAX_DEPTH: usize = 50;

/// Types whose values are checked; the others take anything.
pub(crate) const PRIMITIVES: [&str; 8] = ["string", "integer", "float", "boolean", "list", "dict", "regex", "textarea"];
/// Types that name objects of the manager; their values are any.
pub(crate) const OBJECTS: [&str; 9] = [
    "blueprint_id",
    "deployment_id",
    "capability_value",
    "scaling_group",
    "node_id",
    "node_type",
    "node_instance",
    "secret_key",
    "operation_name",
];

/// Why a value does not fit.
#[derive(Debug)]
pub(crate) struct Misfit {
    /// 105 wrong kind, 106 unknown field, 107 missing field, 100 endless type.
    pub code: i16,
    /// Steps from the outermost property to the one at fault.
    pub path: Vec<String>,
    pub message: String,
}

impl Misfit {
    fn new(code: i16, message: String) -> Self {
        Self { code, path: Vec::new(), message }
    }

    fn inside(mut self, name: &str) -> Self {
        self.path.insert(0, name.to_owned());
        self
    }
}

/// Whether a value is of a type that is not a data type. Names of data types fit everything here.
pub(crate) fn fits_primitive(type_name: &str, value: &Value) -> bool {
    match type_name {
        "integer" => value.as_number().is_some_and(|number| !number.to_string().contains(['.', 'e', 'E'])),
        "float" => value.is_number(),
        "boolean" => value.is_boolean(),
        "list" => value.is_array(),
        "dict" => value.is_object(),
        "regex" => value.as_str().is_some_and(super::constraints::is_regex),
        _ => true,
    }
}

/// Whether a name is a type without a definition.
pub(crate) fn is_primitive(type_name: &str) -> bool {
    PRIMITIVES.contains(&type_name) || OBJECTS.contains(&type_name)
}

/// The value as its type completes it. `data_types` are those of the plan.
pub(crate) fn fit(type_name: &str, value: &Value, data_types: &Map<String, Value>) -> Result<Value, Misfit> {
    fit_at(type_name, value, data_types, 0)
}

/// What the defaults of a data type make of nothing; `None` for other types and when a field is missing.
pub(crate) fn default_of(type_name: &str, data_types: &Map<String, Value>) -> Option<Value> {
    data_types.get(type_name)?;
    fit(type_name, &Value::Object(Map::new()), data_types).ok()
}

fn fit_at(type_name: &str, value: &Value, data_types: &Map<String, Value>, depth: usize) -> Result<Value, Misfit> {
    if is_function(value) {
        return Ok(value.clone());
    }
    if depth > MAX_DEPTH {
        return Err(Misfit::new(100, format!("the data type '{type_name}' holds itself without end")));
    }
    let wrong = || {
        Misfit::new(105, format!("type is '{type_name}', yet it was assigned with the value '{}'", python_text(value)))
    };
    let Some(data_type) = data_types.get(type_name) else {
        return if fits_primitive(type_name, value) { Ok(value.clone()) } else { Err(wrong()) };
    };
    let given = value.as_object().ok_or_else(wrong)?;
    let empty = Map::new();
    let schemas = data_type.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    if let Some(unknown) = given.keys().find(|name| !schemas.contains_key(*name)) {
        return Err(Misfit::new(106, format!("'{unknown}' is not part of the data type '{type_name}'")).inside(unknown));
    }
    let mut complete = Map::new();
    for (name, schema) in schemas {
        let found =
            property_at(schema, given.get(name), data_types, false, depth + 1).map_err(|misfit| misfit.inside(name))?;
        if let Some(found) = found {
            complete.insert(name.clone(), found);
        }
    }
    Ok(Value::Object(complete))
}

/// The value of a property: what is given, completed by the defaults of its schema and type. `None` when there is
/// none and none is needed. `tolerant` lets required properties be missing.
pub(crate) fn property_value(
    schema: &Value,
    given: Option<&Value>,
    data_types: &Map<String, Value>,
    tolerant: bool,
) -> Result<Option<Value>, Misfit> {
    property_at(schema, given, data_types, tolerant, 0)
}

fn property_at(
    schema: &Value,
    given: Option<&Value>,
    data_types: &Map<String, Value>,
    tolerant: bool,
    depth: usize,
) -> Result<Option<Value>, Misfit> {
    let type_name = schema.get("type").and_then(Value::as_str);
    let written = schema.get("default");
    let default = written.filter(|value| !value.is_null());
    let required = schema.get("required") != Some(&Value::Bool(false));
    let is_data_type = type_name.is_some_and(|name| data_types.contains_key(name));
    let value = match (given, default) {
        (Some(given), Some(default)) if is_data_type => merged(default, given),
        (Some(given), _) => given.clone(),
        (None, Some(default)) => default.clone(),
        // A default of null is a value like any other, but fits every type.
        (None, None) if written.is_some() => return Ok(Some(Value::Null)),
        (None, None) if is_data_type => Value::Object(Map::new()),
        (None, None) if required && !tolerant => {
            return Err(Misfit::new(107, "a mandatory value is missing".into()));
        }
        (None, None) => return Ok(None),
    };
    match type_name {
        Some(name) => fit_at(name, &value, data_types, depth).map(Some),
        None => Ok(Some(value)),
    }
}

/// `given` over `default`, field by field; a function or a value of another kind replaces the default whole.
pub(crate) fn merged(default: &Value, given: &Value) -> Value {
    match (default, given) {
        (Value::Object(default), Value::Object(over))
            if !is_function(given) && !is_function(&Value::Object(default.clone())) =>
        {
            let mut both = default.clone();
            for (name, value) in over {
                let value = match both.get(name) {
                    Some(under) => merged(under, value),
                    None => value.clone(),
                };
                both.insert(name.clone(), value);
            }
            Value::Object(both)
        }
        _ => given.clone(),
    }
}

/// The defaults of a data type, fields without one left out; `None` when it is no data type.
pub(crate) fn partial_default(type_name: &str, data_types: &Map<String, Value>) -> Option<Value> {
    partial_at(type_name, data_types, 0)
}

fn partial_at(type_name: &str, data_types: &Map<String, Value>, depth: usize) -> Option<Value> {
    let schemas = data_types.get(type_name)?.get("properties")?.as_object()?;
    if depth > MAX_DEPTH {
        return None;
    }
    let mut found = Map::new();
    for (name, schema) in schemas {
        let inner =
            schema.get("type").and_then(Value::as_str).and_then(|inner| partial_at(inner, data_types, depth + 1));
        let value = match (schema.get("default"), inner) {
            (Some(default), Some(inner)) => Some(merged(&inner, default)),
            (Some(default), None) => Some(default.clone()),
            (None, inner) => inner,
        };
        if let Some(value) = value {
            found.insert(name.clone(), value);
        }
    }
    Some(Value::Object(found))
}
