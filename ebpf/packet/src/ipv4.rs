//! The IPv4 header (RFC 791 section 3.1).

use ebpf_abi::{Ip, Ip4};

use crate::bytes::Bytes;
use crate::checksum;
use crate::ip::{IpHeader, NotIp, OFFSET, Part, Version};

/// Length of a header without options, bytes.
pub const MIN_LEN: usize = 20;
/// Where fields start in a frame.
pub const CHECKSUM_OFFSET: usize = OFFSET + 10;
pub const SOURCE_OFFSET: usize = OFFSET + 12;
pub const DESTINATION_OFFSET: usize = OFFSET + 16;

/// RFC 791 section 3.1, flags and fragment offset.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// In the first byte of the two.
const DONT_FRAGMENT: u8 = 0x40;

/// Reads the header behind the Ethernet header.
#[inline]
pub fn parse(packet: &impl Bytes) -> Result<IpHeader, NotIp> {
    let header = packet.load::<MIN_LEN>(OFFSET).map_err(|_| NotIp)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = u16::from_be_bytes([header[2], header[3]]);
    if header[0] >> 4 != 4 || header_len < MIN_LEN || usize::from(total_len) < header_len {
        return Err(NotIp);
    }
    Ok(IpHeader {
        version: Version::V4,
        source: Ip::v4(Ip4([header[12], header[13], header[14], header[15]])),
        destination: Ip::v4(Ip4([header[16], header[17], header[18], header[19]])),
        protocol: header[9],
        part: part(u16::from_be_bytes([header[6], header[7]])),
        dont_fragment: header[6] & DONT_FRAGMENT != 0,
        id: [0, 0, header[4], header[5]],
        transport_offset: OFFSET + header_len,
        total_len,
    })
}

#[inline]
pub(crate) const fn part(flags_and_offset: u16) -> Part {
    if flags_and_offset & FRAGMENT_OFFSET != 0 {
        Part::LaterFragment
    } else if flags_and_offset & MORE_FRAGMENTS != 0 {
        Part::FirstFragment
    } else {
        Part::Whole
    }
}

/// What a header without options says, DF clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    pub source: Ip4,
    pub destination: Ip4,
    pub protocol: u8,
    pub ttl: u8,
    /// Differentiated services and congestion notification.
    pub tos: u8,
    pub id: [u8; 2],
}

impl Plain {
    /// The header of a packet with `payload_len` bytes behind it.
    #[inline]
    pub fn to_bytes(self, payload_len: u16) -> [u8; MIN_LEN] {
        let mut ip = [0; MIN_LEN];
        ip[0] = 0x45;
        ip[1] = self.tos;
        ip[2..4].copy_from_slice(&(payload_len + 20).to_be_bytes());
        ip[4..6].copy_from_slice(&self.id);
        ip[8] = self.ttl;
        ip[9] = self.protocol;
        ip[12..16].copy_from_slice(&self.source.0);
        ip[16..20].copy_from_slice(&self.destination.0);
        let [high, low] = checksum::header_checksum(&ip);
        ip[10] = high;
        ip[11] = low;
        ip
    }
}

/// A header without options, id or class, DF clear, for a payload of `payload_len` bytes.
#[inline]
pub fn header(addresses: (Ip4, Ip4), protocol: u8, ttl: u8, payload_len: u16) -> [u8; MIN_LEN] {
    Plain { source: addresses.0, destination: addresses.1, protocol, ttl, tos: 0, id: [0; 2] }
        .to_bytes(payload_len)
}
