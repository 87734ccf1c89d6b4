//! Nodes and their instances.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use quorate_store::node_instances::{self, Changes};
use quorate_store::nodes;
use quorate_store::{Document, PgConnection, deployments};
use serde_json::Value;

pub use quorate_store::node_instances::NodeInstance;
pub use quorate_store::nodes::Node;

use crate::evaluate::{Context, Known};
use crate::{Actor, App, AppError, Code, ListQuery, Listing, Permission};

/// Use cases of nodes and their instances.
pub struct Nodes<'a>(pub(crate) &'a App);

/// What a client changes of an instance; `None`: not.
#[derive(Debug, Default)]
pub struct InstanceChanges {
    /// The version that the client read.
    pub version: i32,
    /// Whatever was written since.
    pub force: bool,
    /// The state.
    pub state: Option<String>,
    /// What operations leave.
    pub runtime_properties: Option<Value>,
    /// What the manager leaves.
    pub system_properties: Option<Value>,
    /// To other instances.
    pub relationships: Option<Value>,
}

impl Nodes<'_> {
    /// Nodes of the deployments that the caller may see; `evaluated`: with functions evaluated for this instance, or
    /// for none.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field, `functions_evaluation_error`.
    pub async fn list(
        &self,
        actor: &Actor,
        query: &ListQuery,
        all_tenants: bool,
        evaluated: Option<Context>,
    ) -> Result<Listing<Node>, AppError> {
        actor.require(Permission::NodeList)?;
        let scope = if all_tenants { actor.readable_everywhere(Permission::NodeList) } else { actor.readable() };
        let mut reader = self.0.store().read().await?;
        let mut listing = nodes::list(&mut reader, query, &scope).await?;
        if let Some(context) = evaluated {
            let mut known = Deployments::default();
            for node in &mut listing.items {
                let known = known.of(&mut reader, node.deployment_key).await?;
                for part in [&mut node.properties, &mut node.operations, &mut node.relationships] {
                    *part = Document(known.evaluate(part, &context)?);
                }
            }
        }
        Ok(listing)
    }

    /// Instances in the deployments that the caller may see.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn instances(
        &self,
        actor: &Actor,
        query: &ListQuery,
        all_tenants: bool,
    ) -> Result<Listing<NodeInstance>, AppError> {
        actor.require(Permission::NodeInstanceList)?;
        let scope =
            if all_tenants { actor.readable_everywhere(Permission::NodeInstanceList) } else { actor.readable() };
        Ok(node_instances::list(&mut *self.0.store().read().await?, query, &scope).await?)
    }

    /// One instance; `evaluated`: with functions evaluated.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `functions_evaluation_error`.
    pub async fn instance(&self, actor: &Actor, id: &str, evaluated: bool) -> Result<NodeInstance, AppError> {
        actor.require(Permission::NodeInstanceGet)?;
        let mut reader = self.0.store().read().await?;
        let mut row = found(&mut reader, actor, id).await?;
        if evaluated {
            let mut known = Deployments::default();
            let context = Context { itself: Some(row.id.clone()), ..Context::default() };
            let known = known.of(&mut reader, row.deployment_key).await?;
            row.runtime_properties = Document(known.evaluate(&row.runtime_properties, &context)?);
        }
        Ok(row)
    }

    /// Changes an instance that nobody changed since the caller read it.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; `conflict_error` when it is newer than the caller's version, unless
    /// forced.
    pub async fn update_instance(
        &self,
        actor: &Actor,
        id: &str,
        changes: InstanceChanges,
    ) -> Result<NodeInstance, AppError> {
        actor.require(Permission::NodeInstanceUpdate)?;
        let mut tx = self.0.store().begin().await?;
        let row = node_instances::find(&mut tx, &actor.writable(), actor.tenant, id).await?;
        let row = row.ok_or_else(|| AppError::not_found("NodeInstance", id))?;
        let version = (!changes.force).then_some(changes.version);
        let system = changes.system_properties.as_ref();
        let write = Changes {
            is_status_check_ok: system.map(is_ok),
            has_configuration_drift: system.map(|system| has_drifted(system, changes.relationships.as_ref())),
            state: changes.state,
            runtime_properties: changes.runtime_properties.map(Document),
            system_properties: changes.system_properties.map(Document),
            relationships: changes.relationships.map(Document),
        };
        if !node_instances::update(&mut tx, row.key, version, &write).await? {
            let current = found(&mut tx, actor, id).await?.version;
            let message = format!(
                "Node instance update conflict [current version={current}, update version={}]",
                changes.version
            );
            return Err(AppError::new(Code::Conflict, message));
        }
        let changed = found(&mut tx, actor, id).await?;
        tx.commit().await?;
        Ok(changed)
    }
}

async fn found(connection: &mut PgConnection, actor: &Actor, id: &str) -> Result<NodeInstance, AppError> {
    let row = node_instances::find(connection, &actor.readable(), actor.tenant, id).await?;
    row.ok_or_else(|| AppError::not_found("NodeInstance", id))
}

/// What the last status check says; without one all is well.
fn is_ok(system: &Value) -> bool {
    system.get("status").and_then(|status| status.get("ok")).is_none_or(|ok| ok.as_bool().unwrap_or(true))
}

/// Whether the last drift check found something, on the instance or on one of its relationships.
fn has_drifted(system: &Value, relationships: Option<&Value>) -> bool {
    let found = |properties: &Value| {
        let result = properties.get("configuration_drift").and_then(|drift| drift.get("result"));
        result.is_some_and(|result| match result {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        })
    };
    let of_relationships = relationships.and_then(Value::as_array).into_iter().flatten();
    found(system) || of_relationships.filter_map(|one| one.get("system_properties")).any(found)
}

/// What is known of the deployments of a page, each read once.
#[derive(Default)]
struct Deployments(HashMap<i64, Known>);

impl Deployments {
    async fn of(&mut self, connection: &mut PgConnection, key: i64) -> Result<&Known, AppError> {
        match self.0.entry(key) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let row = deployments::get(connection, key).await?;
                let row = row.ok_or_else(|| AppError::not_found("Deployment", "of this node"))?;
                Ok(place.insert(Known::load(connection, &row).await?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn checks_are_read_from_system_properties() {
        assert!(is_ok(&json!({})) && is_ok(&json!({ "status": { "ok": true } })));
        assert!(!is_ok(&json!({ "status": { "ok": false } })));
        assert!(!has_drifted(&json!({ "configuration_drift": { "result": null } }), None));
        assert!(has_drifted(&json!({ "configuration_drift": { "result": { "a": 1 } } }), None));
        let one = json!([{ "system_properties": { "configuration_drift": { "result": true } } }]);
        assert!(has_drifted(&json!({}), Some(&one)));
    }
}
