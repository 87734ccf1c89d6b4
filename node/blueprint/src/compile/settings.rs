//! `deployment_settings`.

use serde_json::Value;

use super::Compiler;
use crate::errors::{CompileError, Compiled, ErrorClass};
use crate::functions::is_function;
use crate::plan::Object;
use crate::shape;

impl Compiler<'_> {
    pub(super) fn settings(&self) -> Compiled<Object> {
        let Some(node) = self.section("deployment_settings") else {
            return Ok(Object::new());
        };
        let map = shape::fields(node, &["default_schedules", "default_groups", "id_template", "display_name"])?;
        let mut settings = Object::new();
        settings.insert("default_schedules".into(), Value::Object(Object::new()));
        if let Some(node) = map.given("default_schedules")
            && let Some((key, _)) = shape::map(node)?.first()
        {
            return Err(CompileError::new(
                ErrorClass::NonRecoverable,
                None,
                Some(&key.at),
                "default_schedules are not supported",
            )
            .with_remedy("create the schedule on the deployment instead"));
        }
        if let Some(node) = map.given("default_groups") {
            for item in shape::list(node)? {
                if !is_function(&item.to_json()) {
                    shape::text(item)?;
                }
            }
            settings.insert("default_groups".into(), node.to_json());
        }
        if let Some(node) = map.given("id_template") {
            settings.insert("id_template".into(), shape::text(node)?.into());
        }
        if let Some(node) = map.given("display_name") {
            if node.as_map().is_none() {
                shape::text(node)?;
            }
            settings.insert("display_name".into(), node.to_json());
        }
        Ok(settings)
    }
}
