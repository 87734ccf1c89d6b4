//! Checks of kinds and keys.

use crate::errors::{CompileError, Compiled, Position};
use crate::version::DslVersion;
use crate::yaml::{Map, Node, Yaml};

fn wrong_kind(node: &Node, want: &str) -> Box<CompileError> {
    CompileError::shape(&node.at, format!("Expected '{want}' type but found '{}' type", node.kind()))
}

pub(crate) fn text(node: &Node) -> Compiled<&str> {
    node.as_text().ok_or_else(|| wrong_kind(node, "string"))
}

pub(crate) fn list(node: &Node) -> Compiled<&[Node]> {
    node.as_list().ok_or_else(|| wrong_kind(node, "list"))
}

/// A mapping whose keys are all text.
pub(crate) fn map(node: &Node) -> Compiled<&Map> {
    let map = node.as_map().ok_or_else(|| wrong_kind(node, "dict"))?;
    for (key, _) in map.iter() {
        if let Some(kind) = key.odd {
            return Err(CompileError::shape(
                &key.at,
                format!("Dict keys must be strings but found '{}' of type '{kind}'", key.name),
            )
            .with_remedy("put the key in quotes"));
        }
    }
    Ok(map)
}

pub(crate) fn boolean(node: &Node) -> Compiled<bool> {
    match node.yaml {
        Yaml::Bool(value) => Ok(value),
        _ => Err(wrong_kind(node, "boolean")),
    }
}

/// A whole number; a boolean counts as 0 or 1.
pub(crate) fn integer(node: &Node) -> Compiled<i64> {
    match &node.yaml {
        Yaml::Int(value) => {
            value.as_i64().ok_or_else(|| CompileError::shape(&node.at, format!("{value} is out of range")))
        }
        Yaml::Bool(value) => Ok(i64::from(*value)),
        _ => Err(wrong_kind(node, "integer")),
    }
}

/// A mapping with no other keys than these.
pub(crate) fn fields<'a>(node: &'a Node, known: &[&str]) -> Compiled<&'a Map> {
    let found = map(node)?;
    check_known(found, known)?;
    Ok(found)
}

pub(crate) fn check_known(found: &Map, known: &[&str]) -> Compiled<()> {
    for (key, _) in found.iter() {
        if let Some(kind) = key.odd {
            return Err(CompileError::shape(
                &key.at,
                format!("Dict keys must be strings but found '{}' of type '{kind}'", key.name),
            ));
        }
        if !known.contains(&key.name.as_str()) {
            return Err(CompileError::shape(&key.at, format!("'{}' is not in schema", key.name))
                .with_remedy(format!("use one of: {}", known.join(", "))));
        }
    }
    Ok(())
}

/// A key that must be there and not null.
pub(crate) fn required<'a>(found: &'a Map, name: &str, at: &Position) -> Compiled<&'a Node> {
    found.given(name).ok_or_else(|| {
        let at = found.get(name).map_or(at, |node| &node.at);
        CompileError::shape(at, format!("'{name}' key is required but it is currently missing"))
            .with_remedy(format!("add '{name}'"))
    })
}

pub(crate) fn too_old(what: &str, version: DslVersion, since: DslVersion, at: &Position) -> Box<CompileError> {
    CompileError::logic(102, at, format!("{what} not supported in version {version}, it was added in {since}"))
        .with_remedy(format!("set tosca_definitions_version: {since}"))
}
