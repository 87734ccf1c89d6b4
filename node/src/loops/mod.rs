//! The long tasks of the daemon, one file each. Observe, decide in `core`, act through adapters.

pub mod broker;
pub mod election;
pub mod failover;
pub mod gossip;
pub mod lease;
pub mod members;
pub mod observe;
pub mod resources;
pub mod sync_set;
pub mod worker;
