//! ICMP errors about packets of published ports: each side is told of the packet that it sent itself, by the addresses and
//! ports that it knows. A "fragmentation needed" that got lost would stall its connection (RFC 2923 section 2.1).

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{
    Chooser, DropReason, Endpoint, FlowTuple, Ip4, NodeConfig, Port, ReplyFlow, ReplyKey, protocol,
};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::vxlan::MTU_OVERHEAD;
use ebpf_packet::{Bytes as _, Ethernet, Ipv4, icmp, ipv4};

use crate::ingress::{self, Other};
use crate::route;
use crate::skb::{self, Skb};
use crate::track::{self, Translated};
use crate::verdict::Outcome;

/// Of errors that are made here.
const TTL: u8 = 64;
const EMBEDDED_SOURCE_PORT: usize = icmp::EMBEDDED_TRANSPORT_OFFSET;
const EMBEDDED_DESTINATION_PORT: usize = icmp::EMBEDDED_TRANSPORT_OFFSET + 2;

/// Sends a client's packet back as an error: it is too long for the tunnel.
#[inline(always)]
pub fn refuse_length(config: &NodeConfig, packet: &Skb, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    const PAYLOAD_LEN: usize = icmp::LEN + icmp::CARRIED_LEN;
    let carried = packet.load::<{ icmp::CARRIED_LEN }>(ipv4::OFFSET).map_err(|_| DropReason::Malformed)?;
    let mtu = config.uplink_mtu.saturating_sub(MTU_OVERHEAD) as u16;
    packet.set_len(icmp::OFFSET + PAYLOAD_LEN)?;
    packet.set_macs(ethernet.source, ethernet.destination)?;
    let addresses = (ip.destination, ip.source);
    packet.write(ipv4::OFFSET, &ipv4::header(addresses, protocol::ICMP, TTL, PAYLOAD_LEN as u16))?;
    packet.write(icmp::OFFSET, &icmp::fragmentation_needed(&carried, mtu))?;
    packet.write(icmp::EMBEDDED_OFFSET, &carried)?;
    Ok(skb::send(packet.ifindex()))
}

/// An error from outside about a backend's answer: to that backend. `None` if it is about nothing published.
#[inline(always)]
pub fn from_outside(config: &NodeConfig, packet: &Skb, ip: &Ipv4) -> Option<Outcome> {
    let tuple = icmp::answered_flow(packet, ip)?;
    let ring = ingress::ring(&tuple)?;
    let (backend, endpoint) =
        ingress::known_backend(config, &tuple).or_else(|| ingress::pick(config, &ring, flow_hash(&tuple)))?;
    Some(if endpoint.is_local() {
        deliver(config, packet, (ip, &tuple), (backend, &endpoint), Chooser::IN_USE)
    } else {
        Ok(route::tunnel_to_endpoint(packet, config.ingress_vni, &endpoint))
    })
}

/// Hands an error to a backend of this node, or to another one that knows the flow.
#[inline(always)]
pub fn deliver(
    config: &NodeConfig,
    packet: &Skb,
    (ip, tuple): (&Ipv4, &FlowTuple),
    (backend, endpoint): (Ip4, &Endpoint),
    chooser: Chooser,
) -> Outcome {
    if let Some(translated) = track::translation(tuple, backend) {
        return hand_over(packet, (ip, tuple), (backend, endpoint), &translated);
    }
    let Other { backend, endpoint, chooser } =
        ingress::other(config, tuple, backend, chooser).ok_or(DropReason::UnknownFlow)?;
    if !endpoint.is_local() {
        return Ok(route::tunnel_to_other(config, packet, &endpoint, chooser));
    }
    let translated = track::translation(tuple, backend).ok_or(DropReason::UnknownFlow)?;
    hand_over(packet, (ip, tuple), (backend, &endpoint), &translated)
}

/// The packet at fault becomes what the task sent. Its header's checksum makes up for the change of its address: the ICMP
/// checksum, which covers both, changes by the ports alone.
#[inline(always)]
fn hand_over(
    packet: &Skb,
    (ip, tuple): (&Ipv4, &FlowTuple),
    (backend, endpoint): (Ip4, &Endpoint),
    translated: &Translated,
) -> Outcome {
    packet.replace_embedded_source(tuple.destination, backend)?;
    packet.replace_embedded_port(EMBEDDED_SOURCE_PORT, tuple.destination_port, translated.target_port)?;
    packet.replace_embedded_port(EMBEDDED_DESTINATION_PORT, tuple.source_port, translated.client_port)?;
    packet.replace_address_checksum(ip.destination, backend)?;
    packet.write(ipv4::DESTINATION_OFFSET, &backend.0)?;
    packet.set_macs(endpoint.mac, ROUTER_MAC)?;
    Ok(skb::send_to_sandbox(endpoint.ifindex))
}

/// An error of a task about a client's packet: to the client. `None` if it is about none.
#[inline(always)]
pub fn from_task(config: &NodeConfig, packet: &Skb, ip: &Ipv4) -> Option<Outcome> {
    let embedded = icmp::embedded_flow(packet, ip)?;
    let client = (embedded.source, embedded.source_port);
    let task = (embedded.destination, embedded.destination_port);
    let reply = track::reply_to_embedded(&ReplyKey::new(task, client, embedded.protocol))?;
    Some(restore(config, packet, ip, (client.1, task), &reply))
}

/// The packet at fault becomes what the client sent, and the error comes from the address that it asked.
#[inline(always)]
fn restore(
    config: &NodeConfig,
    packet: &Skb,
    ip: &Ipv4,
    (client_port, (task, task_port)): (Port, (Ip4, Port)),
    reply: &ReplyFlow,
) -> Outcome {
    packet.replace_embedded_destination(task, reply.service)?;
    packet.replace_embedded_port(EMBEDDED_SOURCE_PORT, client_port, reply.client_port)?;
    packet.replace_embedded_port(EMBEDDED_DESTINATION_PORT, task_port, reply.service_port)?;
    packet.replace_address_checksum(ip.source, reply.service)?;
    packet.write(ipv4::SOURCE_OFFSET, &reply.service.0)?;
    route::leave_from(config, packet, reply.service, ip.destination)
}
