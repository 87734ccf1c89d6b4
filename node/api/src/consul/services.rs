//! Services as they are now, and when each last changed: the index that blocking queries wait for.
//!
//! Health is this node's own view, not agreed state, so its index is no log index. It is the wall clock's
//! milliseconds at the change, and at least one more than before: a client that comes back after a restart, or from
//! another node, is then rarely left waiting for a change that it missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_consensus::Consensus;
use quorate_types::{Member, NodeId};

use super::reply::{Read, Refusal};
use super::{Api, ServiceInfo, Services};

/// How often a waiting query looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One instance and the node under it.
#[derive(Clone, PartialEq, Eq)]
pub struct Instance {
    pub node: Member,
    pub alive: bool,
    pub service: ServiceInfo,
}

/// A service and when it last changed. Without instances: it has gone.
#[derive(Clone, Default)]
struct Known {
    instances: Vec<Instance>,
    changed: u64,
}

/// All services at one time.
#[derive(Clone)]
pub struct Picture {
    services: BTreeMap<String, Known>,
    /// When any service last changed.
    changed: u64,
    /// When a name or a tag last came or went.
    pub names_changed: u64,
}

impl Picture {
    pub fn instances(&self, name: &str) -> &[Instance] {
        self.services.get(name).map_or(&[], |known| &known.instances)
    }

    /// When the service last changed; 0 if it was never seen.
    pub fn service_changed(&self, name: &str) -> u64 {
        self.services.get(name).map_or(0, |known| known.changed)
    }

    /// The index to report for the service: of the whole table if there is none.
    pub fn index(&self, name: &str) -> u64 {
        match self.services.get(name) {
            Some(known) if !known.instances.is_empty() => known.changed,
            _ => self.changed,
        }
    }

    /// Each name with the tags of all its instances.
    pub fn names(&self) -> BTreeMap<String, BTreeSet<String>> {
        let there = self.services.iter().filter(|(_, known)| !known.instances.is_empty());
        there
            .map(|(name, known)| {
                let tags = known.instances.iter().flat_map(|instance| instance.service.tags.iter().cloned());
                (name.clone(), tags.collect())
            })
            .collect()
    }

    fn update(&mut self, found: BTreeMap<String, Vec<Instance>>, now: u64) {
        let index = now.max(self.changed + 1);
        let before = self.names();
        for (name, known) in &mut self.services {
            if !found.contains_key(name) && !known.instances.is_empty() {
                *known = Known { instances: Vec::new(), changed: index };
                self.changed = index;
            }
        }
        for (name, instances) in found {
            let known = self.services.entry(name).or_default();
            if known.instances != instances {
                *known = Known { instances, changed: index };
                self.changed = index;
            }
        }
        if before != self.names() {
            self.names_changed = index;
        }
    }
}

/// The services of the cluster under watch.
pub struct Watched {
    consensus: Consensus,
    services: Arc<dyn Services>,
    raft_port: u16,
    picture: Mutex<Picture>,
}

impl Watched {
    pub fn new(consensus: Consensus, services: Arc<dyn Services>, raft_port: u16) -> Self {
        let now = unix_millis();
        let picture = Picture { services: BTreeMap::new(), changed: now, names_changed: now };
        Self { consensus, services, raft_port, picture: Mutex::new(picture) }
    }

    pub fn alive(&self, node: NodeId) -> bool {
        self.services.alive(node)
    }

    /// Looks now.
    pub fn look(&self) -> Picture {
        let cluster = self.consensus.cluster().borrow().clone();
        // Asked outside the lock: what is behind the trait is not ours.
        let mut all: Vec<ServiceInfo> = cluster.members.keys().map(|node| self.server(*node)).collect();
        all.extend(self.services.services());
        let mut found: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for service in all {
            if let Some(node) = cluster.members.get(&service.node) {
                let alive = self.alive(node.id);
                let instance = Instance { node: node.clone(), alive, service };
                found.entry(instance.service.name.clone()).or_default().push(instance);
            }
        }
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        picture.update(found, unix_millis());
        picture.clone()
    }

    /// Looks until what `changed` shows is newer than the query's index, or its wait is over. Also returns whether it
    /// may have waited.
    pub async fn wait(
        &self,
        api: &Api,
        read: &Read,
        changed: impl Fn(&Picture) -> u64,
    ) -> Result<(Picture, bool), Refusal> {
        let mut picture = self.look();
        let Some(blocking) = read.blocking() else {
            return Ok((picture, false));
        };
        if blocking.index > picture.changed {
            return Ok((picture, false));
        }
        let _place = api.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        let deadline = tokio::time::Instant::now() + blocking.wait;
        while changed(&picture) <= blocking.index && tokio::time::Instant::now() < deadline {
            tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + LOOK_EVERY)).await;
            picture = self.look();
        }
        Ok((picture, true))
    }

    /// Consul's servers are a service themselves.
    fn server(&self, node: NodeId) -> ServiceInfo {
        ServiceInfo {
            node,
            id: "consul".into(),
            name: "consul".into(),
            tags: Vec::new(),
            address: None,
            port: self.raft_port,
            meta: BTreeMap::new(),
            checks: Vec::new(),
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}
