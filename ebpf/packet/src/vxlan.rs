//! VXLAN (RFC 7348 section 5): the headers that go in front of a frame, and what a frame says that has them.

use ebpf_abi::{Ip, Ip4, MacAddr, Port, protocol};

use crate::bytes::{Bytes, Truncated};
use crate::ethernet::{self, Ethernet};
use crate::ip::Version;
use crate::{checksum, ip, ipv4, ipv6};

/// Length of a VXLAN header, bytes.
pub const LEN: usize = 8;
const UDP_LEN: usize = 8;
/// What a datagram has besides the inner frame: both headers.
const UDP_OVERHEAD: u16 = 16;
/// What encapsulation adds to a frame: outer Ethernet, IP, UDP, VXLAN. As much as it adds to an IP packet: its own Ethernet
/// header, and the outer headers but for Ethernet.
pub const OVERHEAD4: usize = ethernet::LEN + HEADERS_LEN4;
pub const OVERHEAD6: usize = ethernet::LEN + HEADERS_LEN6;
/// All headers of a tunnelled frame, up to and with the inner Ethernet header.
pub const FRAME_HEADERS_LEN4: usize = OVERHEAD4 + ethernet::LEN;
pub const FRAME_HEADERS_LEN6: usize = OVERHEAD6 + ethernet::LEN;
/// The outer headers behind Ethernet.
const HEADERS_LEN4: usize = ipv4::MIN_LEN + UDP_LEN + LEN;
const HEADERS_LEN6: usize = ipv6::LEN + UDP_LEN + LEN;

const _: () = assert!(UDP_OVERHEAD as usize == UDP_LEN + LEN);
const _: () = assert!(OVERHEAD4 == overhead(Version::V4) as usize);
const _: () = assert!(OVERHEAD6 == overhead(Version::V6) as usize);

/// What a tunnel with outer headers of this version adds to a packet, bytes.
#[inline]
pub const fn overhead(outer: Version) -> u32 {
    match outer {
        Version::V4 => 50,
        Version::V6 => 70,
    }
}

/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;
const TTL: u8 = 64;

/// Congestion notification, the lower bits of the class (RFC 3168 section 5).
const ECN: u8 = 3;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The outer side of a tunnelled frame, behind its Ethernet header. `A` says of which version it is: [`Ip4`] or [`Ip`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer<A> {
    pub source: A,
    pub destination: A,
    /// Carries the inner flow's hash, so that the underlay can spread flows (RFC 7348 section 5).
    pub source_port: Port,
    pub destination_port: Port,
    pub vni: u32,
    /// The inner packet's class, of which the congestion notification counts.
    pub inner_tos: u8,
    /// Differs from packet to packet: IPv4's DF is clear (RFC 6864 section 4.1).
    pub id: [u8; 2],
}

/// The UDP source port for a flow with this hash: in the dynamic range (RFC 6335 section 6).
#[inline]
pub const fn source_port(hash: u32) -> Port {
    Port::new(0xc000 | (hash & 0x3fff) as u16)
}

/// An id for the outer packet: ids of one flow differ by the count, those of flows that are counted apart by the hash.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are what an id has")]
pub const fn id(hash: u32, count: u64) -> [u8; 2] {
    ((hash >> 16) as u16 ^ count as u16).to_be_bytes()
}

impl<A> Outer<A> {
    /// "Experienced" becomes "capable" (RFC 3168 section 9.1.1).
    #[inline]
    const fn class(&self) -> u8 {
        if self.inner_tos & ECN == CE { ECT_0 } else { self.inner_tos & ECN }
    }

    /// The UDP checksum is zero (RFC 7348 section 5; for IPv6 RFC 6935 section 5, as both ends know the tunnel).
    #[inline]
    fn write_udp(&self, to: &mut [u8], udp_len: u16) {
        to[..2].copy_from_slice(&self.source_port.0);
        to[2..4].copy_from_slice(&self.destination_port.0);
        to[4..6].copy_from_slice(&udp_len.to_be_bytes());
        to[8] = FLAG_VNI;
        to[12..16].copy_from_slice(&(self.vni << 8).to_be_bytes());
    }
}

impl Outer<Ip4> {
    /// All that goes in front of an inner frame of `inner_len` bytes, with the MACs of the next hop.
    #[inline]
    pub fn to_bytes(self, (destination, source): (MacAddr, MacAddr), inner_len: u16) -> [u8; OVERHEAD4] {
        let ethernet = Ethernet { destination, source, ether_type: ethernet::TYPE_IPV4 };
        let mut bytes = [0; OVERHEAD4];
        bytes[..ethernet::LEN].copy_from_slice(&ethernet.to_bytes());
        bytes[ethernet::LEN..].copy_from_slice(&self.headers(inner_len));
        bytes
    }

    /// What goes between the outer Ethernet header and the inner packet of `inner_len` bytes with its Ethernet header.
    #[inline]
    pub fn behind_ethernet(self, inner: &Ethernet, inner_len: u16) -> [u8; OVERHEAD4] {
        let mut bytes = [0; OVERHEAD4];
        bytes[..HEADERS_LEN4].copy_from_slice(&self.headers(inner_len));
        bytes[HEADERS_LEN4..].copy_from_slice(&inner.to_bytes());
        bytes
    }

    /// As the kernel's own VXLAN device sends: DF is clear.
    #[inline]
    fn headers(self, inner_len: u16) -> [u8; HEADERS_LEN4] {
        let udp_len = inner_len + UDP_OVERHEAD;
        let (source, destination, tos) = (self.source, self.destination, self.class());
        let ip = ipv4::Plain { source, destination, protocol: protocol::UDP, ttl: TTL, tos, id: self.id };
        let mut bytes = [0; HEADERS_LEN4];
        bytes[..ipv4::MIN_LEN].copy_from_slice(&ip.to_bytes(udp_len));
        self.write_udp(&mut bytes[ipv4::MIN_LEN..], udp_len);
        bytes
    }
}

impl Outer<Ip> {
    /// As [`Outer::behind_ethernet`] of IPv4, written to `bytes`. Without a flow label, as the kernel's own VXLAN device sends.
    #[inline]
    pub fn write_behind_ethernet(&self, inner: &Ethernet, inner_len: u16, bytes: &mut [u8; OVERHEAD6]) {
        let udp_len = inner_len + UDP_OVERHEAD;
        let class = self.class();
        *bytes = [0; OVERHEAD6];
        bytes[0] = 0x60;
        bytes[1] = class << 4;
        bytes[4..6].copy_from_slice(&udp_len.to_be_bytes());
        bytes[6] = protocol::UDP;
        bytes[7] = TTL;
        bytes[8..24].copy_from_slice(&self.source.0);
        bytes[24..40].copy_from_slice(&self.destination.0);
        self.write_udp(&mut bytes[ipv6::LEN..], udp_len);
        bytes[HEADERS_LEN6..].copy_from_slice(&inner.to_bytes());
    }
}

/// What the headers of a tunnelled IP packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnelled {
    pub vni: u32,
    pub inner: Ethernet,
    pub version: Version,
}

impl Tunnelled {
    /// `None` unless the frame, of which these are the first bytes of `frame_len`, is IPv4 tunnelled over IPv4 to this address
    /// and port, and taking its headers off is all that there is to do: the kernel judges fragments, options, checksums that are
    /// there, congestion that was experienced on the way (RFC 6040 section 4.2), and other protocols. With the sender.
    #[inline]
    pub fn parse4(
        f: &[u8; FRAME_HEADERS_LEN4],
        frame_len: usize,
        (address, port): (Ip4, Port),
    ) -> Option<(Ip4, Self)> {
        if [f[12], f[13]] != ethernet::TYPE_IPV4 || f[14] != 0x45 || f[23] != protocol::UDP {
            return None;
        }
        if Ip4([f[30], f[31], f[32], f[33]]) != address {
            return None;
        }
        let total_len = u16::from_be_bytes([f[16], f[17]]);
        let is_whole = ipv4::part(u16::from_be_bytes([f[20], f[21]])) == ip::Part::Whole && f[20] & 0x80 == 0;
        let has_all = usize::from(total_len) + ethernet::LEN <= frame_len && total_len >= 20;
        if !has_all || !is_whole || f[15] & ECN == CE || !is_sound(f) {
            return None;
        }
        let remote = Ip4([f[26], f[27], f[28], f[29]]);
        let (_, behind_ip) = f.split_last_chunk()?;
        let tunnelled = Self::behind_ip(behind_ip, port, total_len - 20)?;
        (tunnelled.version == Version::V4).then_some((remote, tunnelled))
    }

    /// As [`Tunnelled::parse4`], either version over IPv6.
    #[inline]
    pub fn parse6(
        f: &[u8; FRAME_HEADERS_LEN6],
        frame_len: usize,
        (address, port): (&Ip, Port),
    ) -> Option<(Ip, Self)> {
        if [f[12], f[13]] != ethernet::TYPE_IPV6 || f[14] >> 4 != 6 || f[20] != protocol::UDP {
            return None;
        }
        let payload_len = u16::from_be_bytes([f[18], f[19]]);
        let has_all = usize::from(payload_len) + ethernet::LEN + ipv6::LEN <= frame_len;
        if !has_all || (f[15] >> 4) & ECN == CE {
            return None;
        }
        let (mut remote, mut destination) = (Ip::UNSPECIFIED, Ip::UNSPECIFIED);
        remote.0.copy_from_slice(&f[22..38]);
        destination.0.copy_from_slice(&f[38..54]);
        if destination != *address {
            return None;
        }
        let (_, behind_ip) = f.split_last_chunk()?;
        Some((remote, Self::behind_ip(behind_ip, port, payload_len)?))
    }

    /// UDP, VXLAN and inner Ethernet header of an IP packet with `payload_len` bytes of payload.
    #[inline]
    fn behind_ip(f: &[u8; UDP_LEN + LEN + ethernet::LEN], port: Port, payload_len: u16) -> Option<Self> {
        let version = Version::of([f[28], f[29]])?;
        let has_all = usize::from(payload_len) >= UDP_LEN + LEN + ethernet::LEN + version.min_len();
        let has_no_checksum = [f[6], f[7]] == [0, 0];
        let is_plain = [f[8], f[9], f[10], f[11], f[15]] == [FLAG_VNI, 0, 0, 0, 0];
        let udp_len = u16::from_be_bytes([f[4], f[5]]);
        if !has_all || Port([f[2], f[3]]) != port || udp_len != payload_len || !has_no_checksum || !is_plain {
            return None;
        }
        Some(Self {
            vni: u32::from_be_bytes([0, f[12], f[13], f[14]]),
            inner: Ethernet {
                destination: MacAddr([f[16], f[17], f[18], f[19], f[20], f[21]]),
                source: MacAddr([f[22], f[23], f[24], f[25], f[26], f[27]]),
                ether_type: version.ether_type(),
            },
            version,
        })
    }
}

/// The outer header's checksum holds (RFC 1071 section 1: with it the sum is all ones).
#[inline]
fn is_sound(frame: &[u8; FRAME_HEADERS_LEN4]) -> bool {
    let mut header = [0; ipv4::MIN_LEN];
    header.copy_from_slice(&frame[ip::OFFSET..ip::OFFSET + ipv4::MIN_LEN]);
    checksum::header_checksum(&header) == [0, 0]
}

/// The VNI of a frame whose UDP header is at `udp_offset`; `None` if the header says that it has none.
#[inline]
pub fn vni(packet: &impl Bytes, udp_offset: usize) -> Result<Option<u32>, Truncated> {
    let header = packet.load::<LEN>(udp_offset + UDP_LEN)?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    Ok((header[0] & FLAG_VNI != 0).then_some(vni))
}
