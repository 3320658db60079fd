//! tc ingress of an uplink: published ports, the liveness probe's echo, and what other nodes have tunnelled.

use ebpf_abi::limits::{PROBE_VNI, ROUTER_MAC};
use ebpf_abi::{DropReason, Ip, NodeConfig, RingKey, protocol};
use ebpf_packet::Bytes as _;
use ebpf_packet::vxlan::Tunnelled;
use ebpf_packet::{Ethernet, Flow, IpHeader, Version, ip, vxlan};

use crate::account::Account;
use crate::ingress::Arrival;
use crate::skb::{self, Skb, Tunnel};
use crate::verdict::{self, Outcome, Verdict};
use crate::{errors, family, fragments, headers, ingress, maps, route, scratch, vxlan as arrivals};

#[inline(always)]
pub fn run(account: &Account, packet: &Skb) -> i32 {
    let action = decide(account, packet);
    family::finish(account, packet, action)
}

#[inline(always)]
fn decide(account: &Account, packet: &Skb) -> i32 {
    // They are for another interface, and what is sent on keeps its tag: nobody would hear the answer.
    if packet.is_of_vlan() {
        return verdict::part(account, &Some(Ok(Verdict::Pass)));
    }
    let mut action = part_of_nodes(account, packet);
    if action == verdict::ARRIVED {
        return arrivals::arrive(account, packet);
    }
    if action == verdict::NEXT_PART {
        action = part_of_clients(account, packet);
    }
    if action == verdict::NEXT_PART { rest(account, packet) } else { action }
}

#[inline(never)]
fn part_of_nodes(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &from_node(packet))
}

#[inline(never)]
fn part_of_clients(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &from_client(packet))
}

/// Errors about answers from published ports, and probes.
#[inline(always)]
fn rest(account: &Account, packet: &Skb) -> i32 {
    let action = part_of_errors(account, packet);
    if action == verdict::NEXT_PART { last_part(account, packet) } else { action }
}

#[inline(never)]
fn part_of_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &error(packet))
}

#[inline(never)]
fn last_part(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(last(packet)))
}

/// A packet that another node has tunnelled to this one, taken out of its tunnel here: that spares it a walk through the
/// kernel's stack. `None` for all others, and for those that the kernel's VXLAN device has to take: it judges what is out of
/// the ordinary, and takes aggregates that can't do with the marks of a tunnel, see [`keeps_marks`].
#[inline(always)]
fn from_node(packet: &Skb) -> Option<Outcome> {
    let config = maps::config()?;
    let (remote, tunnelled) = tunnelled(config, packet)?;
    let outer = Version::of_address(remote);
    let is_ours = packet.is_for_host() && tunnelled.vni != PROBE_VNI && maps::is_peer(remote);
    let is_aggregate = packet.is_aggregate();
    if !is_ours || (is_aggregate && !keeps_marks(packet, &tunnelled, outer)) {
        return None;
    }
    match packet.leave_tunnel(&tunnelled.inner, (outer, tunnelled.version)) {
        Ok(()) => {}
        Err(_) if is_aggregate => return None,
        Err(reason) => return Some(Err(reason)),
    }
    let tunnel = Tunnel { remote, vni: tunnelled.vni };
    Some(scratch::tunnel(tunnel).map_or(Err(DropReason::Unconfigured), |_| Ok(Verdict::ARRIVED)))
}

/// What the tunnel's headers say, if they are plain, and who sent it.
#[inline(always)]
fn tunnelled(config: &NodeConfig, packet: &Skb) -> Option<(Ip, Tunnelled)> {
    let (frame_len, port) = (packet.len() as usize, config.vxlan_port);
    if config.vtep.is_v4() {
        let headers = packet.load::<{ vxlan::FRAME_HEADERS_LEN4 }>(0).ok()?;
        let (remote, tunnelled) = Tunnelled::parse4(&headers, frame_len, (config.vtep.low(), port))?;
        Some((Ip::v4(remote), tunnelled))
    } else {
        let headers = scratch::room_for_outer()?;
        packet.load_into(0, headers).ok()?;
        Tunnelled::parse6(headers, frame_len, (&config.vtep, port))
    }
}

/// An aggregate may come out of its tunnel here, although no helper takes the tunnel's marks off it (`SKB_GSO_UDP_TUNNEL`,
/// `encapsulation`): it is for a task, and TCP, which nobody on the way into a socket asks about them. A NIC would be misled
/// by them, so what leaves the node again goes the kernel's way; and so do datagrams, since a socket that wants them one
/// by one has them taken apart as a tunnel's. The kernel turns none into one of the other version whole.
#[inline(always)]
fn keeps_marks(packet: &Skb, tunnelled: &Tunnelled, outer: Version) -> bool {
    let protocol_offset = match outer {
        Version::V4 => vxlan::FRAME_HEADERS_LEN4 + 9,
        Version::V6 => vxlan::FRAME_HEADERS_LEN6 + 6,
    };
    tunnelled.inner.destination != ROUTER_MAC
        && tunnelled.version == outer
        && packet.load::<1>(protocol_offset) == Ok([protocol::TCP])
}

/// A packet for a published port; `None` for all others.
#[inline(always)]
fn from_client(packet: &Skb) -> Option<Outcome> {
    let config = maps::config().filter(|config| config.ingress_vni != 0)?;
    let (_, ip) = both(packet)?;
    let flow = fragments::flow(packet, ip).ok()?;
    let ring = ring(config, packet, flow)?;
    let chosen = ingress::choose(config, flow, &ring)?;
    fragments::remember(ip, flow);
    Some(if chosen.endpoint.is_local() {
        ingress::deliver(config, flow, (chosen.backend, &chosen.endpoint), Arrival::Outside)
    } else {
        Ok(route::tunnel_to_endpoint(config.ingress_vni, &chosen.endpoint))
    })
}

/// An error about an answer from a published port; `None` for all other packets.
#[inline(always)]
fn error(packet: &Skb) -> Option<Outcome> {
    let config = maps::config().filter(|config| config.ingress_vni != 0)?;
    let (_, ip) = both(packet)?;
    errors::from_outside(config, packet, ip)
}

#[inline(always)]
fn last(packet: &Skb) -> Outcome {
    let Some(config) = maps::config() else { return Ok(Verdict::Pass) };
    let Some((ethernet, ip)) = both(packet) else { return Ok(Verdict::Pass) };
    if is_probe(config, packet, ip) { echo(packet, &ethernet, ip) } else { Ok(Verdict::Pass) }
}

/// The ring for a client's packet. What a switch floods, or a bridge shows of other machines' frames, is not for this one.
#[inline(always)]
fn ring(config: &NodeConfig, packet: &Skb, flow: &Flow) -> Option<RingKey> {
    let own = ingress::ring(&flow.tuple);
    if own.is_some() || !packet.is_for_host() {
        own
    } else {
        ingress::ring_of_other_node(config, &flow.tuple)
    }
}

#[inline(always)]
fn both(packet: &Skb) -> Option<(Ethernet, &'static IpHeader)> {
    let ethernet = Ethernet::parse(packet).ok()?;
    let version = Version::of(ethernet.ether_type)?;
    Some((ethernet, headers::ip(packet, version)?))
}

/// A liveness probe of another node. One sent from the tunnel port is none: its echo would be a probe too, and two nodes
/// would send it to and fro for ever.
#[inline(always)]
fn is_probe(config: &NodeConfig, packet: &Skb, ip: &IpHeader) -> bool {
    let may_be = ip.protocol == protocol::UDP && ip.destination == config.vtep && ip.part == ip::Part::Whole;
    if !may_be || ip.has_options() {
        return false;
    }
    let udp_offset = udp_offset(ip);
    let Ok([source_high, source_low, high, low]) = packet.load::<4>(udp_offset) else { return false };
    let tunnels = config.vxlan_port.0;
    if [high, low] != tunnels || [source_high, source_low] == tunnels {
        return false;
    }
    vxlan::vni(packet, udp_offset) == Ok(Some(PROBE_VNI)) && maps::is_peer(ip.source)
}

/// Of a packet without options.
#[inline(always)]
const fn udp_offset(ip: &IpHeader) -> usize {
    ip::OFFSET + ip.version.min_len()
}

/// Sends a probe back to where it came from: all pairs change sides, which no checksum notices.
#[inline(always)]
fn echo(packet: &Skb, ethernet: &Ethernet, ip: &IpHeader) -> Outcome {
    let udp_offset = udp_offset(ip);
    let [a, b, c, d] = packet.load::<4>(udp_offset).map_err(|_| DropReason::Malformed)?;
    packet.set_macs(ethernet.source, ethernet.destination)?;
    match ip.version {
        Version::V4 => {
            packet.write(Version::V4.source_offset(), &ip.destination.low().0)?;
            packet.write(Version::V4.destination_offset(), &ip.source.low().0)?;
        }
        Version::V6 => {
            packet.write(Version::V6.source_offset(), &ip.destination.0)?;
            packet.write(Version::V6.destination_offset(), &ip.source.0)?;
        }
    }
    packet.write(udp_offset, &[c, d, a, b])?;
    Ok(skb::send(packet.ifindex()))
}
