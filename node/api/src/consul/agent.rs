//! `/v1/agent`: this node and the members as it sees them.

use axum::response::Response;
use quorate_types::{Member, NodeId};
use serde_json::{Value, json};

use super::reply::{self, Refusal};
use super::request::Query;
use super::{Access, Api};

/// Serf's words for a member's state.
const ALIVE: u8 = 1;
const FAILED: u8 = 4;

pub async fn this(api: &Api, query: &Query) -> Result<Response, Refusal> {
    api.allow(query, Access::NodeRead).await?;
    let id = api.consensus.node();
    let cluster = api.consensus.cluster().borrow().clone();
    let member = cluster.members.get(&id).map_or(Value::Null, |found| member(api, found));
    let leads = api.consensus.leadership().borrow().is_self;
    let view = json!({
        "Config": {
            "Datacenter": api.node.datacenter,
            "PrimaryDatacenter": api.node.datacenter,
            "NodeName": api.node.name,
            "NodeID": uuid(id),
            "Revision": "",
            "Server": true,
            "Version": api.node.version,
        },
        "DebugConfig": {},
        "Coord": null,
        "Member": member,
        // Consul has every number here as text.
        "Stats": {
            "consul": { "server": "true", "leader": leads.to_string() },
            "raft": {
                "state": if leads { "Leader" } else { "Follower" },
                "applied_index": api.consensus.applied_index().to_string(),
                "num_peers": api.consensus.voters().len().saturating_sub(1).to_string(),
            },
        },
        "Meta": {},
    });
    reply::json(query, &view)
}

pub async fn members(api: &Api, query: &Query) -> Result<Response, Refusal> {
    api.allow(query, Access::NodeRead).await?;
    query.refuse_filter()?;
    let cluster = api.consensus.cluster().borrow().clone();
    let views: Vec<Value> = cluster.members.values().map(|found| member(api, found)).collect();
    reply::json(query, &views)
}

fn member(api: &Api, member: &Member) -> Value {
    json!({
        "Name": member.name,
        "Addr": member.address,
        "Port": api.node.gossip_port,
        "Tags": {
            "role": "consul",
            "dc": api.node.datacenter,
            "id": uuid(member.id),
            "port": api.node.raft_port.to_string(),
            "build": api.node.version,
            "vsn": "2",
        },
        "Status": if api.watched.alive(member.id) { ALIVE } else { FAILED },
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}

/// Consul's nodes have UUIDs; clients want the form, unique within the cluster.
pub fn uuid(node: NodeId) -> uuid::Uuid {
    uuid::Uuid::from_u64_pair(0, node.0)
}
