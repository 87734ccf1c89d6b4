//! Puts the elements of an imported file under a namespace, `ns--name`.

use std::collections::HashSet;

use crate::yaml::{Key, Map, Node, Yaml};

/// Words that look like type names but are not defined by any file.
const PRIMITIVES: [&str; 18] = [
    "string",
    "integer",
    "float",
    "boolean",
    "list",
    "dict",
    "regex",
    "textarea",
    "blueprint_id",
    "deployment_id",
    "capability_value",
    "scaling_group",
    "node_id",
    "node_type",
    "node_instance",
    "secret_key",
    "operation_name",
    "any",
];

/// Sections whose keys are names.
const NAMED: [&str; 16] = [
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
    "policies",
    "policy_types",
    "policy_triggers",
    "labels",
    "blueprint_labels",
    "resource_tags",
];

/// Renames what `root` defines and every reference to it. `namespace` ends in `--`. Elements in `kept`, by section
/// and name, stay as they are.
pub(crate) fn prefix(root: &mut Map, namespace: &str, kept: &HashSet<(String, String)>) {
    let sections = std::mem::take(root);
    for (section, mut node) in sections.into_entries() {
        let name = section.name.clone();
        if let Yaml::Map(entries) = &mut node.yaml
            && NAMED.contains(&name.as_str())
        {
            let taken = std::mem::take(entries);
            for (mut key, mut value) in taken.into_entries() {
                if !kept.contains(&(name.clone(), key.name.clone())) {
                    element(&name, &mut value, namespace);
                    rename_key(&mut key, namespace);
                }
                entries.insert(key, value);
            }
        } else if name == "deployment_settings" {
            functions(&mut node, namespace);
        }
        root.insert(section, node);
    }
}

fn rename_key(key: &mut Key, namespace: &str) {
    if let Some(renamed) = renamed(&key.name, namespace) {
        key.name = renamed;
    }
}

fn renamed(name: &str, namespace: &str) -> Option<String> {
    (!name.starts_with("cloudify.")).then(|| format!("{namespace}{name}"))
}

fn rename(node: &mut Node, namespace: &str) {
    if let Yaml::Text(text) = &mut node.yaml
        && let Some(renamed) = renamed(text, namespace)
    {
        *text = renamed;
    }
}

fn rename_field(map: &mut Map, field: &str, namespace: &str) {
    if let Some(node) = map.get_mut(field) {
        rename(node, namespace);
    }
}

fn rename_type(map: &mut Map, field: &str, namespace: &str) {
    if let Some(node) = map.get_mut(field)
        && node.as_text().is_some_and(|text| !PRIMITIVES.contains(&text))
    {
        rename(node, namespace);
    }
}

fn rename_list(map: &mut Map, field: &str, namespace: &str) {
    if let Some(Node { yaml: Yaml::List(items), .. }) = map.get_mut(field) {
        for item in items {
            rename(item, namespace);
        }
    }
}

fn element(section: &str, value: &mut Node, namespace: &str) {
    if section == "workflows" && value.as_text().is_some() {
        rename(value, namespace);
        return;
    }
    let Yaml::Map(map) = &mut value.yaml else {
        return;
    };
    match section {
        "inputs" => schema(map, namespace),
        "plugins" => {
            if let Some(Node { yaml: Yaml::Map(properties), .. }) = map.get_mut("properties") {
                let taken = std::mem::take(properties);
                for (mut key, value) in taken.into_entries() {
                    rename_key(&mut key, namespace);
                    properties.insert(key, value);
                }
            }
        }
        "node_types" => {
            rename_field(map, "derived_from", namespace);
            schemas(map, "properties", namespace);
            interfaces(map, "interfaces", namespace, true);
        }
        "data_types" => {
            rename_field(map, "derived_from", namespace);
            // Plans have always shown these descriptions under the namespace too, and clients compare plans.
            rename_field(map, "description", namespace);
            schemas(map, "properties", namespace);
        }
        "relationships" => {
            rename_field(map, "derived_from", namespace);
            schemas(map, "properties", namespace);
            interfaces(map, "source_interfaces", namespace, true);
            interfaces(map, "target_interfaces", namespace, true);
        }
        "node_templates" => {
            rename_field(map, "type", namespace);
            values(map, "properties", namespace);
            values(map, "capabilities", namespace);
            values(map, "instances", namespace);
            interfaces(map, "interfaces", namespace, false);
            if let Some(Node { yaml: Yaml::List(items), .. }) = map.get_mut("relationships") {
                for item in items {
                    if let Yaml::Map(map) = &mut item.yaml {
                        rename_field(map, "type", namespace);
                        rename_field(map, "target", namespace);
                        values(map, "properties", namespace);
                        interfaces(map, "source_interfaces", namespace, false);
                        interfaces(map, "target_interfaces", namespace, false);
                    }
                }
            }
        }
        "workflows" => {
            rename_field(map, "mapping", namespace);
            schemas(map, "parameters", namespace);
        }
        "outputs" | "capabilities" => values(map, "value", namespace),
        "groups" => {
            rename_list(map, "members", namespace);
            if let Some(Node { yaml: Yaml::Map(policies), .. }) = map.get_mut("policies") {
                each(policies, |policy| {
                    rename_field(policy, "type", namespace);
                    values(policy, "properties", namespace);
                    if let Some(Node { yaml: Yaml::Map(triggers), .. }) = policy.get_mut("triggers") {
                        each(triggers, |trigger| {
                            rename_field(trigger, "type", namespace);
                            values(trigger, "parameters", namespace);
                        });
                    }
                });
            }
        }
        "policies" => {
            rename_field(map, "type", namespace);
            rename_list(map, "targets", namespace);
            values(map, "properties", namespace);
        }
        "policy_types" => schemas(map, "properties", namespace),
        "policy_triggers" => schemas(map, "parameters", namespace),
        _ => {}
    }
}

fn each(map: &mut Map, mut change: impl FnMut(&mut Map)) {
    let names: Vec<String> = map.names().map(str::to_owned).collect();
    for name in names {
        if let Some(Node { yaml: Yaml::Map(entry), .. }) = map.get_mut(&name) {
            change(entry);
        }
    }
}

fn schema(map: &mut Map, namespace: &str) {
    rename_type(map, "type", namespace);
    rename_type(map, "item_type", namespace);
    values(map, "default", namespace);
}

fn schemas(map: &mut Map, field: &str, namespace: &str) {
    if let Some(Node { yaml: Yaml::Map(entries), .. }) = map.get_mut(field) {
        each(entries, |entry| schema(entry, namespace));
    }
}

fn values(map: &mut Map, field: &str, namespace: &str) {
    if let Some(node) = map.get_mut(field) {
        functions(node, namespace);
    }
}

fn interfaces(map: &mut Map, field: &str, namespace: &str, of_type: bool) {
    let Some(Node { yaml: Yaml::Map(interfaces), .. }) = map.get_mut(field) else {
        return;
    };
    each(interfaces, |operations| {
        let names: Vec<String> = operations.names().map(str::to_owned).collect();
        for name in names {
            let Some(operation) = operations.get_mut(&name) else {
                continue;
            };
            match &mut operation.yaml {
                Yaml::Text(text) if !text.is_empty() => rename(operation, namespace),
                Yaml::Map(map) => {
                    if map.get("implementation").and_then(Node::as_text).is_some_and(|text| !text.is_empty()) {
                        rename_field(map, "implementation", namespace);
                    }
                    if of_type {
                        schemas(map, "inputs", namespace);
                    } else {
                        values(map, "inputs", namespace);
                    }
                }
                _ => {}
            }
        }
    });
}

/// Renames the references inside functions, at any depth.
fn functions(node: &mut Node, namespace: &str) {
    match &mut node.yaml {
        Yaml::List(items) => {
            for item in items {
                functions(item, namespace);
            }
        }
        Yaml::Map(map) => {
            if map.len() == 1 {
                if let Some(argument) = map.get_mut("get_input") {
                    match &mut argument.yaml {
                        Yaml::List(items) => {
                            if let Some(first) = items.first_mut() {
                                rename(first, namespace);
                            }
                        }
                        _ => rename(argument, namespace),
                    }
                }
                for function in ["get_property", "get_attribute"] {
                    if let Some(Node { yaml: Yaml::List(items), .. }) = map.get_mut(function)
                        && let Some(first) = items.first_mut()
                        && !matches!(first.as_text(), Some("SELF" | "SOURCE" | "TARGET"))
                    {
                        rename(first, namespace);
                    }
                }
            }
            let names: Vec<String> = map.names().map(str::to_owned).collect();
            for name in names {
                if let Some(value) = map.get_mut(&name) {
                    functions(value, namespace);
                }
            }
        }
        _ => {}
    }
}
