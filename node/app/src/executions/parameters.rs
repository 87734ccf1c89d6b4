//! Parameters of an execution: what the caller gave over what the workflow declares.

use serde_json::{Map, Value};

use crate::{AppError, Code};

/// Declared defaults under the given values.
///
/// # Errors
/// `illegal_execution_parameters_error`: something required is missing, a value has another type than the declared
/// one, or, without `allow_custom`, a name is not declared.
pub fn merge(
    workflow: &str,
    declared: &Value,
    mut given: Map<String, Value>,
    allow_custom: bool,
) -> Result<Map<String, Value>, AppError> {
    let none = Map::new();
    let declared = declared.as_object().unwrap_or(&none);
    let unknown: Vec<&str> = given.keys().filter(|name| !declared.contains_key(*name)).map(String::as_str).collect();
    if !allow_custom && !unknown.is_empty() {
        let names = unknown.join(",");
        return Err(illegal(format!(
            "Workflow \"{workflow}\" does not have the following parameters declared: {names}. Remove these parameters \
             or use the flag for allowing custom parameters"
        )));
    }
    let mut merged = Map::new();
    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    for (name, schema) in declared {
        let value = given.remove(name).or_else(|| schema.get("default").cloned());
        match value {
            Some(value) => {
                if !fits(&value, schema["type"].as_str()) {
                    wrong.push(format!("{name} (must be {})", schema["type"].as_str().unwrap_or_default()));
                }
                merged.insert(name.clone(), value);
            }
            None if schema["required"] == Value::Bool(false) => {}
            None => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        let names = missing.join(",");
        let message = format!("Workflow \"{workflow}\" must be provided with the following parameters: {names}");
        return Err(illegal(message));
    }
    if !wrong.is_empty() {
        let names = wrong.join(", ");
        return Err(illegal(format!("Parameters of workflow \"{workflow}\" have the wrong type: {names}")));
    }
    merged.extend(given);
    Ok(merged)
}

fn illegal(message: String) -> AppError {
    AppError::new(Code::IllegalExecutionParameters, message)
}

/// Null stands for "not set" in every type; types of the blueprint's own are not looked into.
fn fits(value: &Value, kind: Option<&str>) -> bool {
    // A value that is computed later has no type yet.
    let computed = value.as_object().is_some_and(|keys| keys.len() == 1 && keys.keys().all(|key| is_function(key)));
    if value.is_null() || computed {
        return true;
    }
    match kind {
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("list") => value.is_array(),
        Some("dict") => value.is_object(),
        Some("string" | "regex" | "textarea") => value.is_string(),
        _ => true,
    }
}

fn is_function(name: &str) -> bool {
    name.starts_with("get_") || name.starts_with("concat") || name.starts_with("string_") || name == "merge"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn defaults_lie_under_what_is_given() {
        let declared = json!({
            "a": {"default": [], "type": "list"}, "b": {"type": "integer"}, "c": {"required": false}, "d": {"default": null},
        });
        let merged = merge("w", &declared, object(json!({"b": 3})), false).unwrap();
        assert_eq!(Value::Object(merged), json!({"a": [], "b": 3, "d": null}));
        let text = |given| merge("w", &declared, object(given), false).unwrap_err().message;
        assert!(text(json!({})).contains("must be provided with the following parameters: b"));
        assert!(text(json!({"b": "3"})).contains("b (must be integer)"));
        assert!(text(json!({"b": 1, "x": 1})).contains("declared: x"));
        assert_eq!(merge("w", &declared, object(json!({"b": 1, "x": 1})), true).unwrap()["x"], 1);
        assert!(merge("w", &declared, object(json!({"b": {"get_input": "i"}})), false).is_ok());
    }
}
