//! VXLAN (RFC 7348 section 5): the headers that XDP puts in front of a frame, and the VNI of a frame that has them.

use ebpf_abi::{Ip4, MacAddr, Port, protocol};

use crate::bytes::{Bytes, Truncated};
use crate::ethernet::{self, Ethernet};
use crate::ipv4;

/// Length of a VXLAN header, bytes.
pub const LEN: usize = 8;
const UDP_LEN: usize = 8;
/// What encapsulation adds to a frame: outer Ethernet, IPv4, UDP, VXLAN.
pub const OVERHEAD: usize = ethernet::LEN + 20 + UDP_LEN + LEN;
/// What encapsulation adds to an IPv4 packet: its own Ethernet header, and the outer headers but for Ethernet.
pub const MTU_OVERHEAD: u32 = 50;

const _: () = assert!(OVERHEAD == 50);

/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;
const TTL: u8 = 64;

/// The outer side of a tunnelled frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    pub source_mac: MacAddr,
    pub destination_mac: MacAddr,
    pub source: Ip4,
    pub destination: Ip4,
    /// Carries the inner flow's hash, so that the underlay can spread flows (RFC 7348 section 5).
    pub source_port: Port,
    pub destination_port: Port,
    pub vni: u32,
}

/// The UDP source port for a flow with this hash: in the dynamic range (RFC 6335 section 6).
#[inline]
pub const fn source_port(hash: u32) -> Port {
    Port::new(0xc000 | (hash & 0x3fff) as u16)
}

impl Outer {
    /// All that goes in front of an inner frame of `inner_len` bytes. The UDP checksum is zero (RFC 7348 section
    /// 5), and DF is clear, as the kernel's own VXLAN device sends by default.
    #[inline]
    pub fn to_bytes(self, inner_len: u16) -> [u8; OVERHEAD] {
        let udp_len = inner_len + 16;
        let ip = ipv4::header((self.source, self.destination), protocol::UDP, TTL, udp_len);
        let mut bytes = [0; OVERHEAD];
        let ethernet = Ethernet {
            destination: self.destination_mac,
            source: self.source_mac,
            ether_type: ethernet::TYPE_IPV4,
        };
        bytes[..14].copy_from_slice(&ethernet.to_bytes());
        bytes[14..34].copy_from_slice(&ip);
        bytes[34..36].copy_from_slice(&self.source_port.0);
        bytes[36..38].copy_from_slice(&self.destination_port.0);
        bytes[38..40].copy_from_slice(&udp_len.to_be_bytes());
        bytes[42] = FLAG_VNI;
        bytes[46..50].copy_from_slice(&(self.vni << 8).to_be_bytes());
        bytes
    }
}

/// The VNI of a frame whose UDP header is at `udp_offset`; `None` if the header says that it has none.
#[inline]
pub fn vni(packet: &impl Bytes, udp_offset: usize) -> Result<Option<u32>, Truncated> {
    let header = packet.load::<LEN>(udp_offset + UDP_LEN)?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    Ok((header[0] & FLAG_VNI != 0).then_some(vni))
}
