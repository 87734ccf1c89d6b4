//! Labels as clients send them.

use quorate_store::NewLabel;
use serde_json::{Map, Value};

use crate::AppError;

/// Characters of a name or a value.
const CHARACTERS_MAX: usize = 256;
/// Labels in one request.
const LABELS_MAX: usize = 1000;

/// Reads `[{name: value}]`, `[{name: [values]}]`, `[{"key": name, "value": value}]` and the last with `"values"`.
///
/// # Errors
/// `bad_parameters_error`.
pub fn parse(labels: &Value) -> Result<Vec<NewLabel>, AppError> {
    let wrong = || AppError::bad("Labels must be a list of 1-entry dictionaries: [{<key>: <value>}]");
    let mut found = Vec::new();
    let items = match labels {
        Value::Null => return Ok(found),
        Value::Array(items) => items,
        _ => return Err(wrong()),
    };
    for item in items {
        let map = item.as_object().ok_or_else(wrong)?;
        let named = map.get("key").and_then(Value::as_str).zip(map.get("value").or_else(|| map.get("values")));
        let (name, value) = match named {
            Some(both) => both,
            None if map.len() == 1 => {
                map.iter().next().map(|(name, value)| (name.as_str(), value)).ok_or_else(wrong)?
            }
            None => return Err(wrong()),
        };
        add(&mut found, name, value)?;
    }
    Ok(found)
}

/// Labels that a blueprint declares: name to `{values: […]}`.
///
/// # Errors
/// `bad_parameters_error`.
pub fn declared(labels: &Map<String, Value>) -> Result<Vec<NewLabel>, AppError> {
    let mut found = Vec::new();
    for (name, label) in labels {
        add(&mut found, name, label.get("values").unwrap_or(&Value::Null))?;
    }
    Ok(found)
}

fn add(found: &mut Vec<NewLabel>, name: &str, value: &Value) -> Result<(), AppError> {
    let one = std::slice::from_ref(value);
    for value in value.as_array().map_or(one, Vec::as_slice) {
        let value =
            value.as_str().ok_or_else(|| AppError::bad(format!("The value of the label `{name}` is no text")))?;
        let fits = |text: &str| {
            !text.is_empty() && text.chars().count() <= CHARACTERS_MAX && !text.chars().any(char::is_control)
        };
        if !fits(name) || !fits(value) || found.len() >= LABELS_MAX {
            let message = format!(
                "Names and values of labels have 1 to {CHARACTERS_MAX} characters, none of them a control character, \
                 and there are at most {LABELS_MAX}"
            );
            return Err(AppError::bad(message));
        }
        found.push((name.to_lowercase(), value.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_is_read() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let labels = json!([{ "A": "b" }, { "c": ["d", "e"] }, { "key": "f", "value": "g" }]);
        let expected = [pair("a", "b"), pair("c", "d"), pair("c", "e"), pair("f", "g")];
        assert_eq!(parse(&labels).unwrap(), expected);
        for bad in [json!({}), json!(["a"]), json!([{}]), json!([{ "a": 1 }]), json!([{ "a": "" }])] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
