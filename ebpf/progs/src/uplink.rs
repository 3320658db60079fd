//! tc ingress of an uplink: published ports, and the liveness probe's echo.

use ebpf_abi::limits::PROBE_VNI;
use ebpf_abi::{DropReason, NodeConfig, RingKey, protocol};
use ebpf_packet::Bytes as _;
use ebpf_packet::vxlan::MTU_OVERHEAD;
use ebpf_packet::{Ethernet, Flow, Ipv4, ethernet, ipv4, vxlan};

use crate::ingress::Arrival;
use crate::skb::{self, Skb};
use crate::verdict::{Outcome, Verdict};
use crate::{errors, fragments, ingress, maps, route};

#[inline(always)]
pub fn run(packet: &Skb) -> Outcome {
    let Some(config) = maps::config() else { return Ok(Verdict::Pass) };
    let Ok(ethernet) = Ethernet::parse(packet) else { return Ok(Verdict::Pass) };
    if ethernet.ether_type != ethernet::TYPE_IPV4 {
        return Ok(Verdict::Pass);
    }
    let Ok(ip) = Ipv4::parse(packet) else { return Ok(Verdict::Pass) };
    if config.ingress_vni != 0
        && let Ok(flow) = fragments::flow(packet, &ip)
        && let Some(ring) = ring(config, packet, &flow)
        && let Some(chosen) = ingress::choose(config, &flow, &ring)
    {
        fragments::remember(&ip, &flow);
        return if chosen.endpoint.is_local() {
            ingress::deliver(config, packet, &flow, (chosen.backend, &chosen.endpoint), Arrival::Outside)
        } else if is_too_long(config, packet, &ip) {
            errors::refuse_length(config, packet, &ethernet, &ip)
        } else {
            route::tunnel_to_endpoint(config, packet, config.ingress_vni, &chosen.endpoint)
        };
    }
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
