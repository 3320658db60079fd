//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, and the errors that carry a piece of the packet at fault.

use ebpf_abi::{FlowTuple, Ip, Ip4, protocol};

use crate::bytes::Bytes;
use crate::checksum;
use crate::ip::{self, IpHeader, Part, Version};
use crate::{ipv4, ipv6};

/// Length of the fixed header, bytes.
pub const LEN: usize = 8;

const ECHO_REPLY: u8 = 0;
const DESTINATION_UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// RFC 4443 section 2.1: errors are 1 (unreachable), 2 (too big), 3 (time exceeded) and 4 (parameter problem).
const UNREACHABLE6: u8 = 1;
const PACKET_TOO_BIG: u8 = 2;
const LAST_ERROR6: u8 = 4;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// Codes of "destination unreachable": nobody has the port; fragmentation needed and DF set.
const PORT_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// The first of them for IPv6 (RFC 4443 section 3.1).
const PORT_UNREACHABLE6: u8 = 4;
/// Of the packet at fault an error of ours carries the header, here one without options, and 64 bits (RFC 792). RFC 4443
/// section 2.4 (c) would have more for IPv6; who looks a connection up needs no more.
pub const CARRIED_LEN4: usize = ipv4::MIN_LEN + 8;
pub const CARRIED_LEN6: usize = ipv6::LEN + 8;
/// Of a packet that is too long: a fragment has another header of eight bytes in front of its ports.
pub const CARRIED_LONG_LEN6: usize = CARRIED_LEN6 + 8;

/// Where the parts of a message are in a frame whose IP header has no options.
impl Version {
    #[inline]
    pub const fn icmp_offset(self) -> usize {
        ip::OFFSET + self.min_len()
    }

    #[inline]
    pub const fn icmp_checksum_offset(self) -> usize {
        self.icmp_offset() + 2
    }

    /// Of the piece of the packet at fault.
    #[inline]
    pub const fn embedded_offset(self) -> usize {
        self.icmp_offset() + LEN
    }

    #[inline]
    pub const fn embedded_source_offset(self) -> usize {
        self.embedded_offset() + self.source_offset() - ip::OFFSET
    }

    #[inline]
    pub const fn embedded_destination_offset(self) -> usize {
        self.embedded_offset() + self.destination_offset() - ip::OFFSET
    }

    /// Of its transport header.
    #[inline]
    pub const fn embedded_transport_offset(self) -> usize {
        self.embedded_offset() + self.min_len()
    }
}

/// Where the checksum of an embedded IPv4 header is.
pub const EMBEDDED_CHECKSUM_OFFSET4: usize = Version::V4.embedded_offset() + 10;

/// What an ICMP error tells: why the destination can't be reached. No enum, as with [`Error6`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error4 {
    code: u8,
    mtu: u16,
}

impl Error4 {
    /// Nobody serves the port (RFC 792).
    pub const PORT: Self = Self { code: PORT_UNREACHABLE, mtu: 0 };

    /// No packet longer than `mtu` bytes gets there in one piece (RFC 1191 section 4).
    #[inline]
    pub const fn too_big(mtu: u16) -> Self {
        Self { code: FRAGMENTATION_NEEDED, mtu }
    }
}

/// The header of an error that tells the sender of a packet, which begins with `carried`.
#[inline]
pub fn error4(error: Error4, carried: &[u8; CARRIED_LEN4]) -> [u8; LEN] {
    let Error4 { code, mtu } = error;
    let mut header = [DESTINATION_UNREACHABLE, code, 0, 0, 0, 0, 0, 0];
    header[6..8].copy_from_slice(&mtu.to_be_bytes());
    let checksum = checksum::join(checksum::header_checksum(&header), checksum::header_checksum(carried));
    header[2..4].copy_from_slice(&checksum);
    header
}

/// What an ICMPv6 error tells. No enum: its values go between functions, and the kernel wants all of their bytes written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error6 {
    kind: u8,
    code: u8,
    mtu: u16,
}

impl Error6 {
    /// No route leads there (RFC 4443 section 3.1).
    pub const NO_ROUTE: Self = Self { kind: UNREACHABLE6, code: 0, mtu: 0 };
    /// Nobody serves the port (there too).
    pub const PORT: Self = Self { kind: UNREACHABLE6, code: PORT_UNREACHABLE6, mtu: 0 };

    /// No packet longer than `mtu` bytes gets there (RFC 4443 section 3.2).
    #[inline]
    pub const fn too_big(mtu: u16) -> Self {
        Self { kind: PACKET_TOO_BIG, code: 0, mtu }
    }
}

/// As [`error4`] for IPv6; `addresses` are those of the error itself.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call's frame on top of its callers' is more than kernel 6.1 allows"
)]
#[expect(clippy::cast_possible_truncation, reason = "few bytes")]
pub fn error6<const N: usize>(error: Error6, addresses: (&Ip, &Ip), carried: &[u8; N]) -> [u8; LEN] {
    let Error6 { kind, code, mtu } = error;
    let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
    header[6..8].copy_from_slice(&mtu.to_be_bytes());
    let pseudo = checksum::pseudo_header6(addresses, const { (LEN + N) as u16 });
    let message = checksum::join(checksum::header_checksum(&header), checksum::header_checksum(carried));
    header[2..4].copy_from_slice(&checksum::join(pseudo, message));
    header
}

/// The first four bytes of the answer to an echo request; `None` if the packet is none.
#[inline]
pub fn echo_reply(packet: &impl Bytes, ip: &IpHeader) -> Option<[u8; 4]> {
    if !is_message(ip) {
        return None;
    }
    let (request, reply) = match ip.version {
        Version::V4 => (ECHO_REQUEST, ECHO_REPLY),
        Version::V6 => (ECHO_REQUEST6, ECHO_REPLY6),
    };
    let [kind, code, high, low] = packet.load::<4>(ip.version.icmp_offset()).ok()?;
    if kind != request {
        return None;
    }
    let [high, low] = checksum::replace([high, low], [request, code], [reply, code]);
    Some([reply, code, high, low])
}

/// The flow of the packet that an ICMP error complains of, as that packet carries it; `None` if this is no error, or not
/// about TCP, UDP or SCTP without options.
#[inline]
pub fn embedded_flow(packet: &impl Bytes, ip: &IpHeader) -> Option<FlowTuple> {
    let mut tuple = FlowTuple::default();
    embedded_flow_into(packet, ip, &mut tuple).then_some(tuple)
}

/// As [`embedded_flow`], read into `tuple`; false, with anything there, if there is none.
#[inline]
pub fn embedded_flow_into(packet: &impl Bytes, ip: &IpHeader, tuple: &mut FlowTuple) -> bool {
    if !is_message(ip) {
        return false;
    }
    let has_addresses = match ip.version {
        Version::V4 => embedded4(packet, tuple),
        Version::V6 => embedded6(packet, tuple),
    };
    let transport = ip.version.embedded_transport_offset();
    has_addresses.is_some()
        && matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
        && packet.load_into(transport, &mut tuple.source_port.0).is_ok()
        && packet.load_into(transport + 2, &mut tuple.destination_port.0).is_ok()
}

#[inline]
fn embedded4(packet: &impl Bytes, tuple: &mut FlowTuple) -> Option<()> {
    const OFFSET: usize = Version::V4.embedded_offset();
    let [kind] = packet.load::<1>(Version::V4.icmp_offset()).ok()?;
    let [start] = packet.load::<1>(OFFSET).ok()?;
    let fragment = packet.load::<2>(OFFSET + 6).ok()?;
    let is_error = matches!(kind, DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM);
    if !is_error || start != 0x45 || u16::from_be_bytes(fragment) & 0x1fff != 0 {
        return None;
    }
    [tuple.protocol] = packet.load::<1>(OFFSET + 9).ok()?;
    tuple.source = Ip::v4(Ip4(packet.load::<4>(Version::V4.embedded_source_offset()).ok()?));
    tuple.destination = Ip::v4(Ip4(packet.load::<4>(Version::V4.embedded_destination_offset()).ok()?));
    Some(())
}

#[inline]
fn embedded6(packet: &impl Bytes, tuple: &mut FlowTuple) -> Option<()> {
    const OFFSET: usize = Version::V6.embedded_offset();
    let [kind] = packet.load::<1>(Version::V6.icmp_offset()).ok()?;
    let [start] = packet.load::<1>(OFFSET).ok()?;
    if !matches!(kind, UNREACHABLE6..=LAST_ERROR6) || start >> 4 != 6 {
        return None;
    }
    [tuple.protocol] = packet.load::<1>(OFFSET + 6).ok()?;
    packet.load_into(Version::V6.embedded_source_offset(), &mut tuple.source.0).ok()?;
    packet.load_into(Version::V6.embedded_destination_offset(), &mut tuple.destination.0).ok()?;
    if tuple.source.is_v4() || tuple.destination.is_v4() { None } else { Some(()) }
}

/// An error of either version, or what may be one: nobody is told of its length (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
#[inline]
pub fn is_error(packet: &impl Bytes, ip: &IpHeader) -> bool {
    if ip.version == Version::V6 {
        return is_error6(packet, ip);
    }
    let kind = || packet.load::<1>(ip.transport_offset).map_or(DESTINATION_UNREACHABLE, |[kind]| kind);
    ip.protocol == protocol::ICMP
        && matches!(
            kind(),
            DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
        )
}

/// An ICMPv6 error, whose type has the highest bit clear (RFC 4443 section 2.1), or what may be one.
#[inline]
pub fn is_error6(packet: &impl Bytes, ip: &IpHeader) -> bool {
    const INFORMS: u8 = 0x80;
    let kind = || packet.load::<1>(ip.transport_offset).map_or(0, |[kind]| kind);
    ip.protocol == protocol::ICMP6 && kind() & INFORMS == 0
}

/// A whole message whose fields are where [`Version`] says.
#[inline]
pub fn is_message(ip: &IpHeader) -> bool {
    let protocol = match ip.version {
        Version::V4 => protocol::ICMP,
        Version::V6 => protocol::ICMP6,
    };
    ip.protocol == protocol && !ip.has_options() && ip.part == Part::Whole
}

/// The client's flow that an error is about whose packet at fault was an answer to the client. Such an error comes to the
/// address that the answer came from.
#[inline]
pub fn answered_flow(packet: &impl Bytes, ip: &IpHeader) -> Option<FlowTuple> {
    let answer = embedded_flow(packet, ip)?;
    if answer.source != ip.destination {
        return None;
    }
    let client = (answer.destination, answer.destination_port);
    Some(FlowTuple::new(client, (answer.source, answer.source_port), answer.protocol))
}
