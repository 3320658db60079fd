//! ICMP (RFC 792): echo, and the errors that carry a piece of the packet at fault.

use ebpf_abi::{FlowTuple, Port, protocol};

use crate::bytes::Bytes;
use crate::checksum;
use crate::ipv4::{self, Ipv4, Part};

/// Where the header starts in a frame without IPv4 options.
pub const OFFSET: usize = ipv4::OFFSET + ipv4::MIN_LEN;
pub const CHECKSUM_OFFSET: usize = OFFSET + 2;
/// Length of the fixed header, bytes.
pub const LEN: usize = 8;

const ECHO_REPLY: u8 = 0;
const DESTINATION_UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Where the piece of the packet at fault starts.
pub const EMBEDDED_OFFSET: usize = OFFSET + LEN;
/// Where its IPv4 header's checksum and addresses are.
pub const EMBEDDED_CHECKSUM_OFFSET: usize = EMBEDDED_OFFSET + 10;
pub const EMBEDDED_SOURCE_OFFSET: usize = EMBEDDED_OFFSET + 12;
pub const EMBEDDED_DESTINATION_OFFSET: usize = EMBEDDED_OFFSET + 16;
/// Where its transport header starts.
pub const EMBEDDED_TRANSPORT_OFFSET: usize = EMBEDDED_OFFSET + ipv4::MIN_LEN;

/// Code of "destination unreachable": fragmentation needed and DF set.
const FRAGMENTATION_NEEDED: u8 = 4;
/// Of the packet at fault an error carries the header, here one without options, and 64 bits (RFC 792).
pub const CARRIED_LEN: usize = ipv4::MIN_LEN + 8;

/// The header of an error that tells the sender of a packet, which begins with `carried`, that none longer than `mtu` bytes
/// gets to where it was sent (RFC 1191 section 4).
#[inline]
pub fn fragmentation_needed(carried: &[u8; CARRIED_LEN], mtu: u16) -> [u8; LEN] {
    let mut header = [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, 0, 0];
    header[6..8].copy_from_slice(&mtu.to_be_bytes());
    let checksum = checksum::join(checksum::header_checksum(&header), checksum::header_checksum(carried));
    header[2..4].copy_from_slice(&checksum);
    header
}

/// The first four bytes of the answer to an echo request; `None` if the packet is none.
#[inline]
pub fn echo_reply(packet: &impl Bytes, ip: &Ipv4) -> Option<[u8; 4]> {
    if ip.protocol != protocol::ICMP || ip.header_len != ipv4::MIN_LEN || ip.part != Part::Whole {
        return None;
    }
    let [kind, code, high, low] = packet.load::<4>(OFFSET).ok()?;
    if kind != ECHO_REQUEST {
        return None;
    }
    let [high, low] = checksum::replace([high, low], [ECHO_REQUEST, code], [ECHO_REPLY, code]);
    Some([ECHO_REPLY, code, high, low])
}

/// The flow of the packet that an ICMP error complains of, as that packet carries it; `None` if this is no error, or not
/// about TCP or UDP without options.
#[inline]
pub fn embedded_flow(packet: &impl Bytes, ip: &Ipv4) -> Option<FlowTuple> {
    if ip.protocol != protocol::ICMP || ip.header_len != ipv4::MIN_LEN || ip.part != Part::Whole {
        return None;
    }
    let [kind] = packet.load::<1>(OFFSET).ok()?;
    if !matches!(kind, DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) {
        return None;
    }
    let header = packet.load::<{ ipv4::MIN_LEN }>(EMBEDDED_OFFSET).ok()?;
    let has_ports = matches!(header[9], protocol::TCP | protocol::UDP) && header[0] == 0x45;
    if !has_ports || u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
        return None;
    }
    let [a, b, c, d] = packet.load::<4>(EMBEDDED_TRANSPORT_OFFSET).ok()?;
    let source = ebpf_abi::Ip4([header[12], header[13], header[14], header[15]]);
    let destination = ebpf_abi::Ip4([header[16], header[17], header[18], header[19]]);
    Some(FlowTuple::new((source, Port([a, b])), (destination, Port([c, d])), header[9]))
}

/// The client's flow that an error is about whose packet at fault was an answer to the client. Such an error comes to the
/// address that the answer came from.
#[inline]
pub fn answered_flow(packet: &impl Bytes, ip: &Ipv4) -> Option<FlowTuple> {
    let answer = embedded_flow(packet, ip)?;
    if answer.source != ip.destination {
        return None;
    }
    let client = (answer.destination, answer.destination_port);
    Some(FlowTuple::new(client, (answer.source, answer.source_port), answer.protocol))
}
