//! Constraints on inputs and workflow parameters.

use serde_json::Value;

use crate::errors::{CompileError, Compiled};
use crate::functions::is_function;
use crate::version::DslVersion;
use crate::yaml::Node;
use crate::{functions, shape};

const OPERATORS: [&str; 15] = [
    "equal",
    "greater_than",
    "greater_or_equal",
    "less_than",
    "less_or_equal",
    "in_range",
    "valid_values",
    "length",
    "min_length",
    "max_length",
    "pattern",
    "filter_id",
    "labels",
    "tenants",
    "name_pattern",
];
const DEPLOYMENT: &str = "deployment_id";
const MESSAGE: &str = "error_message";

/// Checks the `constraints` of a schema.
pub(crate) fn check(node: &Node, version: Option<DslVersion>) -> Compiled<()> {
    for item in shape::list(node)? {
        let map = shape::map(item)?;
        let operators: Vec<&str> = map.names().filter(|name| *name != MESSAGE).collect();
        let too_many = operators.len() > 1 || map.contains(MESSAGE);
        if let Some(version) = version.filter(|version| too_many && *version < DslVersion::V1_5) {
            return Err(CompileError::logic(
                102,
                &item.at,
                format!(
                    "Constraint's additional attributes are not supported in version {version}, they were added in {}",
                    DslVersion::V1_5
                ),
            ));
        }
        let operator = match operators.as_slice() {
            [one] if OPERATORS.contains(one) || *one == DEPLOYMENT => *one,
            other => {
                return Err(CompileError::logic(
                    103,
                    &item.at,
                    format!("'{}' is not a constraint", other.join("', '")),
                )
                .with_remedy(format!("use one of: {}, {DEPLOYMENT}", OPERATORS.join(", "))));
            }
        };
        let argument = map.get(operator).map_or(Value::Null, Node::to_json);
        if !is_function(&argument) && !fits(operator, &argument) {
            return Err(CompileError::logic(
                212,
                &item.at,
                format!("Invalid constraint argument: {operator} does not take {}", functions::python_text(&argument)),
            ));
        }
    }
    Ok(())
}

fn fits(operator: &str, argument: &Value) -> bool {
    match operator {
        "equal" | "greater_than" | "greater_or_equal" | "less_than" | "less_or_equal" | "length" | "min_length"
        | "max_length" => argument.is_number(),
        "in_range" => argument.as_array().is_some_and(|items| items.len() == 2 && items.iter().all(Value::is_number)),
        "valid_values" | "labels" | "tenants" => argument.is_array(),
        "pattern" => argument.as_str().is_some_and(is_regex),
        "name_pattern" => argument.is_object(),
        _ => argument.is_string(),
    }
}

/// Whether text is a regular expression. Look-around and back-references, which are not carried out here, are
/// checked as far as brackets and repetitions go.
pub(crate) fn is_regex(text: &str) -> bool {
    if regex::Regex::new(text).is_ok() {
        return true;
    }
    let mut depth = 0usize;
    let mut in_class = false;
    let mut nothing_to_repeat = true;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                if chars.next().is_none() {
                    return false;
                }
                nothing_to_repeat = false;
            }
            ']' if in_class => {
                in_class = false;
                nothing_to_repeat = false;
            }
            _ if in_class => {}
            '[' => in_class = true,
            '(' => {
                depth += 1;
                // `(?` starts an extension.
                let mut rest = chars.clone();
                if rest.next() == Some('?') {
                    chars = rest;
                }
                nothing_to_repeat = true;
            }
            ')' => {
                let Some(less) = depth.checked_sub(1) else {
                    return false;
                };
                depth = less;
                nothing_to_repeat = false;
            }
            '*' | '+' | '?' if nothing_to_repeat => return false,
            '|' => nothing_to_repeat = true,
            _ => nothing_to_repeat = false,
        }
    }
    depth == 0 && !in_class
}

/// Whether a value satisfies one constraint. Kinds that cannot be compared do not.
pub(crate) fn holds(constraint: &Value, value: &Value) -> bool {
    let Some((operator, argument)) =
        constraint.as_object().and_then(|map| map.iter().find(|(name, _)| *name != MESSAGE))
    else {
        return true;
    };
    // Arguments that are functions are never evaluated, so nothing compares with them.
    let compare = |check: fn(f64, f64) -> bool| match (number(value), argument.as_f64()) {
        (Some(value), Some(argument)) => check(value, argument),
        _ => false,
    };
    let length = |check: fn(usize, usize) -> bool| {
        let length = match value {
            Value::String(text) => text.chars().count(),
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => return false,
        };
        let argument = argument.as_u64().and_then(|n| usize::try_from(n).ok());
        argument.is_some_and(|argument| check(length, argument))
    };
    match operator.as_str() {
        "equal" => same(value, argument),
        "greater_than" => compare(|a, b| a > b),
        "greater_or_equal" => compare(|a, b| a >= b),
        "less_than" => compare(|a, b| a < b),
        "less_or_equal" => compare(|a, b| a <= b),
        "in_range" => {
            let bound = |i| argument.get(i).and_then(Value::as_f64);
            match (number(value), bound(0), bound(1)) {
                (Some(value), Some(low), Some(high)) => low <= value && value <= high,
                _ => false,
            }
        }
        "valid_values" => argument.as_array().is_some_and(|items| items.iter().any(|item| same(item, value))),
        "length" => length(|a, b| a == b),
        "min_length" => length(|a, b| a >= b),
        "max_length" => length(|a, b| a <= b),
        "pattern" => match (value.as_str(), argument.as_str()) {
            (Some(text), Some(pattern)) => {
                regex::Regex::new(&format!("^(?:{pattern})")).map_or(true, |pattern| pattern.is_match(text))
            }
            _ => false,
        },
        // What these ask for is known to the manager only.
        _ => true,
    }
}

/// A number; booleans count as 0 and 1.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(value) => Some(if *value { 1.0 } else { 0.0 }),
        other => other.as_f64(),
    }
}

fn same(one: &Value, other: &Value) -> bool {
    match (number(one), number(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}
