//! The plan: what a blueprint compiles to, and what a deployment is made of. Field names are those of the JSON
//! clients and plugins read.

mod prepare;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use prepare::{DeploymentPlan, InterDeploymentFunction, PrepareOptions, Secrets};

pub type Object = Map<String, Value>;

/// A compiled blueprint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: Option<Object>,
    pub version: PlanVersion,
    /// Input schemas by name, as written.
    pub inputs: Object,
    pub outputs: Object,
    pub capabilities: Object,
    pub labels: Object,
    pub blueprint_labels: Object,
    pub resource_tags: Object,
    pub deployment_settings: Object,
    pub data_types: Object,
    /// Relationship types by name.
    pub relationships: Object,
    pub workflows: BTreeMap<String, Workflow>,
    pub policies: Object,
    pub policy_types: Object,
    pub policy_triggers: Object,
    pub groups: Object,
    pub scaling_groups: BTreeMap<String, ScalingGroup>,
    pub nodes: Vec<PlanNode>,
    pub deployment_plugins_to_install: Vec<Plugin>,
    pub workflow_plugins_to_install: Vec<Plugin>,
    pub host_agent_plugins_to_install: Vec<Plugin>,
    pub imported_blueprints: Vec<String>,
    pub namespaces_mapping: Object,
    pub requirements: Requirements,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanVersion {
    pub raw: String,
    pub definitions_name: String,
    pub definitions_version: (u8, u8),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requirements {
    /// Arguments of every `get_secret`.
    pub secrets: Vec<Value>,
    /// Paths of every `get_environment_capability`.
    pub parent_capabilities: Vec<Value>,
}

/// A node template with everything its type gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanNode {
    pub name: String,
    pub id: String,
    #[serde(rename = "type")]
    pub type_name: String,
    /// The type and its ancestors, root first.
    pub type_hierarchy: Vec<String>,
    pub properties: Object,
    pub relationships: Vec<PlanRelationship>,
    pub interfaces: Object,
    pub operations: BTreeMap<String, Operation>,
    pub instances: Object,
    pub capabilities: NodeCapabilities,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    pub plugins: Vec<Plugin>,
    pub deployment_plugins_to_install: Vec<Plugin>,
    /// What the agent of this host installs; hosts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins_to_install: Option<Vec<Plugin>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeCapabilities {
    pub scalable: Scalable,
}

/// `min_`, `max_`, `default_`, `current_` and `planned_instances`; `max_instances` −1 is no limit. Values may be
/// functions until a deployment is prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scalable {
    pub properties: Object,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRelationship {
    #[serde(rename = "type")]
    pub type_name: String,
    pub target_id: String,
    pub type_hierarchy: Vec<String>,
    pub properties: Object,
    pub source_interfaces: Object,
    pub target_interfaces: Object,
    pub source_operations: BTreeMap<String, Operation>,
    pub target_operations: BTreeMap<String, Operation>,
}

/// An operation resolved to a plugin's task. Empty texts and no executor: nothing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub plugin: String,
    pub operation: String,
    /// `central_deployment_agent`, `host_agent` or `auto`.
    pub executor: Option<String>,
    pub inputs: Object,
    pub has_intrinsic_functions: bool,
    pub max_retries: Option<i64>,
    /// Seconds.
    pub retry_interval: Option<Value>,
    /// Seconds.
    pub timeout: Option<Value>,
    pub timeout_recoverable: Option<bool>,
    /// Declared types of inputs that are mappings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs_types: Option<Object>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workflow {
    pub plugin: String,
    pub operation: String,
    /// Parameter schemas by name.
    pub parameters: Object,
    pub is_cascading: Value,
    pub availability_rules: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalingGroup {
    pub members: Vec<String>,
    pub properties: Object,
}

/// A plugin as declared; keys not given are null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    pub name: String,
    pub executor: String,
    pub install: bool,
    pub source: Option<Value>,
    pub install_arguments: Option<Value>,
    pub package_name: Option<Value>,
    pub package_version: Option<Value>,
    pub supported_platform: Option<Value>,
    pub distribution: Option<Value>,
    pub distribution_version: Option<Value>,
    pub distribution_release: Option<Value>,
    pub properties_description: Option<Value>,
    pub properties: Object,
}

impl Plan {
    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl PlanRelationship {
    /// Whether its type is, or derives from, `ancestor`.
    pub fn is_a(&self, ancestor: &str) -> bool {
        self.type_hierarchy.iter().any(|name| name == ancestor)
    }
}
