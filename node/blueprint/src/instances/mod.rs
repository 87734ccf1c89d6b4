//! Lays out the nodes of a plan as instances and connects them.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::errors::InstancesError;
use crate::plan::{Object, Plan, PlanNode, PlanRelationship};

pub(crate) const CONTAINED_IN: &str = "cloudify.relationships.contained_in";
pub(crate) const CONNECTED_TO: &str = "cloudify.relationships.connected_to";
pub(crate) const DEPENDS_ON: &str = "cloudify.relationships.depends_on";

/// Node instances of one deployment.
pub const MAX_INSTANCES: usize = 100_000;
/// Relationship instances of one deployment.
pub const MAX_CONNECTIONS: usize = 1_000_000;
const MAX_ID_TRIES: usize = 100;

/// One instance of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInstance {
    /// Node name, `_`, suffix.
    pub id: String,
    pub name: String,
    pub node_id: String,
    /// Counts from 1 within the node.
    pub index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    pub relationships: Vec<InstanceRelationship>,
    /// Scaling group instances around this one, innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaling_groups: Vec<GroupInstance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRelationship {
    #[serde(rename = "type")]
    pub type_name: String,
    pub target_id: String,
    pub target_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInstance {
    pub name: String,
    pub id: String,
}

/// A node or a scaling group.
struct Entity<'a> {
    name: &'a str,
    node: Option<&'a PlanNode>,
    parent: Option<usize>,
    count: usize,
}

/// One of the instances of an entity.
struct Placed {
    entity: usize,
    parent: Option<usize>,
    id: String,
}

struct Layout<'a> {
    plan: &'a Plan,
    entities: Vec<Entity<'a>>,
    by_name: HashMap<&'a str, usize>,
    placed: Vec<Placed>,
    /// Places of the instances of each entity.
    of: Vec<Vec<usize>>,
}

/// Creates the instances of a plan whose instance counts are numbers (a prepared plan).
///
/// `new_suffix` gives what follows the name in an id; it is asked again when an id is taken.
pub fn create(plan: &Plan, new_suffix: &mut dyn FnMut() -> String) -> Result<Vec<NodeInstance>, InstancesError> {
    let mut layout = Layout::new(plan)?;
    layout.place(new_suffix)?;
    layout.instances()
}

fn count_of(name: &str, properties: &Object) -> Result<usize, InstancesError> {
    let current = properties.get("current_instances");
    current
        .and_then(|value| value.as_u64())
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| *count <= MAX_INSTANCES)
        .ok_or_else(|| InstancesError::Count {
            name: name.to_owned(),
            found: current.map_or("missing".to_owned(), ToString::to_string),
            limit: MAX_INSTANCES,
        })
}

impl<'a> Layout<'a> {
    fn new(plan: &'a Plan) -> Result<Self, InstancesError> {
        let mut entities = Vec::new();
        for node in &plan.nodes {
            entities.push(Entity {
                name: &node.name,
                node: Some(node),
                parent: None,
                count: count_of(&node.name, &node.capabilities.scalable.properties)?,
            });
        }
        for (name, group) in &plan.scaling_groups {
            entities.push(Entity { name, node: None, parent: None, count: count_of(name, &group.properties)? });
        }
        let by_name: HashMap<&str, usize> = entities.iter().enumerate().map(|(i, entity)| (entity.name, i)).collect();
        for entity in &mut entities {
            let container = entity.node.and_then(container_of);
            entity.parent = container.and_then(|name| by_name.get(name).copied());
        }
        // A group stands where its members stood, its members stand in it. Inner groups before outer ones, so that
        // an outer group finds the place of the inner one settled.
        for name in inner_first(plan) {
            let Some(&group) = by_name.get(name) else {
                continue;
            };
            for member in &plan.scaling_groups[name].members {
                if let Some(&member) = by_name.get(member.as_str()) {
                    if entities[group].parent.is_none() {
                        entities[group].parent = entities[member].parent;
                    }
                    entities[member].parent = Some(group);
                }
            }
        }
        let of = entities.iter().map(|_| Vec::new()).collect();
        Ok(Self { plan, entities, by_name, placed: Vec::new(), of })
    }

    fn place(&mut self, new_suffix: &mut dyn FnMut() -> String) -> Result<(), InstancesError> {
        let mut children: Vec<Vec<usize>> = self.entities.iter().map(|_| Vec::new()).collect();
        let mut waiting: Vec<(usize, Option<usize>)> = Vec::new();
        for (i, entity) in self.entities.iter().enumerate() {
            match entity.parent {
                Some(parent) => children[parent].push(i),
                None => waiting.push((i, None)),
            }
        }
        let mut ids: HashSet<String> = HashSet::new();
        while let Some((entity, parent)) = waiting.pop() {
            for _ in 0..self.entities[entity].count {
                if self.placed.len() >= MAX_INSTANCES {
                    return Err(InstancesError::TooMany { limit: MAX_INSTANCES });
                }
                let id = new_id(self.entities[entity].name, &mut ids, new_suffix)?;
                let place = self.placed.len();
                self.placed.push(Placed { entity, parent, id });
                self.of[entity].push(place);
                waiting.extend(children[entity].iter().map(|child| (*child, Some(place))));
            }
        }
        Ok(())
    }

    /// This instance and everything around it, innermost first.
    fn around(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(place), |place| self.placed[*place].parent)
    }

    fn around_of(&self, place: usize, entity: usize) -> Option<usize> {
        self.around(place).find(|place| self.placed[*place].entity == entity)
    }

    /// The smallest scaling group both nodes are in.
    fn shared_group(&self, one: usize, other: usize) -> Option<usize> {
        let groups = |start: usize| {
            std::iter::successors(Some(start), |entity| self.entities[*entity].parent)
                .filter(|entity| self.entities[*entity].node.is_none())
        };
        let others: HashSet<usize> = groups(other).collect();
        groups(one).find(|group| others.contains(group))
    }

    fn instances(&self) -> Result<Vec<NodeInstance>, InstancesError> {
        let mut found = Vec::new();
        let mut connections = 0;
        for (entity, node) in self.plan.nodes.iter().enumerate() {
            let edges = self.edges(entity, node)?;
            for (index, &place) in self.of[entity].iter().enumerate() {
                let host_id = node.host_id.as_deref().and_then(|host| {
                    let host = *self.by_name.get(host)?;
                    let place = self.around_of(place, host)?;
                    Some(self.placed[place].id.clone())
                });
                let mut relationships = Vec::new();
                for edge in &edges {
                    for target in self.targets(place, edge) {
                        connections += 1;
                        if connections > MAX_CONNECTIONS {
                            return Err(InstancesError::TooMany { limit: MAX_CONNECTIONS });
                        }
                        relationships.push(InstanceRelationship {
                            type_name: edge.relationship.type_name.clone(),
                            target_id: self.placed[target].id.clone(),
                            target_name: edge.relationship.target_id.clone(),
                        });
                    }
                }
                let scaling_groups = self
                    .around(place)
                    .skip(1)
                    .take_while(|place| self.entities[self.placed[*place].entity].node.is_none())
                    .map(|place| GroupInstance {
                        name: self.entities[self.placed[place].entity].name.to_owned(),
                        id: self.placed[place].id.clone(),
                    })
                    .collect();
                found.push(NodeInstance {
                    id: self.placed[place].id.clone(),
                    name: node.name.clone(),
                    node_id: node.name.clone(),
                    index: u32::try_from(index + 1).unwrap_or(u32::MAX),
                    host_id,
                    relationships,
                    scaling_groups,
                });
            }
        }
        Ok(found)
    }

    fn edges(&self, source: usize, node: &'a PlanNode) -> Result<Vec<Edge<'a>>, InstancesError> {
        let mut edges = Vec::new();
        for (i, relationship) in node.relationships.iter().enumerate() {
            let Some(&target) = self.by_name.get(relationship.target_id.as_str()) else {
                continue;
            };
            // Of two relationships to the same target the last one counts.
            let later = &node.relationships[i + 1..];
            if later.iter().any(|other| other.target_id == relationship.target_id) {
                continue;
            }
            let kind = if relationship.is_a(CONTAINED_IN) {
                EdgeKind::Inside
            } else if relationship.is_a(CONNECTED_TO) || relationship.is_a(DEPENDS_ON) {
                let group = self.shared_group(source, target);
                let connection = relationship.properties.get("connection_type");
                match (connection.and_then(|value| value.as_str()), group) {
                    (Some("all_to_all"), group) => EdgeKind::All { group },
                    (Some("all_to_one"), None) => EdgeKind::One,
                    (Some("all_to_one"), Some(group)) => {
                        return Err(InstancesError::AllToOneInGroup {
                            node: node.name.clone(),
                            target: relationship.target_id.clone(),
                            group: self.entities[group].name.to_owned(),
                        });
                    }
                    _ => {
                        return Err(InstancesError::ConnectionType {
                            node: node.name.clone(),
                            target: relationship.target_id.clone(),
                            found: connection.map_or("none".to_owned(), ToString::to_string),
                        });
                    }
                }
            } else {
                return Err(InstancesError::Relationship {
                    node: node.name.clone(),
                    type_name: relationship.type_name.clone(),
                });
            };
            edges.push(Edge { relationship, target, kind });
        }
        Ok(edges)
    }

    fn targets(&self, place: usize, edge: &Edge<'_>) -> Vec<usize> {
        let all = &self.of[edge.target];
        match edge.kind {
            EdgeKind::Inside => self.around_of(place, edge.target).into_iter().collect(),
            EdgeKind::All { group: None } => all.clone(),
            EdgeKind::All { group: Some(group) } => {
                let own = self.around_of(place, group);
                all.iter().copied().filter(|target| self.around_of(*target, group) == own).collect()
            }
            EdgeKind::One => all
                .iter()
                .copied()
                .min_by(|one, other| self.placed[*one].id.cmp(&self.placed[*other].id))
                .into_iter()
                .collect(),
        }
    }
}

struct Edge<'a> {
    relationship: &'a PlanRelationship,
    target: usize,
    kind: EdgeKind,
}

enum EdgeKind {
    /// To the instance around the source.
    Inside,
    /// To every instance, or to those in the same instance of the group.
    All { group: Option<usize> },
    /// To the instance with the smallest id.
    One,
}

fn container_of(node: &PlanNode) -> Option<&str> {
    node.relationships
        .iter()
        .find(|relationship| relationship.is_a(CONTAINED_IN))
        .map(|relationship| relationship.target_id.as_str())
}

/// Names of the scaling groups, each after the groups that are its members.
fn inner_first(plan: &Plan) -> Vec<&str> {
    let mut done: Vec<&str> = Vec::new();
    let mut settled: HashSet<&str> = HashSet::new();
    loop {
        let before = done.len();
        for (name, group) in &plan.scaling_groups {
            let ready = group
                .members
                .iter()
                .all(|member| !plan.scaling_groups.contains_key(member) || settled.contains(member.as_str()));
            if ready && settled.insert(name) {
                done.push(name);
            }
        }
        // The compiler refuses groups inside each other, so all are settled in the end.
        if done.len() == before {
            return done;
        }
    }
}

fn new_id(
    name: &str,
    taken: &mut HashSet<String>,
    new_suffix: &mut dyn FnMut() -> String,
) -> Result<String, InstancesError> {
    for _ in 0..MAX_ID_TRIES {
        let id = format!("{name}_{}", new_suffix());
        if taken.insert(id.clone()) {
            return Ok(id);
        }
    }
    Err(InstancesError::NoFreeId { node: name.to_owned(), tries: MAX_ID_TRIES })
}
