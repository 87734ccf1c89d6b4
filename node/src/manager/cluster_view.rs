//! The picture of the cluster that REST clients see.

use std::sync::Arc;

use quorate_app::ports::{ClusterStatus, ClusterView, MemberStatus};
use quorate_config::Config;
use quorate_consensus::Consensus;

use crate::loops::observe::Views;

/// What this node sees.
pub struct Picture {
    pub config: Arc<Config>,
    pub consensus: Consensus,
    pub views: Views,
    pub authority_pem: String,
}

impl ClusterView for Picture {
    fn status(&self) -> ClusterStatus {
        let state = self.consensus.cluster().borrow().clone();
        let views = self.views.all();
        let holder = state.current().filter(|record| record.opened.is_some()).map(|record| record.holder);
        let members = state.members.values().map(|member| {
            let view = views.get(&member.id).filter(|view| view.is_alive());
            let fault = match view {
                None => Some("the node does not answer".to_owned()),
                Some(view) if matches!(view.reply.role.as_str(), "active" | "standby") => None,
                Some(view) => Some(format!("{}: {}", view.reply.role, view.reply.note)),
            };
            MemberStatus {
                id: member.id,
                name: member.name.clone(),
                address: member.address,
                is_active: holder == Some(member.id),
                manager_fault: fault.clone(),
                database_fault: fault.clone(),
                broker_fault: fault,
            }
        });
        ClusterStatus {
            cluster_address: self.config.address.cluster,
            authority_pem: self.authority_pem.clone(),
            broker_port: self.config.ports.amqps,
            members: members.collect(),
        }
    }
}
