//! `node_templates`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use crate::errors::{CompileError, Compiled, Position};
use crate::functions::is_function;
use crate::instances::CONTAINED_IN;
use crate::model::interfaces::{self, Mapper, TypeInterfaces};
use crate::model::plugins::{CENTRAL, HOST};
use crate::model::schema::Types;
use crate::model::types::{DerivedType, DerivedTypes};
use crate::model::{Misfit, property_value};
use crate::plan::{NodeCapabilities, Object, Operation, PlanNode, PlanRelationship, Plugin, Scalable};
use crate::shape;
use crate::version::DslVersion;
use crate::yaml::{Map, Node};

const LIFECYCLE: &str = "cloudify.interfaces.lifecycle";
const DEPENDS_ON_OPERATION: &str = "cloudify.relationships.depends_on_lifecycle_operation";
const COMPUTE: &str = "cloudify.nodes.Compute";

pub(super) struct Nodes<'a> {
    pub gate: Option<DslVersion>,
    pub types: &'a Types<'a>,
    pub node_types: &'a DerivedTypes,
    pub relationship_types: &'a DerivedTypes,
    pub mapper: &'a Mapper<'a>,
    pub section: Option<&'a Node>,
}

pub(super) struct CompiledNodes {
    pub nodes: Vec<PlanNode>,
    pub deployment_plugins: Vec<Plugin>,
    pub host_plugins: Vec<Plugin>,
}

impl Nodes<'_> {
    pub fn compile(&self) -> Compiled<CompiledNodes> {
        let mut nodes = Vec::new();
        let empty = Map::default();
        let section = match self.section {
            Some(node) => shape::map(node)?,
            None => &empty,
        };
        for (key, node) in section.iter() {
            nodes.push(self.node(&key.name, node, section)?);
        }
        check_rings(&nodes, section)?;
        set_hosts(&mut nodes);
        self.set_plugins(nodes, section)
    }

    fn node(&self, name: &str, node: &Node, section: &Map) -> Compiled<PlanNode> {
        if node.is_null() {
            return Err(CompileError::shape(&node.at, format!("the node template '{name}' has no type"))
                .with_remedy("add 'type'"));
        }
        let map =
            shape::fields(node, &["type", "instances", "capabilities", "interfaces", "relationships", "properties"])?;
        let type_node = shape::required(map, "type", &node.at)?;
        let type_name = shape::text(type_node)?;
        let node_type = self.node_types.get(type_name).ok_or_else(|| {
            CompileError::logic(7, &type_node.at, format!("Could not locate node type: '{type_name}'"))
                .with_remedy("define it under node_types or import the file that does")
        })?;
        let properties = self.properties(name, "node", map, node, &node_type.properties)?;
        let own = match map.given("interfaces") {
            Some(node) => interfaces::read_template(node, self.types)?,
            None => TypeInterfaces::new(),
        };
        let typed = node_type.interfaces.first().cloned().unwrap_or_default();
        let merged = interfaces::instantiate(&typed, own, name, self.types)?;
        let operations = self.mapper.operations(&merged, 10, name)?;
        let (instances, scalable) = self.scalable(name, map)?;
        let mut relationships = Vec::new();
        if let Some(list) = map.given("relationships") {
            for item in shape::list(list)? {
                relationships.push(self.relationship(name, item, section)?);
            }
        }
        let contained =
            relationships.iter().filter(|relationship: &&PlanRelationship| relationship.is_a(CONTAINED_IN)).count();
        if contained > 1 {
            return Err(CompileError::logic(
                112,
                &node.at,
                format!("Node '{name}' has more than one relationship that is derived from '{CONTAINED_IN}'"),
            )
            .with_remedy("a node stands in one container"));
        }
        Ok(PlanNode {
            name: name.to_owned(),
            id: name.to_owned(),
            type_name: type_name.to_owned(),
            type_hierarchy: node_type.hierarchy.clone(),
            properties,
            relationships,
            interfaces: interfaces::to_json(&merged),
            operations,
            instances,
            capabilities: NodeCapabilities { scalable: Scalable { properties: scalable } },
            host_id: None,
            plugins: Vec::new(),
            deployment_plugins_to_install: Vec::new(),
            plugins_to_install: None,
        })
    }

    fn properties(&self, owner: &str, what: &str, map: &Map, node: &Node, schemas: &Object) -> Compiled<Object> {
        let empty = Map::default();
        let given = match map.given("properties") {
            Some(node) => shape::map(node)?,
            None => &empty,
        };
        let at = map.given("properties").map_or(&node.at, |node| &node.at);
        for (key, _) in given.iter() {
            if !schemas.contains_key(&key.name) {
                return Err(CompileError::logic(
                    106,
                    &key.at,
                    format!(
                        "'{owner}' {what} '{}' property is not part of the derived type properties schema",
                        key.name
                    ),
                )
                .with_remedy("remove it or declare it in the type"));
            }
        }
        let mut tolerant = false;
        if schemas.contains_key("use_external_resource") {
            let written = given.get("use_external_resource").map(|node| (node.to_json(), &node.at));
            let (value, at) = match written {
                Some(found) => found,
                None => {
                    let default = schemas["use_external_resource"].get("default");
                    (default.cloned().unwrap_or(Value::Null), at)
                }
            };
            if is_function(&value) {
                return Err(CompileError::logic(
                    219,
                    at,
                    format!("'use_external_resource' of '{owner}' cannot be a function"),
                )
                .with_remedy("write true or false"));
            }
            tolerant = truthy(&value);
        }
        let mut properties = Object::new();
        for (name, schema) in schemas {
            let written = given.get(name);
            let at = written.map_or(at, |node| &node.at);
            let value = property_value(schema, written.map(Node::to_json).as_ref(), self.types.data_types, tolerant)
                .map_err(|misfit| misfit_error(owner, what, name, misfit, at))?;
            if let Some(value) = value {
                properties.insert(name.clone(), value);
            }
        }
        Ok(properties)
    }

    fn scalable(&self, name: &str, map: &Map) -> Compiled<(Object, Object)> {
        let mut instances = Object::new();
        if let Some(node) = map.given("instances") {
            let map = shape::fields(node, &["deploy"])?;
            let deploy = shape::required(map, "deploy", &node.at)?;
            let count = shape::integer(deploy)?;
            if count < 0 {
                return Err(CompileError::shape(&deploy.at, "deploy instances must be a non negative number"));
            }
            instances.insert("deploy".into(), deploy.to_json());
        }
        let mut given = None;
        if let Some(node) = map.given("capabilities") {
            let map = shape::fields(node, &["scalable"])?;
            if let Some(scalable) = map.given("scalable") {
                if let Some(version) = self.gate.filter(|version| *version < DslVersion::V1_3) {
                    return Err(shape::too_old("capabilities", version, DslVersion::V1_3, &node.at));
                }
                if map_has_instances(&instances) {
                    return Err(CompileError::logic(
                        209,
                        &scalable.at,
                        format!("Node '{name}' has both instances.deploy and capabilities.scalable"),
                    )
                    .with_remedy("keep capabilities.scalable"));
                }
                given = shape::fields(scalable, &["properties"])?.given("properties");
            }
        }
        let mut properties = super::groups::scaling_properties(given)?;
        if let Some(deploy) = instances.get("deploy") {
            for key in ["default_instances", "current_instances", "planned_instances"] {
                properties.insert(key.into(), deploy.clone());
            }
        }
        Ok((instances, properties))
    }

    fn relationship(&self, source: &str, node: &Node, section: &Map) -> Compiled<PlanRelationship> {
        let map = shape::fields(node, &["type", "target", "properties", "source_interfaces", "target_interfaces"])?;
        let type_node = shape::required(map, "type", &node.at)?;
        let type_name = shape::text(type_node)?;
        let target_node = shape::required(map, "target", &node.at)?;
        let target = shape::text(target_node)?;
        let relationship_type = self.relationship_types.get(type_name).ok_or_else(|| {
            CompileError::logic(
                26,
                &type_node.at,
                format!("A relationship instance under node '{source}' declares an undefined relationship type '{type_name}'"),
            )
            .with_remedy("define it under relationships or import the file that does")
        })?;
        let Some(target_template) = section.get(target) else {
            return Err(CompileError::logic(
                25,
                &target_node.at,
                format!("A relationship instance under node '{source}' of type '{type_name}' declares an undefined target node '{target}'"),
            )
            .with_remedy("name a node of node_templates"));
        };
        if target == source {
            return Err(CompileError::logic(
                23,
                &target_node.at,
                format!(
                    "A relationship instance under node '{source}' of type '{type_name}' illegally declares the source node as the target node"
                ),
            ));
        }
        let properties = self.properties(source, "relationship", map, node, &relationship_type.properties)?;
        if type_name == DEPENDS_ON_OPERATION
            || relationship_type.hierarchy.iter().any(|name| name == DEPENDS_ON_OPERATION)
        {
            lifecycle_operation(&properties, target, target_template, &node.at)?;
        }
        let owner = format!("{source} -> {target}");
        let (source_interfaces, source_operations) =
            self.relationship_interfaces(relationship_type, 0, "source_interfaces", map, &owner)?;
        let (target_interfaces, target_operations) =
            self.relationship_interfaces(relationship_type, 1, "target_interfaces", map, &owner)?;
        Ok(PlanRelationship {
            type_name: type_name.to_owned(),
            target_id: target.to_owned(),
            type_hierarchy: relationship_type.hierarchy.clone(),
            properties,
            source_interfaces,
            target_interfaces,
            source_operations,
            target_operations,
        })
    }

    fn relationship_interfaces(
        &self,
        relationship_type: &DerivedType,
        which: usize,
        key: &str,
        map: &Map,
        owner: &str,
    ) -> Compiled<(Object, BTreeMap<String, Operation>)> {
        let own = match map.given(key) {
            Some(node) => interfaces::read_template(node, self.types)?,
            None => TypeInterfaces::new(),
        };
        let typed = relationship_type.interfaces.get(which).cloned().unwrap_or_default();
        let merged = interfaces::instantiate(&typed, own, owner, self.types)?;
        let operations = self.mapper.operations(&merged, 19, owner)?;
        Ok((interfaces::to_json(&merged), operations))
    }

    /// Which plugins each node needs, and which of them its host or the manager installs.
    fn set_plugins(&self, mut nodes: Vec<PlanNode>, section: &Map) -> Compiled<CompiledNodes> {
        let mut used: Vec<Vec<Plugin>> = nodes.iter().map(|node| self.plugins_of(node.operations.values())).collect();
        let places: HashMap<String, usize> = nodes.iter().enumerate().map(|(i, node)| (node.name.clone(), i)).collect();
        for (i, node) in nodes.iter().enumerate() {
            for relationship in &node.relationships {
                extend(&mut used[i], self.plugins_of(relationship.source_operations.values()));
                if let Some(&target) = places.get(&relationship.target_id) {
                    extend(&mut used[target], self.plugins_of(relationship.target_operations.values()));
                }
            }
        }
        let mut deployment_plugins = Vec::new();
        let mut host_plugins = Vec::new();
        let mut on_host: HashMap<String, Vec<Plugin>> = HashMap::new();
        for (node, used) in nodes.iter_mut().zip(used) {
            let central: Vec<Plugin> = of_executor(&used, CENTRAL);
            let on_agent: Vec<Plugin> = of_executor(&used, HOST);
            match &node.host_id {
                Some(host) => extend(on_host.entry(host.clone()).or_default(), on_agent),
                None => {
                    if let Some(plugin) = on_agent.first() {
                        let at = section.get(&node.name).map(|node| &node.at);
                        return Err(CompileError::new(
                            crate::errors::ErrorClass::Logic,
                            Some(24),
                            at,
                            format!(
                                "node '{}' has no relationship which makes it contained within a host and it has an operation of the plugin '{}' with executor host_agent",
                                node.name, plugin.name
                            ),
                        )
                        .with_remedy(format!("set 'executor: {CENTRAL}' or contain the node in a host")));
                    }
                }
            }
            extend(&mut deployment_plugins, central.clone());
            node.deployment_plugins_to_install = central;
            node.plugins = used;
        }
        for node in &mut nodes {
            if is_host(&node.type_hierarchy) {
                let plugins = on_host.remove(&node.name).unwrap_or_default();
                extend(&mut host_plugins, plugins.clone());
                node.plugins_to_install = Some(plugins);
            }
        }
        Ok(CompiledNodes { nodes, deployment_plugins, host_plugins })
    }

    fn plugins_of<'o>(&self, operations: impl Iterator<Item = &'o Operation>) -> Vec<Plugin> {
        let mut found = Vec::new();
        for operation in operations {
            let plugin = self.mapper.plugins.iter().find(|plugin| plugin.name == operation.plugin);
            if let (Some(plugin), Some(executor)) = (plugin, &operation.executor) {
                let mut plugin = plugin.clone();
                plugin.executor.clone_from(executor);
                extend(&mut found, vec![plugin]);
            }
        }
        found
    }
}

fn map_has_instances(instances: &Object) -> bool {
    !instances.is_empty()
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn misfit_error(owner: &str, what: &str, name: &str, misfit: Misfit, at: &Position) -> Box<CompileError> {
    let path: String = misfit.path.iter().map(|step| format!(".{step}")).collect();
    let (message, remedy) = match misfit.code {
        107 => (
            format!(
                "'{owner}' {what} does not provide a value for mandatory '{name}{path}' property which is part of its type schema"
            ),
            "give it a value",
        ),
        106 => (
            format!("'{owner}' {what} '{name}{path}' property is not part of the derived type properties schema"),
            "remove it or declare it in the data type",
        ),
        _ => (
            format!("Property type validation failed in '{owner}': property '{name}{path}' {}", misfit.message),
            "give it a value of that type",
        ),
    };
    CompileError::logic(misfit.code, at, message).with_remedy(remedy)
}

/// The `operation` property must name one the target's template lists itself.
fn lifecycle_operation(properties: &Object, target: &str, template: &Node, at: &Position) -> Compiled<()> {
    let Some(operation) = properties.get("operation").and_then(Value::as_str) else {
        return Err(CompileError::logic(
            215,
            at,
            format!("a relationship of type '{DEPENDS_ON_OPERATION}' needs the property 'operation'"),
        ));
    };
    let bare = operation.strip_prefix(LIFECYCLE).and_then(|rest| rest.strip_prefix('.')).unwrap_or(operation);
    let listed = template
        .as_map()
        .and_then(|map| map.given("interfaces")?.as_map()?.given(LIFECYCLE)?.as_map())
        .is_some_and(|operations| operations.contains(bare));
    if listed {
        return Ok(());
    }
    Err(CompileError::logic(216, at, format!("the node '{target}' has no operation '{operation}' under {LIFECYCLE}"))
        .with_remedy("name an operation the target's template lists"))
}

fn extend(list: &mut Vec<Plugin>, more: Vec<Plugin>) {
    for plugin in more {
        if !list.iter().any(|other| other.name == plugin.name && other.executor == plugin.executor) {
            list.push(plugin);
        }
    }
}

fn of_executor(plugins: &[Plugin], executor: &str) -> Vec<Plugin> {
    plugins.iter().filter(|plugin| plugin.executor == executor).cloned().collect()
}

fn is_host(hierarchy: &[String]) -> bool {
    hierarchy.iter().any(|name| name.contains(COMPUTE))
}

/// Relationships must not lead back to where they start.
fn check_rings(nodes: &[PlanNode], section: &Map) -> Compiled<()> {
    let mut waiting_for: HashMap<&str, HashSet<&str>> = nodes
        .iter()
        .map(|node| {
            let targets = node.relationships.iter();
            (node.name.as_str(), targets.map(|one| one.target_id.as_str()).collect())
        })
        .collect();
    let mut sources: HashMap<&str, Vec<&str>> = HashMap::new();
    for node in nodes {
        for relationship in &node.relationships {
            sources.entry(&relationship.target_id).or_default().push(&node.name);
        }
    }
    let mut free: Vec<&str> =
        waiting_for.iter().filter(|(_, targets)| targets.is_empty()).map(|(name, _)| *name).collect();
    while let Some(name) = free.pop() {
        waiting_for.remove(name);
        for source in sources.get(name).into_iter().flatten() {
            if let Some(targets) = waiting_for.get_mut(source)
                && targets.remove(name)
                && targets.is_empty()
            {
                free.push(source);
            }
        }
    }
    let Some(stuck) = nodes.iter().find(|node| waiting_for.contains_key(node.name.as_str())) else {
        return Ok(());
    };
    let mut names: Vec<&str> = waiting_for.keys().copied().collect();
    names.sort_unstable();
    let at = section.get(&stuck.name).map(|node| &node.at);
    Err(CompileError::new(
        crate::errors::ErrorClass::Logic,
        Some(100),
        at,
        format!("Relationships lead in a circle among or into: {}", names.join(", ")),
    )
    .with_remedy("remove one of the relationships"))
}

/// A host hosts itself and everything contained in it.
fn set_hosts(nodes: &mut [PlanNode]) {
    let facts: HashMap<String, (bool, Option<String>)> = nodes
        .iter()
        .map(|node| {
            let container = node
                .relationships
                .iter()
                .find(|relationship| relationship.is_a(CONTAINED_IN))
                .map(|relationship| relationship.target_id.clone());
            (node.name.clone(), (is_host(&node.type_hierarchy), container))
        })
        .collect();
    let mut known: HashMap<String, Option<String>> = HashMap::new();
    for node in nodes {
        let mut passed = Vec::new();
        let mut here = Some(node.name.clone());
        let mut host = None;
        while let Some(name) = here {
            if let Some(found) = known.get(&name) {
                host.clone_from(found);
                break;
            }
            let Some((is_host, container)) = facts.get(&name) else {
                break;
            };
            if *is_host {
                known.insert(name.clone(), Some(name.clone()));
                host = Some(name);
                break;
            }
            passed.push(name);
            here = container.clone();
        }
        for name in passed {
            known.insert(name, host.clone());
        }
        node.host_id = host;
    }
}

/// `min`, `max`, `default`, `current` and `planned` counts when nothing is said.
pub(super) fn unscaled() -> Object {
    let mut properties = Object::new();
    for (key, value) in [
        ("min_instances", 0),
        ("max_instances", -1),
        ("default_instances", 1),
        ("current_instances", 1),
        ("planned_instances", 1),
    ] {
        properties.insert(key.into(), json!(value));
    }
    properties
}
