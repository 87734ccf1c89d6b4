//! What can be known to be wrong about a function before anything is deployed.

use serde_json::{Map, Value};

use super::shape::check_arguments;
use super::{Function, Name, evaluate, holds_function, is_function, python_text, visit};
use crate::errors::{ErrorClass, EvalError};
use crate::version::DslVersion;

/// Who reads the value, and so what SELF, SOURCE and TARGET mean.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader<'a> {
    Node(&'a str),
    Relationship { source: &'a str, target: &'a str },
    Blueprint,
}

pub(crate) struct KnownNames<'a> {
    pub inputs: &'a Map<String, Value>,
    pub properties: &'a dyn Fn(&str) -> Option<&'a Map<String, Value>>,
    /// The version to hold functions against; `None` does not check.
    pub version: Option<DslVersion>,
}

/// Checks every function in `value`, which stands at `path`.
pub(crate) fn check(value: &Value, path: &str, reader: Reader<'_>, known: &KnownNames<'_>) -> Result<(), EvalError> {
    visit(value, path, &mut |function, at| {
        let place = at.strip_suffix(function.name.text()).and_then(|at| at.strip_suffix('.')).unwrap_or(at);
        check_arguments(function)?;
        if let Some(version) = known.version {
            let since = match function.name {
                Name::Concat => DslVersion::V1_1,
                Name::Merge => DslVersion::V1_3,
                _ => DslVersion::V1_0,
            };
            if version < since {
                return Err(EvalError::validation(format!(
                    "Using {} requires using dsl version {} or greater, but found: {version}",
                    function.name.text(),
                    since.suffix()
                )));
            }
        }
        references(function, place, reader, known)
    })
}

fn references(
    function: Function<'_>,
    place: &str,
    reader: Reader<'_>,
    known: &KnownNames<'_>,
) -> Result<(), EvalError> {
    let items = function.arguments.as_array();
    match function.name {
        Name::GetInput => {
            let name = match items {
                Some(items) => items.first().and_then(Value::as_str),
                None => function.arguments.as_str(),
            };
            match name {
                Some(name) if !known.inputs.contains_key(name) => Err(unknown_input(name)),
                _ => Ok(()),
            }
        }
        Name::GetProperty => {
            let items = items.map(Vec::as_slice).unwrap_or_default();
            get_property(items, place, reader, known)
        }
        Name::GetAttribute | Name::GetAttributesList | Name::GetAttributesDict => {
            let name = function.name.text();
            let Some(node) = items.and_then(|items| items.first()).and_then(Value::as_str) else {
                return Ok(());
            };
            let allowed = match (node, reader) {
                ("SELF", Reader::Node(_)) => true,
                ("SOURCE" | "TARGET", Reader::Relationship { .. }) => true,
                ("SELF" | "SOURCE" | "TARGET", _) => false,
                (node, _) => {
                    return match (known.properties)(node) {
                        Some(_) => Ok(()),
                        None => Err(EvalError::key(format!("{name} function node reference '{node}' does not exist."))),
                    };
                }
            };
            if allowed {
                Ok(())
            } else {
                Err(EvalError::value(format!("{node} cannot be used with {name} function in {place}")))
            }
        }
        _ => Ok(()),
    }
}

pub(super) fn unknown_input(name: &str) -> EvalError {
    EvalError::new(ErrorClass::UnknownInput, format!("get_input function references an unknown input '{name}'."))
}

fn get_property(items: &[Value], place: &str, reader: Reader<'_>, known: &KnownNames<'_>) -> Result<(), EvalError> {
    let Some((node, path)) = items.split_first() else {
        return Ok(());
    };
    if items.iter().any(holds_function) {
        return Ok(());
    }
    let Some(node) = node.as_str() else {
        return Err(EvalError::key(format!("Node {} does not exist", python_text(node))));
    };
    let owner = match (node, reader) {
        ("SELF", Reader::Node(own)) => own,
        ("SOURCE", Reader::Relationship { source, .. }) => source,
        ("TARGET", Reader::Relationship { target, .. }) => target,
        ("SELF", _) => {
            return Err(EvalError::value(format!(
                "SELF can only be used in a context of node template but appears in {place}."
            )));
        }
        ("SOURCE" | "TARGET", _) => {
            return Err(EvalError::value(format!(
                "{node} can only be used within a relationship but is used in {place}"
            )));
        }
        (node, _) => node,
    };
    let properties = (known.properties)(owner).ok_or_else(|| EvalError::key(format!("Node {owner} does not exist")))?;
    // A property that is or holds a function is followed when it is evaluated.
    match path.first().and_then(Value::as_str).and_then(|name| properties.get(name)) {
        Some(value) if is_function(value) => Ok(()),
        _ => evaluate::property_at(owner, properties, path).map(|_| ()),
    }
}
