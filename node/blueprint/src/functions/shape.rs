//! What arguments each function takes.

use serde_json::Value;

use super::{Function, Name, holds_function, is_function, python_text};
use crate::errors::{ErrorClass, EvalError};

/// Checks the arguments of one call, not of the calls inside it.
pub(super) fn check_arguments(function: Function<'_>) -> Result<(), EvalError> {
    let arguments = function.arguments;
    let name = function.name.text();
    let list = arguments.as_array();
    let text_or_function = arguments.is_string() || is_function(arguments);
    match function.name {
        Name::GetInput => {
            let simple = |item: &Value| item.is_string() || item.is_i64() || is_function(item);
            let fits = match list {
                Some(items) => !items.is_empty() && items.iter().all(simple),
                None => text_or_function,
            };
            need(fits, || {
                EvalError::value(format!(
                    "Illegal argument(s) passed to {name} function. Expected either a string, or a function, or a list [input_name [, key/index ...]] but got: {}",
                    python_text(arguments)
                ))
            })
        }
        Name::GetProperty | Name::GetAttribute | Name::GetAttributesList | Name::GetAttributesDict => {
            need(list.is_some_and(|items| items.len() >= 2), || {
                EvalError::value(format!(
                    "Illegal arguments passed to {name} function. Expected: [ node_name, name [, key/index ...] ] but got: {}",
                    python_text(arguments)
                ))
            })?;
            if function.name == Name::GetAttributesDict {
                let paths = list.map(Vec::as_slice).unwrap_or_default();
                for (i, path) in paths.iter().enumerate().skip(1) {
                    if paths.iter().skip(1).take(i - 1).any(|other| other == path) {
                        return Err(EvalError::evaluation(format!(
                            "Unable to evaluate One or more duplicated or ambiguous attribute paths found: {} function",
                            python_text(path)
                        )));
                    }
                }
            }
            Ok(())
        }
        Name::Concat => need(list.is_some() || is_function(arguments), || {
            EvalError::value(format!(
                "Illegal arguments passed to concat function. Expected: [arg1, arg2, ...] but got: {}",
                python_text(arguments)
            ))
        }),
        Name::Merge => {
            need(list.is_some() || is_function(arguments), || {
                EvalError::value(format!(
                    "Illegal arguments passed to merge function. Expected: [arg1, arg2, ...] but got: {}",
                    python_text(arguments)
                ))
            })?;
            match list.and_then(|items| items.iter().find(|item| !item.is_object())) {
                Some(item) => Err(EvalError::validation(format!(
                    "Unable to validate Encountered non-dict element for merge: {} function",
                    python_text(item)
                ))),
                None => Ok(()),
            }
        }
        Name::StringFind => strings(function, &["haystack", "needle"], 2, "exactly two parameters"),
        Name::StringReplace => strings(function, &["haystack", "needle", "replacement"], 4, "three or four parameters"),
        Name::StringSplit => strings(function, &["input", "separator"], 3, "two or three parameters"),
        Name::StringLower | Name::StringUpper => {
            let fits = text_or_function;
            if !fits && arguments.is_object() {
                return Err(wrong_type(name, "input", "str", arguments));
            }
            need(fits, || arity(name, "exactly one parameter"))
        }
        Name::GetSecret => {
            let fits = text_or_function || list.is_some_and(|items| items.len() >= 2);
            need(fits, || {
                EvalError::validation(
                    "Unable to validate `get_secret` function argument should be a list with at least 2 elements, a string, or a function",
                )
            })
        }
        Name::GetCapability | Name::GetGroupCapability => {
            let Some(items) = list.filter(|items| items.len() >= 2) else {
                return Err(EvalError::value(format!(
                    "`{name}` function argument should be a list with 2 elements at least - [ deployment ID, capability ID [, key/index ...] ]. Instead it is: {}",
                    python_text(arguments)
                )));
            };
            for (i, item) in items.iter().enumerate() {
                let listed = function.name == Name::GetGroupCapability && i == 1 && item.is_array();
                if !(item.is_string() || item.is_i64() || is_function(item) || listed) {
                    return Err(EvalError::value(format!(
                        "`{name}` function arguments can't be complex values; only strings/ints/functions are accepted. Instead, the item with index {i} is {}",
                        python_text(item)
                    )));
                }
            }
            Ok(())
        }
        Name::GetEnvironmentCapability => {
            let fits = text_or_function || list.is_some_and(|items| items.len() >= 2);
            need(fits, || {
                EvalError::validation(format!(
                    "Unable to validate `{name}` function: the argument should be a string or a list of at least 2 elements. Instead it is: {}",
                    python_text(arguments)
                ))
            })
        }
        Name::GetLabel => {
            let fits = match list {
                Some(items) => match items.as_slice() {
                    [key, index] => {
                        let key_fits = key.is_string() || is_function(key);
                        let index_fits = index.is_i64()
                            || is_function(index)
                            || index.as_str().is_some_and(|text| text.parse::<i64>().is_ok());
                        key_fits && index_fits
                    }
                    _ => false,
                },
                None => text_or_function,
            };
            need(fits, || {
                EvalError::validation(format!(
                    "Unable to validate `{name}` function: expected a label key or [ label key, index of its values ], got {}",
                    python_text(arguments)
                ))
            })
        }
        Name::GetSys => get_sys(arguments),
        Name::GetConsumers => {
            need(is_function(arguments) || matches!(arguments.as_str(), Some("ids" | "names" | "count")), || {
                EvalError::value(format!(
                    "Illegal argument passed to {name} function. Expected a property string (one of: ids, names, count), but got {}",
                    python_text(arguments)
                ))
            })
        }
    }
}

fn need(fits: bool, error: impl FnOnce() -> EvalError) -> Result<(), EvalError> {
    if fits { Ok(()) } else { Err(error()) }
}

fn get_sys(arguments: &Value) -> Result<(), EvalError> {
    let Some([entity, property]) = arguments.as_array().map(Vec::as_slice) else {
        return Err(EvalError::value(format!(
            "Illegal argument(s) passed to get_sys function. Expected a 2-element list identifying an entity and its requested property, but got {}",
            python_text(arguments)
        )));
    };
    if holds_function(entity) || holds_function(property) {
        return Ok(());
    }
    let known: &[&str] = match entity.as_str() {
        Some("tenant") => &["name"],
        Some("deployment") => &["id", "name", "blueprint", "owner"],
        _ => {
            return Err(EvalError::new(
                ErrorClass::UnknownSysEntity,
                format!("get_sys function unable to determine entity: {}", python_text(entity)),
            ));
        }
    };
    need(property.as_str().is_some_and(|text| known.contains(&text)), || {
        EvalError::new(
            ErrorClass::UnknownSysProperty,
            format!("get_sys function unable to determine property: {} {}", python_text(entity), python_text(property)),
        )
    })
}

fn arity(name: &str, expected: &str) -> EvalError {
    EvalError::validation(format!("Unable to validate {name} function: should be called with {expected}"))
}

fn wrong_type(name: &str, argument: &str, want: &str, found: &Value) -> EvalError {
    EvalError::validation(format!(
        "Unable to validate {name} function: argument `{argument}` should be of type {want} but is {}",
        python_text(found)
    ))
}

/// Text arguments first, then an optional whole number.
fn strings(function: Function<'_>, texts: &[&str], most: usize, expected: &str) -> Result<(), EvalError> {
    let name = function.name.text();
    if is_function(function.arguments) {
        return Ok(());
    }
    let items = function
        .arguments
        .as_array()
        .filter(|items| items.len() >= texts.len() && items.len() <= most)
        .ok_or_else(|| arity(name, expected))?;
    for (argument, item) in texts.iter().zip(items) {
        if !item.is_string() && !is_function(item) {
            return Err(wrong_type(name, argument, "str", item));
        }
    }
    let number = if function.name == Name::StringReplace { "count" } else { "index" };
    match items.get(texts.len()) {
        Some(item) if !item.is_i64() && !is_function(item) => Err(wrong_type(name, number, "int", item)),
        _ => Ok(()),
    }
}
