//! A deployment with its look-ups made once: every later question is one hash look-up.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::model::BuildError;

/// Nodes and node instances as the REST API shows them.
#[derive(Debug, Clone, Copy)]
pub struct Deployment<'a> {
    /// Deployment id.
    pub id: &'a str,
    /// Objects with `id, type, type_hierarchy, operations, relationships, plugins, properties`.
    pub nodes: &'a [Value],
    /// Objects with `id, node_id, state, host_id, relationships`.
    pub instances: &'a [Value],
}

pub(super) struct NodeView<'a> {
    pub id: &'a str,
    pub value: &'a Value,
    pub plugins: HashMap<&'a str, &'a Value>,
    types: HashSet<&'a str>,
}

impl NodeView<'_> {
    /// The node is of this type or of one derived from it.
    pub fn is_a(&self, kind: &str) -> bool {
        self.types.contains(kind)
    }
}

pub(super) struct InstanceView<'a> {
    pub id: &'a str,
    pub node: usize,
    pub state: &'a str,
    pub host_id: Option<&'a str>,
    /// In blueprint order, one per target instance.
    pub relationships: Vec<RelationshipView<'a>>,
}

#[derive(Clone, Copy)]
pub(super) struct RelationshipView<'a> {
    /// Target instance (index).
    pub target: usize,
    /// The node's relationship object, when the node still declares it.
    pub definition: Option<&'a Value>,
}

pub(super) struct Index<'a> {
    pub nodes: Vec<NodeView<'a>>,
    pub instances: Vec<InstanceView<'a>>,
}

fn text<'a>(value: &'a Value, what: &str, field: &'static str) -> Result<&'a str, BuildError> {
    value.get(field).and_then(Value::as_str).ok_or_else(|| BuildError::Malformed { what: what.to_owned(), field })
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl<'a> Index<'a> {
    pub fn new(deployment: &Deployment<'a>) -> Result<Self, BuildError> {
        let mut nodes = Vec::with_capacity(deployment.nodes.len());
        let mut node_by_id = HashMap::with_capacity(deployment.nodes.len());
        let mut declared: Vec<HashMap<(&str, &str), usize>> = Vec::new();
        for value in deployment.nodes {
            let id = text(value, "a node", "id")?;
            let mut types: HashSet<&str> = list(value, "type_hierarchy").iter().filter_map(Value::as_str).collect();
            types.extend(value.get("type").and_then(Value::as_str));
            let plugins = list(value, "plugins")
                .iter()
                .filter_map(|plugin| Some((plugin.get("name")?.as_str()?, plugin)))
                .collect();
            declared.push(
                list(value, "relationships")
                    .iter()
                    .enumerate()
                    .filter_map(|(i, relationship)| {
                        let target = relationship.get("target_id")?.as_str()?;
                        Some(((target, relationship.get("type")?.as_str()?), i))
                    })
                    .collect(),
            );
            node_by_id.insert(id, nodes.len());
            nodes.push(NodeView { id, value, plugins, types });
        }
        let mut by_id = HashMap::with_capacity(deployment.instances.len());
        for (i, value) in deployment.instances.iter().enumerate() {
            by_id.insert(text(value, "a node instance", "id")?, i);
        }
        let mut instances = Vec::with_capacity(deployment.instances.len());
        for value in deployment.instances {
            let id = text(value, "a node instance", "id")?;
            let node_id = text(value, "a node instance", "node_id")?;
            let node = *node_by_id
                .get(node_id)
                .ok_or_else(|| BuildError::UnknownNode { instance: id.to_owned(), node: node_id.to_owned() })?;
            let relationships = relationships(
                list(value, "relationships"),
                list(nodes[node].value, "relationships"),
                &declared[node],
                &by_id,
            );
            instances.push(InstanceView {
                id,
                node,
                state: value.get("state").and_then(Value::as_str).unwrap_or("uninitialized"),
                host_id: value.get("host_id").and_then(Value::as_str).filter(|id| !id.is_empty()),
                relationships,
            });
        }
        Ok(Self { nodes, instances })
    }

    pub fn node_of(&self, instance: usize) -> &NodeView<'a> {
        &self.nodes[self.instances[instance].node]
    }

    /// Definition of an operation of the instance's node, if it does anything.
    pub fn operation(&self, instance: usize, name: &str) -> Option<&'a Value> {
        let definition = self.node_of(instance).value.get("operations")?.get(name)?;
        super::context::implementation(definition).map(|_| definition)
    }

    /// `chosen` in dependency order: targets of relationships before their sources, otherwise in the given order.
    pub fn in_order(&self, chosen: &[usize]) -> Result<Vec<usize>, BuildError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            Outside,
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::Outside; self.instances.len()];
        for &i in chosen {
            marks[i] = Mark::New;
        }
        let mut order = Vec::with_capacity(chosen.len());
        // Own stack: a chain of 10,000 instances must not overflow the thread's.
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for &root in chosen {
            if marks[root] != Mark::New {
                continue;
            }
            marks[root] = Mark::Open;
            stack.push((root, 0));
            while let Some((at, next)) = stack.last_mut() {
                let at = *at;
                let Some(relationship) = self.instances[at].relationships.get(*next) else {
                    marks[at] = Mark::Done;
                    order.push(at);
                    stack.pop();
                    continue;
                };
                *next += 1;
                let target = relationship.target;
                match marks[target] {
                    Mark::New => {
                        marks[target] = Mark::Open;
                        stack.push((target, 0));
                    }
                    Mark::Open if waits_whole(relationship) => {
                        return Err(BuildError::Cycle(self.instances[target].id.to_owned()));
                    }
                    Mark::Open | Mark::Done | Mark::Outside => {}
                }
            }
        }
        Ok(order)
    }
}

/// The lifecycle operation of the target this relationship waits for, if not for the whole target.
pub(super) fn waits_for_operation<'a>(relationship: &RelationshipView<'a>) -> Option<&'a str> {
    let operation = relationship.definition?.get("properties")?.get("operation")?.as_str()?;
    let hierarchy = list(relationship.definition?, "type_hierarchy");
    let depends = Value::from("cloudify.relationships.depends_on_lifecycle_operation");
    (!operation.is_empty() && hierarchy.contains(&depends)).then_some(operation)
}

fn waits_whole(relationship: &RelationshipView<'_>) -> bool {
    waits_for_operation(relationship).is_none()
}

fn relationships<'a>(
    own: &'a [Value],
    definitions: &'a [Value],
    declared: &HashMap<(&str, &str), usize>,
    by_id: &HashMap<&str, usize>,
) -> Vec<RelationshipView<'a>> {
    // Keyed by target: of several relationships to one instance the last one counts.
    let mut last: HashMap<usize, usize> = HashMap::new();
    let mut found: Vec<Option<(usize, RelationshipView<'a>)>> = Vec::with_capacity(own.len());
    for relationship in own {
        let part = |field: &str| relationship.get(field).and_then(Value::as_str).unwrap_or_default();
        let Some(&target) = by_id.get(part("target_id")) else {
            continue;
        };
        let position = declared.get(&(part("target_name"), part("type"))).copied();
        let view = RelationshipView { target, definition: position.map(|i| &definitions[i]) };
        if let Some(earlier) = last.insert(target, found.len()) {
            found[earlier] = None;
        }
        found.push(Some((position.unwrap_or(usize::MAX), view)));
    }
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_by_key(|(position, _)| *position);
    found.into_iter().map(|(_, view)| view).collect()
}
