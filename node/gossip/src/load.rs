//! What a member tells about itself: spread as a custom broadcast of foca.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use foca::{BroadcastHandler, Invalidates};
use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::MEMBERS_MAX;
use crate::identity::Identity;

/// The longest text of a load, in bytes.
const TEXT_BYTES_MAX: usize = 64;

/// What a member says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The version of the program; at most 64 bytes.
    pub version: String,
    /// What the member takes itself to be, for people; at most 64 bytes.
    pub role: String,
    /// Free space where the data directory is, in bytes.
    pub disk_free_bytes: u64,
    /// The load average of one minute, in thousandths.
    pub load_average_milli: u64,
}

/// A load does not fit a packet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the {field} has {bytes} bytes, at most {TEXT_BYTES_MAX} fit")]
pub struct LoadError {
    field: &'static str,
    bytes: usize,
}

impl Load {
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        for (field, text) in [("version", &self.version), ("role", &self.role)] {
            if text.len() > TEXT_BYTES_MAX {
                return Err(LoadError { field, bytes: text.len() });
            }
        }
        Ok(())
    }
}

/// A load under way. A higher `number` is newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoadNews {
    pub node: NodeId,
    pub number: u64,
    pub load: Load,
}

/// What is known of each member's load; at most [`MEMBERS_MAX`] members.
#[derive(Default)]
pub(crate) struct Loads {
    known: BTreeMap<NodeId, LoadNews>,
}

impl Loads {
    /// Whether this was news.
    pub(crate) fn learn(&mut self, news: LoadNews) -> bool {
        if news.load.check().is_err() {
            return false;
        }
        let newer = match self.known.get(&news.node) {
            Some(known) => news.number > known.number,
            None => self.known.len() < MEMBERS_MAX,
        };
        if newer {
            self.known.insert(news.node, news);
        }
        newer
    }

    pub(crate) fn of(&self, node: NodeId) -> Option<&LoadNews> {
        self.known.get(&node)
    }

    pub(crate) fn all(&self) -> Vec<LoadNews> {
        self.known.values().cloned().collect()
    }
}

/// foca's view of [`Loads`].
#[derive(Clone, Default)]
pub(crate) struct SharedLoads(Arc<Mutex<Loads>>);

impl SharedLoads {
    /// Runs `work` on the loads; never held across a wait.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Loads) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Which load a broadcast in foca's backlog is about.
pub(crate) struct LoadKey {
    node: NodeId,
}

impl Invalidates for LoadKey {
    /// Only news get a key, so the later key of a member is always the newer one.
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl BroadcastHandler<Identity> for SharedLoads {
    type Key = LoadKey;
    type Error = postcard::Error;

    fn receive_item(&mut self, data: &[u8], _: Option<&Identity>) -> Result<Option<LoadKey>, postcard::Error> {
        let news: LoadNews = postcard::from_bytes(data)?;
        let node = news.node;
        Ok(self.with(|loads| loads.learn(news)).then_some(LoadKey { node }))
    }
}
