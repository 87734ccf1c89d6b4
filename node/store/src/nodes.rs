//! Nodes of deployments. Tenant, creator and visibility are the deployment's.

use sqlx::{FromRow, PgConnection, QueryBuilder};
use time::OffsetDateTime;

use crate::list::{Field, Source};
use crate::{Document, ListQuery, Listing, Scope, StoreError, Tx};

/// A row, with its deployment's and its instances counted.
#[derive(Debug, Clone, FromRow)]
pub struct Node {
    /// Ours.
    pub key: i64,
    /// Its name in the blueprint.
    pub id: String,
    /// The deployment.
    pub deployment_key: i64,
    /// The deployment's id.
    pub deployment_id: String,
    /// What people call the deployment.
    pub deployment_display_name: String,
    /// The deployment's blueprint.
    pub blueprint_id: String,
    /// The deployment's tenant.
    pub tenant: String,
    /// Who made the deployment.
    pub creator: String,
    /// The deployment's.
    pub visibility: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// The node it runs on.
    pub host_id: Option<String>,
    /// Its type.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// The type and its ancestors, root first.
    pub type_hierarchy: Document,
    /// By name.
    pub properties: Document,
    /// By name.
    pub operations: Document,
    /// To other nodes.
    pub relationships: Document,
    /// All that its operations need.
    pub plugins: Document,
    /// What the agent of this host installs.
    pub plugins_to_install: Document,
    /// Instances that there are.
    pub number_of_instances: i32,
    /// Instances that there shall be.
    pub planned_number_of_instances: i32,
    /// Instances that the blueprint asks for.
    pub deploy_number_of_instances: i32,
    /// Fewer there must not be.
    pub min_number_of_instances: i32,
    /// More there must not be; -1: without end.
    pub max_number_of_instances: i32,
    /// Instances counted.
    pub actual_number_of_instances: i64,
    /// Those that are not started or whose check failed.
    pub unavailable_instances: i64,
    /// Those whose configuration drifted.
    pub drifted_instances: i64,
}

/// What a new node is made of.
pub struct NewNode {
    /// Its name in the blueprint.
    pub id: String,
    /// The node it runs on.
    pub host_id: Option<String>,
    /// Its type.
    pub kind: String,
    /// The type and its ancestors, root first.
    pub type_hierarchy: Document,
    /// By name.
    pub properties: Document,
    /// By name.
    pub operations: Document,
    /// To other nodes.
    pub relationships: Document,
    /// All that its operations need.
    pub plugins: Document,
    /// What the agent of this host installs.
    pub plugins_to_install: Document,
    /// Instances that there are.
    pub number_of_instances: i32,
    /// Instances that there shall be.
    pub planned_number_of_instances: i32,
    /// Instances that the blueprint asks for.
    pub deploy_number_of_instances: i32,
    /// Fewer there must not be.
    pub min_number_of_instances: i32,
    /// More there must not be; -1: without end.
    pub max_number_of_instances: i32,
}

const SOURCE: Source = Source {
    select: "SELECT n.key, n.id, n.deployment_key, d.id AS deployment_id, \
             d.display_name AS deployment_display_name, b.id AS blueprint_id, t.name AS tenant, \
             u.username AS creator, d.visibility, n.created_at, n.host_id, n.type, n.type_hierarchy, n.properties, \
             n.operations, n.relationships, n.plugins, n.plugins_to_install, n.number_of_instances, \
             n.planned_number_of_instances, n.deploy_number_of_instances, n.min_number_of_instances, \
             n.max_number_of_instances, s.*",
    from: "FROM nodes n JOIN deployments d ON d.key = n.deployment_key JOIN blueprints b ON b.key = d.blueprint_key \
           JOIN tenants t ON t.key = d.tenant_key JOIN users u ON u.key = d.created_by \
           CROSS JOIN LATERAL ( \
             SELECT count(*) AS actual_number_of_instances, \
               count(*) FILTER (WHERE i.state <> 'started' OR NOT i.is_status_check_ok) AS unavailable_instances, \
               count(*) FILTER (WHERE i.has_configuration_drift) AS drifted_instances \
             FROM node_instances i WHERE i.node_key = n.key \
           ) s",
    fields: &[
        Field::text("id", "n.id"),
        Field::text("node_id", "n.id"),
        Field::text("deployment_id", "d.id"),
        Field::text("deployment_display_name", "d.display_name"),
        Field::text("blueprint_id", "b.id"),
        Field::text("tenant_name", "t.name"),
        Field::text("created_by", "u.username"),
        Field::text("visibility", "d.visibility"),
        Field::other("created_at", "n.created_at"),
        Field::text("host_id", "n.host_id"),
        Field::text("type", "n.type"),
        Field::other("number_of_instances", "n.number_of_instances"),
    ],
    search: "n.id",
    order: "n.key",
};

/// Lists nodes of deployments that somebody sees.
///
/// # Errors
/// As [`Source::list`].
pub async fn list(
    connection: &mut PgConnection,
    query: &ListQuery,
    scope: &Scope,
) -> Result<Listing<Node>, StoreError> {
    SOURCE.list(connection, query, |to| scope.push(to, "d")).await
}

/// All nodes of a deployment, in the blueprint's order.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn of_deployment(connection: &mut PgConnection, deployment_key: i64) -> Result<Vec<Node>, StoreError> {
    let sql = format!("{} {} WHERE n.deployment_key = $1 ORDER BY n.key", SOURCE.select, SOURCE.from);
    Ok(sqlx::query_as(&sql).bind(deployment_key).fetch_all(connection).await?)
}

/// Makes nodes in their order and returns names and keys.
///
/// # Errors
/// [`StoreError::Refused`] for what the database cannot keep.
pub async fn insert(tx: &mut Tx, deployment_key: i64, nodes: &[NewNode]) -> Result<Vec<(String, i64)>, StoreError> {
    /// Rows of one statement: their values stay far below the 65535 parameters that the protocol has.
    const AT_ONCE: usize = 1000;
    let mut keys = Vec::with_capacity(nodes.len());
    for nodes in nodes.chunks(AT_ONCE) {
        let mut query = QueryBuilder::new(
            "INSERT INTO nodes (deployment_key, id, host_id, type, type_hierarchy, properties, operations, \
             relationships, plugins, plugins_to_install, number_of_instances, planned_number_of_instances, \
             deploy_number_of_instances, min_number_of_instances, max_number_of_instances) ",
        );
        query.push_values(nodes, |mut to, node| {
            to.push_bind(deployment_key)
                .push_bind(&node.id)
                .push_bind(&node.host_id)
                .push_bind(&node.kind)
                .push_bind(&node.type_hierarchy)
                .push_bind(&node.properties)
                .push_bind(&node.operations)
                .push_bind(&node.relationships)
                .push_bind(&node.plugins)
                .push_bind(&node.plugins_to_install)
                .push_bind(node.number_of_instances)
                .push_bind(node.planned_number_of_instances)
                .push_bind(node.deploy_number_of_instances)
                .push_bind(node.min_number_of_instances)
                .push_bind(node.max_number_of_instances);
        });
        let made = query.push(" RETURNING id, key").build_query_as().fetch_all(&mut **tx).await?;
        keys.extend::<Vec<(String, i64)>>(made);
    }
    Ok(keys)
}
