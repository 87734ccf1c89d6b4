//! The passwords that nodes need among themselves, derived from the cluster's secret: every node knows them, none is
//! stored or sent.

use quorate_broker::{Permission, UserDef, VhostDef};
use quorate_store::tenants::Tenant;
use sha2::{Digest, Sha256};

use crate::pki::Identity;

/// The virtual host of the managers' own queues.
pub const VHOST: &str = "/";
/// The broker's administrator.
pub const BROKER_ADMIN: &str = "quorate";
/// Who executors and workers are for the broker.
pub const BROKER_WORKER: &str = "quorate-worker";

/// The token of the API on 8500.
pub const API_TOKEN: &str = "api-8500";

/// The password of an account that only nodes use.
pub fn derived(identity: &Identity, account: &str) -> String {
    let mut hash = Sha256::new();
    // The key on both sides: neither end can be extended by who knows another account's password.
    hash.update(identity.gossip_key);
    hash.update(account.as_bytes());
    hash.update(identity.gossip_key);
    hex::encode(hash.finalize())
}

/// What every broker holds for these tenants.
pub fn desired(identity: &Identity, tenants: &[Tenant]) -> quorate_broker::Desired {
    let vhost = |tenant: &Tenant| format!("rabbitmq_vhost_{}", tenant.name);
    let worker = UserDef {
        name: BROKER_WORKER.into(),
        password: derived(identity, BROKER_WORKER),
        tags: Vec::new(),
        permissions: vec![Permission::everything(VHOST)],
    };
    let of_tenants = tenants.iter().map(|tenant| UserDef {
        name: format!("rabbitmq_user_{}", tenant.name),
        password: tenant.rabbitmq_password.clone(),
        tags: Vec::new(),
        permissions: vec![Permission::everything(vhost(tenant))],
    });
    quorate_broker::Desired {
        vhosts: tenants.iter().map(|tenant| VhostDef { name: vhost(tenant) }).collect(),
        users: std::iter::once(worker).chain(of_tenants).collect(),
    }
}
