//! `/v1/status`: who leads and who votes. Answered from what this node knows, also without a leader.

use std::net::SocketAddr;

use axum::response::Response;

use super::reply::{Refusal, json};
use super::request::Query;
use super::{Access, Api};

pub async fn leader(api: &Api, query: &Query) -> Result<Response, Refusal> {
    api.allow(query, Access::StatusRead).await?;
    let voters = api.consensus.voters();
    let leader = api.consensus.known_leader();
    let address = voters.iter().find(|(id, _)| Some(*id) == leader).map(|(_, address)| *address);
    json(query, &address.map_or_else(String::new, |ip| SocketAddr::new(ip, api.node.raft_port).to_string()))
}

pub async fn peers(api: &Api, query: &Query) -> Result<Response, Refusal> {
    api.allow(query, Access::StatusRead).await?;
    let peer = |(_, ip)| SocketAddr::new(ip, api.node.raft_port).to_string();
    json(query, &api.consensus.voters().into_iter().map(peer).collect::<Vec<_>>())
}
