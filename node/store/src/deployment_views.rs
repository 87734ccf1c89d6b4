//! Deployments as workflows see them.

use serde_json::{Value, json};
use sqlx::{FromRow, PgConnection};

use crate::{Document, Scope, StoreError, Tx};

/// What starting and building a workflow needs of a deployment.
#[derive(Debug, Clone, FromRow)]
pub struct DeploymentView {
    /// Ours.
    pub key: i64,
    /// Shown to users.
    pub id: String,
    /// What it is called.
    pub display_name: String,
    /// Whose it is.
    pub tenant_key: i64,
    /// Who made it.
    pub creator: String,
    /// private, tenant, global.
    pub visibility: String,
    /// Its blueprint.
    pub blueprint_id: String,
    /// An object.
    pub resource_tags: Document,
    /// Workflows by name: plugin, operation, parameters, availability_rules.
    pub workflows: Document,
    /// How the execution that made its nodes stands; `None`: there is no such execution.
    pub environment_status: Option<String>,
    /// Why that failed.
    pub environment_error: Option<String>,
}

const SELECT: &str = "SELECT d.key, d.id, d.display_name, d.tenant_key, u.username AS creator, d.visibility, \
                      b.id AS blueprint_id, d.resource_tags, d.workflows, c.status AS environment_status, \
                      c.error AS environment_error FROM deployments d JOIN users u ON u.key = d.created_by \
                      JOIN blueprints b ON b.key = d.blueprint_key \
                      LEFT JOIN executions c ON c.key = d.create_execution_key";

/// A deployment that somebody sees.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(
    connection: &mut PgConnection,
    scope: &Scope,
    id: &str,
) -> Result<Option<DeploymentView>, StoreError> {
    let mut query = sqlx::QueryBuilder::new(format!("{SELECT} WHERE "));
    scope.push(&mut query, "d");
    query.push(" AND d.id = ").push_bind(id.to_owned());
    Ok(query.build_query_as().fetch_optional(connection).await?)
}

/// A deployment by key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get(connection: &mut PgConnection, key: i64) -> Result<Option<DeploymentView>, StoreError> {
    let sql = format!("{SELECT} WHERE d.key = $1");
    Ok(sqlx::query_as(&sql).bind(key).fetch_optional(connection).await?)
}

/// Notes the newest execution of a deployment.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_latest_execution(tx: &mut Tx, key: i64, execution_key: i64) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET latest_execution_key = $2 WHERE key = $1";
    sqlx::query(sql).bind(key).bind(execution_key).execute(&mut **tx).await?;
    Ok(())
}

/// Its nodes, in the order they were made: `id, type, type_hierarchy, operations, relationships, plugins, properties`.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn nodes(connection: &mut PgConnection, key: i64) -> Result<Vec<Value>, StoreError> {
    type Row = (String, String, Document, Document, Document, Document, Document);
    let sql = "SELECT id, type, type_hierarchy, operations, relationships, plugins, properties FROM nodes \
               WHERE deployment_key = $1 ORDER BY key";
    let rows: Vec<Row> = sqlx::query_as(sql).bind(key).fetch_all(connection).await?;
    let node = |(id, kind, hierarchy, operations, relationships, plugins, properties): Row| {
        json!({
            "id": id, "type": kind, "type_hierarchy": hierarchy.0, "operations": operations.0,
            "relationships": relationships.0, "plugins": plugins.0, "properties": properties.0,
        })
    };
    Ok(rows.into_iter().map(node).collect())
}

/// Its node instances, in the order they were made: `id, node_id, state, host_id, relationships`.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn instances(connection: &mut PgConnection, key: i64) -> Result<Vec<Value>, StoreError> {
    type Row = (String, String, String, Option<String>, Document);
    let sql = "SELECT i.id, n.id, i.state, i.host_id, i.relationships FROM node_instances i \
               JOIN nodes n ON n.key = i.node_key WHERE i.deployment_key = $1 ORDER BY i.key";
    let rows: Vec<Row> = sqlx::query_as(sql).bind(key).fetch_all(connection).await?;
    let instance = |(id, node, state, host, relationships): Row| json!({"id": id, "node_id": node, "state": state, "host_id": host, "relationships": relationships.0});
    Ok(rows.into_iter().map(instance).collect())
}

/// What availability of workflows depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Node instances.
    pub instances: i64,
    /// Those that are started.
    pub started: i64,
    /// Types of its nodes, with all that they derive from.
    pub types: Vec<String>,
}

/// How much of a deployment is installed.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn installed(connection: &mut PgConnection, key: i64) -> Result<Installed, StoreError> {
    let sql =
        "SELECT count(*), count(*) FILTER (WHERE state = 'started') FROM node_instances WHERE deployment_key = $1";
    let (instances, started) = sqlx::query_as(sql).bind(key).fetch_one(&mut *connection).await?;
    let sql = "SELECT DISTINCT t FROM nodes, json_array_elements_text(type_hierarchy) t WHERE deployment_key = $1";
    let types = sqlx::query_scalar(sql).bind(key).fetch_all(connection).await?;
    Ok(Installed { instances, started, types })
}

/// The agent on the host with this node instance id: its configuration as its installation left it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn agent(connection: &mut PgConnection, key: i64, host_id: &str) -> Result<Option<Value>, StoreError> {
    let sql = "SELECT runtime_properties -> 'cloudify_agent' FROM node_instances WHERE deployment_key = $1 AND id = $2";
    let found: Option<Option<Document>> =
        sqlx::query_scalar(sql).bind(key).bind(host_id).fetch_optional(connection).await?;
    Ok(found.flatten().map(Value::from))
}
