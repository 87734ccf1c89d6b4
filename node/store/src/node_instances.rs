//! Instances of nodes. Creator and visibility are the deployment's.

use sqlx::{FromRow, PgConnection, QueryBuilder};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// Refuses a second instance of an id in a tenant.
pub const ID_TAKEN: &str = "node_instances_tenant_id_key";

/// A row, with the names behind its keys.
#[derive(Debug, Clone, FromRow)]
pub struct NodeInstance {
    /// Ours.
    pub key: i64,
    /// Shown to users.
    pub id: String,
    /// The node.
    pub node_id: String,
    /// The deployment.
    pub deployment_key: i64,
    /// The deployment's id.
    pub deployment_id: String,
    /// The deployment's tenant.
    pub tenant: String,
    /// Who made the deployment.
    pub creator: String,
    /// The deployment's.
    pub visibility: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Counts from 1 within its node.
    pub index: i32,
    /// The instance it runs on.
    pub host_id: Option<String>,
    /// uninitialized, creating … started … deleted.
    pub state: String,
    /// Grows with each write.
    pub version: i32,
    /// To other instances.
    pub relationships: Document,
    /// What operations left.
    pub runtime_properties: Document,
    /// What we left.
    pub system_properties: Document,
    /// Those around it.
    pub scaling_groups: Document,
    /// Its configuration is not what it should be.
    pub has_configuration_drift: bool,
    /// Its last check went well.
    pub is_status_check_ok: bool,
}

/// What a new instance is made of.
pub struct NewNodeInstance {
    /// Shown to users.
    pub id: String,
    /// The node's key.
    pub node_key: i64,
    /// Counts from 1 within its node.
    pub index: i32,
    /// The instance it runs on.
    pub host_id: Option<String>,
    /// To other instances.
    pub relationships: Document,
    /// Those around it.
    pub scaling_groups: Document,
}

/// What a write changes; `None`: not.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The state.
    pub state: Option<String>,
    /// What operations left.
    pub runtime_properties: Option<Document>,
    /// What we left.
    pub system_properties: Option<Document>,
    /// To other instances.
    pub relationships: Option<Document>,
    /// Its last check went well.
    pub is_status_check_ok: Option<bool>,
    /// Its configuration is not what it should be.
    pub has_configuration_drift: Option<bool>,
}

const SOURCE: Source = Source {
    select: "SELECT i.key, i.id, n.id AS node_id, i.deployment_key, d.id AS deployment_id, t.name AS tenant, \
             u.username AS creator, d.visibility, i.created_at, i.index, i.host_id, i.state, i.version, \
             i.relationships, i.runtime_properties, i.system_properties, i.scaling_groups, \
             i.has_configuration_drift, i.is_status_check_ok",
    from: "FROM node_instances i JOIN nodes n ON n.key = i.node_key JOIN deployments d ON d.key = i.deployment_key \
           JOIN tenants t ON t.key = d.tenant_key JOIN users u ON u.key = d.created_by",
    fields: &[
        Field::text("id", "i.id"),
        Field::text("node_id", "n.id"),
        Field::text("node_name", "n.id"),
        Field::text("deployment_id", "d.id"),
        Field::text("tenant_name", "t.name"),
        Field::text("created_by", "u.username"),
        Field::text("visibility", "d.visibility"),
        Field::other("created_at", "i.created_at"),
        Field::other("index", "i.index"),
        Field::text("host_id", "i.host_id"),
        Field::text("state", "i.state"),
        Field::other("version", "i.version"),
        Field::bool("has_configuration_drift", "i.has_configuration_drift"),
        Field::bool("is_status_check_ok", "i.is_status_check_ok"),
    ],
    search: "i.id",
    order: "i.key",
};

/// Lists instances in deployments that somebody sees.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
) -> Result<Listing<NodeInstance>, StoreError> {
    SOURCE.list(connection, query, |to| scope.push(to, "d")).await
}

/// One instance that somebody sees: of `tenant_key` rather than of a global deployment.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(
    connection: &mut PgConnection,
    scope: &Scope,
    tenant_key: i64,
    id: &str,
) -> Result<Option<NodeInstance>, StoreError> {
    let mut query = QueryBuilder::new(format!("{} {} WHERE ", SOURCE.select, SOURCE.from));
    scope.push(&mut query, "d");
    query.push(" AND i.id = ").push_bind(id.to_owned());
    query.push(" ORDER BY i.tenant_key <> ").push_bind(tenant_key).push(" LIMIT 1");
    Ok(query.build_query_as().fetch_optional(connection).await?)
}

/// All instances of a deployment, oldest first.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_deployment(
    connection: &mut PgConnection,
    deployment_key: i64,
) -> Result<Vec<NodeInstance>, StoreError> {
    let sql = format!("{} {} WHERE i.deployment_key = $1 ORDER BY i.key", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(deployment_key).fetch_all(connection).await?)
}

/// Makes instances in their order.
///
/// # Errors
/// [`StoreError::Conflict`] on [`ID_TAKEN`].
pub async fn insert(
    tx: &mut Tx,
    tenant_key: i64,
    deployment_key: i64,
    instances: &[NewNodeInstance],
) -> Result<(), StoreError> {
    /// Rows of one statement: their values stay far below the 65535 parameters that the protocol has.
    const AT_ONCE: usize = 1000;
    for instances in instances.chunks(AT_ONCE) {
        let mut query = QueryBuilder::new(
            "INSERT INTO node_instances (tenant_key, deployment_key, id, node_key, index, host_id, relationships, \
             scaling_groups) ",
        );
        query.push_values(instances, |mut to, instance| {
            to.push_bind(tenant_key)
                .push_bind(deployment_key)
                .push_bind(&instance.id)
                .push_bind(instance.node_key)
                .push_bind(instance.index)
                .push_bind(&instance.host_id)
                .push_bind(&instance.relationships)
                .push_bind(&instance.scaling_groups);
        });
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

/// Changes an instance, provided that it is not newer than `version`; `None`: whatever it is. `false`: it is newer, or
/// gone.
///
/// # Errors
/// [`StoreError::Refused`] for what the database cannot keep.
pub async fn update(tx: &mut Tx, key: i64, version: Option<i32>, changes: &Changes) -> Result<bool, StoreError> {
    let sql = "UPDATE node_instances SET version = version + 1, state = coalesce($3, state), \
               runtime_properties = coalesce($4, runtime_properties), \
               system_properties = coalesce($5, system_properties), relationships = coalesce($6, relationships), \
               is_status_check_ok = coalesce($7, is_status_check_ok), \
               has_configuration_drift = coalesce($8, has_configuration_drift) \
               WHERE key = $1 AND version <= coalesce($2, version)";
    let done = sqlx::query(sql)
        .bind(key)
        .bind(version)
        .bind(&changes.state)
        .bind(&changes.runtime_properties)
        .bind(&changes.system_properties)
        .bind(&changes.relationships)
        .bind(changes.is_status_check_ok)
        .bind(changes.has_configuration_drift)
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected() == 1)
}
