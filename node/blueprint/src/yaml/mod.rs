//! YAML with positions, in the dialect blueprints are written in (YAML 1.1 scalars, merge keys).

mod read;
mod scalar;

use std::collections::HashMap;

use serde_json::{Number, Value};

use crate::errors::Position;

pub(crate) use read::read;
pub(crate) use scalar::number_of_float;

/// What one compilation may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: usize,
    /// Mappings and lists inside each other.
    pub depth: usize,
    /// YAML values of all files together, aliases counted as often as they are used.
    pub values: usize,
    /// Files, imports included.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 16 << 20, depth: 100, values: 2_000_000, files: 500 }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub at: Position,
    pub yaml: Yaml,
}

#[derive(Clone, Debug)]
pub(crate) enum Yaml {
    Null,
    Bool(bool),
    Int(Number),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Map),
}

/// A mapping key. Anything hashable may be a key; only text may be one in a blueprint.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub at: Position,
    pub name: String,
    /// The kind of a key that is not text.
    pub odd: Option<&'static str>,
}

/// A mapping in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    entries: Vec<(Key, Node)>,
    index: HashMap<String, usize>,
}

impl Map {
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.index.get(name).map(|&i| &self.entries[i].1)
    }

    /// The value of `name`, a null counted as absent.
    pub fn given(&self, name: &str) -> Option<&Node> {
        self.get(name).filter(|node| !node.is_null())
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.index.get(name).map(|&i| &mut self.entries[i].1)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Sets a value; an existing key keeps its place.
    pub fn insert(&mut self, key: Key, node: Node) {
        match self.index.get(&key.name) {
            Some(&i) => self.entries[i].1 = node,
            None => {
                self.index.insert(key.name.clone(), self.entries.len());
                self.entries.push((key, node));
            }
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<Node> {
        let i = self.index.remove(name)?;
        let (_, node) = self.entries.remove(i);
        for place in self.index.values_mut() {
            if *place > i {
                *place -= 1;
            }
        }
        Some(node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Node)> {
        self.entries.iter().map(|(key, node)| (key, node))
    }

    pub fn into_entries(self) -> Vec<(Key, Node)> {
        self.entries
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.name.as_str())
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn first(&self) -> Option<(&Key, &Node)> {
        self.iter().next()
    }

    pub fn to_json(&self) -> serde_json::Map<String, Value> {
        self.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect()
    }
}

impl Node {
    pub fn is_null(&self) -> bool {
        matches!(self.yaml, Yaml::Null)
    }

    pub fn as_text(&self) -> Option<&str> {
        match &self.yaml {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&Map> {
        match &self.yaml {
            Yaml::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.yaml {
            Yaml::List(list) => Some(list),
            _ => None,
        }
    }

    /// The word messages use for the kind of this value.
    pub fn kind(&self) -> &'static str {
        match &self.yaml {
            Yaml::Null => "null",
            Yaml::Bool(_) => "boolean",
            Yaml::Int(_) => "integer",
            Yaml::Float(_) => "float",
            Yaml::Text(_) => "string",
            Yaml::List(_) => "list",
            Yaml::Map(_) => "dict",
        }
    }

    pub fn to_json(&self) -> Value {
        match &self.yaml {
            Yaml::Null => Value::Null,
            Yaml::Bool(value) => Value::Bool(*value),
            Yaml::Int(value) => Value::Number(value.clone()),
            Yaml::Float(value) => number_of_float(*value),
            Yaml::Text(value) => Value::String(value.clone()),
            Yaml::List(items) => items.iter().map(Node::to_json).collect(),
            Yaml::Map(map) => Value::Object(map.to_json()),
        }
    }
}
