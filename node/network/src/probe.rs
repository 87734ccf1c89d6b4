//! Asking whether somebody else has the address.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{interval, sleep};

use crate::host::{Host, LinkError};
use crate::link::Link;
use crate::wire::{ETHERTYPE_ARP, ETHERTYPE_IPV6, Mac, claimant, question};

/// How often the question is asked: one frame may be lost.
const QUESTIONS: u32 = 3;
/// A frame's head is all that is read of it.
const FRAME_BYTES: usize = 128;

/// The address is taken, or it cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Another host has the address.
    #[error("{address} is held by another host, {mac}")]
    Conflict {
        /// The address that was asked for.
        address: IpAddr,
        /// Who answered.
        mac: Mac,
    },
    /// The interface cannot be found.
    #[error("find the interface of the cluster address")]
    Link(#[from] LinkError),
    /// The question cannot be asked; needs `CAP_NET_RAW`.
    #[error("ask for the holder of the cluster address on {interface}")]
    Socket {
        /// Where.
        interface: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn ethertype(address: IpAddr) -> u16 {
    if address.is_ipv4() { ETHERTYPE_ARP } else { ETHERTYPE_IPV6 }
}

pub(crate) async fn probe(wanted: Option<&str>, address: IpAddr, patience: Duration) -> Result<(), ProbeError> {
    let host = Host::look()?;
    let interface = host.choose(wanted, address)?;
    let failed = |source| ProbeError::Socket { interface: interface.name.clone(), source };
    let Some(link) = Link::open(interface, ethertype(address)).map_err(failed)? else { return Ok(()) };
    let asked = question(link.mac(), address);
    let end = sleep(patience);
    tokio::pin!(end);
    let mut again = interval((patience / QUESTIONS).max(Duration::from_millis(1)));
    let mut buffer = [0; FRAME_BYTES];
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = again.tick() => link.send(&asked).map_err(failed)?,
            received = link.receive(&mut buffer) => {
                let length = received.map_err(failed)?;
                // Our own frames pass here too.
                if let Some(mac) = claimant(&buffer[..length], address).filter(|mac| *mac != link.mac()) {
                    return Err(ProbeError::Conflict { address, mac });
                }
            }
        }
    }
}
