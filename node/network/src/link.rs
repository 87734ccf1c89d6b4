//! A raw socket on one interface, without unsafe code.
//!
//! nix can bind and send to a link-layer address, but offers no safe way to make one; `getifaddrs` hands out the
//! address of each interface, which is just what is needed. nix cannot name ARP's protocol number either, so socket2
//! opens the socket. `arping` as a child process would do one frame a second, and 150 ms for the first.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, bind, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::host::Interface;
use crate::wire::Mac;

/// Ethernet's number among the kinds of hardware.
const HARDWARE_ETHERNET: u16 = 1;

/// A raw socket on one interface. Needs `CAP_NET_RAW`.
pub(crate) struct Link {
    /// Not UDP: tokio's safe way to wait for a descriptor is one of its own sockets (`AsyncFd` needs unsafe code),
    /// and this one does nothing but `recv`.
    socket: UdpSocket,
    interface: Interface,
    mac: Mac,
}

impl Link {
    /// `None` when the interface is not Ethernet: there is nobody to tell, and nobody to ask.
    pub(crate) fn open(interface: &Interface, ethertype: u16) -> Result<Option<Self>, io::Error> {
        let Some(mac) = interface.link.addr().filter(|_| interface.link.hatype() == HARDWARE_ETHERNET) else {
            return Ok(None);
        };
        // The kernel wants the number in network order.
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        bind(socket.as_raw_fd(), &interface.link)?;
        let socket = UdpSocket::from_std(OwnedFd::from(socket).into())?;
        Ok(Some(Self { socket, interface: interface.clone(), mac: Mac(mac) }))
    }

    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends a whole Ethernet frame; it does not wait.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), io::Error> {
        sendto(self.socket.as_raw_fd(), frame, &self.interface.link, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next frame, and gives its length; a longer one is cut.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> Result<usize, io::Error> {
        self.socket.recv(buffer).await
    }
}
