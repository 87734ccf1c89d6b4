//! `/managers`, `/brokers`, `/db-nodes`, `/cluster-status`: every node of the cluster is all three.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use quorate_app::ports::{ClusterStatus, MemberStatus};
use quorate_app::system::{Duty, Health};
use quorate_app::{App, Permission};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::answer::{self, time_text, view};
use super::caller::{Caller, TenantCaller};
use super::error::ApiError;
use super::lists::Params;
use super::system::{EDITION, VERSION, distribution};

view! {
    /// A node as manager.
    ManagerView {
        id: u64,
        hostname: String,
        private_ip: String,
        public_ip: String,
        version: &'static str,
        edition: &'static str,
        distribution: String,
        distro_release: String,
        fs_sync_node_id: Option<String>,
        networks: Value,
        ca_cert_content: String,
        last_seen: Option<String>,
        status_report_frequency: i64,
    }
}

view! {
    /// A node as broker. Everybody has an account of their own there, so none is shown.
    BrokerView {
        name: String,
        host: String,
        management_host: Option<String>,
        port: u16,
        username: Option<String>,
        password: Option<String>,
        params: Option<Value>,
        networks: Value,
        is_external: bool,
        ca_cert_content: String,
    }
}

view! {
    /// A node as database.
    DbNodeView {
        name: String,
        host: String,
        is_external: bool,
    }
}

pub fn routes() -> Router<App> {
    Router::new()
        .route("/managers", get(managers))
        .route("/brokers", get(brokers))
        .route("/db-nodes", get(db_nodes))
        .route("/cluster-status", get(cluster_status))
}

async fn managers(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = app.system().cluster_in_tenant(&actor, Permission::ManagerGet)?;
    let now = time_text(OffsetDateTime::now_utc());
    let view = |member: &MemberStatus| {
        let address = member.address.to_string();
        ManagerView {
            id: member.id.0,
            hostname: member.name.clone(),
            private_ip: address.clone(),
            public_ip: address.clone(),
            version: VERSION,
            edition: EDITION,
            distribution: distribution().name.clone(),
            distro_release: distribution().release.clone(),
            fs_sync_node_id: None,
            networks: json!({ "default": address }),
            ca_cert_content: cluster.authority_pem.clone(),
            last_seen: member.manager_fault.is_none().then(|| now.clone()),
            status_report_frequency: 0,
        }
    };
    answer::list_of(cluster.members.iter().map(view).collect(), &params)
}

async fn brokers(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    let cluster = app.system().cluster(&login, Permission::BrokerGet)?;
    let view = |member: &MemberStatus| {
        let address = member.address.to_string();
        BrokerView {
            name: member.name.clone(),
            host: address.clone(),
            management_host: None,
            port: cluster.broker_port,
            username: None,
            password: None,
            params: None,
            networks: json!({ "default": address }),
            is_external: false,
            ca_cert_content: cluster.authority_pem.clone(),
        }
    };
    answer::list_of(cluster.members.iter().map(view).collect(), &params)
}

async fn db_nodes(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    let cluster = app.system().cluster(&login, Permission::DbNodesGet)?;
    let view = |member: &MemberStatus| DbNodeView {
        name: member.name.clone(),
        host: member.address.to_string(),
        is_external: false,
    };
    answer::list_of(cluster.members.iter().map(view).collect(), &params)
}

/// A summary of a failure is no 200: load balancers look at the code only.
async fn cluster_status(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = app.system().cluster_in_tenant(&actor, Permission::ClusterStatusGet)?;
    let is_summary = params.flag("summary")?;
    let overall = Duty::ALL.iter().map(|duty| duty.health(&cluster)).max().unwrap_or(Health::Fail);
    let services = Duty::ALL.iter().map(|duty| (key(*duty).to_owned(), service(*duty, &cluster)));
    let services: Map<String, Value> = if is_summary { Map::new() } else { services.collect() };
    let code = match overall {
        Health::Fail if is_summary => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    };
    Ok((code, Json(json!({ "status": overall.as_str(), "services": services }))).into_response())
}

fn key(duty: Duty) -> &'static str {
    match duty {
        Duty::Manager => "manager",
        Duty::Database => "db",
        Duty::Broker => "broker",
    }
}

fn service(duty: Duty, cluster: &ClusterStatus) -> Value {
    let program = match duty {
        Duty::Manager => "quorate",
        Duty::Database => "PostgreSQL",
        Duty::Broker => "RabbitMQ",
    };
    let node = |member: &MemberStatus| {
        let fault = duty.fault(member);
        let (health, state) = if fault.is_none() { (Health::Ok, "Active") } else { (Health::Fail, "Inactive") };
        let shown = json!({
            "status": health.as_str(),
            "version": VERSION,
            "private_ip": member.address.to_string(),
            "public_ip": member.address.to_string(),
            "services": { program: { "status": state, "extra_info": { "active_node": member.is_active } } },
            "metrics": [],
            "failures": fault.into_iter().collect::<Vec<_>>(),
        });
        (member.name.clone(), shown)
    };
    let nodes: Map<String, Value> = cluster.members.iter().map(node).collect();
    json!({ "status": duty.health(cluster).as_str(), "is_external": false, "nodes": nodes })
}
