//! Tokens of users, and the tokens that executions call us with.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{ListQuery, Listing, StoreError, Tx};

/// Uses of a token within this many seconds are recorded once.
const USE_RESOLUTION_SECONDS: i32 = 60;

/// A row.
#[derive(Clone, FromRow)]
pub struct Token {
    /// Ours.
    pub key: i64,
    /// The public part.
    pub id: String,
    /// Whose.
    pub user_key: i64,
    /// SHA-256 of the secret part, hex.
    pub secret_sha256: String,
    /// When it ends.
    pub expires_at: Option<OffsetDateTime>,
    /// Whether it has ended, by the database's clock.
    pub expired: bool,
    /// Whether this use should be recorded.
    pub stale: bool,
}

/// A token as lists show it.
#[derive(Debug, Clone, FromRow)]
pub struct TokenInfo {
    /// Ours.
    pub key: i64,
    /// The public part.
    pub id: String,
    /// Whose.
    pub username: String,
    /// The user's role in the cluster.
    pub role: String,
    /// What the user wrote.
    pub description: Option<String>,
    /// When it ends.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was used, to the minute.
    pub last_used_at: Option<OffsetDateTime>,
}

const SOURCE: Source = Source {
    select: "SELECT k.key, k.id, u.username, u.role, k.description, k.expires_at, k.last_used_at",
    from: "FROM tokens k JOIN users u ON u.key = k.user_key",
    fields: &[
        Field::text("id", "k.id"),
        Field::text("username", "u.username"),
        Field::text("role", "u.role"),
        Field::text("description", "k.description"),
        Field::other("expiration_date", "k.expires_at"),
        Field::other("last_used", "k.last_used_at"),
    ],
    search: "k.id",
    order: "k.key",
};

/// Lists tokens; `of_user`: only this user's.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    of_user: Option<i64>,
) -> Result<Listing<TokenInfo>, StoreError> {
    SOURCE
        .list(connection, query, |to| {
            match of_user {
                None => to.push("true"),
                Some(user) => to.push("k.user_key = ").push_bind(user),
            };
        })
        .await
}

/// Keeps a token; only the hash of its secret.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn insert(
    tx: &mut Tx,
    id: &str,
    user: i64,
    secret_sha256: &str,
    description: Option<&str>,
    expires_at: Option<OffsetDateTime>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO tokens (id, user_key, secret_sha256, description, expires_at) VALUES ($1, $2, $3, $4, $5)";
    let query = sqlx::query(sql).bind(id).bind(user).bind(secret_sha256).bind(description).bind(expires_at);
    query.execute(&mut **tx).await?;
    Ok(())
}

/// Ends a token.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn delete(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// For whom and where an execution acts.
#[derive(Debug, Clone, FromRow)]
pub struct ExecutionLogin {
    /// The execution's id.
    pub execution: String,
    /// Its creator.
    pub user_key: i64,
    /// Its tenant's name.
    pub tenant: String,
}

/// The token with this public part.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, id: &str) -> Result<Option<Token>, StoreError> {
    let sql = "SELECT key, id, user_key, secret_sha256, expires_at, \
               coalesce(expires_at <= clock_timestamp(), false) AS expired, \
               coalesce(last_used_at < clock_timestamp() - make_interval(secs => $2), true) AS stale \
               FROM tokens WHERE id = $1";
    Ok(sqlx::query_as(sql).bind(id).bind(f64::from(USE_RESOLUTION_SECONDS)).fetch_optional(connection).await?)
}

/// Records that a token was used.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn record_use(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET last_used_at = clock_timestamp() WHERE key = $1")
        .bind(key)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The execution whose token has this SHA-256, provided that it may still act: it has not ended, or it was cancelled
/// while operations of it were running.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_execution(connection: &mut PgConnection, sha256: &str) -> Result<Option<ExecutionLogin>, StoreError> {
    let sql = "SELECT e.id AS execution, e.created_by AS user_key, t.name AS tenant \
               FROM executions e JOIN tenants t ON t.key = e.tenant_key WHERE e.token_sha256 = $1 AND \
               (e.status NOT IN ('terminated', 'failed', 'cancelled') OR \
               (e.status = 'cancelled' AND e.finished_operations < e.total_operations))";
    Ok(sqlx::query_as(sql).bind(sha256).fetch_optional(connection).await?)
}
