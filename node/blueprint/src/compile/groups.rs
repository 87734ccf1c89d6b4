//! Groups, policies and the scaling groups they make.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Compiler;
use super::nodes::unscaled;
use crate::errors::{CompileError, Compiled, Position};
use crate::functions::{is_function, python_text};
use crate::instances::CONTAINED_IN;
use crate::model::property_value;
use crate::model::schema::Types;
use crate::plan::{Object, PlanNode, ScalingGroup};
use crate::shape;
use crate::yaml::{Map, Node};

const SCALING: &str = "cloudify.policies.scaling";

type Groups = (Object, Object, BTreeMap<String, ScalingGroup>);

/// Reads `min_instances`, `max_instances`, `default_instances`.
pub(super) fn scaling_properties(given: Option<&Node>) -> Compiled<Object> {
    let mut properties = unscaled();
    let Some(node) = given else {
        return Ok(properties);
    };
    let map = shape::fields(node, &["min_instances", "max_instances", "default_instances"])?;
    let minimum = count(map, "min_instances", 0, 0, &mut properties)?;
    let maximum = count(map, "max_instances", 1, -1, &mut properties)?;
    let default = count(map, "default_instances", 0, 1, &mut properties)?;
    let value = properties.get("default_instances").cloned().unwrap_or(json!(1));
    properties.insert("current_instances".into(), value.clone());
    properties.insert("planned_instances".into(), value);
    let wrong = |message: String| {
        Err(CompileError::logic(207, &node.at, message)
            .with_remedy("min_instances <= default_instances <= max_instances"))
    };
    if let (Some(minimum), Some(maximum)) = (minimum, maximum)
        && maximum != -1
        && minimum > maximum
    {
        return wrong(format!("min_instances {minimum} is above max_instances {maximum}"));
    }
    if let (Some(minimum), Some(default)) = (minimum, default)
        && default < minimum
    {
        return wrong(format!("default_instances {default} is below min_instances {minimum}"));
    }
    if let (Some(maximum), Some(default)) = (maximum, default)
        && maximum != -1
        && default > maximum
    {
        return wrong(format!("default_instances {default} is above max_instances {maximum}"));
    }
    Ok(properties)
}

/// One count; `None` for a function.
fn count(map: &Map, name: &str, least: i64, default: i64, properties: &mut Object) -> Compiled<Option<i64>> {
    let Some(node) = map.given(name) else {
        return Ok(Some(default));
    };
    let value = node.to_json();
    if is_function(&value) {
        properties.insert(name.into(), value);
        return Ok(None);
    }
    if value.is_object() {
        return Err(CompileError::logic(210, &node.at, format!("{name} is a mapping but not a function")));
    }
    let unlimited = name == "max_instances";
    if let Some(text) = value.as_str() {
        if unlimited && text == "UNBOUNDED" {
            properties.insert(name.into(), json!(-1));
            return Ok(Some(-1));
        }
        if unlimited {
            return Err(CompileError::logic(208, &node.at, format!("Illegal value for max_instances: {text}"))
                .with_remedy("write a number or UNBOUNDED"));
        }
    }
    let number = shape::integer(node)?;
    if number < least && !(unlimited && number == -1) {
        return Err(CompileError::logic(207, &node.at, format!("{name} is {number}; it must be at least {least}")));
    }
    properties.insert(name.into(), json!(number));
    Ok(Some(number))
}

impl Compiler<'_> {
    pub(super) fn groups(
        &self,
        nodes: &[PlanNode],
        types: &Types<'_>,
        policy_types: &Object,
        triggers: &Object,
    ) -> Compiled<Groups> {
        let mut groups = Object::new();
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let empty = Map::default();
        let section = match self.section("groups") {
            Some(node) => shape::map(node)?,
            None => &empty,
        };
        for (key, node) in section.iter() {
            let map = shape::fields(node, &["members", "policies"])?;
            if nodes.iter().any(|node| node.name == key.name) {
                return Err(CompileError::logic(
                    211,
                    &key.at,
                    format!("the group '{}' has the name of a node", key.name),
                )
                .with_remedy("rename the group"));
            }
            let list = shape::required(map, "members", &node.at)?;
            let items = shape::list(list)?;
            if items.is_empty() {
                return Err(CompileError::shape(&list.at, "at least one member should be specified"));
            }
            let mut names = BTreeSet::new();
            for item in items {
                let name = shape::text(item)?;
                if !nodes.iter().any(|node| node.name == name) && !section.contains(name) {
                    return Err(CompileError::logic(
                        40,
                        &item.at,
                        format!("member '{name}' of group '{}' does not match any defined node or group", key.name),
                    ));
                }
                names.insert(name.to_owned());
            }
            let policies = match map.given("policies") {
                Some(node) => group_policies(node, types, policy_types, triggers)?,
                None => Object::new(),
            };
            let names: Vec<String> = names.into_iter().collect();
            groups.insert(key.name.clone(), json!({"members": names, "policies": policies}));
            members.insert(key.name.clone(), names);
        }
        let (policies, scaled) = self.policies(section)?;
        let scaling_groups = scaling_groups(&members, scaled, nodes, section)?;
        Ok((groups, policies, scaling_groups))
    }

    /// The `policies` section, and the properties of each group it scales.
    fn policies(&self, groups: &Map) -> Compiled<(Object, BTreeMap<String, Object>)> {
        let mut policies = Object::new();
        let mut scaled = BTreeMap::new();
        let Some(section) = self.section("policies") else {
            return Ok((policies, scaled));
        };
        for (key, node) in shape::map(section)?.iter() {
            let map = shape::fields(node, &["type", "targets", "properties"])?;
            let type_node = shape::required(map, "type", &node.at)?;
            let type_name = shape::text(type_node)?;
            if type_name != SCALING {
                return Err(CompileError::logic(
                    204,
                    &type_node.at,
                    format!("'{type_name}' policy type is not implemented"),
                )
                .with_remedy(format!("only {SCALING} is")));
            }
            let list = shape::required(map, "targets", &node.at)?;
            let items = shape::list(list)?;
            if items.is_empty() {
                return Err(CompileError::logic(206, &list.at, "at least one target should be specified"));
            }
            let properties = scaling_properties(map.given("properties"))?;
            let mut targets = Vec::new();
            for item in items {
                let name = shape::text(item)?;
                if !groups.contains(name) {
                    return Err(CompileError::logic(
                        205,
                        &item.at,
                        format!("the target '{name}' of the policy '{}' is not a group", key.name),
                    ));
                }
                scaled.insert(name.to_owned(), properties.clone());
                targets.push(name.to_owned());
            }
            policies.insert(key.name.clone(), json!({"type": type_name, "targets": targets, "properties": properties}));
        }
        Ok((policies, scaled))
    }
}

fn group_policies(node: &Node, types: &Types<'_>, policy_types: &Object, triggers: &Object) -> Compiled<Object> {
    let mut policies = Object::new();
    for (key, node) in shape::map(node)?.iter() {
        let map = shape::fields(node, &["type", "properties", "triggers"])?;
        let (type_name, properties) = typed(map, node, "properties", policy_types, "properties", 41, types, &key.name)?;
        let mut found = Object::new();
        if let Some(node) = map.given("triggers") {
            for (key, node) in shape::map(node)?.iter() {
                let map = shape::fields(node, &["type", "parameters"])?;
                let (type_name, parameters) =
                    typed(map, node, "parameters", triggers, "parameters", 42, types, &key.name)?;
                found.insert(key.name.clone(), json!({"type": type_name, "parameters": parameters}));
            }
        }
        policies.insert(key.name.clone(), json!({"type": type_name, "properties": properties, "triggers": found}));
    }
    Ok(policies)
}

#[allow(clippy::too_many_arguments)]
fn typed(
    map: &Map,
    node: &Node,
    values: &str,
    known: &Object,
    schemas: &str,
    unknown: i16,
    types: &Types<'_>,
    owner: &str,
) -> Compiled<(String, Object)> {
    let type_node = shape::required(map, "type", &node.at)?;
    let type_name = shape::text(type_node)?;
    let Some(found) = known.get(type_name) else {
        return Err(CompileError::logic(
            unknown,
            &type_node.at,
            format!("'{owner}' has the undefined type '{type_name}'"),
        ));
    };
    let empty = Map::default();
    let given = match map.given(values) {
        Some(node) => shape::map(node)?,
        None => &empty,
    };
    let none = Object::new();
    let schemas = found.get(schemas).and_then(Value::as_object).unwrap_or(&none);
    for (key, _) in given.iter() {
        if !schemas.contains_key(&key.name) {
            return Err(CompileError::logic(
                106,
                &key.at,
                format!("'{}' of '{owner}' is not part of '{type_name}'", key.name),
            ));
        }
    }
    let mut filled = Object::new();
    for (name, schema) in schemas {
        let written = given.get(name).map(Node::to_json);
        let value = property_value(schema, written.as_ref(), types.data_types, false).map_err(|misfit| {
            let value = written.as_ref().map(python_text).unwrap_or_default();
            CompileError::logic(misfit.code, &node.at, format!("'{owner}': '{name}' {value}: {}", misfit.message))
        })?;
        if let Some(value) = value {
            filled.insert(name.clone(), value);
        }
    }
    Ok((type_name.to_owned(), filled))
}

fn scaling_groups(
    members: &BTreeMap<String, Vec<String>>,
    scaled: BTreeMap<String, Object>,
    nodes: &[PlanNode],
    section: &Map,
) -> Compiled<BTreeMap<String, ScalingGroup>> {
    let at = |name: &str| -> &Position {
        // Scaled groups come from this section.
        section.get(name).map_or_else(|| &section.first().expect("a scaled group exists").1.at, |node| &node.at)
    };
    let containers: BTreeMap<&str, &str> = nodes
        .iter()
        .filter_map(|node| {
            let inside = node.relationships.iter().find(|one| one.is_a(CONTAINED_IN))?;
            Some((node.name.as_str(), inside.target_id.as_str()))
        })
        .collect();
    let mut owner: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (name, properties) in &scaled {
        let all = &members[name];
        // What stands inside another member is scaled with it.
        let kept: Vec<String> = all
            .iter()
            .filter(|member| {
                let mut here = containers.get(member.as_str());
                while let Some(container) = here {
                    if all.iter().any(|other| other == container) {
                        return false;
                    }
                    here = containers.get(container);
                }
                true
            })
            .cloned()
            .collect();
        found.insert(name.clone(), ScalingGroup { members: kept, properties: properties.clone() });
    }
    for (name, group) in &found {
        for member in &group.members {
            if let Some(other) = owner.insert(member, name) {
                return Err(CompileError::logic(
                    201,
                    at(name),
                    format!("'{member}' is a member of the scaling groups '{other}' and '{name}'"),
                )
                .with_remedy("a member belongs to one scaling group"));
            }
        }
    }
    for name in found.keys() {
        let mut here = owner.get(name.as_str());
        let mut steps = 0;
        while let Some(outer) = here {
            steps += 1;
            if *outer == name || steps > found.len() {
                return Err(CompileError::logic(
                    200,
                    at(name),
                    format!("the scaling group '{name}' is a member of itself"),
                )
                .with_remedy("remove one of the memberships"));
            }
            here = owner.get(outer);
        }
    }
    for (name, group) in &found {
        let mut places = BTreeSet::new();
        for member in &group.members {
            places.insert(container(member, members, &containers));
        }
        if places.len() > 1 {
            return Err(CompileError::logic(
                202,
                at(name),
                format!("the members of the scaling group '{name}' do not stand in the same container"),
            )
            .with_remedy("contain all of them in one node, or none"));
        }
    }
    Ok(found)
}

/// The node a member stands in; a group stands where its first member does.
fn container<'a>(
    member: &'a str,
    members: &'a BTreeMap<String, Vec<String>>,
    containers: &BTreeMap<&'a str, &'a str>,
) -> Option<&'a str> {
    let mut here = member;
    // Groups that are not scaled may be members of each other in a circle.
    for _ in 0..=members.len() {
        match members.get(here).and_then(|inner| inner.first()) {
            Some(first) => here = first,
            None => return containers.get(here).copied(),
        }
    }
    None
}
