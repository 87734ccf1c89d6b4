//! Frames: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861), written and read byte by byte.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

const EVERYBODY: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0; 6]);

/// The Ethernet types of the two protocols.
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Shorter Ethernet frames do not exist; not every driver fills them up.
const FRAME_BYTES_MIN: usize = 60;

const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Neighbour discovery is believed only with this hop limit: it shows that no router passed it on.
const HOP_LIMIT: u8 = 255;
const ETHERNET_BYTES: usize = 14;
const IPV6_BYTES: usize = 40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The frames that tell everybody on the link that `mac` has `address` from now on.
///
/// For IPv4 both forms of gratuitous ARP: there are devices that believe only one of them.
pub(crate) fn announcement(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(ARP_REQUEST, mac, address, NOBODY, address),
            // Linux takes a reply as gratuitous only when both hardware addresses are the same.
            arp(ARP_REPLY, mac, address, mac, address),
        ],
        IpAddr::V6(address) => {
            // Override, not solicited; with the target's link-layer address.
            let mut body = vec![0x20, 0, 0, 0];
            body.extend(address.octets());
            body.extend([2, 1]);
            body.extend(mac.0);
            vec![neighbour_discovery(mac, address, ALL_NODES, NEIGHBOUR_ADVERTISEMENT, &body)]
        }
    }
}

/// The frame that asks who has `address`, without claiming it.
pub(crate) fn question(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, NOBODY, address),
        IpAddr::V6(address) => {
            let [.., a, b, c] = address.octets();
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let mut body = vec![0; 4];
            body.extend(address.octets());
            neighbour_discovery(mac, Ipv6Addr::UNSPECIFIED, group, NEIGHBOUR_SOLICITATION, &body)
        }
    }
}

/// Who says in `frame` that it has `address`.
pub(crate) fn claimant(frame: &[u8], address: IpAddr) -> Option<Mac> {
    let payload = frame.get(ETHERNET_BYTES..)?;
    let ethertype = u16::from_be_bytes(frame.get(12..ETHERNET_BYTES)?.try_into().ok()?);
    match address {
        IpAddr::V4(address) => {
            let ethernet_ipv4 = payload.get(..6)? == [0, 1, 8, 0, 6, 4];
            // A request that names it as the sender claims it as much as a reply.
            let claims = payload.get(14..18)? == address.octets();
            let sender = payload.get(8..14)?.try_into().ok()?;
            (ethertype == ETHERTYPE_ARP && ethernet_ipv4 && claims).then_some(Mac(sender))
        }
        IpAddr::V6(address) => {
            let discovery = *payload.get(6)? == ICMPV6 && *payload.get(7)? == HOP_LIMIT;
            let message = payload.get(IPV6_BYTES..)?;
            let claims = *message.first()? == NEIGHBOUR_ADVERTISEMENT && message.get(8..24)? == address.octets();
            let sender = frame.get(6..12)?.try_into().ok()?;
            (ethertype == ETHERTYPE_IPV6 && discovery && claims).then_some(Mac(sender))
        }
    }
}

fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn arp(operation: u16, sender: Mac, sender_address: Ipv4Addr, target: Mac, target_address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(EVERYBODY, sender, ETHERTYPE_ARP);
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender_address.octets());
    frame.extend(target.0);
    frame.extend(target_address.octets());
    frame.resize(FRAME_BYTES_MIN, 0);
    frame
}

/// `body` is what follows the checksum.
fn neighbour_discovery(mac: Mac, from: Ipv6Addr, group: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let [.., a, b, c, d] = group.octets();
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), mac, ETHERTYPE_IPV6);
    let length = u16::try_from(4 + body.len()).expect("a message of a few dozen bytes");
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(group.octets());
    let mut summed: Vec<u8> = [&from.octets()[..], &group.octets(), &[0, 0], &length.to_be_bytes()].concat();
    summed.extend([0, 0, 0, ICMPV6, kind, 0, 0, 0]);
    summed.extend(body);
    frame.extend([kind, 0]);
    frame.extend(checksum(&summed).to_be_bytes());
    frame.extend(body);
    frame
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn ipv4_is_announced_as_request_and_as_reply() {
        let address = IpAddr::from([10, 1, 2, 3]);
        let frames = announcement(MAC, address);
        let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4];
        let request = [&head[..], &[0, 1], &MAC.0, &[10, 1, 2, 3], &[0; 6], &[10, 1, 2, 3], &[0; 18]].concat();
        let reply = [&head[..], &[0, 2], &MAC.0, &[10, 1, 2, 3], &MAC.0, &[10, 1, 2, 3], &[0; 18]].concat();
        assert_eq!(frames, [request, reply]);
        for frame in &frames {
            assert_eq!(claimant(frame, address), Some(MAC));
            assert_eq!(claimant(frame, IpAddr::from([10, 1, 2, 4])), None);
        }
    }

    #[test]
    fn a_question_claims_nothing() {
        for address in [IpAddr::from([10, 1, 2, 3]), "fd00::12:3456".parse().unwrap()] {
            assert_eq!(claimant(&question(MAC, address), address), None);
        }
    }

    #[test]
    fn ipv6_is_announced_to_all_nodes_with_a_checksum_that_holds() {
        let address: Ipv6Addr = "fd00::12:3456".parse().unwrap();
        let [frame] = announcement(MAC, address.into()).try_into().unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(claimant(&frame, address.into()), Some(MAC));
        // The sum over a message that contains its own checksum is zero.
        let message = &frame[ETHERNET_BYTES + IPV6_BYTES..];
        let pseudo = [&address.octets()[..], &ALL_NODES.octets(), &[0, 0, 0, 32, 0, 0, 0, ICMPV6], message].concat();
        assert_eq!(message.len(), 32);
        assert_eq!(checksum(&pseudo), 0);
        let asked = question(MAC, address.into());
        assert_eq!(asked[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn a_short_frame_claims_nothing() {
        for address in [IpAddr::from([10, 1, 2, 3]), "fd00::1".parse().unwrap()] {
            let frame = announcement(MAC, address).remove(0);
            // ARP ends before the filling.
            let needed = if address.is_ipv4() { 32 } else { 78 };
            for length in 0..needed {
                assert_eq!(claimant(&frame[..length], address), None, "{length} bytes");
            }
        }
    }
}
