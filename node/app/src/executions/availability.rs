//! When a workflow may be started.

use quorate_store::deployment_views::Installed;
use serde_json::Value;

/// Whether a workflow's `availability_rules` let it start on a deployment that is installed so far. A deployment
/// without instances counts as active and as not active: nothing speaks against either.
#[must_use]
pub fn is_available(rules: &Value, installed: &Installed) -> bool {
    if rules.get("available") == Some(&Value::Bool(false)) {
        return false;
    }
    let texts = |key: &str| -> Option<Vec<&str>> {
        Some(rules.get(key)?.as_array()?.iter().filter_map(Value::as_str).collect())
    };
    let Installed { instances, started, types } = installed;
    let active = texts("node_instances_active").is_none_or(|wanted| {
        wanted.iter().any(|wanted| match *wanted {
            "all" => started == instances,
            "none" => *started == 0,
            "partial" => 0 < *started && started < instances,
            _ => false,
        })
    });
    let typed = texts("node_types_required")
        .is_none_or(|wanted| wanted.is_empty() || wanted.iter().any(|wanted| types.iter().any(|kind| kind == wanted)));
    active && typed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_look_at_instances_and_types() {
        let with = |instances, started| Installed { instances, started, types: vec!["a".into()] };
        let active = |wanted: Value| json!({"node_instances_active": wanted});
        assert!(is_available(&Value::Null, &with(1, 1)));
        assert!(!is_available(&json!({"available": false}), &with(1, 1)));
        assert!(!is_available(&active(json!(["none", "partial"])), &with(2, 2)));
        assert!(is_available(&active(json!(["none", "partial"])), &with(2, 1)));
        assert!(!is_available(&active(json!(["all", "partial"])), &with(2, 0)));
        assert!(
            is_available(&active(json!(["all"])), &with(0, 0)) && is_available(&active(json!(["none"])), &with(0, 0))
        );
        assert!(is_available(&json!({"node_types_required": ["b", "a"]}), &with(1, 1)));
        assert!(!is_available(&json!({"node_types_required": ["b"]}), &with(1, 1)));
    }
}
