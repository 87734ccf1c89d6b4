//! Tenants, and who belongs to them.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{ListQuery, Listing, StoreError, Tx};

/// Refuses a second tenant of a name.
pub const NAME_TAKEN: &str = "tenants_name_key";
/// Refuses a second role of a user in a tenant.
pub const MEMBER_ALREADY: &str = "user_tenants_pkey";

/// A row.
#[derive(Clone, FromRow)]
pub struct Tenant {
    /// Ours.
    pub key: i64,
    /// Unique.
    pub name: String,
    /// What workers of this tenant log in to the broker with.
    pub rabbitmq_password: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// How many users belong to it.
    pub users: i64,
}

/// Somebody in a tenant.
#[derive(Debug, Clone, FromRow)]
pub struct Membership {
    /// The tenant.
    pub tenant_key: i64,
    /// Its name.
    pub tenant: String,
    /// The user.
    pub user_key: i64,
    /// The user's name.
    pub username: String,
    /// manager, user, operations, viewer.
    pub role: String,
}

const SOURCE: Source = Source {
    select: "SELECT t.key, t.name, t.rabbitmq_password, t.created_at, \
             (SELECT count(*) FROM user_tenants m WHERE m.tenant_key = t.key) AS users",
    from: "FROM tenants t",
    fields: &[Field::text("name", "t.name"), Field::other("created_at", "t.created_at")],
    search: "t.name",
    order: "t.key",
};

const MEMBERSHIP: &str = "SELECT t.key AS tenant_key, t.name AS tenant, u.key AS user_key, u.username, m.role \
                          FROM user_tenants m JOIN tenants t ON t.key = m.tenant_key JOIN users u ON u.key = m.user_key";

/// Lists tenants; `of_user`: only those that this user belongs to.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    of_user: Option<i64>,
) -> Result<Listing<Tenant>, StoreError> {
    SOURCE
        .list(connection, query, |to| {
            match of_user {
                None => to.push("true"),
                Some(user) => {
                    to.push("t.key IN (SELECT tenant_key FROM user_tenants WHERE user_key = ").push_bind(user).push(")")
                }
            };
        })
        .await
}

/// One tenant, `None` when there is no such name.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<Tenant>, StoreError> {
    let sql = format!("{} {} WHERE t.name = $1", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(name).fetch_optional(connection).await?)
}

/// Everybody in these tenants.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn members(connection: &mut PgConnection, tenants: &[i64]) -> Result<Vec<Membership>, StoreError> {
    let sql = format!("{MEMBERSHIP} WHERE t.key = ANY($1) ORDER BY t.key, u.key");
    Ok(sqlx::query_as(&sql).bind(tenants).fetch_all(connection).await?)
}

/// Every tenant of these users.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_users(connection: &mut PgConnection, users: &[i64]) -> Result<Vec<Membership>, StoreError> {
    let sql = format!("{MEMBERSHIP} WHERE u.key = ANY($1) ORDER BY u.key, t.key");
    Ok(sqlx::query_as(&sql).bind(users).fetch_all(connection).await?)
}

/// Makes a tenant and returns its key.
///
/// # Errors
/// [`StoreError::Conflict`] on [`NAME_TAKEN`].
pub async fn insert(tx: &mut Tx, name: &str, rabbitmq_password: &str) -> Result<i64, StoreError> {
    let sql = "INSERT INTO tenants (name, rabbitmq_password) VALUES ($1, $2) RETURNING key";
    Ok(sqlx::query_scalar(sql).bind(name).bind(rabbitmq_password).fetch_one(&mut **tx).await?)
}

/// Removes a tenant and its memberships.
///
/// # Errors
/// [`StoreError::Reference`] while it holds resources.
pub async fn delete(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tenants WHERE key = $1").bind(key).execute(&mut **tx).await?;
    Ok(())
}

/// Gives a user a role in a tenant.
///
/// # Errors
/// [`StoreError::Conflict`] on [`MEMBER_ALREADY`].
pub async fn add_user(tx: &mut Tx, tenant: i64, user: i64, role: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO user_tenants (tenant_key, user_key, role) VALUES ($1, $2, $3)";
    sqlx::query(sql).bind(tenant).bind(user).bind(role).execute(&mut **tx).await?;
    Ok(())
}

/// Changes a user's role in a tenant; `false`: the user is not in it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn update_user(tx: &mut Tx, tenant: i64, user: i64, role: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE user_tenants SET role = $3 WHERE tenant_key = $1 AND user_key = $2";
    let done = sqlx::query(sql).bind(tenant).bind(user).bind(role).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a user out of a tenant; `false`: the user was not in it.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn remove_user(tx: &mut Tx, tenant: i64, user: i64) -> Result<bool, StoreError> {
    let sql = "DELETE FROM user_tenants WHERE tenant_key = $1 AND user_key = $2";
    let done = sqlx::query(sql).bind(tenant).bind(user).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}
