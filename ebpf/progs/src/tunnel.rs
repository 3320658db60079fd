//! Into a tunnel: by headers of our own where the way to the other node leads out of the uplink, which spares the packet a
//! walk through the kernel's stack; else by the kernel's VXLAN device. The wire has the same either way.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_md;
use ebpf_abi::{DropReason, Ip, Ip4, MacAddr, NextHop, NodeConfig};
use ebpf_packet::vxlan::{self, Outer};
use ebpf_packet::{Bytes as _, Ethernet, Version, ethernet, ip, ipv4};

use crate::account::Account;
use crate::fib;
use crate::maps::{self, NEXT_HOPS};
use crate::path;
use crate::scratch;
use crate::skb::{self, Skb};
use crate::verdict;

/// A tunnel, and what the inner Ethernet header says: what [`scratch::aim`] is told.
pub struct Through {
    /// The far end.
    pub node: Ip,
    pub vni: u32,
    pub destination: MacAddr,
    pub source: MacAddr,
}

/// Sends an IP packet by own headers; the hook's action. [`verdict::BY_DEVICE`] where that can't be: it is too long, or needs
/// the kernel's device for another reason, as IPv6 over IPv4 does.
#[inline(always)]
pub fn send(account: &Account, packet: &Skb) -> Result<i32, DropReason> {
    let through = scratch::aimed()?;
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let header = packet.load::<{ ipv4::MIN_LEN }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    let outer = Version::of_address(through.node);
    let inner_is_v4 = header[0] >> 4 == 4;
    if (inner_is_v4 || outer == Version::V6)
        && let Some(hop) = next_hop(config, packet, through.node, account.is_to_look())
        && fits(packet, &header, (outer, hop.mtu))
        && packet.make_tunnel_room(outer)
    {
        let inner_tos = if inner_is_v4 { header[1] } else { header[0] << 4 | header[1] >> 4 };
        let inner = inner_header(through, inner_is_v4);
        match outer {
            Version::V4 => write4(account, config, packet, (through, &inner, inner_tos))?,
            Version::V6 => write6(config, packet, (through, &inner, inner_tos))?,
        }
        return Ok(skb::send_by(hop.ifindex, hop.gateway));
    }
    Ok(verdict::BY_DEVICE)
}

/// The same by the kernel's device; the hook's action.
#[inline(always)]
pub fn send_by_device(packet: &Skb) -> Result<i32, DropReason> {
    Ok(skb::send_out(aim_device(packet)?))
}

/// Says to the kernel's device which tunnel the packet is to go through; the device.
#[inline(always)]
pub fn aim_device(packet: &Skb) -> Result<u32, DropReason> {
    let through = scratch::aimed()?;
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    packet.set_macs(through.destination, through.source)?;
    packet.set_tunnel((config.vtep, through.node), through.vni)?;
    Ok(config.vxlan_ifindex)
}

#[inline(always)]
fn write4(
    account: &Account,
    config: &NodeConfig,
    packet: &Skb,
    (through, inner, inner_tos): (&Through, &Ethernet, u8),
) -> Result<(), DropReason> {
    let hash = packet.hash();
    let outer = Outer {
        source: config.vtep.low(),
        destination: through.node.low(),
        source_port: vxlan::source_port(hash),
        destination_port: config.vxlan_port,
        vni: through.vni,
        inner_tos,
        id: vxlan::id(hash, account.n_received()),
    };
    let inner_len = packet.len() - vxlan::OVERHEAD4 as u32;
    packet.write_counted(ethernet::LEN, &outer.behind_ethernet(inner, inner_len as u16))
}

#[inline(always)]
fn write6(
    config: &NodeConfig,
    packet: &Skb,
    (through, inner, inner_tos): (&Through, &Ethernet, u8),
) -> Result<(), DropReason> {
    let outer = Outer {
        source: config.vtep,
        destination: through.node,
        source_port: vxlan::source_port(packet.hash()),
        destination_port: config.vxlan_port,
        vni: through.vni,
        inner_tos,
        id: [0; 2],
    };
    let room = scratch::room_for_outer().ok_or(DropReason::Unconfigured)?;
    let room = room.first_chunk_mut().ok_or(DropReason::Unconfigured)?;
    let inner_len = packet.len() - vxlan::OVERHEAD6 as u32;
    outer.write_behind_ethernet(inner, inner_len as u16, room);
    packet.write_counted(ethernet::LEN, room)
}

#[inline(always)]
const fn inner_header(through: &Through, is_v4: bool) -> Ethernet {
    let (destination, source) = (through.destination, through.source);
    let ether_type = if is_v4 { ethernet::TYPE_IPV4 } else { ethernet::TYPE_IPV6 };
    Ethernet { destination, source, ether_type }
}

/// The packet with all headers is no longer than the way allows, in the parts that the kernel will make of it, and than an
/// IPv4 packet may be: of others the sender is told ([`crate::path`]), or the kernel's device sends them in more parts.
#[inline(always)]
fn fits(packet: &Skb, ip: &[u8; ipv4::MIN_LEN], (outer, mtu): (Version, u32)) -> bool {
    const LONGEST: u32 = u16::MAX as u32;
    let overhead = vxlan::overhead(outer);
    let whole = packet.len() - ethernet::LEN as u32 + overhead;
    match packet.part_len(ip) {
        None => whole <= mtu,
        Some(part) => whole <= LONGEST && part <= mtu.saturating_sub(overhead),
    }
}

/// Where own headers lead to a node: what was found in this second, or the kernel's answer now. `None` leaves the packet to the
/// kernel's device: the way leads elsewhere, or the next hop has yet to be asked for its MAC.
#[inline(always)]
fn next_hop(config: &NodeConfig, packet: &Skb, node: Ip, asks_again: bool) -> Option<NextHop> {
    // SAFETY: the row is copied at once.
    if let Some(known) = unsafe { NEXT_HOPS.get(node) }
        && known.seen == maps::tick()
        && known.to_renew == 0
        && !asks_again
    {
        return if known.ifindex == 0 { None } else { Some(*known) };
    }
    look_up(config, packet, node)
}

#[inline(always)]
fn look_up(config: &NodeConfig, packet: &Skb, node: Ip) -> Option<NextHop> {
    let version = Version::of_address(node);
    let mut lookup = MaybeUninit::uninit();
    let lookup = fib::cleared(&mut lookup);
    fib::set_addresses(version, lookup, (&config.vtep, &node));
    // Not 0 bytes: then the kernel would measure the packet as it is now, and not tell the way's MTU.
    let found = fib::ask(config, packet, (version, 1), lookup);
    if found == fib::NO_NEIGHBOUR {
        return None;
    }
    let is_ours = found == fib::FOUND
        && lookup.family == fib::family(version)
        && lookup.ifindex == config.uplink_ifindex;
    // SAFETY: the members read are those of the version, and of an answer.
    let (gateway, mtu) = unsafe {
        let gateway = match version {
            Version::V4 => Ip::v4(Ip4::from_be_u32(lookup.__bindgen_anon_4.ipv4_dst)),
            Version::V6 => Ip::from_be_words(lookup.__bindgen_anon_4.ipv6_dst),
        };
        (gateway, lookup.__bindgen_anon_1.mtu_result)
    };
    let hop = NextHop {
        seen: maps::tick(),
        to_renew: 0,
        ifindex: if is_ours { config.uplink_ifindex } else { 0 },
        gateway,
        mtu: if found == fib::FOUND { path::least(mtu.into(), maps::peer_mtu(&node)) } else { 0 },
        source: MacAddr(lookup.smac),
        destination: MacAddr(lookup.dmac),
    };
    // A full table makes room by itself.
    let _ = NEXT_HOPS.insert(node, hop, 0);
    if hop.ifindex == 0 { None } else { Some(hop) }
}

/// Destination and source MAC towards a node out of the interface that XDP runs on, if that is known in this second and lets
/// through packets of `len` bytes; else tc, which is beneath, asks the kernel. A connection that begins is tc's too where the
/// node could answer by longer packets than the way takes: its MSS is to be cut.
#[inline(always)]
pub fn macs_of_next_hop(
    account: &Account,
    context: *mut xdp_md,
    node: Ip,
    (len, begins): (u32, bool),
) -> Option<(MacAddr, MacAddr)> {
    let hop = NEXT_HOPS.get_ptr_mut(node)?;
    // SAFETY: the row stays until this program ends; another CPU that writes it too writes the same.
    let hop = unsafe { &mut *hop };
    // SAFETY: the context outlives the program.
    let ifindex = unsafe { (*context).ingress_ifindex };
    if account.is_to_look() {
        hop.to_renew = 1;
        return None;
    }
    if begins && maps::peer_mtu(&node) > hop.mtu {
        return None;
    }
    let is_known = hop.seen == maps::tick() && hop.ifindex == ifindex && len <= hop.mtu;
    is_known.then_some((hop.destination, hop.source))
}
