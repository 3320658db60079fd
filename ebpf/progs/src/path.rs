//! How long packets may be on their way to another node: the one rule, for all that go through a tunnel.
//!
//! What takes a tunnel's headers of its own is known to fit by [`crate::tunnel`], and never comes here; the rest is slow
//! anyway. Functions of global linkage: the verifier looks at them once, and not for each of the ways that lead here.

use aya_ebpf::bindings::__sk_buff;
use ebpf_abi::{DropReason, Ip, Ip4, NodeConfig, protocol};
use ebpf_packet::ip::{self, Part};
use ebpf_packet::{Bytes as _, IpHeader, Version, ethernet, icmp, ipv4, ipv6, vxlan};

use crate::maps::{self, NEXT_HOPS};
use crate::scratch;
use crate::skb::Skb;

/// What a TCP segment's headers take, bytes: the difference of MTU and MSS (RFC 9293 section 3.7.1).
pub const HEADERS4: u32 = 20 + 20;
pub const HEADERS6: u32 = 40 + 20;

/// Where TCP's flags are, and the one of a side's first segment (RFC 9293 section 3.1).
const TCP_FLAGS_OFFSET: usize = 13;
const TCP_SYN: u8 = 0x02;

/// How long a packet to a node may be, tunnel included.
struct Limit {
    mtu: u32,
    /// The node's own underlay has it. The kernel here knows nothing of that, so that a packet which is longer is lost on its
    /// way, and not sent in fragments.
    is_peers: bool,
}

/// The least of this node's MTU, of that which the node has said, and of the way's, where somebody has asked the kernel.
#[inline(always)]
fn limit(config: &NodeConfig, node: &Ip) -> Limit {
    let own = config.uplink_mtu;
    // SAFETY: the row is read at once.
    let way = least(own, unsafe { NEXT_HOPS.get(node) }.map_or(0, |hop| hop.mtu));
    let peers = maps::peer_mtu(node);
    let is_peers = peers != 0 && peers < own && peers <= way;
    Limit { mtu: if is_peers { peers } else { way }, is_peers }
}

/// The lesser MTU; 0 is one that isn't known.
#[inline(always)]
pub fn least(own: u32, other: u32) -> u32 {
    if other == 0 { own } else { own.min(other) }
}

/// Lets the far end send no longer segments than the tunnel takes that this packet is about to go through, if it begins a
/// connection or takes one on.
#[inline(always)]
pub fn clamp(packet: &Skb) {
    path_clamp(packet.raw());
}

/// As [`clamp`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn path_clamp(raw: *mut __sk_buff) -> i32 {
    let packet = Skb::of_raw(raw);
    let (Some(config), Some(header)) = (maps::config(), scratch::of_header()) else { return 0 };
    if header.protocol != protocol::TCP || header.part == Part::LaterFragment {
        return 0;
    }
    let Ok([flags]) = packet.load::<1>(header.transport_offset + TCP_FLAGS_OFFSET) else { return 0 };
    let Ok(through) = scratch::aimed() else { return 0 };
    if flags & TCP_SYN == 0 {
        return 0;
    }
    let headers = match header.version {
        Version::V4 => HEADERS4,
        Version::V6 => HEADERS6,
    };
    let taken = vxlan::overhead(Version::of_address(config.vtep)) + headers;
    path_cut_mss(raw, header.transport_offset as u32, limit(config, &through.node).mtu.saturating_sub(taken))
}

/// Lets who gets this segment, which begins at `start`, send none with more than `most` bytes.
#[inline(always)]
pub fn cut_mss(packet: &Skb, start: usize, most: u32) -> Result<(), DropReason> {
    if path_cut_mss(packet.raw(), start as u32, most) == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
}

/// Options that are looked at: those of TCP take forty bytes, and all systems put this one among the first.
const MAX_OPTIONS: usize = 10;

/// As [`cut_mss`]; not 0 if that can't be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn path_cut_mss(raw: *mut __sk_buff, start: u32, most: u32) -> i32 {
    /// RFC 9293 sections 3.1 and 3.2.
    const DATA_OFFSET: usize = 12;
    const MIN_LEN: usize = 20;
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    let packet = Skb::of_raw(raw);
    let start = start as usize;
    let most = if most > u32::from(u16::MAX) { u16::MAX } else { most as u16 };
    let Ok([words]) = packet.load::<1>(start + DATA_OFFSET) else { return 0 };
    let len = usize::from(words >> 4) * 4;
    let mut at = MIN_LEN;
    for _ in 0..MAX_OPTIONS {
        let Ok([kind, option_len, high, low]) = packet.load::<4>(start + at) else { return 0 };
        if at + 4 > len || kind == END {
            return 0;
        }
        if kind == MSS {
            let said = u16::from_be_bytes([high, low]);
            let is_cut = said <= most || packet.replace_mss(start, at + 2, (said, most)).is_ok();
            return if is_cut { 0 } else { -1 };
        }
        at += if kind == NOTHING { 1 } else { usize::from(option_len).max(2) };
    }
    0
}

/// Who has sent a packet that is about to go through a tunnel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The task that [`scratch::of_task`] knows.
    Task,
    /// A client outside, or a process of this node.
    Other,
}

/// How long the packet's sender is to be told that packets may be; 0 if the packet may go.
#[inline(always)]
pub fn told(packet: &Skb, sender: Sender) -> u32 {
    path_told(packet.raw(), u32::from(sender == Sender::Task))
}

/// As [`told`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn path_told(raw: *mut __sk_buff, is_of_task: u32) -> u32 {
    let packet = Skb::of_raw(raw);
    let (Some(config), Some(header)) = (maps::config(), scratch::of_header()) else { return 0 };
    let Ok(through) = scratch::aimed() else { return 0 };
    let limit = limit(config, &through.node);
    let longest = longest(config, limit.mtu, header.version);
    if len(&packet) <= longest || !may_be_told(config, header, limit.is_peers) {
        return 0;
    }
    if icmp::is_error(&packet, header) || (is_of_task != 0 && is_translated(&packet, header)) {
        return 0;
    }
    longest
}

/// What the tunnel takes of a version, bytes. IPv6 has no less than its least: what is below that is the tunnel's to cut up
/// (RFC 8200 section 5).
#[inline(always)]
fn longest(config: &NodeConfig, mtu: u32, version: Version) -> u32 {
    let longest = mtu.saturating_sub(vxlan::overhead(Version::of_address(config.vtep)));
    match version {
        Version::V4 => longest,
        Version::V6 => longest.max(ipv6::MIN_MTU),
    }
}

/// How long an answer may be, as IPv6, that [`scratch::of_answer`] tells of and the task of [`scratch::of_task`] gives.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn path_longest_answer() -> u32 {
    let (Some(config), Some((attachment, _))) = (maps::config(), scratch::of_task()) else { return u32::MAX };
    let Some(reply) = scratch::of_answer() else { return attachment.mtu };
    match maps::address_owner(reply.service) {
        Some(owner) if !owner.is_unspecified() => {
            longest(config, limit(config, &owner).mtu, Version::V6).min(attachment.mtu)
        }
        _ => attachment.mtu,
    }
}

/// How long the packet is, in the parts that the kernel will make of it; 0 where nobody knows that.
#[inline(always)]
fn len(packet: &Skb) -> u32 {
    let whole = packet.len() - ethernet::LEN as u32;
    if !packet.is_aggregate() {
        return whole;
    }
    let Ok(header) = packet.load::<{ ipv4::MIN_LEN }>(ip::OFFSET) else { return 0 };
    packet.part_len(&header).filter(|part| *part <= whole).unwrap_or(0)
}

/// Its sender can be told, and is to be. The tunnel's own packets are sent in fragments where that does any good, for the sake
/// of senders that allow it: SCTP that is told of less room can't cut the chunks again that it has made, and sends them in IP
/// fragments, which carry no other port ([`Skb::set_destination`]). Nobody fragments tunnels over IPv6, nor as another
/// node's underlay would need it: there all are told but by later fragments, whose first one has done so. What comes with
/// IPv4 options, or several extension headers, is left alone: errors carry less of it than its sender wants to see.
#[inline(always)]
fn may_be_told(config: &NodeConfig, header: &IpHeader, is_peers: bool) -> bool {
    const FRAGMENT_LEN: usize = 8;
    let n_before_transport = match header.version {
        Version::V4 => ipv4::MIN_LEN,
        Version::V6 => ipv6::LEN + FRAGMENT_LEN,
    };
    let is_wanted = if is_peers || !config.vtep.is_v4() {
        true
    } else {
        header.dont_fragment && header.protocol != protocol::SCTP
    };
    is_wanted
        && header.part != Part::LaterFragment
        && header.transport_offset <= ip::OFFSET + n_before_transport
}

/// The task has sent another packet: it knows nobody of this one's version.
#[inline(always)]
fn is_translated(packet: &Skb, header: &IpHeader) -> bool {
    let Some((attachment, _)) = scratch::of_task() else { return true };
    if rewritten(packet, header) {
        return false;
    }
    maps::name(attachment.vni, header.source).unwrap_or(Ip4::UNSPECIFIED) != attachment.address
}

/// The packet's addresses are others than its sender's header had.
#[inline(always)]
pub fn rewritten(packet: &Skb, header: &IpHeader) -> bool {
    match header.version {
        Version::V4 => packet
            .load::<8>(Version::V4.source_offset())
            .is_ok_and(|now| now != joined4(header.source.low(), header.destination.low())),
        Version::V6 => {
            let source = packet.load::<16>(Version::V6.source_offset());
            let destination = packet.load::<16>(Version::V6.destination_offset());
            source.is_ok_and(|source| Ip(source) != header.source)
                || destination.is_ok_and(|destination| Ip(destination) != header.destination)
        }
    }
}

/// Both addresses, as an IPv4 header has them.
#[inline(always)]
pub const fn joined4(Ip4([a, b, c, d]): Ip4, Ip4([e, f, g, h]): Ip4) -> [u8; 8] {
    [a, b, c, d, e, f, g, h]
}
