//! Holding and releasing.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::announce::Announcer;
use crate::host::{self, Host, LinkError};
use crate::probe::{self, ProbeError};

/// What the cluster address is.
#[derive(Debug, Clone)]
pub struct VipSettings {
    /// The cluster address. Never a node's own address.
    pub address: IpAddr,
    /// 1 to 32, or to 128. The longest is best: with a shorter one, the kernel may take the network's other addresses
    /// away together with this one.
    pub prefix_len: u8,
    /// Where. Without a name: the interface with an address in the same network.
    pub interface: Option<String>,
    /// When it is announced after it was taken, in ascending order.
    pub announce_after: Vec<Duration>,
    /// How often it is announced after that, as long as it is held. Above zero.
    pub announce_every: Duration,
}

impl VipSettings {
    /// The address alone on its network, with the usual announcements.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            prefix_len: longest_prefix(address),
            interface: None,
            announce_after: [0, 100, 300, 1000, 3000].map(Duration::from_millis).to_vec(),
            announce_every: Duration::from_secs(30),
        }
    }
}

fn longest_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The settings cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Not an address of one host.
    #[error("{0} cannot be a cluster address")]
    Address(IpAddr),
    /// Out of range.
    #[error("the prefix length of {address} must be 1 to {longest}, not {found}")]
    Prefix {
        /// The address.
        address: IpAddr,
        /// The upper end.
        longest: u8,
        /// What was given.
        found: u8,
    },
    /// `announce_every` is zero.
    #[error("the cluster address cannot be announced every 0 s")]
    Every,
}

/// The address was not taken.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The interface cannot be found.
    #[error("find the interface of the cluster address")]
    Link(#[from] LinkError),
    /// Something else configured the address on this host.
    #[error("{address}/{prefix_len} is configured on {interface} by something else; remove it there")]
    Elsewhere {
        /// The address.
        address: IpAddr,
        /// Where it was found.
        interface: String,
        /// How it was found.
        prefix_len: u8,
    },
    /// The kernel refused; needs `CAP_NET_ADMIN`.
    #[error("add {address} to {interface}")]
    Add {
        /// The address.
        address: IpAddr,
        /// Where.
        interface: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The address may still be there.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The interfaces cannot be listed.
    #[error("find the cluster address")]
    Link(#[from] LinkError),
    /// The kernel refused; needs `CAP_NET_ADMIN`.
    #[error("take {address} off {interface}")]
    Remove {
        /// The address.
        address: IpAddr,
        /// Where.
        interface: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What holding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipKind {
    /// The address is added to an interface and announced.
    Interface,
    /// The address is on the loopback network, which is local as a whole: holding is a flag, and listening there is
    /// what makes it serve. For clusters on one machine.
    Loopback,
}

/// The cluster address on this host.
///
/// Dropping it ends the announcements and leaves the address, as a crash would: release it first.
pub struct Vip {
    settings: VipSettings,
    flag: AtomicBool,
    announcing: Mutex<Option<Announcing>>,
}

struct Announcing {
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Vip {
    /// Checks the settings; changes nothing.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: VipSettings) -> Result<Self, SettingsError> {
        let VipSettings { address, prefix_len, .. } = settings;
        let broadcast = IpAddr::from([255; 4]);
        if address.is_unspecified() || address.is_multicast() || address == broadcast {
            return Err(SettingsError::Address(address));
        }
        let longest = longest_prefix(address);
        if prefix_len == 0 || prefix_len > longest {
            return Err(SettingsError::Prefix { address, longest, found: prefix_len });
        }
        if settings.announce_every.is_zero() {
            return Err(SettingsError::Every);
        }
        Ok(Self { settings, flag: AtomicBool::new(false), announcing: Mutex::new(None) })
    }

    /// The cluster address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.settings.address
    }

    /// What holding means here.
    #[must_use]
    pub fn kind(&self) -> VipKind {
        if self.settings.address.is_loopback() { VipKind::Loopback } else { VipKind::Interface }
    }

    /// Asks for `patience` (100 ms is enough on a local network) whether another host has the address. Changes
    /// nothing; a host that cannot be reached does not answer, so success is no proof.
    ///
    /// # Errors
    /// [`ProbeError::Conflict`] when another host answers; others when it cannot be asked.
    pub async fn probe(&self, patience: Duration) -> Result<(), ProbeError> {
        match self.kind() {
            VipKind::Loopback => Ok(()),
            VipKind::Interface => {
                probe::probe(self.settings.interface.as_deref(), self.settings.address, patience).await
            }
        }
    }

    /// Adds the address and announces it, in the background, until it is released. Does nothing when it is held and
    /// announced. Cancel safe: an interrupted call may leave the address unannounced; call it again, or release.
    ///
    /// # Errors
    /// [`HoldError`]; nothing was added then.
    pub async fn hold(&self) -> Result<(), HoldError> {
        if self.kind() == VipKind::Loopback {
            self.flag.store(true, Ordering::Release);
            return Ok(());
        }
        let VipSettings { address, prefix_len, .. } = self.settings;
        let mut announcing = self.announcing.lock().await;
        let host = Host::look()?;
        let interface = host.choose(self.settings.interface.as_deref(), address)?.clone();
        let ours = |at: &&host::Placement| at.interface == interface.name && at.prefix_len == prefix_len;
        if let Some(other) = host.placements(address).find(|at| !ours(at)) {
            let (interface, prefix_len) = (other.interface.clone(), other.prefix_len);
            return Err(HoldError::Elsewhere { address, interface, prefix_len });
        }
        let is_there = host.placements(address).next().is_some();
        if is_there && announcing.as_ref().is_some_and(|running| !running.task.is_finished()) {
            return Ok(());
        }
        if !is_there {
            let added = host::add(interface.index(), address, prefix_len).await;
            added.map_err(|source| HoldError::Add { address, interface: interface.name.clone(), source })?;
            info!(%address, interface = interface.name, "cluster address taken");
        }
        let stop = CancellationToken::new();
        let announcer = Announcer {
            address,
            prefix_len,
            interface,
            burst: self.settings.announce_after.clone(),
            repeat: self.settings.announce_every,
        };
        // Its failures are its own to log; it ends with the guard.
        let task = tokio::spawn(announcer.run(stop.clone()));
        *announcing = Some(Announcing { task, stop: stop.drop_guard() });
        Ok(())
    }

    /// Ends the announcements and takes the address away, wherever it is with this prefix: also one that a crashed
    /// process left. Whether there was something to take away. Cancel safe; call it again.
    ///
    /// # Errors
    /// [`ReleaseError`]; the address may still be there.
    pub async fn release(&self) -> Result<bool, ReleaseError> {
        if self.kind() == VipKind::Loopback {
            return Ok(self.flag.swap(false, Ordering::AcqRel));
        }
        let VipSettings { address, prefix_len, .. } = self.settings;
        let mut announcing = self.announcing.lock().await;
        if let Some(Announcing { task, stop }) = announcing.take() {
            drop(stop);
            // It waits for nothing but its own next turn. Whether it panicked does not matter any more.
            _ = task.await;
        }
        let host = Host::look()?;
        let mut removed = false;
        for at in host.placements(address).filter(|at| at.prefix_len == prefix_len) {
            // A name without an interface: it went away between the two.
            let Some(interface) = host.interface(&at.interface) else { continue };
            host::remove(interface.index(), address, prefix_len).await.map_err(|source| ReleaseError::Remove {
                address,
                interface: interface.name.clone(),
                source,
            })?;
            info!(%address, interface = interface.name, "cluster address released");
            removed = true;
        }
        Ok(removed)
    }

    /// Whether this host has the address, asked of the kernel; on loopback, whether [`Vip::hold`] was called last.
    ///
    /// # Errors
    /// [`LinkError`] when the kernel does not say.
    pub fn held(&self) -> Result<bool, LinkError> {
        if self.kind() == VipKind::Loopback {
            return Ok(self.flag.load(Ordering::Acquire));
        }
        let VipSettings { address, prefix_len, .. } = self.settings;
        Ok(Host::look()?.placements(address).any(|at| at.prefix_len == prefix_len))
    }
}
