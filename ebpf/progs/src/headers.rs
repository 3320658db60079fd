//! Reading headers into the room that [`scratch`] has for them. What is read seldom, or takes long, is a function of its own:
//! such a function takes and gives nothing but numbers and places, because the kernel refuses to be told of Rust's enums.

use ebpf_abi::{DropReason, FlowTuple};
use ebpf_packet::ip::Version;
use ebpf_packet::ndp::Solicitation;
use ebpf_packet::{IpHeader, icmp, ipv4, ipv6};

use crate::scratch;
use crate::skb::Skb;

/// The packet's IP header; `None` if it is none of this version.
#[inline(always)]
pub fn ip(packet: &Skb, version: Version) -> Option<&'static IpHeader> {
    match version {
        Version::V4 => scratch::header(ipv4::parse(packet).ok()?).map(|header| &*header),
        Version::V6 => {
            let room = scratch::room_for_header()?;
            if read6(packet, room) { Some(room) } else { None }
        }
    }
}

#[inline(never)]
fn read6(packet: &Skb, room: &mut IpHeader) -> bool {
    ipv6::parse_into(packet, room).is_ok()
}

/// The flow of the packet that an ICMP error complains of, see [`icmp::embedded_flow`].
#[inline(always)]
pub fn embedded_flow(packet: &Skb, ip: &IpHeader) -> Option<&'static FlowTuple> {
    if !icmp::is_message(ip) {
        return None;
    }
    let room = scratch::room_for_tuple()?;
    if read_embedded(packet, ip, room) { Some(room) } else { None }
}

/// The client's flow that an error about an answer is about, see [`icmp::answered_flow`].
#[inline(always)]
pub fn answered_flow(packet: &Skb, ip: &IpHeader) -> Option<&'static FlowTuple> {
    if !icmp::is_message(ip) {
        return None;
    }
    let room = scratch::room_for_tuple()?;
    if read_answered(packet, ip, room) { Some(room) } else { None }
}

#[inline(never)]
fn read_embedded(packet: &Skb, ip: &IpHeader, room: &mut FlowTuple) -> bool {
    icmp::embedded_flow_into(packet, ip, room)
}

#[inline(never)]
fn read_answered(packet: &Skb, ip: &IpHeader, room: &mut FlowTuple) -> bool {
    if !read_embedded(packet, ip, room) || room.source != ip.destination {
        return false;
    }
    *room = room.reversed();
    true
}

/// Whom the packet asks for by neighbour discovery; `None` for any other packet.
#[inline(always)]
pub fn solicitation(packet: &Skb, ip: &IpHeader) -> Result<Option<&'static Solicitation>, DropReason> {
    let room = scratch::room_for_solicitation().ok_or(DropReason::Unconfigured)?;
    match read_solicitation(packet, ip, room) {
        ASKS => Ok(Some(room)),
        ASKS_NOBODY => Ok(None),
        _ => Err(DropReason::Malformed),
    }
}

/// What [`read_solicitation`] gives.
const ASKS: u32 = 0;
const ASKS_NOBODY: u32 = 1;
const IS_INVALID: u32 = 2;

#[inline(never)]
fn read_solicitation(packet: &Skb, ip: &IpHeader, room: &mut Solicitation) -> u32 {
    match Solicitation::parse(packet, ip) {
        Ok(Some(asks)) => {
            *room = asks;
            ASKS
        }
        Ok(None) => ASKS_NOBODY,
        Err(_) => IS_INVALID,
    }
}
