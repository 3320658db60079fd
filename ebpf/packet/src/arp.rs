//! ARP for IPv4 over Ethernet (RFC 826).

use ebpf_abi::{Ip4, MacAddr};

use crate::bytes::{Bytes, Truncated};
use crate::ethernet::{self, Ethernet};

/// Length of the packet, bytes.
pub const LEN: usize = 28;
/// Length with the Ethernet header in front.
pub const FRAME_LEN: usize = ethernet::LEN + LEN;

/// Ethernet, IPv4, 6 and 4 bytes of address.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Who asks for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub sender_mac: MacAddr,
    pub sender: Ip4,
    pub target: Ip4,
}

/// The MAC and address that a question or an answer says its sender has; `Ok(None)` for what is not about IPv4 addresses.
#[inline]
pub fn sender(packet: &impl Bytes) -> Result<Option<(MacAddr, Ip4)>, Truncated> {
    let b = packet.load::<LEN>(ethernet::LEN)?;
    if [b[0], b[1], b[2], b[3], b[4], b[5]] != KIND {
        return Ok(None);
    }
    Ok(Some((MacAddr([b[8], b[9], b[10], b[11], b[12], b[13]]), Ip4([b[14], b[15], b[16], b[17]]))))
}

impl Request {
    /// `Ok(None)` for anything but a request for an IPv4 address.
    #[inline]
    pub fn parse(packet: &impl Bytes) -> Result<Option<Self>, Truncated> {
        let b = packet.load::<LEN>(ethernet::LEN)?;
        if [b[0], b[1], b[2], b[3], b[4], b[5]] != KIND || [b[6], b[7]] != REQUEST {
            return Ok(None);
        }
        Ok(Some(Self {
            sender_mac: MacAddr([b[8], b[9], b[10], b[11], b[12], b[13]]),
            sender: Ip4([b[14], b[15], b[16], b[17]]),
            target: Ip4([b[24], b[25], b[26], b[27]]),
        }))
    }

    /// The whole answering frame.
    #[inline]
    pub fn reply(&self, mac: MacAddr) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        let header = Ethernet { destination: self.sender_mac, source: mac, ether_type: ethernet::TYPE_ARP };
        frame[..14].copy_from_slice(&header.to_bytes());
        frame[14..20].copy_from_slice(&KIND);
        frame[20..22].copy_from_slice(&REPLY);
        frame[22..28].copy_from_slice(&mac.0);
        frame[28..32].copy_from_slice(&self.target.0);
        frame[32..38].copy_from_slice(&self.sender_mac.0);
        frame[38..42].copy_from_slice(&self.sender.0);
        frame
    }
}
