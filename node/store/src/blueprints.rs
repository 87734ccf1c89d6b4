//! Blueprints and their labels.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::labels::{self, Label, NewLabel};
use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// Refuse a second blueprint of an id in a tenant, and a second global one.
pub const ID_TAKEN: [&str; 2] = ["blueprints_tenant_id_key", "blueprints_global_id_key"];
/// Refuses to remove a blueprint that deployments use.
pub const USED_BY_DEPLOYMENT: &str = "deployments_blueprint_fkey";

/// A row, with the names behind its keys.
#[derive(Debug, Clone, FromRow)]
pub struct Blueprint {
    /// Ours.
    pub key: i64,
    /// Shown to users.
    pub id: String,
    /// Whose it is.
    pub tenant_key: i64,
    /// Its tenant's name.
    pub tenant: String,
    /// Who uploaded it.
    pub creator_key: i64,
    /// Their name.
    pub creator: String,
    /// private, tenant, global.
    pub visibility: String,
    /// When it was uploaded.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// The file that is compiled, relative to the archive's folder.
    pub main_file_name: String,
    /// What it says about itself.
    pub description: Option<String>,
    /// What it compiles to; `None` until it has, and in lists that leave it out.
    pub plan: Option<Document>,
    /// What its deployments need.
    pub requirements: Option<Document>,
    /// Not in ordinary lists.
    pub is_hidden: bool,
    /// uploading, extracting, parsing, uploaded, invalid, failed_…
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Where it failed.
    pub error_traceback: Option<String>,
    /// The execution that unpacks and compiles it.
    pub upload_execution_key: Option<i64>,
}

/// What a new blueprint is made of.
pub struct NewBlueprint<'a> {
    /// Shown to users.
    pub id: &'a str,
    /// Whose it is.
    pub tenant_key: i64,
    /// Who uploads it.
    pub creator_key: i64,
    /// private, tenant, global.
    pub visibility: &'a str,
    /// The file that is compiled.
    pub main_file_name: &'a str,
    /// Where it stands.
    pub state: &'a str,
    /// The execution that unpacks and compiles it.
    pub upload_execution_key: i64,
}

macro_rules! select {
    ($plan:literal) => {
        concat!(
            "SELECT b.key, b.id, b.tenant_key, t.name AS tenant, b.created_by AS creator_key, u.username AS creator, \
             b.visibility, b.created_at, b.updated_at, b.main_file_name, b.description, ",
            $plan,
            " AS plan, b.requirements, b.is_hidden, b.state, b.error, b.error_traceback, b.upload_execution_key"
        )
    };
}

const SOURCE: Source = Source {
    select: select!("b.plan"),
    from: "FROM blueprints b JOIN tenants t ON t.key = b.tenant_key JOIN users u ON u.key = b.created_by",
    fields: &[
        Field::text("id", "b.id"),
        Field::text("tenant_name", "t.name"),
        Field::text("created_by", "u.username"),
        Field::text("visibility", "b.visibility"),
        Field::other("created_at", "b.created_at"),
        Field::other("updated_at", "b.updated_at"),
        Field::text("main_file_name", "b.main_file_name"),
        Field::text("description", "b.description"),
        Field::bool("is_hidden", "b.is_hidden"),
        Field::text("state", "b.state"),
        Field::text("error", "b.error"),
    ],
    search: "b.id",
    order: "b.key",
};
/// Plans can be large and lists long.
const SOURCE_WITHOUT_PLAN: Source = Source { select: select!("NULL::json"), ..SOURCE };

/// Lists blueprints; `with_plan`: with what they compile to.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
    with_plan: bool,
) -> Result<Listing<Blueprint>, StoreError> {
    let source = if with_plan { SOURCE } else { SOURCE_WITHOUT_PLAN };
    source.list(connection, query, |to| scope.push(to, "b")).await
}

/// One blueprint that somebody sees: of `tenant_key` rather than a global one.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(
    connection: &mut PgConnection,
    scope: &Scope,
    tenant_key: i64,
    id: &str,
) -> Result<Option<Blueprint>, StoreError> {
    let mut query = sqlx::QueryBuilder::new(format!("{} {} WHERE ", SOURCE.select, SOURCE.from));
    scope.push(&mut query, "b");
    query.push(" AND b.id = ").push_bind(id.to_owned());
    query.push(" ORDER BY b.tenant_key <> ").push_bind(tenant_key).push(" LIMIT 1");
    Ok(query.build_query_as().fetch_optional(connection).await?)
}

/// One blueprint by key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get(connection: &mut PgConnection, key: i64) -> Result<Option<Blueprint>, StoreError> {
    let sql = format!("{} {} WHERE b.key = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(key).fetch_optional(connection).await?)
}

/// The blueprint that keeps `tenant_key` from using an id, whoever may see it; `anywhere`: of any tenant, for an id
/// that is to be global.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn holder(
    connection: &mut PgConnection,
    tenant_key: i64,
    id: &str,
    anywhere: bool,
) -> Result<Option<Blueprint>, StoreError> {
    let sql = format!(
        "{} {} WHERE b.id = $2 AND (b.tenant_key = $1 OR b.visibility = 'global' OR $3) \
         ORDER BY b.tenant_key <> $1 LIMIT 1",
        SOURCE_WITHOUT_PLAN.select, SOURCE.from
    );
    Ok(sqlx::query_as(&sql).bind(tenant_key).bind(id).bind(anywhere).fetch_optional(connection).await?)
}

/// Keys of the blueprints whose upload is not ended, oldest first.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn unfinished(connection: &mut PgConnection) -> Result<Vec<i64>, StoreError> {
    let sql = "SELECT b.key FROM blueprints b JOIN executions e ON e.key = b.upload_execution_key \
               WHERE e.status NOT IN ('terminated', 'failed', 'cancelled') ORDER BY b.key";
    Ok(sqlx::query_scalar(sql).fetch_all(connection).await?)
}

/// Makes a blueprint and returns its key.
///
/// # Errors
/// [`StoreError::Conflict`] on one of [`ID_TAKEN`].
pub async fn insert(tx: &mut Tx, new: NewBlueprint<'_>) -> Result<i64, StoreError> {
    let sql = "INSERT INTO blueprints (id, tenant_key, created_by, visibility, main_file_name, state, \
               upload_execution_key) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING key";
    Ok(sqlx::query_scalar(sql)
        .bind(new.id)
        .bind(new.tenant_key)
        .bind(new.creator_key)
        .bind(new.visibility)
        .bind(new.main_file_name)
        .bind(new.state)
        .bind(new.upload_execution_key)
        .fetch_one(&mut **tx)
        .await?)
}

/// Where the upload stands; `error`: why it failed.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_state(tx: &mut Tx, key: i64, state: &str, error: Option<&str>) -> Result<(), StoreError> {
    let sql = "UPDATE blueprints SET state = $2, error = $3, updated_at = clock_timestamp() WHERE key = $1";
    sqlx::query(sql).bind(key).bind(state).bind(error).execute(&mut **tx).await?;
    Ok(())
}

/// What the blueprint compiles to.
///
/// # Errors
/// [`StoreError::Refused`] for a plan that the database cannot keep, for example one with NUL.
pub async fn set_plan(
    tx: &mut Tx,
    key: i64,
    plan: &Document,
    description: Option<&str>,
    requirements: &Document,
) -> Result<(), StoreError> {
    let sql = "UPDATE blueprints SET plan = $2, description = $3, requirements = $4, updated_at = clock_timestamp() \
               WHERE key = $1";
    sqlx::query(sql).bind(key).bind(plan).bind(description).bind(requirements).execute(&mut **tx).await?;
    Ok(())
}

/// Who sees it.
///
/// # Errors
/// [`StoreError::Conflict`] on one of [`ID_TAKEN`].
pub async fn set_visibility(tx: &mut Tx, key: i64, visibility: &str) -> Result<(), StoreError> {
    let sql = "UPDATE blueprints SET visibility = $2, updated_at = clock_timestamp() WHERE key = $1";
    sqlx::query(sql).bind(key).bind(visibility).execute(&mut **tx).await?;
    Ok(())
}

/// Removes a blueprint.
///
/// # Errors
/// [`StoreError::Reference`] while deployments use it.
pub async fn delete(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM blueprints WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Ids of the deployments that use it, a few of them, whoever may see them.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn deployments_of(connection: &mut PgConnection, key: i64) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT id FROM deployments WHERE blueprint_key = $1 ORDER BY key LIMIT 20";
    Ok(sqlx::query_scalar(sql).bind(key).fetch_all(connection).await?)
}

/// Labels of several blueprints, each after the blueprint's key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn labels_of(connection: &mut PgConnection, keys: &[i64]) -> Result<Vec<Label>, StoreError> {
    labels::of(connection, labels::BLUEPRINT, keys).await
}

/// Adds labels; those that are there stay.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn add_labels(tx: &mut Tx, key: i64, creator_key: i64, labels: &[NewLabel]) -> Result<(), StoreError> {
    labels::add(tx, labels::BLUEPRINT, key, creator_key, labels).await
}

/// Removes all labels.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn clear_labels(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    labels::clear(tx, labels::BLUEPRINT, key).await
}
