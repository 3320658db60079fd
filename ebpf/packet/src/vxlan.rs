//! VXLAN (RFC 7348 section 5): the headers that go in front of a frame, and what a frame says that has them.

use ebpf_abi::{Ip4, MacAddr, Port, protocol};

use crate::bytes::{Bytes, Truncated};
use crate::ethernet::{self, Ethernet};
use crate::{checksum, ip, ipv4};

/// Length of a VXLAN header, bytes.
pub const LEN: usize = 8;
const UDP_LEN: usize = 8;
/// What a datagram has besides the inner frame: both headers.
const UDP_OVERHEAD: u16 = 16;
/// What encapsulation adds to a frame: outer Ethernet, IPv4, UDP, VXLAN.
pub const OVERHEAD: usize = ethernet::LEN + HEADERS_LEN;
/// What encapsulation adds to an IPv4 packet: its own Ethernet header, and the outer headers but for Ethernet.
pub const MTU_OVERHEAD: u32 = 50;
/// All headers of a tunnelled frame, up to and with the inner Ethernet header.
pub const FRAME_HEADERS_LEN: usize = OVERHEAD + ethernet::LEN;
/// The outer headers behind Ethernet.
const HEADERS_LEN: usize = ipv4::MIN_LEN + UDP_LEN + LEN;

const _: () = assert!(UDP_OVERHEAD as usize == UDP_LEN + LEN);
const _: () = assert!(OVERHEAD == 50 && MTU_OVERHEAD as usize == HEADERS_LEN + ethernet::LEN);

/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;
const TTL: u8 = 64;

/// Congestion notification, the lower bits of the class (RFC 3168 section 5).
const ECN: u8 = 3;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The outer side of a tunnelled frame, behind its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    pub source: Ip4,
    pub destination: Ip4,
    /// Carries the inner flow's hash, so that the underlay can spread flows (RFC 7348 section 5).
    pub source_port: Port,
    pub destination_port: Port,
    pub vni: u32,
    /// The inner packet's class, of which the congestion notification counts.
    pub inner_tos: u8,
    /// Differs from packet to packet: DF is clear (RFC 6864 section 4.1).
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

impl Outer {
    /// All that goes in front of an inner frame of `inner_len` bytes, with the MACs of the next hop.
    #[inline]
    pub fn to_bytes(self, (destination, source): (MacAddr, MacAddr), inner_len: u16) -> [u8; OVERHEAD] {
        let ethernet = Ethernet { destination, source, ether_type: ethernet::TYPE_IPV4 };
        let mut bytes = [0; OVERHEAD];
        bytes[..ethernet::LEN].copy_from_slice(&ethernet.to_bytes());
        bytes[ethernet::LEN..].copy_from_slice(&self.headers(inner_len));
        bytes
    }

    /// What goes between the outer Ethernet header and the inner packet of `inner_len` bytes with its Ethernet header.
    #[inline]
    pub fn behind_ethernet(self, inner: &Ethernet, inner_len: u16) -> [u8; MTU_OVERHEAD as usize] {
        let mut bytes = [0; MTU_OVERHEAD as usize];
        bytes[..HEADERS_LEN].copy_from_slice(&self.headers(inner_len));
        bytes[HEADERS_LEN..].copy_from_slice(&inner.to_bytes());
        bytes
    }

    /// As the kernel's own VXLAN device sends: the UDP checksum is zero (RFC 7348 section 5), DF is clear, the class has the
    /// inner packet's congestion notification alone, and "experienced" becomes "capable" (RFC 3168 section 9.1.1).
    #[inline]
    fn headers(self, inner_len: u16) -> [u8; HEADERS_LEN] {
        let udp_len = inner_len + UDP_OVERHEAD;
        let tos = if self.inner_tos & ECN == CE { ECT_0 } else { self.inner_tos & ECN };
        let (source, destination) = (self.source, self.destination);
        let ip = ipv4::Plain { source, destination, protocol: protocol::UDP, ttl: TTL, tos, id: self.id };
        let mut bytes = [0; HEADERS_LEN];
        bytes[..20].copy_from_slice(&ip.to_bytes(udp_len));
        bytes[20..22].copy_from_slice(&self.source_port.0);
        bytes[22..24].copy_from_slice(&self.destination_port.0);
        bytes[24..26].copy_from_slice(&udp_len.to_be_bytes());
        bytes[28] = FLAG_VNI;
        bytes[32..36].copy_from_slice(&(self.vni << 8).to_be_bytes());
        bytes
    }
}

/// What the headers of a tunnelled IPv4 packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnelled {
    pub remote: Ip4,
    pub vni: u32,
    pub inner: Ethernet,
}

impl Tunnelled {
    /// `None` unless the frame, of which these are the first bytes of `frame_len`, is tunnelled to this address and port, and
    /// taking its headers off is all that there is to do: the kernel judges fragments, options, checksums that are there,
    /// congestion that was experienced on the way (RFC 6040 section 4.2), and other protocols.
    #[inline]
    pub fn parse(
        frame: &[u8; FRAME_HEADERS_LEN],
        frame_len: usize,
        (address, port): (Ip4, Port),
    ) -> Option<Self> {
        let f = frame;
        if [f[12], f[13]] != ethernet::TYPE_IPV4 || f[14] != 0x45 || f[23] != protocol::UDP {
            return None;
        }
        if Ip4([f[30], f[31], f[32], f[33]]) != address || Port([f[36], f[37]]) != port {
            return None;
        }
        let total_len = u16::from_be_bytes([f[16], f[17]]);
        let udp_len = u16::from_be_bytes([f[38], f[39]]);
        let has_all = usize::from(total_len) + ethernet::LEN <= frame_len
            && usize::from(total_len) >= HEADERS_LEN + ethernet::LEN + ipv4::MIN_LEN;
        let is_whole = ipv4::part(u16::from_be_bytes([f[20], f[21]])) == ip::Part::Whole && f[20] & 0x80 == 0;
        if !has_all || !is_whole || udp_len != total_len.wrapping_sub(20) || f[15] & ECN == CE {
            return None;
        }
        let has_no_checksum = [f[40], f[41]] == [0, 0];
        let is_plain = [f[42], f[43], f[44], f[45], f[49]] == [FLAG_VNI, 0, 0, 0, 0];
        if !has_no_checksum || !is_plain || [f[62], f[63]] != ethernet::TYPE_IPV4 || !is_sound(frame) {
            return None;
        }
        Some(Self {
            remote: Ip4([f[26], f[27], f[28], f[29]]),
            vni: u32::from_be_bytes([0, f[46], f[47], f[48]]),
            inner: Ethernet {
                destination: MacAddr([f[50], f[51], f[52], f[53], f[54], f[55]]),
                source: MacAddr([f[56], f[57], f[58], f[59], f[60], f[61]]),
                ether_type: ethernet::TYPE_IPV4,
            },
        })
    }
}

/// The outer header's checksum holds (RFC 1071 section 1: with it the sum is all ones).
#[inline]
fn is_sound(frame: &[u8; FRAME_HEADERS_LEN]) -> bool {
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
