//! Task graphs: one row names a graph, its operations are in [`crate::operations`].

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::{StoreError, Tx};

/// A row.
#[derive(Debug, Clone, FromRow)]
pub struct TasksGraph {
    /// Ours.
    pub key: i64,
    /// Shown to clients.
    pub id: String,
    /// The execution's id.
    pub execution_id: String,
    /// The execution's key.
    pub execution_key: i64,
    /// install, execute_operation_… .
    pub name: String,
    /// When it was stored.
    pub created_at: OffsetDateTime,
}

const SELECT: &str = "SELECT g.key, g.id, e.id AS execution_id, g.execution_key, g.name, g.created_at \
                      FROM tasks_graphs g JOIN executions e ON e.key = g.execution_key";

/// The graphs of an execution, oldest first; `name`: only those of this name.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_execution(
    connection: &mut PgConnection,
    execution_key: i64,
    name: Option<&str>,
) -> Result<Vec<TasksGraph>, StoreError> {
    let sql = format!("{SELECT} WHERE g.execution_key = $1 AND ($2::text IS NULL OR g.name = $2) ORDER BY g.key");
    Ok(sqlx::query_as(&sql).bind(execution_key).bind(name).fetch_all(connection).await?)
}

/// One graph by id.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, id: &str) -> Result<Option<TasksGraph>, StoreError> {
    let sql = format!("{SELECT} WHERE g.id = $1");
    Ok(sqlx::query_as(&sql).bind(id).fetch_optional(connection).await?)
}

/// Stores a graph's row and returns its key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn insert(tx: &mut Tx, id: &str, execution_key: i64, name: &str) -> Result<i64, StoreError> {
    let sql = "INSERT INTO tasks_graphs (id, execution_key, name) VALUES ($1, $2, $3) RETURNING key";
    Ok(sqlx::query_scalar(sql).bind(id).bind(execution_key).bind(name).fetch_one(&mut **tx).await?)
}
