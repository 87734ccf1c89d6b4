//! The `plugins` section.

use serde_json::Value;

use super::schema::Types;
use crate::errors::{CompileError, Compiled};
use crate::plan::{Object, Plugin};
use crate::shape;
use crate::version::DslVersion;
use crate::yaml::Node;

pub(crate) const CENTRAL: &str = "central_deployment_agent";
pub(crate) const HOST: &str = "host_agent";

const KEYS: [&str; 12] = [
    "executor",
    "source",
    "install",
    "install_arguments",
    "package_name",
    "package_version",
    "supported_platform",
    "distribution",
    "distribution_version",
    "distribution_release",
    "properties_description",
    "properties",
];

/// Plugins in the order of the blueprint.
pub(crate) fn read(section: &Node, types: &Types<'_>) -> Compiled<Vec<Plugin>> {
    let mut plugins = Vec::new();
    for (key, node) in shape::map(section)?.iter() {
        let map = shape::fields(node, &KEYS)?;
        let executor = shape::required(map, "executor", &node.at)?;
        let executor_name = shape::text(executor)?;
        if ![CENTRAL, HOST].contains(&executor_name) {
            return Err(CompileError::logic(
                18,
                &executor.at,
                format!("Plugin '{}' has an illegal executor value '{executor_name}'", key.name),
            )
            .with_remedy(format!("use {CENTRAL} or {HOST}")));
        }
        let install = match map.given("install") {
            Some(node) => shape::boolean(node)?,
            None => true,
        };
        let text = |name: &str, since: DslVersion| -> Compiled<Option<Value>> {
            let Some(node) = map.given(name) else {
                return Ok(None);
            };
            types.since(name, since, &node.at)?;
            Ok(Some(shape::text(node)?.into()))
        };
        let source = text("source", DslVersion::V1_0)?;
        let package_name = text("package_name", DslVersion::V1_2)?;
        if install && source.is_none() && package_name.is_none() {
            return Err(CompileError::logic(
                50,
                &key.at,
                format!("Plugin '{}' needs to be installed, but does not declare a source or package_name", key.name),
            )
            .with_remedy("add source or package_name, or set install: false"));
        }
        let properties = match map.given("properties") {
            Some(node) => {
                types.since("properties", DslVersion::V1_5, &node.at)?;
                properties(node, types)?
            }
            None => Object::new(),
        };
        plugins.push(Plugin {
            name: key.name.clone(),
            executor: executor_name.to_owned(),
            install,
            source,
            install_arguments: text("install_arguments", DslVersion::V1_1)?,
            package_name,
            package_version: text("package_version", DslVersion::V1_2)?,
            supported_platform: match map.given("supported_platform") {
                Some(node) => {
                    types.since("supported_platform", DslVersion::V1_2, &node.at)?;
                    Some(node.to_json())
                }
                None => None,
            },
            distribution: text("distribution", DslVersion::V1_2)?,
            distribution_version: text("distribution_version", DslVersion::V1_2)?,
            distribution_release: text("distribution_release", DslVersion::V1_2)?,
            properties_description: text("properties_description", DslVersion::V1_5)?,
            properties,
        });
    }
    Ok(plugins)
}

fn properties(node: &Node, types: &Types<'_>) -> Compiled<Object> {
    let mut found = Object::new();
    for (key, node) in shape::map(node)?.iter() {
        let map = shape::fields(node, &["description", "type", "display_label", "value"])?;
        if let Some(node) = map.given("type") {
            types.check_type(node, 103)?;
        }
        found.insert(key.name.clone(), Value::Object(map.to_json()));
    }
    Ok(found)
}
