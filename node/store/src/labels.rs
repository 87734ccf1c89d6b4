//! Labels of blueprints and deployments: the same columns in two tables.

use sqlx::{FromRow, PgConnection, QueryBuilder};
use time::OffsetDateTime;

use crate::{StoreError, Tx};

/// A row, with the name of who made it.
#[derive(Debug, Clone, FromRow)]
pub struct Label {
    /// What it is on.
    pub owner_key: i64,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Who made it.
    pub creator: String,
}

/// Name and value.
pub type NewLabel = (String, String);

/// Table and the column of what its rows are on.
pub(crate) type Table = (&'static str, &'static str);
pub(crate) const BLUEPRINT: Table = ("blueprint_labels", "blueprint_key");
pub(crate) const DEPLOYMENT: Table = ("deployment_labels", "deployment_key");

pub(crate) async fn of(
    connection: &mut PgConnection,
    (table, owner): Table,
    keys: &[i64],
) -> Result<Vec<Label>, StoreError> {
    let sql = format!(
        "SELECT l.{owner} AS owner_key, l.name, l.value, l.created_at, u.username AS creator FROM {table} l \
         JOIN users u ON u.key = l.created_by WHERE l.{owner} = ANY($1) ORDER BY l.created_at, l.name, l.value"
    );
    Ok(sqlx::query_as(&sql).bind(keys).fetch_all(connection).await?)
}

pub(crate) async fn add(
    tx: &mut Tx,
    (table, owner): Table,
    key: i64,
    creator_key: i64,
    labels: &[NewLabel],
) -> Result<(), StoreError> {
    if labels.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::new(format!("INSERT INTO {table} ({owner}, name, value, created_by) "));
    query.push_values(labels, |mut to, (name, value)| {
        to.push_bind(key).push_bind(name).push_bind(value).push_bind(creator_key);
    });
    query.push(" ON CONFLICT DO NOTHING").build().execute(&mut **tx).await?;
    Ok(())
}

pub(crate) async fn clear(tx: &mut Tx, (table, owner): Table, key: i64) -> Result<(), StoreError> {
    sqlx::query(&format!("DELETE FROM {table} WHERE {owner} = $1")).bind(key).execute(&mut **tx).await?;
    Ok(())
}
