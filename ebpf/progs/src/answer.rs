//! Where answers to clients of published ports leave. By default from the node that owns now the address that the client
//! asked: the tunnel brings them there, past any spoof check on the way. With direct server return from the task's own node,
//! with that same address as source, where the kernel would send them out of the uplink.

use core::mem::MaybeUninit;

use ebpf_abi::flow::{FLOW_DSR, FLOW_STRAYED};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Attachment, DropReason, FlowTuple, MacAddr, NodeConfig, ReplyFlow};
use ebpf_packet::{IpHeader, ethernet, icmp};

use crate::skb::{self, Skb};
use crate::verdict::Outcome;
use crate::{fib, ingress, maps, route, scratch};

/// Sends what [`scratch::of_answer`] says this packet of a task answers to, its addresses restored. An address that no node
/// owns is never a source.
#[inline(always)]
pub fn leave(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let reply = scratch::of_answer().ok_or(DropReason::Unconfigured)?;
    let Some(owner) = maps::address_owner(reply.service) else {
        return to_process(config, attachment, ip, reply);
    };
    // The node that such a client's packets enter by learns which backend answers; an error has no flow of its own.
    let tells = reply.way & FLOW_STRAYED != 0 && !icmp::is_message(ip);
    if owner.is_unspecified() {
        if tells {
            learn(attachment, ip, reply);
        }
        return Ok(route::leave_here(config, ip.destination));
    }
    if !tells && reply.way & FLOW_DSR != 0 && leads_out(config, packet, (attachment, ip), reply) {
        return Ok(skb::send_routed(config.uplink_ifindex));
    }
    let sender = if tells { MacAddr::of_endpoint(attachment.address) } else { ROUTER_MAC };
    Ok(route::tunnel_to_node(config, owner, sender))
}

/// To a node's own process, which has asked the task by the task's address in the ingress network.
#[inline(always)]
fn to_process(config: &NodeConfig, attachment: &Attachment, ip: &IpHeader, reply: &ReplyFlow) -> Outcome {
    if maps::name(config.ingress_vni, reply.service) != Some(attachment.address) {
        return Err(DropReason::UnknownOwner);
    }
    let node = maps::address_owner(ip.destination).ok_or(DropReason::UnknownOwner)?;
    Ok(route::to_host_process(config, node))
}

#[inline(always)]
fn learn(attachment: &Attachment, ip: &IpHeader, reply: &ReplyFlow) {
    let client = (ip.destination, reply.client_port);
    let tuple = FlowTuple::new(client, (reply.service, reply.service_port), ip.protocol);
    if let Some(tuple) = scratch::tuple(tuple) {
        ingress::learn(tuple, attachment.address);
    }
}

/// The client is no node, and the kernel has a way to it, out of the uplink and wide enough. The neighbour need not be known
/// yet: who sends there asks for it.
#[inline(always)]
fn leads_out(
    config: &NodeConfig,
    packet: &Skb,
    (attachment, ip): (&Attachment, &IpHeader),
    reply: &ReplyFlow,
) -> bool {
    if maps::address_owner(ip.destination).is_some() {
        return false;
    }
    // The parts of an aggregate are no longer than what the task may send.
    let len = if packet.is_aggregate() { attachment.mtu } else { packet.len() - ethernet::LEN as u32 };
    let mut lookup = MaybeUninit::uninit();
    let lookup = fib::cleared(&mut lookup);
    fib::set_addresses(ip.version, lookup, (&reply.service, &ip.destination));
    let found = fib::ask(config, packet, (ip.version, len as u16), lookup);
    (found == fib::FOUND || found == fib::NO_NEIGHBOUR) && lookup.ifindex == config.uplink_ifindex
}
