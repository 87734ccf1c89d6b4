//! Telling the neighbours, again and again while the address is held.
//!
//! Without it a client's neighbour cache keeps the old host for half a minute or more; the kernel does not do it for
//! an added address (`arp_notify` covers link changes only). One burst is not enough: a switch port that comes up
//! late or a healed split leaves neighbours that missed it.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::host::{Host, Interface};
use crate::link::Link;
use crate::probe::ethertype;
use crate::wire::announcement;

/// What and how often.
pub(crate) struct Announcer {
    pub address: IpAddr,
    pub prefix_len: u8,
    pub interface: Interface,
    /// After the start, in ascending order.
    pub burst: Vec<Duration>,
    /// After the burst.
    pub repeat: Duration,
}

impl Announcer {
    /// Announces until stopped, or until the kernel no longer has the address.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let begun = Instant::now();
        let mut due: Vec<Instant> = self.burst.iter().rev().map(|after| begun + *after).collect();
        let mut next = due.pop().unwrap_or(begun);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(next) => {}
            }
            if !self.is_held() {
                warn!(address = %self.address, "the cluster address was taken off the interface by something else");
                return;
            }
            self.announce();
            next = due.pop().unwrap_or_else(|| Instant::now() + self.repeat);
        }
    }

    /// True also when it cannot be found out: a superfluous announcement of a held address costs nothing.
    fn is_held(&self) -> bool {
        Host::look().map_or(true, |host| {
            host.placements(self.address)
                .any(|at| at.interface == self.interface.name && at.prefix_len == self.prefix_len)
        })
    }

    /// A failure is left to the next repetition: the link may be down at the moment.
    fn announce(&self) {
        let link = match Link::open(&self.interface, ethertype(self.address)) {
            Ok(Some(link)) => link,
            Ok(None) => return,
            Err(error) => {
                warn!(interface = self.interface.name, error = &error as &dyn Error, "cannot announce the address");
                return;
            }
        };
        for frame in announcement(link.mac(), self.address) {
            if let Err(error) = link.send(&frame) {
                debug!(interface = self.interface.name, error = &error as &dyn Error, "announcement not sent");
            }
        }
    }
}
