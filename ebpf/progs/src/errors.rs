//! ICMP errors about packets of published ports: each side is told of the packet that it sent itself, by the addresses and
//! ports that it knows. A "fragmentation needed" that got lost would stall its connection (RFC 2923 section 2.1).

use ebpf_abi::flow::FLOW_AS_IPV4;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{
    Chooser, DropReason, FlowTuple, Ip, Ip4, MacAddr, NodeConfig, Port, ReplyFlow, ReplyKey, protocol,
};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::{Bytes as _, IpHeader, Version, checksum, icmp, ip, ipv4, ipv6};

use crate::ingress::{self, Other};
use crate::path::{self, Sender};
use crate::scratch::Handed;
use crate::skb::{self, Skb};
use crate::track;
use crate::verdict::{Outcome, Verdict};
use crate::{headers, maps, route, scratch, stand_in};

/// Of errors that are made here.
const TTL: u8 = 64;

/// The packet, which is too long for the tunnel that it was to go through, becomes an error that says how long it may be: back
/// to its sender.
#[inline(always)]
pub fn refuse_length(packet: &Skb, mtu: u16, sender: Sender) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let ip = scratch::of_header().ok_or(DropReason::Unconfigured)?;
    match ip.version {
        Version::V4 => too_big4(packet, ip, mtu)?,
        Version::V6 => too_big6(packet, ip, mtu)?,
    }
    if sender == Sender::Task {
        let (attachment, _) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
        packet.set_macs(attachment.mac, ROUTER_MAC)?;
        return Ok(skb::send(packet.ifindex()));
    }
    // By the node that the client has asked, as answers are.
    match maps::address_owner(ip.destination) {
        Some(owner) if !owner.is_unspecified() => Ok(route::tunnel_to_node(config, owner, ROUTER_MAC)),
        _ => Ok(route::leave_here(config, ip.source)),
    }
}

/// What its sender has sent is in the error, whatever has become of it since.
#[inline(always)]
fn too_big4(packet: &Skb, ip: &IpHeader, mtu: u16) -> Result<(), DropReason> {
    let mut carried = packet.load::<{ icmp::CARRIED_LEN4 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    if path::rewritten(packet, ip) {
        let [addresses, ports] = [12, ipv4::MIN_LEN];
        carried[addresses..addresses + 8]
            .copy_from_slice(&path::joined4(ip.source.low(), ip.destination.low()));
        carried[ports..ports + 4].copy_from_slice(&sent_ports()?);
        carried[10..12].fill(0);
        let [high, low] = ipv4_checksum(&carried);
        (carried[10], carried[11]) = (high, low);
    }
    write_error4(packet, ip, icmp::Error4::too_big(mtu), &carried)
}

#[inline(always)]
fn ipv4_checksum(carried: &[u8; icmp::CARRIED_LEN4]) -> [u8; 2] {
    let mut header = [0; ipv4::MIN_LEN];
    header.copy_from_slice(&carried[..ipv4::MIN_LEN]);
    checksum::header_checksum(&header)
}

#[inline(always)]
fn too_big6(packet: &Skb, ip: &IpHeader, mtu: u16) -> Result<(), DropReason> {
    const FIRST: usize = ipv6::LEN;
    const SECOND: usize = FIRST + 8;
    const ADDRESSES: usize = ipv6::SOURCE_OFFSET - ip::OFFSET;
    let mut carried =
        packet.load::<{ icmp::CARRIED_LONG_LEN6 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    if path::rewritten(packet, ip) {
        carried[ADDRESSES..ADDRESSES + 16].copy_from_slice(&ip.source.0);
        carried[ADDRESSES + 16..ADDRESSES + 32].copy_from_slice(&ip.destination.0);
        let ports = sent_ports()?;
        if ip.has_options() {
            carried[SECOND..SECOND + 4].copy_from_slice(&ports);
        } else {
            carried[FIRST..FIRST + 4].copy_from_slice(&ports);
        }
    }
    write_error6(packet, ip, (&ip.destination, icmp::Error6::too_big(mtu)), &carried)
}

/// Of the flow of a packet that was rewritten.
#[inline(always)]
fn sent_ports() -> Result<[u8; 4], DropReason> {
    let flow = scratch::of_flow().ok_or(DropReason::Unconfigured)?;
    let (Port([a, b]), Port([c, d])) = (flow.tuple.source_port, flow.tuple.destination_port);
    Ok([a, b, c, d])
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
    let carried = packet.load::<{ icmp::CARRIED_LEN4 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    write_error4(packet, ip, error, &carried)
}

#[inline(always)]
fn write_error4(
    packet: &Skb,
    ip: &IpHeader,
    error: icmp::Error4,
    carried: &[u8; icmp::CARRIED_LEN4],
) -> Result<(), DropReason> {
    const PAYLOAD_LEN: usize = icmp::LEN + icmp::CARRIED_LEN4;
    const OFFSET: usize = Version::V4.icmp_offset();
    packet.set_len(OFFSET + PAYLOAD_LEN)?;
    let (source, destination) = (ip.destination.low(), ip.source.low());
    let header = ipv4::Plain { source, destination, protocol: protocol::ICMP, ttl: TTL, tos: 0, id: [0; 2] };
    packet.write(ip::OFFSET, &header.to_bytes(PAYLOAD_LEN as u16))?;
    packet.write(OFFSET, &icmp::error4(error, carried))?;
    packet.write(OFFSET + icmp::LEN, carried)
}

/// The packet becomes an error about itself, from `source`.
#[inline(always)]
fn become_error6(packet: &Skb, ip: &IpHeader, source: &Ip, error: icmp::Error6) -> Result<(), DropReason> {
    let carried = packet.load::<{ icmp::CARRIED_LEN6 }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    write_error6(packet, ip, (source, error), &carried)
}

#[inline(always)]
fn write_error6<const N: usize>(
    packet: &Skb,
    ip: &IpHeader,
    (source, error): (&Ip, icmp::Error6),
    carried: &[u8; N],
) -> Result<(), DropReason> {
    const OFFSET: usize = Version::V6.icmp_offset();
    let payload_len = const { icmp::LEN + N };
    packet.set_len(OFFSET + payload_len)?;
    packet.write(ip::OFFSET, &ipv6::start(TTL, payload_len as u16))?;
    packet.write(Version::V6.source_offset(), &source.0)?;
    packet.write(Version::V6.destination_offset(), &ip.source.0)?;
    packet.write(OFFSET, &icmp::error6(error, (source, &ip.source), carried))?;
    packet.write(OFFSET + icmp::LEN, carried)
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
