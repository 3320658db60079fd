//! The Ethernet header (IEEE 802.3, type framing).

use ebpf_abi::MacAddr;

use crate::bytes::{Bytes, Truncated};

/// Length of the header, bytes; no VLAN tags.
pub const LEN: usize = 14;
/// Where the source address starts.
pub const SOURCE_OFFSET: usize = 6;

pub const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
pub const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// An Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    pub destination: MacAddr,
    pub source: MacAddr,
    pub ether_type: [u8; 2],
}

impl Ethernet {
    #[inline]
    pub fn parse(packet: &impl Bytes) -> Result<Self, Truncated> {
        let h = packet.load::<LEN>(0)?;
        Ok(Self {
            destination: MacAddr([h[0], h[1], h[2], h[3], h[4], h[5]]),
            source: MacAddr([h[6], h[7], h[8], h[9], h[10], h[11]]),
            ether_type: [h[12], h[13]],
        })
    }

    #[inline]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let (to, from, kind) = (self.destination.0, self.source.0, self.ether_type);
        [
            to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5],
            kind[0], kind[1],
        ]
    }
}
