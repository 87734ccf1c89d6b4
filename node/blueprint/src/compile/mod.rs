//! From text to plan.

mod groups;
mod nodes;
mod sections;
mod settings;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::errors::{CompileError, Compiled, EvalError, Position};
use crate::functions::{self, KnownNames, Name, Reader};
use crate::imports::{self, Loaded};
use crate::model::interfaces::{self, Mapper};
use crate::model::plugins;
use crate::model::schema::{Kind, Types};
use crate::model::types::{self, DerivedTypes};
use crate::plan::{Object, Plan, PlanVersion, Requirements};
use crate::shape;
use crate::sources::Sources;
use crate::version::DslVersion;
use crate::yaml::{Limits, Map, Node};

const SECTIONS: [&str; 24] = [
    "tosca_definitions_version",
    "description",
    "imports",
    "dsl_definitions",
    "metadata",
    "inputs",
    "plugins",
    "node_types",
    "data_types",
    "relationships",
    "node_templates",
    "workflows",
    "outputs",
    "capabilities",
    "groups",
    "policy_types",
    "policy_triggers",
    "policies",
    "labels",
    "blueprint_labels",
    "resource_tags",
    "deployment_settings",
    "imported_blueprints",
    "namespaces_mapping",
];

/// How a blueprint is compiled.
#[derive(Clone, Copy, Debug)]
pub struct CompileOptions {
    pub limits: Limits,
    /// Refuse constructs that came after the blueprint's `tosca_definitions_version`.
    pub check_versions: bool,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self { limits: Limits::default(), check_versions: true }
    }
}

/// Compiles the blueprint whose main file is `main`. Only the first mistake is reported.
pub fn compile(main: &str, sources: &dyn Sources, options: &CompileOptions) -> Result<Plan, CompileError> {
    let loaded = imports::load(main, sources, &options.limits, options.check_versions).map_err(|error| *error)?;
    Compiler { sources, gate: options.check_versions.then_some(loaded.version), loaded: &loaded }
        .plan()
        .map_err(|error| *error)
}

struct Compiler<'a> {
    sources: &'a dyn Sources,
    gate: Option<DslVersion>,
    loaded: &'a Loaded,
}

impl<'a> Compiler<'a> {
    fn section(&self, name: &str) -> Option<&'a Node> {
        self.loaded.root.given(name)
    }

    fn gated(&self, name: &str, since: DslVersion) -> Compiled<()> {
        match (self.section(name), self.gate) {
            (Some(node), Some(version)) if version < since => Err(shape::too_old(name, version, since, &node.at)),
            _ => Ok(()),
        }
    }

    fn plan(&self) -> Compiled<Plan> {
        shape::check_known(&self.loaded.root, &SECTIONS)?;
        self.gated("dsl_definitions", DslVersion::V1_2)?;
        self.gated("description", DslVersion::V1_2)?;
        self.gated("data_types", DslVersion::V1_2)?;
        self.gated("policies", DslVersion::V1_3)?;
        self.gated("resource_tags", DslVersion::V1_3)?;
        let description = match self.section("description") {
            Some(node) => Some(shape::text(node)?.to_owned()),
            None => None,
        };
        let metadata = match self.section("metadata") {
            Some(node) => Some(shape::map(node)?.to_json()),
            None => None,
        };
        let data_types = match self.section("data_types") {
            Some(node) => types::data_types(node, self.gate)?,
            None => Object::new(),
        };
        let types = Types { version: self.gate, data_types: &data_types, names: &|name| data_types.contains_key(name) };
        let mut inputs = Object::new();
        if let Some(node) = self.section("inputs") {
            inputs = types.schemas(node, Kind::Input)?;
            types.check_defaults(&mut inputs, node, Kind::Input)?;
        }
        let plugins = match self.section("plugins") {
            Some(node) => plugins::read(node, &types)?,
            None => Vec::new(),
        };
        let mapper = Mapper { plugins: &plugins, sources: self.sources, blueprints: &self.loaded.namespaces_mapping };
        let node_types = match self.section("node_types") {
            Some(node) => types::derived_types(
                node,
                "node types",
                &["interfaces"],
                &["derived_from", "properties", "runtime_properties", "interfaces"],
                &types,
            )?,
            None => DerivedTypes::new(),
        };
        let relationship_types = match self.section("relationships") {
            Some(node) => types::derived_types(
                node,
                "relationship types",
                &["source_interfaces", "target_interfaces"],
                &["derived_from", "properties", "source_interfaces", "target_interfaces"],
                &types,
            )?,
            None => DerivedTypes::new(),
        };
        let relationships = self.relationship_types(&relationship_types, &mapper)?;
        let (workflows, workflow_plugins_to_install) = self.workflows(&mapper, &types)?;
        let policy_types = self.policy_types(&types)?;
        let policy_triggers = self.policy_triggers(&types)?;
        let nodes = nodes::Nodes {
            gate: self.gate,
            types: &types,
            node_types: &node_types,
            relationship_types: &relationship_types,
            mapper: &mapper,
            section: self.section("node_templates"),
        }
        .compile()?;
        let (groups, policies, scaling_groups) = self.groups(&nodes.nodes, &types, &policy_types, &policy_triggers)?;
        let mut plan = Plan {
            description,
            metadata,
            version: PlanVersion {
                raw: self.loaded.version.to_string(),
                definitions_name: "cloudify_dsl".to_owned(),
                definitions_version: (1, self.loaded.version.minor()),
            },
            inputs,
            outputs: self.values("outputs")?,
            capabilities: self.values("capabilities")?,
            labels: self.labels("labels")?,
            blueprint_labels: self.labels("blueprint_labels")?,
            resource_tags: match self.section("resource_tags") {
                Some(node) => shape::map(node)?.to_json(),
                None => Object::new(),
            },
            deployment_settings: self.settings()?,
            data_types: Object::new(),
            relationships,
            workflows,
            policies,
            policy_types,
            policy_triggers,
            groups,
            scaling_groups,
            nodes: nodes.nodes,
            deployment_plugins_to_install: nodes.deployment_plugins,
            workflow_plugins_to_install,
            host_agent_plugins_to_install: nodes.host_plugins,
            imported_blueprints: self.loaded.imported_blueprints.clone(),
            namespaces_mapping: self.loaded.namespaces_mapping.clone(),
            requirements: Requirements::default(),
        };
        plan.data_types = data_types;
        self.check_functions(&plan)?;
        plan.requirements = requirements(&plan);
        Ok(plan)
    }

    fn relationship_types(&self, derived: &DerivedTypes, mapper: &Mapper<'_>) -> Compiled<Object> {
        let mut shown = Object::new();
        for (name, one) in derived {
            for interfaces in &one.interfaces {
                mapper.operations(interfaces, 19, name)?;
            }
            let mut entry = Object::new();
            entry.insert("name".into(), name.clone().into());
            if let Some(parent) = &one.derived_from {
                entry.insert("derived_from".into(), parent.clone().into());
            }
            entry.insert("properties".into(), Value::Object(one.properties.clone()));
            for (key, interfaces) in ["source_interfaces", "target_interfaces"].into_iter().zip(&one.interfaces) {
                entry.insert(key.into(), Value::Object(interfaces::to_json(interfaces)));
            }
            entry.insert("type_hierarchy".into(), one.hierarchy.clone().into());
            shown.insert(name.clone(), Value::Object(entry));
        }
        Ok(shown)
    }

    /// Checks every function against what it refers to.
    fn check_functions(&self, plan: &Plan) -> Compiled<()> {
        let properties: BTreeMap<&str, &Object> =
            plan.nodes.iter().map(|node| (node.name.as_str(), &node.properties)).collect();
        let known =
            KnownNames { inputs: &plan.inputs, properties: &|name| properties.get(name).copied(), version: self.gate };
        for scanned in plan.scanned() {
            let reader = match (scanned.node, scanned.target) {
                (Some(node), None) => Reader::Node(&node.name),
                (Some(node), Some(target)) => Reader::Relationship { source: &node.name, target },
                (None, _) => Reader::Blueprint,
            };
            functions::check(scanned.value, &scanned.path, reader, &known).map_err(|error| {
                let at = self.place_of(&scanned.path, scanned.node.map(|node| node.name.as_str()));
                function_error(&error, at)
            })?;
        }
        Ok(())
    }

    /// Where the value of a scanned path was written, as near as the tree of the blueprint tells.
    fn place_of(&self, path: &str, node: Option<&str>) -> &'a Position {
        let (section, rest) = path.split_once('.').unwrap_or((path, ""));
        let section = if section == "nodes" { "node_templates" } else { section };
        let Some(found) = self.section(section) else {
            return &self.loaded.at;
        };
        let (mut here, mut rest) = match node {
            Some(name) => match found.as_map().and_then(|map| map.get(name)) {
                Some(template) => (template, rest.strip_prefix(name).unwrap_or_default().trim_start_matches('.')),
                None => (found, ""),
            },
            None => (found, rest),
        };
        // Names may hold dots, so each step tries the longest key that fits.
        while let Some(map) = here.as_map() {
            let Some((next, left)) = longest_key(map, rest) else {
                break;
            };
            here = next;
            rest = left;
        }
        &here.at
    }
}

fn longest_key<'n, 'p>(map: &'n Map, path: &'p str) -> Option<(&'n Node, &'p str)> {
    map.iter()
        .filter_map(|(key, node)| {
            let left = path.strip_prefix(key.name.as_str())?;
            (left.is_empty() || left.starts_with(['.', '['])).then(|| (node, left.trim_start_matches('.')))
        })
        .min_by_key(|(_, left)| left.len())
}

fn function_error(error: &EvalError, at: &Position) -> Box<CompileError> {
    CompileError::new(error.class, None, Some(at), error.message.clone())
}

fn requirements(plan: &Plan) -> Requirements {
    let mut found = Requirements::default();
    let visited: Result<(), EvalError> = plan.visit_functions(&mut |one| {
        let arguments = one.function.arguments.clone();
        match one.function.name {
            Name::GetSecret => found.secrets.push(arguments),
            Name::GetEnvironmentCapability => found.parent_capabilities.push(match arguments {
                Value::Array(_) => arguments,
                one => Value::Array(vec![one]),
            }),
            _ => {}
        }
        Ok(())
    });
    // The closure has no error to give.
    debug_assert!(visited.is_ok());
    found
}
