//! The IPv6 header and its extensions (RFC 8200 sections 3 and 4).

use ebpf_abi::protocol;

use crate::bytes::Bytes;
use crate::ip::{IpHeader, NotIp, OFFSET, Part, Version};

/// Length of the header, bytes.
pub const LEN: usize = 40;
/// Where fields start in a frame.
pub const SOURCE_OFFSET: usize = OFFSET + 8;
pub const DESTINATION_OFFSET: usize = OFFSET + 24;

/// Every link carries packets of so many bytes (RFC 8200 section 5).
pub const MIN_MTU: u32 = 1280;

/// Extension headers, by their numbers (RFC 8200 section 4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are looked behind: each kind once, and destination options twice (RFC 8200 section 4.1).
const MAX_EXTENSIONS: usize = 5;

/// Where fields of a fragment header are.
const MORE_FRAGMENTS: u8 = 0x01;
const FRAGMENT_OFFSET: u16 = 0xfff8;

/// Reads the header behind the Ethernet header into `header`. Where [`Bytes::VARIABLE_OFFSETS`] is false the protocol of a
/// packet with extensions is that of the first one.
#[inline]
pub fn parse_into<B: Bytes>(packet: &B, header: &mut IpHeader) -> Result<(), NotIp> {
    let [version, ..] = packet.load::<1>(OFFSET).map_err(|_| NotIp)?;
    let [high, low, next, _] = packet.load::<4>(OFFSET + 4).map_err(|_| NotIp)?;
    packet.load_into(SOURCE_OFFSET, &mut header.source.0).map_err(|_| NotIp)?;
    packet.load_into(DESTINATION_OFFSET, &mut header.destination.0).map_err(|_| NotIp)?;
    if version >> 4 != 6 || header.source.is_v4() || header.destination.is_v4() {
        return Err(NotIp);
    }
    header.version = Version::V6;
    header.protocol = next;
    header.part = Part::Whole;
    header.dont_fragment = true;
    header.id = [0; 4];
    header.transport_offset = OFFSET + LEN;
    header.total_len = u16::from_be_bytes([high, low]).saturating_add(40);
    if B::VARIABLE_OFFSETS {
        skip_extensions(packet, header)?;
    }
    Ok(())
}

/// Goes on to the transport header, or to the payload of a later fragment.
#[inline]
fn skip_extensions(packet: &impl Bytes, header: &mut IpHeader) -> Result<(), NotIp> {
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(header.protocol) {
            return Ok(());
        }
        let offset = header.transport_offset;
        let [next, len, high, low] = packet.load::<4>(offset).map_err(|_| NotIp)?;
        let is_fragment = header.protocol == FRAGMENT;
        header.protocol = next;
        if is_fragment {
            packet.load_into(offset + 4, &mut header.id).map_err(|_| NotIp)?;
            header.part = part(high, low);
            header.transport_offset = offset + 8;
            if header.part == Part::LaterFragment {
                return Ok(());
            }
        } else {
            header.transport_offset = offset + (usize::from(len) + 1) * 8;
        }
    }
    if is_extension(header.protocol) { Err(NotIp) } else { Ok(()) }
}

#[inline]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// An offset of zero with nothing behind is a whole packet (RFC 6946).
#[inline]
const fn part(high: u8, low: u8) -> Part {
    if u16::from_be_bytes([high, low]) & FRAGMENT_OFFSET != 0 {
        Part::LaterFragment
    } else if low & MORE_FRAGMENTS != 0 {
        Part::FirstFragment
    } else {
        Part::Whole
    }
}

/// The header of an ICMPv6 message of `payload_len` bytes, up to its addresses.
#[inline]
pub const fn start(hop_limit: u8, payload_len: u16) -> [u8; 8] {
    let [high, low] = payload_len.to_be_bytes();
    [0x60, 0, 0, 0, high, low, protocol::ICMP6, hop_limit]
}
