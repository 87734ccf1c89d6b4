//! Outputs, capabilities, labels, workflows, policy types and triggers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Compiler;
use crate::errors::{CompileError, Compiled};
use crate::functions::{Name, as_function, is_function};
use crate::model::interfaces::{Mapper, Mapping, refuse_script_inputs, script_parameter};
use crate::model::schema::{Kind, Types};
use crate::plan::{Object, Plugin, Workflow};
use crate::shape;
use crate::version::DslVersion;
use crate::yaml::{Node, Yaml};

impl Compiler<'_> {
    /// `outputs` and `capabilities`.
    pub(super) fn values(&self, section: &str) -> Compiled<Object> {
        let mut found = Object::new();
        let Some(node) = self.section(section) else {
            return Ok(found);
        };
        for (key, node) in shape::map(node)?.iter() {
            let map = shape::fields(node, &["value", "description"])?;
            let mut entry = Object::new();
            entry.insert("value".into(), shape::required(map, "value", &node.at)?.to_json());
            if let Some(description) = map.given("description") {
                entry.insert("description".into(), shape::text(description)?.into());
            }
            found.insert(key.name.clone(), Value::Object(entry));
        }
        Ok(found)
    }

    /// `labels` of deployments and `blueprint_labels`.
    pub(super) fn labels(&self, section: &str) -> Compiled<Object> {
        let mut found = Object::new();
        let Some(node) = self.section(section) else {
            return Ok(found);
        };
        let of_blueprint = section == "blueprint_labels";
        for (key, node) in shape::map(node)?.iter() {
            let map = shape::fields(node, &["values"])?;
            let values = shape::required(map, "values", &node.at)?;
            for item in shape::list(values)? {
                let value = item.to_json();
                let function = as_function(&value);
                if function.is_some_and(|function| function.name == Name::GetAttribute) && !of_blueprint {
                    return Err(CompileError::parsing(
                        1,
                        &item.at,
                        format!(
                            "The label's value cannot be a runtime property. Please remove the `get_attribute` function from the values of {}",
                            key.name
                        ),
                    ));
                }
                if !value.is_string() && (of_blueprint || !value.is_object()) {
                    return Err(CompileError::parsing(
                        1,
                        &item.at,
                        format!(
                            "The label's value must be a string{}. Please modify the values of {}",
                            if of_blueprint { "" } else { " or an intrinsic function" },
                            key.name
                        ),
                    )
                    .with_remedy("put the value in quotes"));
                }
            }
            found.insert(key.name.clone(), Value::Object(map.to_json()));
        }
        Ok(found)
    }

    pub(super) fn workflows(
        &self,
        mapper: &Mapper<'_>,
        types: &Types<'_>,
    ) -> Compiled<(BTreeMap<String, Workflow>, Vec<Plugin>)> {
        let mut workflows = BTreeMap::new();
        let mut plugins: Vec<Plugin> = Vec::new();
        let Some(section) = self.section("workflows") else {
            return Ok((workflows, plugins));
        };
        for (key, node) in shape::map(section)?.iter() {
            let place = format!("workflow '{}'", key.name);
            let mut parameters = Object::new();
            let mut is_cascading = Value::Bool(false);
            let mut availability_rules = None;
            let mapping = match &node.yaml {
                Yaml::Null => {
                    return Err(CompileError::shape(
                        &node.at,
                        format!("'{}' key is required but it is currently missing", key.name),
                    ));
                }
                Yaml::Text(_) => node,
                _ => {
                    let map = shape::fields(node, &["mapping", "parameters", "is_cascading", "availability_rules"])?;
                    if let Some(node) = map.given("parameters") {
                        parameters = types.schemas(node, Kind::Parameter)?;
                        types.check_defaults(&mut parameters, node, Kind::Parameter)?;
                    }
                    if let Some(node) = map.given("is_cascading") {
                        is_cascading = Value::Bool(shape::boolean(node)?);
                    }
                    if let Some(node) = map.given("availability_rules") {
                        types.since("availability_rules", DslVersion::V1_4, &node.at)?;
                        availability(node)?;
                        availability_rules = Some(node.to_json());
                    }
                    shape::required(map, "mapping", &node.at)?
                }
            };
            let text = shape::text(mapping)?;
            let found = mapper.resolve(text, &mapping.at, 21, &place)?;
            let (plugin, operation) = match &found {
                Mapping::Task { plugin, task } => (*plugin, task.clone()),
                Mapping::ScriptFile { plugin, .. } | Mapping::ScriptText { plugin } => {
                    refuse_script_inputs(&parameters, &mapping.at, &place)?;
                    (*plugin, "script_runner.tasks.execute_workflow".to_owned())
                }
            };
            if let Some((name, parameter)) = script_parameter(&found, text) {
                parameters.insert(name.into(), parameter);
            }
            if !plugins.iter().any(|other| other.name == plugin.name) {
                plugins.push(plugin.clone());
            }
            workflows.insert(
                key.name.clone(),
                Workflow { plugin: plugin.name.clone(), operation, parameters, is_cascading, availability_rules },
            );
        }
        Ok((workflows, plugins))
    }

    pub(super) fn policy_types(&self, types: &Types<'_>) -> Compiled<Object> {
        self.sourced("policy_types", "properties", types)
    }

    pub(super) fn policy_triggers(&self, types: &Types<'_>) -> Compiled<Object> {
        self.sourced("policy_triggers", "parameters", types)
    }

    fn sourced(&self, section: &str, schemas: &str, types: &Types<'_>) -> Compiled<Object> {
        let mut found = Object::new();
        let Some(node) = self.section(section) else {
            return Ok(found);
        };
        for (key, node) in shape::map(node)?.iter() {
            let map = shape::fields(node, &["source", schemas])?;
            let mut entry = Object::new();
            let source = shape::required(map, "source", &node.at)?;
            entry.insert("source".into(), shape::text(source)?.into());
            let properties = match map.given(schemas) {
                Some(node) => {
                    let mut properties = types.schemas(node, Kind::Property)?;
                    types.check_defaults(&mut properties, node, Kind::Property)?;
                    properties
                }
                None => Object::new(),
            };
            entry.insert(schemas.into(), Value::Object(properties));
            found.insert(key.name.clone(), Value::Object(entry));
        }
        Ok(found)
    }
}

fn availability(node: &Node) -> Compiled<()> {
    let map = shape::fields(node, &["available", "node_instances_active", "node_types_required"])?;
    if let Some(node) = map.given("available")
        && !is_function(&node.to_json())
    {
        shape::boolean(node)?;
    }
    if let Some(node) = map.given("node_instances_active") {
        for item in shape::list(node)? {
            let word = shape::text(item)?;
            if !["all", "partial", "none"].contains(&word) {
                return Err(CompileError::logic(
                    103,
                    &item.at,
                    format!("'{word}' is not a rule of node_instances_active"),
                )
                .with_remedy("use all, partial or none"));
            }
        }
    }
    if let Some(node) = map.given("node_types_required") {
        for item in shape::list(node)? {
            shape::text(item)?;
        }
    }
    Ok(())
}
