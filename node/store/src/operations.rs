//! Operations: the rows of task graphs, in insertion order.
//!
//! *Invariant* `RECORDED_ONCE`: a row that succeeded, failed or was rescheduled never changes its state again; only
//! [`reopen`] opens a sub-graph, which has no result of its own.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::{Document, StoreError, Tx};

/// A row.
#[derive(Debug, Clone, FromRow)]
pub struct Operation {
    /// Ours; grows in insertion order.
    pub key: i64,
    /// Also the task's id on the wire.
    pub id: String,
    /// The graph's id.
    pub graph_id: String,
    /// The execution's key.
    pub execution_key: i64,
    /// What it runs.
    pub name: String,
    /// pending, sending, sent, started, response-sent, succeeded, failed, rescheduled.
    pub state: String,
    /// What it is.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Ids of rows that must end before.
    pub dependencies: Vec<String>,
    /// What it needs.
    pub parameters: Document,
    /// The worker that it was given to.
    pub agent_name: Option<String>,
    /// The node of that worker.
    pub manager_name: Option<String>,
    /// When it was stored.
    pub created_at: OffsetDateTime,
}

/// What a new row is made of.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Also the task's id on the wire.
    pub id: String,
    /// What it runs.
    pub name: String,
    /// Usually pending.
    pub state: String,
    /// What it is.
    pub kind: String,
    /// Ids of rows that must end before.
    pub dependencies: Vec<String>,
    /// What it needs.
    pub parameters: Document,
}

const SELECT: &str = "SELECT o.key, o.id, g.id AS graph_id, g.execution_key, o.name, o.state, o.type, o.dependencies, \
                      o.parameters, o.agent_name, o.manager_name, o.created_at \
                      FROM operations o JOIN tasks_graphs g ON g.key = o.graph_key";

/// The states that never change again.
const FINAL: &str = "('succeeded', 'failed', 'rescheduled')";

/// The rows of a graph, in insertion order.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_graph(connection: &mut PgConnection, graph_key: i64) -> Result<Vec<Operation>, StoreError> {
    let sql = format!("{SELECT} WHERE o.graph_key = $1 ORDER BY o.key");
    Ok(sqlx::query_as(&sql).bind(graph_key).fetch_all(connection).await?)
}

/// One row by id.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn find(connection: &mut PgConnection, id: &str) -> Result<Option<Operation>, StoreError> {
    let sql = format!("{SELECT} WHERE o.id = $1");
    Ok(sqlx::query_as(&sql).bind(id).fetch_optional(connection).await?)
}

/// Stores rows in their order.
///
/// # Errors
/// [`StoreError::Conflict`] when an id is taken.
pub async fn insert(tx: &mut Tx, graph_key: i64, rows: &[NewOperation]) -> Result<(), StoreError> {
    /// Rows of one statement: their values stay far below the 65535 parameters that the protocol has.
    const AT_ONCE: usize = 1000;
    for rows in rows.chunks(AT_ONCE) {
        let mut query = sqlx::QueryBuilder::new(
            "INSERT INTO operations (graph_key, id, name, state, type, dependencies, parameters) ",
        );
        query.push_values(rows, |mut to, row| {
            to.push_bind(graph_key)
                .push_bind(&row.id)
                .push_bind(&row.name)
                .push_bind(&row.state)
                .push_bind(&row.kind)
                .push_bind(&row.dependencies)
                .push_bind(&row.parameters);
        });
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

/// Moves a row to a state. `false`: it has its final state, which stays.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_state(tx: &mut Tx, id: &str, state: &str) -> Result<bool, StoreError> {
    let sql = format!("UPDATE operations SET state = $2 WHERE id = $1 AND state NOT IN {FINAL}");
    let done = sqlx::query(&sql).bind(id).bind(state).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Moves many rows at once, each named once; rows with a final state stay as they are. Returns how many moved.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_states(tx: &mut Tx, ids: &[String], states: &[String]) -> Result<usize, StoreError> {
    let sql = format!(
        "UPDATE operations o SET state = n.state FROM unnest($1::text[], $2::text[]) AS n (id, state) \
         WHERE o.id = n.id AND o.state NOT IN {FINAL}"
    );
    let done = sqlx::query(&sql).bind(ids).bind(states).execute(&mut **tx).await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// Opens an ended sub-graph again.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn reopen(tx: &mut Tx, id: &str) -> Result<(), StoreError> {
    let sql = "UPDATE operations SET state = 'started' WHERE id = $1 AND type = 'SubgraphTask'";
    sqlx::query(sql).bind(id).execute(&mut **tx).await?;
    Ok(())
}

/// Gives rows other parameters.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_parameters(tx: &mut Tx, ids: &[String], parameters: &[Document]) -> Result<(), StoreError> {
    let sql = "UPDATE operations o SET parameters = n.parameters \
               FROM unnest($1::text[], $2::json[]) AS n (id, parameters) WHERE o.id = n.id";
    sqlx::query(sql).bind(ids).bind(parameters).execute(&mut **tx).await?;
    Ok(())
}

/// Gives rows to workers. Rows with a final state stay as they are.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn assign(tx: &mut Tx, ids: &[String], agent_names: &[String]) -> Result<(), StoreError> {
    let sql = format!(
        "UPDATE operations o SET agent_name = n.agent FROM unnest($1::text[], $2::text[]) AS n (id, agent) \
         WHERE o.id = n.id AND o.state NOT IN {FINAL}"
    );
    sqlx::query(&sql).bind(ids).bind(agent_names).execute(&mut **tx).await?;
    Ok(())
}

/// Notes on which node the worker of a row runs.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set_manager(tx: &mut Tx, id: &str, manager_name: &str) -> Result<(), StoreError> {
    let sql = "UPDATE operations SET manager_name = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(manager_name).execute(&mut **tx).await?;
    Ok(())
}

/// One row, held until the transaction ends.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn lock(tx: &mut Tx, id: &str) -> Result<Option<Operation>, StoreError> {
    let sql = format!("{SELECT} WHERE o.id = $1 FOR UPDATE OF o");
    Ok(sqlx::query_as(&sql).bind(id).fetch_optional(&mut **tx).await?)
}

/// The rows among these that a worker reports to have begun, whatever came later.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn begun(connection: &mut PgConnection, ids: &[String]) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT id FROM operations WHERE id = ANY($1) AND state NOT IN ('pending', 'sending', 'sent')";
    Ok(sqlx::query_scalar(sql).bind(ids).fetch_all(connection).await?)
}

/// The executions that rows belong to: id and execution key.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn executions_of(connection: &mut PgConnection, ids: &[String]) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT o.id, g.execution_key FROM operations o JOIN tasks_graphs g ON g.key = o.graph_key \
               WHERE o.id = ANY($1)";
    Ok(sqlx::query_as(sql).bind(ids).fetch_all(connection).await?)
}

/// Fails what workers may have of an execution: they were told to end it and will not answer. Returns how many.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn give_up(tx: &mut Tx, execution_key: i64) -> Result<u64, StoreError> {
    let sql = "UPDATE operations o SET state = 'failed' FROM tasks_graphs g \
               WHERE g.key = o.graph_key AND g.execution_key = $1 AND o.type = 'RemoteWorkflowTask' \
               AND o.state IN ('sending', 'sent', 'started', 'response-sent')";
    Ok(sqlx::query(sql).bind(execution_key).execute(&mut **tx).await?.rows_affected())
}
