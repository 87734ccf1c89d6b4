//! What the API on 8500 shows and whom it lets in.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_api::consul::{Access, CheckInfo, CheckStatus, ServiceInfo, Services, Tokens};
use quorate_config::Config;
use quorate_consensus::Consensus;
use quorate_gossip::Gossip;
use quorate_types::NodeId;
use subtle::ConstantTimeEq;

use crate::loops::observe::{View, Views};

/// What runs where, as this node sees it.
pub struct NodeServices {
    pub config: Arc<Config>,
    pub consensus: Consensus,
    pub views: Views,
    pub gossip: Arc<Gossip>,
}

impl NodeServices {
    fn of_member(&self, node: NodeId, view: Option<&View>) -> [ServiceInfo; 2] {
        let role = view.map_or("unreachable", |view| view.reply.role.as_str());
        let fresh = view.is_some_and(|view| view.is_alive());
        let status = match role {
            "active" | "standby" if fresh => CheckStatus::Passing,
            _ if fresh => CheckStatus::Warning,
            _ => CheckStatus::Critical,
        };
        let ports = &self.config.ports;
        let service = |name: &str, tag: &str, port: u16| ServiceInfo {
            node,
            id: name.into(),
            name: name.into(),
            tags: vec![tag.to_owned()],
            address: None,
            port,
            meta: BTreeMap::new(),
            checks: vec![CheckInfo {
                id: format!("service:{name}"),
                name: format!("{name} as the members see it"),
                status,
                output: if fresh { format!("the node is {role}") } else { "the node does not answer".into() },
            }],
        };
        let primary = if role == "active" { "primary" } else { "replica" };
        [service("manager", role, ports.https), service("postgresql", primary, ports.replication)]
    }
}

impl Services for NodeServices {
    fn services(&self) -> Vec<ServiceInfo> {
        let views = self.views.all();
        let state = self.consensus.cluster().borrow().clone();
        state.members.keys().flat_map(|node| self.of_member(*node, views.get(node))).collect()
    }

    fn alive(&self, node: NodeId) -> bool {
        self.gossip.alive(node)
    }
}

/// One token for everything; who leads may be asked without.
pub struct ApiToken(pub String);

impl Tokens for ApiToken {
    fn allowed<'a>(&'a self, token: Option<&'a str>, access: Access<'a>) -> BoxFuture<'a, bool> {
        let known = token.is_some_and(|token| token.as_bytes().ct_eq(self.0.as_bytes()).into());
        let open = matches!(access, Access::StatusRead);
        async move { known || open }.boxed()
    }
}
