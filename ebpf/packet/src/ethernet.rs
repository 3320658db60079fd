//! The Ethernet header (IEEE 802.3, type framing).

use ebpf_abi::MacAddr;

use crate::bytes::{Bytes, Truncated};

/// Length of the header, bytes; no VLAN tags.
pub const LEN: usize = 14;
/// Where the source address starts.
pub const SOURCE_OFFSET: usize = 6;

pub const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
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
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = packet.load::<LEN>(0)?;
        Ok(Self {
            destination: MacAddr([a, b, c, d, e, f]),
            source: MacAddr([g, h, i, j, k, l]),
            ether_type: [m, n],
        })
    }

    #[inline]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let [a, b, c, d, e, f] = self.destination.0;
        let [g, h, i, j, k, l] = self.source.0;
        let [m, n] = self.ether_type;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
    }
}
