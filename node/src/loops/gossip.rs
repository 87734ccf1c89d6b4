//! Keeps gossip in step with the agreed members, and tells others how this node does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::Consensus;
use quorate_gossip::{Gossip, Load};
use quorate_types::ClusterState;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::local::{Local, role_name};

/// How often the load is told anew.
const PERIOD: Duration = Duration::from_secs(10);

/// Where members gossip.
pub fn seeds(state: &ClusterState, port: u16) -> Vec<SocketAddr> {
    state.members.values().map(|member| SocketAddr::new(member.address, port)).collect()
}

/// What this node says about itself.
pub fn load(local: &Local, data_dir: &Path) -> Load {
    let role = local.status().borrow().role;
    Load {
        version: env!("CARGO_PKG_VERSION").into(),
        role: role_name(role).into(),
        disk_free_bytes: disk_free_bytes(data_dir).unwrap_or(0),
        load_average_milli: load_average_milli().unwrap_or(0),
    }
}

/// Free space for this process, in bytes.
fn disk_free_bytes(dir: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

/// The load average of one minute, in thousandths.
fn load_average_milli() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (whole, fraction) = text.split_whitespace().next()?.split_once('.')?;
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some(whole.parse::<u64>().ok()? * 1000 + fraction.parse::<u64>().ok()?)
}

/// Runs until the token ends.
pub async fn run(
    gossip: Arc<Gossip>,
    consensus: Consensus,
    local: Arc<Local>,
    port: u16,
    data_dir: std::path::PathBuf,
    stop: CancellationToken,
) {
    let mut cluster = consensus.cluster();
    let mut status = local.status();
    let mut period = tokio::time::interval(PERIOD);
    loop {
        gossip.set_seeds(seeds(&cluster.borrow_and_update(), port));
        if let Err(error) = gossip.set_load(load(&local, &data_dir)) {
            debug!(%error, "the load was not told");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = cluster.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
            _ = period.tick() => {}
        }
    }
}
