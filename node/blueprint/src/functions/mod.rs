//! Intrinsic functions: `{get_input: …}` and its kin.

mod check;
mod evaluate;
mod shape;
mod text;

use serde_json::Value;

pub use evaluate::{Attributes, InstanceView, Scope, evaluate};

pub(crate) use check::{KnownNames, Reader, check};
pub(crate) use evaluate::resolve;
pub(crate) use text::python_text;

/// A list of names and the moment a function can be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    GetInput,
    GetProperty,
    Concat,
    Merge,
    StringFind,
    StringReplace,
    StringSplit,
    StringLower,
    StringUpper,
    GetAttribute,
    GetAttributesList,
    GetAttributesDict,
    GetSecret,
    GetCapability,
    GetGroupCapability,
    GetEnvironmentCapability,
    GetLabel,
    GetSys,
    GetConsumers,
}

const NAMES: [(&str, Name); 19] = [
    ("get_input", Name::GetInput),
    ("get_property", Name::GetProperty),
    ("concat", Name::Concat),
    ("merge", Name::Merge),
    ("string_find", Name::StringFind),
    ("string_replace", Name::StringReplace),
    ("string_split", Name::StringSplit),
    ("string_lower", Name::StringLower),
    ("string_upper", Name::StringUpper),
    ("get_attribute", Name::GetAttribute),
    ("get_attributes_list", Name::GetAttributesList),
    ("get_attributes_dict", Name::GetAttributesDict),
    ("get_secret", Name::GetSecret),
    ("get_capability", Name::GetCapability),
    ("get_group_capability", Name::GetGroupCapability),
    ("get_environment_capability", Name::GetEnvironmentCapability),
    ("get_label", Name::GetLabel),
    ("get_sys", Name::GetSys),
    ("get_consumers", Name::GetConsumers),
];

impl Name {
    pub(crate) fn text(self) -> &'static str {
        NAMES.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }

    /// Needs a running deployment.
    pub(crate) fn is_runtime(self) -> bool {
        matches!(
            self,
            Self::GetAttribute
                | Self::GetAttributesList
                | Self::GetAttributesDict
                | Self::GetSecret
                | Self::GetCapability
                | Self::GetGroupCapability
                | Self::GetEnvironmentCapability
                | Self::GetLabel
                | Self::GetSys
                | Self::GetConsumers
        )
    }
}

/// A function call as it stands in a value.
#[derive(Clone, Copy)]
pub(crate) struct Function<'a> {
    pub name: Name,
    pub arguments: &'a Value,
    /// The optional second key `type`.
    pub declared: Option<&'a Value>,
}

/// Whether a value is a call: one key that is a function's name, and at most `type` beside it.
pub(crate) fn as_function(value: &Value) -> Option<Function<'_>> {
    let map = value.as_object()?;
    let declared = map.get("type");
    if !(map.len() == 1 || (map.len() == 2 && declared.is_some())) {
        return None;
    }
    map.iter().find_map(|(key, arguments)| {
        let (_, name) = NAMES.iter().find(|(text, _)| text == key)?;
        Some(Function { name: *name, arguments, declared })
    })
}

pub(crate) fn is_function(value: &Value) -> bool {
    as_function(value).is_some()
}

/// Whether a call stands anywhere in the value.
pub(crate) fn holds_function(value: &Value) -> bool {
    is_function(value)
        || match value {
            Value::Array(items) => items.iter().any(holds_function),
            Value::Object(map) => map.values().any(holds_function),
            _ => false,
        }
}

/// Whether a call that needs a running deployment stands anywhere in the value.
pub(crate) fn holds_runtime(value: &Value) -> bool {
    as_function(value).is_some_and(|function| function.name.is_runtime())
        || match value {
            Value::Array(items) => items.iter().any(holds_runtime),
            Value::Object(map) => map.values().any(holds_runtime),
            _ => false,
        }
}

/// Calls `visit` for every call in the value, the outer before the inner, with the path to it
/// (`.key` and `[index]` steps appended to `path`).
pub(crate) fn visit<E>(
    value: &Value,
    path: &str,
    seen: &mut dyn FnMut(Function<'_>, &str) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(function) = as_function(value) {
        let own = format!("{path}.{}", function.name.text());
        seen(function, &own)?;
        return visit(function.arguments, &own, seen);
    }
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                visit(item, &format!("{path}[{i}]"), seen)?;
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                visit(item, &format!("{path}.{key}"), seen)?;
            }
        }
        _ => {}
    }
    Ok(())
}
