//! What the kernel has: interfaces, their addresses, and the netlink orders that change them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{LinkAddr, SockaddrStorage};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::{AddressMessageBuilder, Handle};
use tokio::task::AbortHandle;

/// The interface for the address cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel did not list the interfaces.
    #[error("list the network interfaces")]
    List(#[source] io::Error),
    /// The configured interface does not exist.
    #[error("there is no network interface `{0}`")]
    Unknown(String),
    /// No interface is configured, and none has an address in the same network.
    #[error("no network interface has an address in the network of {0}: name the interface in the configuration")]
    NoneFits(IpAddr),
}

/// A network interface.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    pub name: String,
    pub link: LinkAddr,
}

impl Interface {
    /// The kernel's number of it.
    pub(crate) fn index(&self) -> u32 {
        u32::try_from(self.link.ifindex()).unwrap_or(0)
    }
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub interface: String,
    pub address: IpAddr,
    pub prefix_len: u8,
    is_loopback: bool,
}

/// All interfaces and addresses of this network namespace, as they are now.
pub(crate) struct Host {
    interfaces: Vec<Interface>,
    placements: Vec<Placement>,
}

impl Host {
    pub(crate) fn look() -> Result<Self, LinkError> {
        let mut host = Self { interfaces: Vec::new(), placements: Vec::new() };
        for entry in getifaddrs().map_err(|errno| LinkError::List(errno.into()))? {
            let Some(address) = entry.address else { continue };
            if let Some(link) = address.as_link_addr() {
                host.interfaces.push(Interface { name: entry.interface_name, link: *link });
            } else if let Some(ip) = ip(&address) {
                // A labelled address is listed under its label, `eth0:1`.
                let interface = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
                host.placements.push(Placement {
                    interface,
                    address: ip,
                    prefix_len: entry.netmask.as_ref().and_then(self::ip).map_or(0, prefix_len),
                    is_loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                });
            }
        }
        Ok(host)
    }

    /// Where `address` is.
    pub(crate) fn placements(&self, address: IpAddr) -> impl Iterator<Item = &Placement> {
        self.placements.iter().filter(move |placement| placement.address == address)
    }

    pub(crate) fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The configured interface, or the one with another address in the narrowest network around `address`.
    pub(crate) fn choose(&self, wanted: Option<&str>, address: IpAddr) -> Result<&Interface, LinkError> {
        if let Some(name) = wanted {
            return self.interface(name).ok_or_else(|| LinkError::Unknown(name.to_owned()));
        }
        self.placements
            .iter()
            .filter(|own| !own.is_loopback && own.address != address && same_network(own, address))
            .max_by_key(|own| own.prefix_len)
            .and_then(|own| self.interface(&own.interface))
            .ok_or(LinkError::NoneFits(address))
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn prefix_len(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    u8::try_from(ones).unwrap_or(0)
}

fn same_network(own: &Placement, address: IpAddr) -> bool {
    let differing = match (own.address, address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    // A network of all addresses is nobody's neighbourhood.
    own.prefix_len > 0 && differing >= u32::from(own.prefix_len)
}

/// A netlink socket for one order; its task ends with it.
struct Netlink {
    handle: Handle,
    task: AbortHandle,
}

impl Netlink {
    fn open() -> Result<Self, io::Error> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection).abort_handle() })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn message(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, prefix_len).build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, prefix_len).build(),
    };
    // The builder makes the address of a /32 its own broadcast address, which the kernel would route as such.
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
    if address.is_ipv6() {
        // Without this the kernel holds the address back for a second to look for another holder.
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    message
}

/// Adds the address; an address that is there is success.
pub(crate) async fn add(index: u32, address: IpAddr, prefix_len: u8) -> Result<(), io::Error> {
    let netlink = Netlink::open()?;
    let mut request = netlink.handle.address().add(index, address, prefix_len);
    *request.message_mut() = message(index, address, prefix_len);
    except(request.execute().await, &[Errno::EEXIST])
}

/// Takes the address away; an address or interface that is gone is success.
pub(crate) async fn remove(index: u32, address: IpAddr, prefix_len: u8) -> Result<(), io::Error> {
    let netlink = Netlink::open()?;
    let request = netlink.handle.address().del(message(index, address, prefix_len));
    except(request.execute().await, &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
}

fn except(done: Result<(), rtnetlink::Error>, harmless: &[Errno]) -> Result<(), io::Error> {
    match done {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(answer)) => {
            let error = answer.to_io();
            let known = error.raw_os_error().map(Errno::from_raw);
            if known.is_some_and(|errno| harmless.contains(&errno)) { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
