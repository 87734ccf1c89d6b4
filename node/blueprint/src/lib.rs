//! Compiles blueprints to plans and plans to deployments. Pure: reads no file, clock or random source.
//!
//! [`compile`] reads a main file and its imports through [`Sources`] and answers a [`Plan`], which goes to the
//! database as JSON and comes back from it. [`Plan::prepare_deployment`] fills in inputs, evaluates what can be
//! evaluated and lays out node instances. [`evaluate`] does the rest when a deployment runs.

mod basic_types;
mod compile;
mod errors;
mod functions;
mod imports;
mod instances;
mod model;
mod namespaces;
mod plan;
mod plugin_properties;
mod shape;
mod sources;
mod version;
mod yaml;

pub use compile::{CompileOptions, compile};
pub use errors::{CompileError, ErrorClass, EvalError, InstancesError, Position, PrepareError};
pub use functions::{Attributes, InstanceView, Scope, evaluate};
pub use instances::{
    GroupInstance, InstanceRelationship, MAX_CONNECTIONS, MAX_INSTANCES, NodeInstance, create as create_instances,
};
pub use plan::{
    DeploymentPlan, InterDeploymentFunction, NodeCapabilities, Object, Operation, Plan, PlanNode, PlanRelationship,
    PlanVersion, Plugin, PrepareOptions, Requirements, Scalable, ScalingGroup, Secrets, Workflow,
};
pub use sources::{Catalogue, Import, MemorySources, Source, SourceError, Sources, has_scheme, relative_candidates};
pub use version::DslVersion;
pub use yaml::Limits;
