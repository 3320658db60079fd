//! tc ingress of an uplink: published ports, the liveness probe's echo, and what other nodes have tunnelled.

use ebpf_abi::limits::PROBE_VNI;
use ebpf_abi::{DropReason, NodeConfig, RingKey, protocol};
use ebpf_packet::Bytes as _;
use ebpf_packet::vxlan::{MTU_OVERHEAD, Tunnelled};
use ebpf_packet::{Ethernet, Flow, Ipv4, ethernet, ipv4, vxlan};

use crate::account::Account;
use crate::ingress::Arrival;
use crate::skb::{self, Skb, Tunnel};
use crate::verdict::{self, Outcome, Verdict};
use crate::{errors, fragments, ingress, maps, route, vxlan as arrivals};

/// What the part of clients leaves to that of refusals.
const TOO_LONG: i32 = verdict::FIRST_OWN;

#[inline(always)]
pub fn run(account: &Account, packet: &Skb) -> i32 {
    let mut action = part_of_nodes(account, packet);
    if action == verdict::NEXT_PART {
        action = part_of_clients(account, packet);
    }
    match action {
        verdict::NEXT_PART => last_part(account, packet),
        TOO_LONG => part_of_refusals(account, packet),
        _ => action,
    }
}

#[inline(never)]
fn part_of_nodes(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &from_node(packet))
}

#[inline(never)]
fn part_of_clients(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &from_client(packet))
}

#[inline(never)]
fn part_of_refusals(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(refuse_length(packet)))
}

#[inline(never)]
fn last_part(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(rest(packet)))
}

/// A packet that another node has tunnelled to this one, taken out of its tunnel here: that spares it a walk through the
/// kernel's stack. `None` for all others, and for those that the kernel's VXLAN device has to take: it judges what is out of
/// the ordinary, and takes aggregates, which would stay marked as tunnelled here and be taken apart wrongly if they left
/// the node again.
#[inline(always)]
fn from_node(packet: &Skb) -> Option<Outcome> {
    let config = maps::config()?;
    let headers = packet.load::<{ vxlan::FRAME_HEADERS_LEN }>(0).ok()?;
    let tunnelled = Tunnelled::parse(&headers, packet.len() as usize, (config.vtep, config.vxlan_port))?;
    let is_ours = packet.is_for_host() && !packet.is_aggregate() && tunnelled.vni != PROBE_VNI;
    if !is_ours || !maps::is_peer(tunnelled.remote) {
        return None;
    }
    if let Err(reason) = packet.leave_tunnel(&tunnelled.inner) {
        return Some(Err(reason));
    }
    let tunnel = Tunnel { remote: tunnelled.remote, vni: tunnelled.vni };
    Some(arrivals::arrived(config, packet, &tunnel, &tunnelled.inner))
}

/// A packet for a published port; `None` for all others.
#[inline(always)]
fn from_client(packet: &Skb) -> Option<Outcome> {
    let config = maps::config().filter(|config| config.ingress_vni != 0)?;
    let (_, ip) = ipv4(packet)?;
    let flow = fragments::flow(packet, &ip).ok()?;
    let chosen = ingress::choose(config, &flow, &ring(config, packet, &flow)?)?;
    fragments::remember(&ip, &flow);
    Some(if chosen.endpoint.is_local() {
        ingress::deliver(config, packet, &flow, (chosen.backend, &chosen.endpoint), Arrival::Outside)
    } else if is_too_long(config, packet, &ip) {
        Ok(Verdict::Forward(TOO_LONG))
    } else {
        Ok(route::tunnel_to_endpoint(packet, config.ingress_vni, &chosen.endpoint))
    })
}

/// Errors about answers from published ports, and probes.
#[inline(always)]
fn rest(packet: &Skb) -> Outcome {
    let Some(config) = maps::config() else { return Ok(Verdict::Pass) };
    let Some((ethernet, ip)) = ipv4(packet) else { return Ok(Verdict::Pass) };
    if config.ingress_vni != 0
        && let Some(outcome) = errors::from_outside(config, packet, &ip)
    {
        return outcome;
    }
    if is_probe(config, packet, &ip) { echo(packet, &ethernet, &ip) } else { Ok(Verdict::Pass) }
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
fn refuse_length(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (ethernet, ip) = ipv4(packet).ok_or(DropReason::Malformed)?;
    errors::refuse_length(config, packet, &ethernet, &ip)
}

#[inline(always)]
fn ipv4(packet: &Skb) -> Option<(Ethernet, Ipv4)> {
    let ethernet = Ethernet::parse(packet).ok()?;
    if ethernet.ether_type != ethernet::TYPE_IPV4 {
        return None;
    }
    Some((ethernet, Ipv4::parse(packet).ok()?))
}

/// The packet doesn't fit into the tunnel and may not be fragmented. Parts of an aggregate are as long as the task allowed
/// by its MSS, which knows of the tunnel.
#[inline(always)]
fn is_too_long(config: &NodeConfig, packet: &Skb, ip: &Ipv4) -> bool {
    let is_long = u32::from(ip.total_len) + MTU_OVERHEAD > config.uplink_mtu;
    is_long && ip.dont_fragment && ip.header_len == ipv4::MIN_LEN && !packet.is_aggregate()
}

/// A liveness probe of another node. One sent from the tunnel port is none: its echo would be a probe too, and two nodes
/// would send it to and fro for ever.
#[inline(always)]
fn is_probe(config: &NodeConfig, packet: &Skb, ip: &Ipv4) -> bool {
    let may_be =
        ip.protocol == protocol::UDP && ip.destination == config.vtep && ip.part == ipv4::Part::Whole;
    if !may_be || ip.header_len != ipv4::MIN_LEN {
        return false;
    }
    let Ok([source_high, source_low, high, low]) = packet.load::<4>(UDP_OFFSET) else { return false };
    let tunnels = config.vxlan_port.0;
    if [high, low] != tunnels || [source_high, source_low] == tunnels {
        return false;
    }
    vxlan::vni(packet, UDP_OFFSET) == Ok(Some(PROBE_VNI)) && maps::is_peer(ip.source)
}

const UDP_OFFSET: usize = ipv4::OFFSET + ipv4::MIN_LEN;

/// Sends a probe back to where it came from: all pairs change sides, which no checksum notices.
#[inline(always)]
fn echo(packet: &Skb, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    let [a, b, c, d] = packet.load::<4>(UDP_OFFSET).map_err(|_| DropReason::Malformed)?;
    packet.set_macs(ethernet.source, ethernet.destination)?;
    packet.write(ipv4::SOURCE_OFFSET, &ip.destination.0)?;
    packet.write(ipv4::DESTINATION_OFFSET, &ip.source.0)?;
    packet.write(UDP_OFFSET, &[c, d, a, b])?;
    Ok(skb::send(packet.ifindex()))
}
