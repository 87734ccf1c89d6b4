//! What a node must know to gossip.

use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};
use quorate_types::NodeId;

use crate::load::Load;
use crate::seal::{GossipKey, OVERHEAD_BYTES};
use crate::{MEMBERS_MAX, PACKET_BYTES_MAX};

/// The longest name, in bytes: three identities fit a packet with room to spare.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// What a node must know to gossip.
#[derive(Clone)]
pub struct GossipSettings {
    /// This node.
    pub node: NodeId,
    /// How it calls itself; at most 64 bytes.
    pub name: String,
    /// The cluster's id: gossip of another cluster with the same key does not open.
    pub cluster_id: String,
    /// Where it listens, UDP and TCP, and what it tells others. Port 0 takes a free one.
    pub address: SocketAddr,
    /// The cluster's gossip key.
    pub key: GossipKey,
    /// Where other members may be found; this node's own address is ignored. At most [`MEMBERS_MAX`] are used.
    pub seeds: Vec<SocketAddr>,
    /// What this node says about itself at first.
    pub load: Load,
    /// How fast.
    pub pace: Pace,
}

/// How fast members are watched. All durations must be above zero.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often one member, in turn, is asked whether it lives; more than twice `answer`.
    pub probe: Duration,
    /// How long a direct answer may take before others are asked to try.
    pub answer: Duration,
    /// How long a suspect may contradict before it counts as down.
    pub suspicion: Duration,
    /// How often news are passed on while there are any.
    pub news: Duration,
    /// How often seeds and members that are not alive are tried again.
    pub rejoin: Duration,
    /// How often whole member lists are exchanged with one active member over TCP.
    pub sync: Duration,
}

impl Default for Pace {
    /// A dead host is down in about three seconds among three nodes.
    fn default() -> Self {
        Self {
            probe: Duration::from_millis(500),
            answer: Duration::from_millis(150),
            suspicion: Duration::from_secs(2),
            news: Duration::from_millis(200),
            rejoin: Duration::from_secs(2),
            sync: Duration::from_secs(30),
        }
    }
}

impl Pace {
    pub(crate) fn is_sound(&self) -> bool {
        let all = [self.probe, self.answer, self.suspicion, self.news, self.rejoin, self.sync];
        all.iter().all(|duration| !duration.is_zero()) && self.probe > self.answer * 2
    }

    pub(crate) fn config(&self) -> Config {
        let three = const { NonZeroUsize::new(3).expect("three is not zero") };
        Config {
            probe_period: self.probe,
            probe_rtt: self.answer,
            num_indirect_probes: three,
            max_transmissions: const { NonZeroU8::new(6).expect("six is not zero") },
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(Duration::from_secs(24 * 60 * 60)),
            max_packet_size: const {
                NonZeroUsize::new(PACKET_BYTES_MAX - OVERHEAD_BYTES).expect("a packet is larger than its seal")
            },
            notify_down_members: true,
            // Both are the driver's work: foca's own timers stop while it sees nobody, which is when they matter.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(PeriodicParams { frequency: self.news, num_members: three }),
        }
    }
}

/// The seeds that are used: others' addresses, each once, at most [`MEMBERS_MAX`].
pub(crate) fn usable_seeds(own: SocketAddr, seeds: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut usable: Vec<SocketAddr> = Vec::new();
    for seed in seeds {
        if *seed != own && !usable.contains(seed) && usable.len() < MEMBERS_MAX {
            usable.push(*seed);
        }
    }
    usable
}
