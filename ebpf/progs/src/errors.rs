//! ICMP errors about packets of published ports: each side is told of the packet that it sent itself, by the addresses and
//! ports that it knows. A "fragmentation needed" that got lost would stall its connection (RFC 2923 section 2.1).

use ebpf_abi::flow::FLOW_AS_IPV4;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{
    Chooser, DropReason, FlowTuple, Ip, Ip4, MacAddr, NodeConfig, Port, ReplyFlow, ReplyKey, protocol,
};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::{Bytes as _, Ethernet, IpHeader, Version, icmp, ip, ipv4, ipv6, vxlan};

use crate::ingress::{self, Other};
use crate::scratch::Handed;
use crate::skb::{self, Skb};
use crate::track;
use crate::verdict::{Outcome, Verdict};
use crate::{headers, maps, route, scratch, stand_in};

/// Of errors that are made here.
const TTL: u8 = 64;

/// Sends a client's packet back as an error: it is too long for the tunnel.
#[inline(always)]
pub fn refuse_length(config: &NodeConfig, packet: &Skb, ethernet: &Ethernet, ip: &IpHeader) -> Outcome {
    let mtu = config.uplink_mtu.saturating_sub(vxlan::overhead(Version::of_address(config.vtep))) as u16;
    match ip.version {
        Version::V4 => become_error4(packet, ip, icmp::Error4::too_big(mtu))?,
        Version::V6 => become_error6(packet, ip, &ip.destination, icmp::Error6::too_big(mtu))?,
    }
    packet.set_macs(ethernet.source, ethernet.destination)?;
    Ok(skb::send(packet.ifindex()))
}

/// Sends a task's IPv6 packet back as an error from `source`.
#[inline(always)]
pub fn refuse6(packet: &Skb, ip: &IpHeader, task: MacAddr, (source, error): (&Ip, icmp::Error6)) -> Outcome {
    become_error6(packet, ip, source, error)?;
    packet.set_macs(task, ROUTER_MAC)?;
    Ok(skb::send(packet.ifindex()))
}

/// Sends a task's answer to an IPv6 client back as an error: it is too long for the tunnel as an IPv6 packet.
#[inline(always)]
pub fn refuse_answer(packet: &Skb, ip: &IpHeader, task: MacAddr, mtu: u16) -> Outcome {
    become_error4(packet, ip, icmp::Error4::too_big(mtu))?;
    packet.set_macs(task, ROUTER_MAC)?;
    Ok(skb::send(packet.ifindex()))
}

/// Sends a task's IPv4 packet back as an error of whom it asked: nobody serves the port.
#[inline(always)]
pub fn refuse_port4(packet: &Skb, ip: &IpHeader, task: MacAddr) -> Outcome {
    become_error4(packet, ip, icmp::Error4::PORT)?;
    packet.set_macs(task, ROUTER_MAC)?;
    Ok(skb::send(packet.ifindex()))
}

/// The packet becomes an error about itself, from its destination.
#[inline(always)]
fn become_error4(packet: &Skb, ip: &IpHeader, error: icmp::Error4) -> Result<(), DropReason> {
    const PAYLOAD_LEN: usize = icmp::LEN + icmp::CARRIED_LEN4;
    const OFFSET: usize = Version::V4.icmp_offset();
    let carried = packet.load::<{ icmp::CARRIED_LEN4 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    packet.set_len(OFFSET + PAYLOAD_LEN)?;
    let (source, destination) = (ip.destination.low(), ip.source.low());
    let header = ipv4::Plain { source, destination, protocol: protocol::ICMP, ttl: TTL, tos: 0, id: [0; 2] };
    packet.write(ip::OFFSET, &header.to_bytes(PAYLOAD_LEN as u16))?;
    packet.write(OFFSET, &icmp::error4(error, &carried))?;
    packet.write(OFFSET + icmp::LEN, &carried)
}

/// The packet becomes an error about itself, from `source`.
#[inline(always)]
fn become_error6(packet: &Skb, ip: &IpHeader, source: &Ip, error: icmp::Error6) -> Result<(), DropReason> {
    const PAYLOAD_LEN: usize = icmp::LEN + icmp::CARRIED_LEN6;
    const OFFSET: usize = Version::V6.icmp_offset();
    let carried = packet.load::<{ icmp::CARRIED_LEN6 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    packet.set_len(OFFSET + PAYLOAD_LEN)?;
    packet.write(ip::OFFSET, &ipv6::start(TTL, PAYLOAD_LEN as u16))?;
    packet.write(Version::V6.source_offset(), &source.0)?;
    packet.write(Version::V6.destination_offset(), &ip.source.0)?;
    packet.write(OFFSET, &icmp::error6(error, (source, &ip.source), &carried))?;
    packet.write(OFFSET + icmp::LEN, &carried)
}

/// An error from outside about a backend's answer: to that backend. `None` if it is about nothing published.
#[inline(always)]
pub fn from_outside(config: &NodeConfig, packet: &Skb, ip: &IpHeader) -> Option<Outcome> {
    let tuple = headers::answered_flow(packet, ip)?;
    let ring = ingress::ring(tuple)?;
    let (backend, endpoint) =
        ingress::known_backend(config, tuple).or_else(|| ingress::pick(config, &ring, flow_hash(tuple)))?;
    Some(if endpoint.is_local() {
        deliver(config, tuple, backend, Chooser::IN_USE)
    } else {
        Ok(route::tunnel_to_endpoint(config.ingress_vni, &endpoint))
    })
}

/// Hands an error to a backend of this node, or to another one that knows the flow.
#[inline(always)]
pub fn deliver(config: &NodeConfig, tuple: &FlowTuple, backend: Ip4, chooser: Chooser) -> Outcome {
    if track::translation(tuple, backend).is_some() {
        return hand_on(config, tuple, backend);
    }
    let Other { backend, endpoint, chooser } =
        ingress::other(config, tuple, backend, chooser).ok_or(DropReason::UnknownFlow)?;
    if !endpoint.is_local() {
        return Ok(route::tunnel_to_other(config, &endpoint, chooser));
    }
    hand_on(config, tuple, backend)
}

/// Leaves an error for a backend of this node to a part of its own, see [`crate::family`].
#[inline(always)]
fn hand_on(config: &NodeConfig, tuple: &FlowTuple, backend: Ip4) -> Outcome {
    let endpoint = maps::endpoint(config.ingress_vni, backend).ok_or(DropReason::UnknownEndpoint)?;
    let translated = track::translation(tuple, backend).ok_or(DropReason::UnknownFlow)?;
    scratch::hand(backend, &endpoint, &translated)?;
    Ok(if translated.family == FLOW_AS_IPV4 { Verdict::TRANSLATE_ERROR } else { Verdict::HAND_OVER_ERROR })
}

/// The packet at fault, of the flow that [`scratch`] has, becomes what the task sent.
#[inline(always)]
pub fn hand_over(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (handed, _) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    let ip = scratch::of_header().ok_or(DropReason::Unconfigured)?;
    let tuple = &*scratch::room_for_tuple().ok_or(DropReason::Unconfigured)?;
    let Handed { backend, ref endpoint, ref translated, .. } = *handed;
    let version = ip.version;
    let task = maps::address(config.ingress_vni, backend, version).ok_or(DropReason::NotIp)?;
    let (source_port, destination_port) = embedded_ports(version);
    let source = (tuple.destination, task);
    packet.replace_embedded_address(version, version.embedded_source_offset(), source)?;
    let ports = (tuple.destination_port, translated.target_port);
    packet.replace_embedded_port(version, source_port, ports)?;
    let ports = (tuple.source_port, translated.client_port);
    packet.replace_embedded_port(version, destination_port, ports)?;
    packet.replace_error_address(version, version.destination_offset(), (ip.destination, task))?;
    packet.set_macs(endpoint.mac, ROUTER_MAC)?;
    Ok(skb::send_to_sandbox(endpoint.ifindex))
}

/// Where the ports of the packet at fault are, source and destination.
#[inline(always)]
const fn embedded_ports(version: Version) -> (usize, usize) {
    let transport = version.embedded_transport_offset();
    (transport, transport + 2)
}

/// An error of the task with this name about a client's packet: to the client. `None` if it is about none.
#[inline(always)]
pub fn from_task(packet: &Skb, ip: &IpHeader, task: Ip4) -> Option<Outcome> {
    let embedded = headers::embedded_flow(packet, ip)?;
    if embedded.destination != ip.source {
        return None;
    }
    let client = (stand_in::client(embedded.source)?, embedded.source_port);
    let key = ReplyKey::new((task, embedded.destination_port), client, embedded.protocol);
    let reply = track::reply_to_embedded(key)?;
    if ip.version == Version::V4 && !reply.service.is_v4() {
        return Some(Ok(Verdict::TRANSLATE_ERROR));
    }
    Some(restore(packet, ip, (client.1, embedded.destination_port), reply))
}

/// The packet at fault becomes what the client sent, and the error comes from the address that it asked.
#[inline(always)]
fn restore(
    packet: &Skb,
    ip: &IpHeader,
    (client_port, task_port): (Port, Port),
    reply: &ReplyFlow,
) -> Outcome {
    let version = ip.version;
    let (source_port, destination_port) = embedded_ports(version);
    let addresses = (ip.source, reply.service);
    packet.replace_embedded_address(version, version.embedded_destination_offset(), addresses)?;
    packet.replace_embedded_port(version, source_port, (client_port, reply.client_port))?;
    packet.replace_embedded_port(version, destination_port, (task_port, reply.service_port))?;
    packet.replace_error_address(version, version.source_offset(), addresses)?;
    Ok(Verdict::ANSWER)
}

/// An error about a packet whose sender is known by another address, to which it goes now.
#[inline(always)]
pub fn replace_source_at_fault(packet: &Skb, ip: &IpHeader, sender: &Ip) -> Result<(), DropReason> {
    let version = ip.version;
    let addresses = (ip.destination, *sender);
    packet.replace_embedded_address(version, version.embedded_source_offset(), addresses)?;
    packet.replace_error_address(version, version.destination_offset(), addresses)
}

/// An error about a packet whose receiver is known by another address, from which it comes now.
#[inline(always)]
pub fn replace_destination_at_fault(packet: &Skb, ip: &IpHeader, receiver: &Ip) -> Result<(), DropReason> {
    let version = ip.version;
    let addresses = (ip.source, *receiver);
    packet.replace_embedded_address(version, version.embedded_destination_offset(), addresses)?;
    packet.replace_error_address(version, version.source_offset(), addresses)
}
