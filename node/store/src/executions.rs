//! Executions of workflows.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// Refuses a second execution of an id.
pub const ID_TAKEN: &str = "executions_id_key";

/// A row, with the names behind its keys.
#[derive(Debug, Clone, FromRow)]
pub struct Execution {
    /// Ours.
    pub key: i64,
    /// Shown to users.
    pub id: String,
    /// Whose it is.
    pub tenant_key: i64,
    /// Its tenant's name.
    pub tenant: String,
    /// Who started it.
    pub creator_key: i64,
    /// Their name.
    pub creator: String,
    /// private, tenant, global.
    pub visibility: String,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// What it works on; `None`: on no deployment.
    pub deployment_key: Option<i64>,
    /// The deployment's id.
    pub deployment_id: Option<String>,
    /// What the deployment is called.
    pub deployment_display_name: Option<String>,
    /// The deployment's blueprint.
    pub blueprint_id: Option<String>,
    /// install, upload_blueprint …
    pub workflow_id: String,
    /// With defaults merged in.
    pub parameters: Document,
    /// pending, started, terminated …
    pub status: String,
    /// Why it failed; empty once it began.
    pub error: Option<String>,
    /// Hidden from ordinary lists.
    pub is_system_workflow: bool,
    /// Nothing is really done.
    pub is_dry_run: bool,
    /// It goes on with the graph of an earlier run.
    pub resume: bool,
    /// Parameters that the workflow does not name are let through.
    pub allow_custom_parameters: bool,
    /// When it began.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// When it shall begin.
    pub scheduled_for: Option<OffsetDateTime>,
    /// Counted operations.
    pub total_operations: i32,
    /// Those that ended.
    pub finished_operations: i32,
    /// Seconds that other branches may go on after a failure.
    pub wait_after_fail_seconds: i32,
}

/// What a new execution is made of.
pub struct NewExecution<'a> {
    /// Shown to users.
    pub id: &'a str,
    /// Whose it is.
    pub tenant_key: i64,
    /// Who started it.
    pub creator_key: i64,
    /// private, tenant, global.
    pub visibility: &'a str,
    /// What it works on.
    pub deployment_key: Option<i64>,
    /// install, upload_blueprint …
    pub workflow_id: &'a str,
    /// With defaults merged in.
    pub parameters: Document,
    /// pending, queued, started …
    pub status: &'a str,
    /// Hidden from ordinary lists.
    pub is_system_workflow: bool,
    /// Nothing is really done.
    pub is_dry_run: bool,
    /// Parameters that the workflow does not name are let through.
    pub allow_custom_parameters: bool,
    /// Seconds that other branches may go on after a failure.
    pub wait_after_fail_seconds: i32,
}

/// What is not ended, in brief.
#[derive(Debug, Clone, FromRow)]
pub struct Unfinished {
    /// Ours.
    pub key: i64,
    /// pending, queued, started, cancelling …
    pub status: String,
    /// What it works on.
    pub deployment_key: Option<i64>,
    /// install, upload_blueprint …
    pub workflow_id: String,
}

const SOURCE: Source = Source {
    select: "SELECT e.key, e.id, e.tenant_key, t.name AS tenant, e.created_by AS creator_key, u.username AS creator, \
             e.visibility, e.created_at, e.deployment_key, d.id AS deployment_id, \
             d.display_name AS deployment_display_name, b.id AS blueprint_id, e.workflow_id, e.parameters, e.status, \
             e.error, e.is_system_workflow, e.is_dry_run, e.resume, e.allow_custom_parameters, e.started_at, \
             e.ended_at, e.scheduled_for, e.total_operations, e.finished_operations, \
             e.wait_after_fail_seconds",
    from: "FROM executions e JOIN tenants t ON t.key = e.tenant_key JOIN users u ON u.key = e.created_by \
           LEFT JOIN deployments d ON d.key = e.deployment_key LEFT JOIN blueprints b ON b.key = d.blueprint_key",
    fields: &[
        Field::text("id", "e.id"),
        Field::text("tenant_name", "t.name"),
        Field::text("created_by", "u.username"),
        Field::text("visibility", "e.visibility"),
        Field::other("created_at", "e.created_at"),
        Field::text("deployment_id", "d.id"),
        Field::text("deployment_display_name", "d.display_name"),
        Field::text("blueprint_id", "b.id"),
        Field::text("workflow_id", "e.workflow_id"),
        Field::text("status", "e.status"),
        Field::text("error", "e.error"),
        Field::bool("is_system_workflow", "e.is_system_workflow"),
        Field::bool("is_dry_run", "e.is_dry_run"),
        Field::other("started_at", "e.started_at"),
        Field::other("ended_at", "e.ended_at"),
        Field::other("scheduled_for", "e.scheduled_for"),
        Field::other("total_operations", "e.total_operations"),
        Field::other("finished_operations", "e.finished_operations"),
    ],
    search: "e.id",
    order: "e.key",
};

/// Lists executions; `system`: with those that are hidden from ordinary lists.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
    system: bool,
) -> Result<Listing<Execution>, StoreError> {
    SOURCE
        .list(connection, query, |to| {
            scope.push(to, "e");
            if !system {
                to.push(" AND NOT e.is_system_workflow");
            }
        })
        .await
}

/// One execution that somebody sees.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, scope: &Scope, id: &str) -> Result<Option<Execution>, StoreError> {
    let mut query = sqlx::QueryBuilder::new(format!("{} {} WHERE ", SOURCE.select, SOURCE.from));
    scope.push(&mut query, "e");
    query.push(" AND e.id = ").push_bind(id.to_owned());
    Ok(query.build_query_as().fetch_optional(connection).await?)
}

/// One execution by key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get(connection: &mut PgConnection, key: i64) -> Result<Option<Execution>, StoreError> {
    let sql = format!("{} {} WHERE e.key = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(key).fetch_optional(connection).await?)
}

/// Several executions by key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get_many(connection: &mut PgConnection, keys: &[i64]) -> Result<Vec<Execution>, StoreError> {
    let sql = format!("{} {} WHERE e.key = ANY($1)", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(keys).fetch_all(connection).await?)
}

/// Everything that is not ended, oldest first, but for executions of workflows that somebody else carries out.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn unfinished(connection: &mut PgConnection, not: &[&str]) -> Result<Vec<Unfinished>, StoreError> {
    let sql = "SELECT key, status, deployment_key, workflow_id FROM executions \
               WHERE status NOT IN ('terminated', 'failed', 'cancelled') AND workflow_id <> ALL($1) ORDER BY key";
    Ok(sqlx::query_as(sql).bind(not).fetch_all(connection).await?)
}

/// What is not ended of one deployment, oldest first.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn unfinished_of(connection: &mut PgConnection, deployment_key: i64) -> Result<Vec<Execution>, StoreError> {
    let sql = format!(
        "{} {} WHERE e.deployment_key = $1 AND e.status NOT IN ('terminated', 'failed', 'cancelled') ORDER BY e.key",
        SOURCE.select, SOURCE.from
    );
    Ok(sqlx::query_as(&sql).bind(deployment_key).fetch_all(connection).await?)
}

/// Makes an execution and returns its key.
///
/// # Errors
/// [`StoreError::Conflict`] on [`ID_TAKEN`].
pub async fn insert(tx: &mut Tx, new: NewExecution<'_>) -> Result<i64, StoreError> {
    let sql = "INSERT INTO executions (id, tenant_key, created_by, visibility, deployment_key, workflow_id, \
               parameters, status, is_system_workflow, is_dry_run, allow_custom_parameters, \
               wait_after_fail_seconds) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING key";
    Ok(sqlx::query_scalar(sql)
        .bind(new.id)
        .bind(new.tenant_key)
        .bind(new.creator_key)
        .bind(new.visibility)
        .bind(new.deployment_key)
        .bind(new.workflow_id)
        .bind(new.parameters)
        .bind(new.status)
        .bind(new.is_system_workflow)
        .bind(new.is_dry_run)
        .bind(new.allow_custom_parameters)
        .bind(new.wait_after_fail_seconds)
        .fetch_one(&mut **tx)
        .await?)
}

/// The execution begins: it has a start time, and an error text that is empty.
///
/// `false`: it is not in one of `from` any more.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn begin(tx: &mut Tx, key: i64, from: &[&str]) -> Result<bool, StoreError> {
    let sql = "UPDATE executions SET status = 'started', started_at = coalesce(started_at, clock_timestamp()), \
               error = '' WHERE key = $1 AND status = ANY($2)";
    let done = sqlx::query(sql).bind(key).bind(from).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Changes the status, if the execution is in one of `from`. `false`: it is not.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_status(tx: &mut Tx, key: i64, from: &[&str], status: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE executions SET status = $3 WHERE key = $1 AND status = ANY($2)";
    let done = sqlx::query(sql).bind(key).bind(from).bind(status).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// The execution ends; what ended already stays as it is. `false`: it had ended.
///
/// A cancelled one keeps its token: operations of it may still run, and a resume goes on with them.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn finish(tx: &mut Tx, key: i64, status: &str, error: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE executions SET status = $2, error = $3, ended_at = clock_timestamp(), \
               token = CASE WHEN $2 = 'cancelled' THEN token END \
               WHERE key = $1 AND status NOT IN ('terminated', 'failed', 'cancelled')";
    let done = sqlx::query(sql).bind(key).bind(status).bind(error).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// An ended execution is to run again from its graph, under a new token. `false`: it is neither failed nor cancelled.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn reopen(tx: &mut Tx, key: i64) -> Result<bool, StoreError> {
    let sql = "UPDATE executions SET status = 'pending', ended_at = NULL, resume = true, error = '' \
               WHERE key = $1 AND status IN ('failed', 'cancelled')";
    let done = sqlx::query(sql).bind(key).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// How many operations there are, and how many ended.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_progress(tx: &mut Tx, key: i64, total: u32, finished: u32) -> Result<(), StoreError> {
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let sql = "UPDATE executions SET total_operations = $2, finished_operations = $3 WHERE key = $1";
    sqlx::query(sql).bind(key).bind(number(total)).bind(number(finished)).execute(&mut **tx).await?;
    Ok(())
}

/// The token that tasks to come call us with; an earlier one is worth nothing any more.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_token(tx: &mut Tx, key: i64, token: &str, sha256: &str) -> Result<(), StoreError> {
    let sql = "UPDATE executions SET token = $2, token_sha256 = $3 WHERE key = $1";
    sqlx::query(sql).bind(key).bind(token).bind(sha256).execute(&mut **tx).await?;
    Ok(())
}

/// The token that tasks call us with; secret. `None`: there is none yet, or the execution terminated or failed.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn token(connection: &mut PgConnection, key: i64) -> Result<Option<String>, StoreError> {
    let sql = "SELECT token FROM executions WHERE key = $1";
    let token: Option<Option<String>> = sqlx::query_scalar(sql).bind(key).fetch_optional(connection).await?;
    Ok(token.flatten())
}
