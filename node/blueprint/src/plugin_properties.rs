//! Values an import statement gives to the properties of the plugins it brings.

use crate::errors::{CompileError, Compiled, ErrorClass, Position};
use crate::functions::is_function;
use crate::model::fits_primitive;
use crate::shape;
use crate::yaml::{Key, Map, Node, Yaml};

/// Sets `plugins.<plugin>.properties.<name>.value` for each given property.
pub(crate) fn set(root: &mut Map, given: &Node, at: &Position) -> Compiled<()> {
    let given = shape::map(given)?;
    let mut used = 0;
    for (key, value) in given.iter() {
        let json = value.to_json();
        if !(json.is_string() || json.is_number() || json.is_boolean() || json.is_array() || is_function(&json)) {
            return Err(CompileError::new(
                ErrorClass::Format,
                Some(220),
                Some(&value.at),
                format!("the plugin property '{}' cannot be a {}", key.name, value.kind()),
            )
            .with_remedy("give a plain value, a list or a function"));
        }
        let Some(Node { yaml: Yaml::Map(plugins), .. }) = root.get_mut("plugins") else {
            break;
        };
        let names: Vec<String> = plugins.names().map(str::to_owned).collect();
        let mut found = false;
        for name in names {
            let Some(property) = property_of(plugins, &name, &key.name) else {
                continue;
            };
            if let Some(declared) = property.given("type").and_then(Node::as_text) {
                let fits = is_function(&json)
                    || match declared {
                        "string" => json.is_string() || json.is_i64(),
                        other => fits_primitive(other, &json),
                    };
                if !fits {
                    return Err(CompileError::logic(
                        221,
                        &value.at,
                        format!("Property {}: the value should be of type {declared}", key.name),
                    ));
                }
            }
            let slot = Key { at: value.at.clone(), name: "value".into(), odd: None };
            property.insert(slot, value.clone());
            found = true;
        }
        used += usize::from(found);
    }
    if used < given.len() {
        return Err(CompileError::logic(
            221,
            at,
            "Properties for imported plugin are redundant: the plugin does not declare them",
        )
        .with_remedy("remove them from the import statement"));
    }
    Ok(())
}

fn property_of<'a>(plugins: &'a mut Map, plugin: &str, property: &str) -> Option<&'a mut Map> {
    let mut node = plugins.get_mut(plugin)?;
    for step in ["properties", property] {
        let Yaml::Map(map) = &mut node.yaml else {
            return None;
        };
        node = map.get_mut(step)?;
    }
    if node.is_null() {
        node.yaml = Yaml::Map(Map::default());
    }
    match &mut node.yaml {
        Yaml::Map(map) => Some(map),
        _ => None,
    }
}
