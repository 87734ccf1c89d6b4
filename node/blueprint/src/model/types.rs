//! Types that derive from each other: node types, relationship types, data types.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fit::{is_primitive, merged, partial_default};
use super::interfaces::{TypeInterfaces, derive};
use super::schema::{Kind, Types};
use crate::errors::{CompileError, Compiled, Position};
use crate::plan::Object;
use crate::shape;
use crate::version::DslVersion;
use crate::yaml::{Map, Node};

/// A node or relationship type with all its ancestors give it.
#[derive(Clone, Debug)]
pub(crate) struct DerivedType {
    pub derived_from: Option<String>,
    /// Ancestors root first, then the type itself.
    pub hierarchy: Vec<String>,
    /// Property schemas by name.
    pub properties: Object,
    /// One entry for each of the keys asked for, `interfaces` or `source_interfaces` and `target_interfaces`.
    pub interfaces: Vec<TypeInterfaces>,
}

pub(crate) type DerivedTypes = BTreeMap<String, DerivedType>;

/// Names of a section, each after the one it derives from.
fn ancestors_first<'a>(section: &'a Map, what: &str) -> Compiled<Vec<&'a str>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: BTreeMap<&str, Mark> = BTreeMap::new();
    let mut order = Vec::new();
    for start in section.names() {
        let mut chain: Vec<&str> = Vec::new();
        let mut name = start;
        loop {
            match marks.get(name) {
                Some(Mark::Done) => break,
                Some(Mark::Open) => {
                    let at = section.get(name).map(|node| &node.at);
                    return Err(CompileError::new(
                        crate::errors::ErrorClass::Logic,
                        Some(100),
                        at,
                        format!("{what} derive from each other: {}", chain.join(", ")),
                    )
                    .with_remedy("break the circle of derived_from"));
                }
                None => {}
            }
            marks.insert(name, Mark::Open);
            chain.push(name);
            let Some(parent) = section.get(name).and_then(Node::as_map).and_then(|map| map.given("derived_from"))
            else {
                break;
            };
            let parent_name = shape::text(parent)?;
            if section.get(parent_name).is_none() {
                return Err(CompileError::logic(
                    103,
                    &parent.at,
                    format!(
                        "Missing definition for type '{parent_name}' which is declared as derived by type '{name}'"
                    ),
                )
                .with_remedy("define it or import the file that does"));
            }
            name = parent_name;
        }
        for name in chain.into_iter().rev() {
            marks.insert(name, Mark::Done);
            order.push(name);
        }
    }
    Ok(order)
}

/// Schemas of a child over those of its parent. An entry replaces the parent's, except that defaults of the same
/// data type are merged.
fn derive_properties(parent: &Object, own: Object, data_types: &Object) -> Object {
    let mut all = parent.clone();
    for (name, mut schema) in own {
        if let Some(under) = all.get(&name)
            && let Some(type_name) = schema.get("type").and_then(Value::as_str)
            && data_types.contains_key(type_name)
            && under.get("type").and_then(Value::as_str) == Some(type_name)
            && let Some(default) = under.get("default").filter(|value| !value.is_null())
        {
            let default = match schema.get("default").filter(|value| !value.is_null()) {
                Some(over) => merged(default, over),
                None => default.clone(),
            };
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("default".into(), default);
            }
        }
        all.insert(name, schema);
    }
    all
}

/// Reads `node_types` or `relationships`.
pub(crate) fn derived_types(
    section: &Node,
    what: &str,
    interface_keys: &[&str],
    keys: &[&str],
    types: &Types<'_>,
) -> Compiled<DerivedTypes> {
    let section = shape::map(section)?;
    for (_, node) in section.iter() {
        if !node.is_null() {
            shape::fields(node, keys)?;
        }
    }
    let mut done: DerivedTypes = BTreeMap::new();
    let empty = Map::default();
    for name in ancestors_first(section, what)? {
        let Some(node) = section.get(name) else {
            continue;
        };
        let map = node.as_map().unwrap_or(&empty);
        let derived_from = map.given("derived_from").and_then(Node::as_text).map(str::to_owned);
        let parent = derived_from.as_ref().and_then(|parent| done.get(parent));
        let mut own = Object::new();
        if let Some(properties) = map.given("properties") {
            own = types.schemas(properties, Kind::Property)?;
            types.check_defaults(&mut own, properties, Kind::Property)?;
        }
        let properties = match parent {
            Some(parent) => derive_properties(&parent.properties, own, types.data_types),
            None => own,
        };
        let mut interfaces = Vec::new();
        for (i, key) in interface_keys.iter().enumerate() {
            let own = match map.given(key) {
                Some(node) => super::interfaces::read_type(node, types)?,
                None => TypeInterfaces::new(),
            };
            let own = match parent.and_then(|parent| parent.interfaces.get(i)) {
                Some(parent) => derive(parent, own),
                None => own,
            };
            interfaces.push(own);
        }
        let mut hierarchy = parent.map_or_else(Vec::new, |parent| parent.hierarchy.clone());
        hierarchy.push(name.to_owned());
        done.insert(name.to_owned(), DerivedType { derived_from, hierarchy, properties, interfaces });
    }
    Ok(done)
}

/// Reads `data_types` to what the plan shows.
pub(crate) fn data_types(section: &Node, version: Option<DslVersion>) -> Compiled<Object> {
    let section = shape::map(section)?;
    for (key, node) in section.iter() {
        if is_primitive(&key.name) {
            return Err(CompileError::logic(104, &key.at, format!("Can't redefine primitive type {}", key.name))
                .with_remedy("choose another name"));
        }
        shape::fields(node, &["derived_from", "properties", "description", "version"])?;
    }
    let mut done = Object::new();
    for name in ancestors_first(section, "data types")? {
        let Some(node) = section.get(name) else {
            continue;
        };
        let map = shape::map(node)?;
        let text = |key: &str| -> Compiled<Value> {
            map.given(key).map_or(Ok(Value::Null), |node| Ok(shape::text(node)?.into()))
        };
        let own = {
            let types = Types { version, data_types: &done, names: &|name| section.get(name).is_some() };
            match map.given("properties") {
                Some(properties) => types.schemas(properties, Kind::Property)?,
                None => Object::new(),
            }
        };
        let parent = map
            .given("derived_from")
            .and_then(Node::as_text)
            .and_then(|parent| done.get(parent)?.get("properties")?.as_object().cloned())
            .unwrap_or_default();
        // Whether a field's type is a data type is known by name: all of them are, before they are finished.
        let named: Object = section.names().map(|name| (name.to_owned(), Value::Null)).collect();
        let properties = derive_properties(&parent, own, &named);
        let mut entry = Object::new();
        entry.insert("derived_from".into(), text("derived_from")?);
        entry.insert("description".into(), text("description")?);
        entry.insert("version".into(), map.get("version").map_or(Value::Null, Node::to_json));
        entry.insert("properties".into(), Value::Object(properties));
        done.insert(name.to_owned(), Value::Object(entry));
    }
    check_finished(&done, section, version)?;
    complete_defaults(&mut done);
    Ok(done)
}

/// Defaults can be checked once every data type is known.
fn check_finished(done: &Object, section: &Map, version: Option<DslVersion>) -> Compiled<()> {
    let types = Types { version, data_types: done, names: &|name| done.contains_key(name) };
    for (key, node) in section.iter() {
        check_ring(done, &key.name, &key.at)?;
        let Some(properties) = node.as_map().and_then(|map| map.given("properties")) else {
            continue;
        };
        let mut own = types.schemas(properties, Kind::Property)?;
        types.check_defaults(&mut own, properties, Kind::Property)?;
    }
    Ok(())
}

/// Shows fields that are data types with the defaults of their types.
fn complete_defaults(data_types: &mut Object) {
    let known = data_types.clone();
    for entry in data_types.values_mut() {
        let Some(Value::Object(schemas)) = entry.get_mut("properties") else {
            continue;
        };
        for schema in schemas.values_mut() {
            let of_type = schema.get("type").and_then(Value::as_str).and_then(|name| partial_default(name, &known));
            let (Some(of_type), Some(schema)) = (of_type, schema.as_object_mut()) else {
                continue;
            };
            let complete = match schema.get("default").filter(|value| !value.is_null()) {
                Some(own) => merged(&of_type, own),
                None => of_type,
            };
            schema.insert("default".into(), complete);
        }
    }
}

/// A data type must not hold itself, at any depth.
fn check_ring(done: &Object, start: &str, at: &Position) -> Compiled<()> {
    let mut waiting = vec![start];
    let mut seen: Vec<&str> = Vec::new();
    while let Some(name) = waiting.pop() {
        let fields = done.get(name).and_then(|entry| entry.get("properties")).and_then(Value::as_object);
        for schema in fields.into_iter().flat_map(|fields| fields.values()) {
            let Some(inner) = schema.get("type").and_then(Value::as_str) else {
                continue;
            };
            if inner == start {
                return Err(CompileError::logic(100, at, format!("the data type '{start}' holds itself"))
                    .with_remedy("remove one of the fields that lead back to it"));
            }
            if done.contains_key(inner) && !seen.contains(&inner) {
                seen.push(inner);
                waiting.push(inner);
            }
        }
    }
    Ok(())
}
