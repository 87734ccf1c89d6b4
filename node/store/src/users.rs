//! Users and their logins.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{ListQuery, Listing, StoreError, Tx};

/// Refuses a second user of a name.
pub const NAME_TAKEN: &str = "users_username_key";
/// The key of the first administrator.
pub const FIRST_ADMIN: i64 = 0;

/// A row.
#[derive(Clone, FromRow)]
pub struct User {
    /// Ours; [`FIRST_ADMIN`] passes every check.
    pub key: i64,
    /// Unique.
    pub username: String,
    /// PHC text.
    pub password_hash: String,
    /// `sys_admin` or `default`.
    pub role: String,
    /// Whether the user may log in.
    pub active: bool,
    /// Kept for clients.
    pub show_getting_started: bool,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// The first time the password was right.
    pub first_login_at: Option<OffsetDateTime>,
    /// The last time the password was checked and right.
    pub last_login_at: Option<OffsetDateTime>,
    /// Wrong passwords in a row.
    pub failed_logins: i32,
    /// How many tenants the user belongs to.
    pub tenants: i64,
}

const SOURCE: Source = Source {
    select: "SELECT u.key, u.username, u.password_hash, u.role, u.active, u.show_getting_started, u.created_at, \
             u.first_login_at, u.last_login_at, u.failed_logins, \
             (SELECT count(*) FROM user_tenants m WHERE m.user_key = u.key) AS tenants",
    from: "FROM users u",
    fields: &[
        Field::text("username", "u.username"),
        Field::text("role", "u.role"),
        Field::bool("active", "u.active"),
        Field::other("created_at", "u.created_at"),
        Field::other("first_login_at", "u.first_login_at"),
        Field::other("last_login_at", "u.last_login_at"),
    ],
    search: "u.username",
    order: "u.key",
};

/// A user to be.
pub struct NewUser<'a> {
    /// `None`: the next.
    pub key: Option<i64>,
    /// Unique.
    pub username: &'a str,
    /// PHC text.
    pub password_hash: &'a str,
    /// `sys_admin` or `default`.
    pub role: &'a str,
}

/// Lists users.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(connection: &mut PgConnection, query: &ListQuery) -> Result<Listing<User>, StoreError> {
    SOURCE
        .list(connection, query, |to| {
            to.push("true");
        })
        .await
}

/// The user of a name.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, username: &str) -> Result<Option<User>, StoreError> {
    let sql = format!("{} {} WHERE u.username = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(username).fetch_optional(connection).await?)
}

/// The user of a key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn get(connection: &mut PgConnection, key: i64) -> Result<Option<User>, StoreError> {
    let sql = format!("{} {} WHERE u.key = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(key).fetch_optional(connection).await?)
}

/// Makes a user and returns its key.
///
/// # Errors
/// [`StoreError::Conflict`] on [`NAME_TAKEN`].
pub async fn insert(tx: &mut Tx, user: NewUser<'_>) -> Result<i64, StoreError> {
    let sql = "INSERT INTO users (key, username, password_hash, role) VALUES \
               (coalesce($1, nextval(pg_get_serial_sequence('users', 'key'))), $2, $3, $4) RETURNING key";
    let query = sqlx::query_scalar(sql).bind(user.key).bind(user.username).bind(user.password_hash).bind(user.role);
    Ok(query.fetch_one(&mut **tx).await?)
}

/// Records that the password was right.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn record_login(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    let sql = "UPDATE users SET failed_logins = 0, last_login_at = clock_timestamp(), \
               first_login_at = coalesce(first_login_at, clock_timestamp()) WHERE key = $1";
    sqlx::query(sql).bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Records that the password was wrong.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn record_failure(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    let sql = "UPDATE users SET failed_logins = least(failed_logins + 1, 1000000) WHERE key = $1";
    sqlx::query(sql).bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Locks the users who could administer the cluster, and counts those who may log in. Two transactions that would
/// each remove one of the last two wait for each other here.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn count_admins(tx: &mut Tx) -> Result<usize, StoreError> {
    let sql = "SELECT active FROM users WHERE role = 'sys_admin' ORDER BY key FOR UPDATE";
    let active: Vec<bool> = sqlx::query_scalar(sql).fetch_all(&mut **tx).await?;
    Ok(active.into_iter().filter(|active| *active).count())
}

/// Replaces the password's hash and ends a lock.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_password(tx: &mut Tx, key: i64, password_hash: &str) -> Result<(), StoreError> {
    let sql = "UPDATE users SET password_hash = $2, failed_logins = 0 WHERE key = $1";
    sqlx::query(sql).bind(key).bind(password_hash).execute(&mut **tx).await?;
    Ok(())
}

/// Replaces the role in the cluster: `sys_admin` or `default`.
///
/// # Errors
/// [`StoreError::Refused`] for another role.
pub async fn set_role(tx: &mut Tx, key: i64, role: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE users SET role = $2 WHERE key = $1").bind(key).bind(role).execute(&mut **tx).await?;
    Ok(())
}

/// Lets a user log in, or no longer.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_active(tx: &mut Tx, key: i64, active: bool) -> Result<(), StoreError> {
    sqlx::query("UPDATE users SET active = $2 WHERE key = $1").bind(key).bind(active).execute(&mut **tx).await?;
    Ok(())
}

/// Keeps a flag for clients.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_show_getting_started(tx: &mut Tx, key: i64, show: bool) -> Result<(), StoreError> {
    sqlx::query("UPDATE users SET show_getting_started = $2 WHERE key = $1")
        .bind(key)
        .bind(show)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Forgets wrong passwords.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn unlock(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE users SET failed_logins = 0 WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Removes a user with memberships and tokens.
///
/// # Errors
/// [`StoreError::Reference`] while the user owns resources.
pub async fn delete(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM users WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}
