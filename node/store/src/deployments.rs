//! Deployments and their labels.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::labels::{self, Label, NewLabel};
use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// Refuse a second deployment of an id in a tenant, and a second global one.
pub const ID_TAKEN: [&str; 2] = ["deployments_tenant_id_key", "deployments_global_id_key"];

/// A row, with the names behind its keys, its latest execution, and its instances counted.
#[derive(Debug, Clone, FromRow)]
pub struct Deployment {
    /// Ours.
    pub key: i64,
    /// Shown to users.
    pub id: String,
    /// Whose it is.
    pub tenant_key: i64,
    /// Its tenant's name.
    pub tenant: String,
    /// Who made it.
    pub creator_key: i64,
    /// Their name.
    pub creator: String,
    /// private, tenant, global.
    pub visibility: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// What people call it.
    pub display_name: String,
    /// What it is made from.
    pub blueprint_key: i64,
    /// The blueprint's id.
    pub blueprint_id: String,
    /// What its blueprint says about itself.
    pub description: Option<String>,
    /// By name.
    pub inputs: Document,
    /// By name; with functions that are evaluated when they are read.
    pub outputs: Document,
    /// The same.
    pub capabilities: Document,
    /// By name.
    pub workflows: Document,
    /// By name.
    pub groups: Document,
    /// By name.
    pub scaling_groups: Document,
    /// By name.
    pub policy_types: Document,
    /// By name.
    pub policy_triggers: Document,
    /// By name.
    pub resource_tags: Document,
    /// Functions were not evaluated when it was made.
    pub runtime_only_evaluation: bool,
    /// The execution that made it.
    pub create_execution: Option<String>,
    /// The newest execution.
    pub latest_execution: Option<String>,
    /// Its workflow.
    pub latest_execution_workflow_id: Option<String>,
    /// completed, failed, cancelled, in_progress, queued, scheduled.
    pub latest_execution_status: Option<String>,
    /// Its counted operations.
    pub latest_execution_total_operations: Option<i32>,
    /// Those that ended.
    pub latest_execution_finished_operations: Option<i32>,
    /// Node instances.
    pub instances: i64,
    /// Those that are started.
    pub started_instances: i64,
    /// Those that are not started or whose check failed.
    pub unavailable_instances: i64,
    /// Those whose configuration drifted.
    pub drifted_instances: i64,
    /// active or inactive.
    pub installation_status: String,
    /// good, in_progress, requires_attention.
    pub deployment_status: String,
}

/// What a new deployment is made of.
pub struct NewDeployment<'a> {
    /// Shown to users.
    pub id: &'a str,
    /// Whose it is.
    pub tenant_key: i64,
    /// Who makes it.
    pub creator_key: i64,
    /// private, tenant, global.
    pub visibility: &'a str,
    /// What people call it.
    pub display_name: &'a str,
    /// What it is made from.
    pub blueprint_key: i64,
    /// What its blueprint says about itself.
    pub description: Option<&'a str>,
    /// By name, like all that follow.
    pub inputs: Document,
    /// With functions that are evaluated when they are read.
    pub outputs: Document,
    /// The same.
    pub capabilities: Document,
    /// Workflows.
    pub workflows: Document,
    /// Groups.
    pub groups: Document,
    /// Scaling groups.
    pub scaling_groups: Document,
    /// Policy types.
    pub policy_types: Document,
    /// Policy triggers.
    pub policy_triggers: Document,
    /// Resource tags.
    pub resource_tags: Document,
    /// Functions were not evaluated.
    pub runtime_only_evaluation: bool,
}

const SOURCE: Source = Source {
    select: "SELECT d.key, d.id, d.tenant_key, t.name AS tenant, d.created_by AS creator_key, u.username AS creator, \
             d.visibility, d.created_at, d.updated_at, d.display_name, d.blueprint_key, b.id AS blueprint_id, \
             d.description, d.inputs, d.outputs, d.capabilities, d.workflows, d.groups, d.scaling_groups, \
             d.policy_types, d.policy_triggers, d.resource_tags, d.runtime_only_evaluation, \
             c.id AS create_execution, s.*",
    from: "FROM deployments d JOIN tenants t ON t.key = d.tenant_key JOIN users u ON u.key = d.created_by \
           JOIN blueprints b ON b.key = d.blueprint_key LEFT JOIN executions c ON c.key = d.create_execution_key \
           CROSS JOIN LATERAL ( \
             SELECT e.*, i.*, CASE WHEN e.latest_execution_status IN ('in_progress', 'queued') THEN 'in_progress' \
               WHEN e.latest_execution_status IN ('failed', 'cancelled') OR i.installation_status = 'inactive' \
               THEN 'requires_attention' ELSE 'good' END AS deployment_status \
             FROM ( \
               SELECT count(*) AS instances, count(*) FILTER (WHERE n.state = 'started') AS started_instances, \
                 count(*) FILTER (WHERE n.state <> 'started' OR NOT n.is_status_check_ok) AS unavailable_instances, \
                 count(*) FILTER (WHERE n.has_configuration_drift) AS drifted_instances, \
                 CASE WHEN bool_and(n.state = 'started') THEN 'active' ELSE 'inactive' END AS installation_status \
               FROM node_instances n WHERE n.deployment_key = d.key \
             ) i LEFT JOIN ( \
               SELECT x.id AS latest_execution, x.workflow_id AS latest_execution_workflow_id, \
                 CASE WHEN x.status = 'terminated' THEN 'completed' \
                   WHEN x.status IN ('failed', 'cancelled', 'queued', 'scheduled') THEN x.status \
                   ELSE 'in_progress' END AS latest_execution_status, \
                 x.total_operations AS latest_execution_total_operations, \
                 x.finished_operations AS latest_execution_finished_operations \
               FROM executions x WHERE x.deployment_key = d.key ORDER BY x.key DESC LIMIT 1 \
             ) e ON true \
           ) s",
    fields: &[
        Field::text("id", "d.id"),
        Field::text("tenant_name", "t.name"),
        Field::text("created_by", "u.username"),
        Field::text("visibility", "d.visibility"),
        Field::other("created_at", "d.created_at"),
        Field::other("updated_at", "d.updated_at"),
        Field::text("display_name", "d.display_name"),
        Field::text("blueprint_id", "b.id"),
        Field::text("description", "d.description"),
        Field::text("installation_status", "s.installation_status"),
        Field::text("deployment_status", "s.deployment_status"),
        Field::text("latest_execution_status", "s.latest_execution_status"),
        Field::text("latest_execution_workflow_id", "s.latest_execution_workflow_id"),
    ],
    search: "d.id",
    order: "d.key",
};

/// Lists deployments; `name_part`: a part of what people call them, in any letter case.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
    name_part: Option<&str>,
) -> Result<Listing<Deployment>, StoreError> {
    SOURCE
        .list(connection, query, |to| {
            scope.push(to, "d");
            if let Some(part) = name_part {
                to.push(" AND strpos(lower(d.display_name), ").push_bind(part.to_lowercase()).push(") > 0");
            }
        })
        .await
}

/// One deployment that somebody sees: of `tenant_key` rather than a global one.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(
    connection: &mut PgConnection,
    scope: &Scope,
    tenant_key: i64,
    id: &str,
) -> Result<Option<Deployment>, StoreError> {
    let mut query = sqlx::QueryBuilder::new(format!("{} {} WHERE ", SOURCE.select, SOURCE.from));
    scope.push(&mut query, "d");
    query.push(" AND d.id = ").push_bind(id.to_owned());
    query.push(" ORDER BY d.tenant_key <> ").push_bind(tenant_key).push(" LIMIT 1");
    Ok(query.build_query_as().fetch_optional(connection).await?)
}

/// One deployment by key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get(connection: &mut PgConnection, key: i64) -> Result<Option<Deployment>, StoreError> {
    let sql = format!("{} {} WHERE d.key = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(key).fetch_optional(connection).await?)
}

/// Locks a deployment until the transaction ends. `false`: it is gone.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn lock(tx: &mut Tx, key: i64) -> Result<bool, StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT key FROM deployments WHERE key = $1 FOR UPDATE")
        .bind(key)
        .fetch_optional(&mut **tx)
        .await?;
    Ok(found.is_some())
}

/// Makes a deployment and returns its key.
///
/// # Errors
/// [`StoreError::Conflict`] on one of [`ID_TAKEN`], [`StoreError::Reference`] when the blueprint is gone.
pub async fn insert(tx: &mut Tx, new: NewDeployment<'_>) -> Result<i64, StoreError> {
    let sql = "INSERT INTO deployments (id, tenant_key, created_by, visibility, display_name, blueprint_key, \
               description, inputs, outputs, capabilities, workflows, groups, scaling_groups, policy_types, \
               policy_triggers, resource_tags, runtime_only_evaluation) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) RETURNING key";
    Ok(sqlx::query_scalar(sql)
        .bind(new.id)
        .bind(new.tenant_key)
        .bind(new.creator_key)
        .bind(new.visibility)
        .bind(new.display_name)
        .bind(new.blueprint_key)
        .bind(new.description)
        .bind(new.inputs)
        .bind(new.outputs)
        .bind(new.capabilities)
        .bind(new.workflows)
        .bind(new.groups)
        .bind(new.scaling_groups)
        .bind(new.policy_types)
        .bind(new.policy_triggers)
        .bind(new.resource_tags)
        .bind(new.runtime_only_evaluation)
        .fetch_one(&mut **tx)
        .await?)
}

/// The execution that made it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_create_execution(tx: &mut Tx, key: i64, execution_key: i64) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET create_execution_key = $2 WHERE key = $1";
    sqlx::query(sql).bind(key).bind(execution_key).execute(&mut **tx).await?;
    Ok(())
}

/// What people call it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_display_name(tx: &mut Tx, key: i64, display_name: &str) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET display_name = $2, updated_at = clock_timestamp() WHERE key = $1";
    sqlx::query(sql).bind(key).bind(display_name).execute(&mut **tx).await?;
    Ok(())
}

/// Who sees it.
///
/// # Errors
/// [`StoreError::Conflict`] on one of [`ID_TAKEN`].
pub async fn set_visibility(tx: &mut Tx, key: i64, visibility: &str) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET visibility = $2, updated_at = clock_timestamp() WHERE key = $1";
    sqlx::query(sql).bind(key).bind(visibility).execute(&mut **tx).await?;
    Ok(())
}

/// Removes a deployment with its nodes, instances, executions and events.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn delete(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM deployments WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Labels of several deployments, each after the deployment's key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn labels_of(connection: &mut PgConnection, keys: &[i64]) -> Result<Vec<Label>, StoreError> {
    labels::of(connection, labels::DEPLOYMENT, keys).await
}

/// Adds labels; those that are there stay.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn add_labels(tx: &mut Tx, key: i64, creator_key: i64, labels: &[NewLabel]) -> Result<(), StoreError> {
    labels::add(tx, labels::DEPLOYMENT, key, creator_key, labels).await
}

/// Removes all labels.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn clear_labels(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    labels::clear(tx, labels::DEPLOYMENT, key).await
}
