//! Events and logs of executions.

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// A row, with the names behind its execution.
#[derive(Debug, Clone, FromRow)]
pub struct Event {
    /// Ours; grows in insertion order.
    pub key: i64,
    /// cloudify_event or cloudify_log.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// When it happened, by the reporter's clock.
    pub timestamp: OffsetDateTime,
    /// When it was stored.
    pub reported_timestamp: OffsetDateTime,
    /// The text.
    pub message: String,
    /// Events: what happened.
    pub event_type: Option<String>,
    /// Events: why something failed.
    pub error_causes: Option<Document>,
    /// Logs: who wrote.
    pub logger: Option<String>,
    /// Logs: how important.
    pub level: Option<String>,
    /// The operation's name.
    pub operation: Option<String>,
    /// The node instance.
    pub node_instance_id: Option<String>,
    /// Its node.
    pub node_name: Option<String>,
    /// Relationship operations: the source instance.
    pub source_id: Option<String>,
    /// Relationship operations: the target instance.
    pub target_id: Option<String>,
    /// The node whose worker wrote.
    pub manager_name: Option<String>,
    /// The worker that wrote.
    pub agent_name: Option<String>,
    /// The execution.
    pub execution_id: String,
    /// Its workflow.
    pub workflow_id: String,
    /// Its deployment.
    pub deployment_id: Option<String>,
    /// What that is called.
    pub deployment_display_name: Option<String>,
    /// Its blueprint.
    pub blueprint_id: Option<String>,
}

/// What a new row is made of.
#[derive(Debug, Clone, Default)]
pub struct NewEvent {
    /// `true`: a log, `false`: an event.
    pub is_log: bool,
    /// `None`: now, by our clock.
    pub timestamp: Option<OffsetDateTime>,
    /// The text.
    pub message: String,
    /// Events: what happened.
    pub event_type: Option<String>,
    /// Events: why something failed.
    pub error_causes: Option<Document>,
    /// Logs: who wrote.
    pub logger: Option<String>,
    /// Logs: how important.
    pub level: Option<String>,
    /// The operation's name.
    pub operation: Option<String>,
    /// The node instance; its node's name is found by it.
    pub node_instance_id: Option<String>,
    /// Relationship operations: the source instance.
    pub source_id: Option<String>,
    /// Relationship operations: the target instance.
    pub target_id: Option<String>,
    /// The node whose worker wrote.
    pub manager_name: Option<String>,
    /// The worker that wrote.
    pub agent_name: Option<String>,
}

const SOURCE: Source = Source {
    select: "SELECT v.key, v.type, v.timestamp, v.reported_timestamp, v.message, v.event_type, v.error_causes, \
             v.logger, v.level, v.operation, v.node_instance_id, v.node_name, v.source_id, v.target_id, \
             v.manager_name, v.agent_name, e.id AS execution_id, e.workflow_id, d.id AS deployment_id, \
             d.display_name AS deployment_display_name, b.id AS blueprint_id",
    from: "FROM events v JOIN executions e ON e.key = v.execution_key \
           LEFT JOIN deployments d ON d.key = e.deployment_key LEFT JOIN blueprints b ON b.key = d.blueprint_key",
    fields: &[
        Field::text("type", "v.type"),
        Field::other("timestamp", "v.timestamp"),
        Field::other("reported_timestamp", "v.reported_timestamp"),
        Field::text("message", "v.message"),
        Field::text("event_type", "v.event_type"),
        Field::text("logger", "v.logger"),
        Field::text("level", "v.level"),
        Field::text("operation", "v.operation"),
        Field::text("node_instance_id", "v.node_instance_id"),
        Field::text("node_name", "v.node_name"),
        Field::text("source_id", "v.source_id"),
        Field::text("target_id", "v.target_id"),
        Field::text("execution_id", "e.id"),
        Field::text("workflow_id", "e.workflow_id"),
        Field::text("deployment_id", "d.id"),
        Field::text("deployment_display_name", "d.display_name"),
        Field::text("blueprint_id", "b.id"),
    ],
    search: "v.message",
    order: "v.key",
};

/// Lists events and logs of executions that somebody sees.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
) -> Result<Listing<Event>, StoreError> {
    SOURCE.list(connection, query, |to| scope.push(to, "e")).await
}

/// Stores rows in their order.
///
/// # Errors
/// [`StoreError::Reference`] when the execution is gone.
pub async fn insert(tx: &mut Tx, execution_key: i64, rows: &[NewEvent]) -> Result<(), StoreError> {
    /// Rows of one statement: their values stay far below the 65535 parameters that the protocol has.
    const AT_ONCE: usize = 1000;
    for rows in rows.chunks(AT_ONCE) {
        let mut query = sqlx::QueryBuilder::new(
            "INSERT INTO events (execution_key, type, timestamp, message, event_type, error_causes, logger, level, \
             operation, node_instance_id, node_name, source_id, target_id, manager_name, agent_name) ",
        );
        query.push_values(rows, |mut to, row| {
            to.push_bind(execution_key)
                .push_bind(if row.is_log { "cloudify_log" } else { "cloudify_event" })
                .push("coalesce(")
                .push_bind_unseparated(row.timestamp)
                .push_unseparated(", clock_timestamp())")
                .push_bind(&row.message)
                .push_bind(&row.event_type)
                .push_bind(&row.error_causes)
                .push_bind(&row.logger)
                .push_bind(&row.level)
                .push_bind(&row.operation)
                .push_bind(&row.node_instance_id)
                .push(
                    "(SELECT n.id FROM node_instances i JOIN nodes n ON n.key = i.node_key \
                     JOIN executions x ON x.deployment_key = i.deployment_key WHERE x.key = ",
                )
                .push_bind_unseparated(execution_key)
                .push_unseparated(" AND i.id = ")
                .push_bind_unseparated(&row.node_instance_id)
                .push_unseparated(")")
                .push_bind(&row.source_id)
                .push_bind(&row.target_id)
                .push_bind(&row.manager_name)
                .push_bind(&row.agent_name);
        });
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}
