//! tc ingress of a task's host-side veth: all that a task sends into one network.

use ebpf_abi::flow::FLOW_STRAYED;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::protocol::UDP;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{Attachment, DropReason, FlowTuple, Ip4, MacAddr, NodeConfig, ReplyFlow, VipKey};
use ebpf_packet::{Ethernet, Flow, Ipv4, arp, ethernet, icmp, ipv4};

use crate::account::Account;
use crate::maps::{self, VIPS};
use crate::skb::{self, Skb};
use crate::verdict::{self, Outcome, Verdict};
use crate::{errors, fragments, route, track};

#[inline(never)]
pub fn run(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(decide(packet)))
}

#[inline(always)]
fn decide(packet: &Skb) -> Outcome {
    let attachment = maps::attachment(packet.ifindex()).ok_or(DropReason::UnknownAttachment)?;
    if attachment.flags & ATTACHMENT_WAY_OUT != 0 {
        return answer_by_way_out(packet, &attachment).unwrap_or(Ok(Verdict::Pass));
    }
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    if ethernet.source != attachment.mac {
        return Err(DropReason::SourceAddress);
    }
    match ethernet.ether_type {
        ethernet::TYPE_ARP => answer_arp(packet, &attachment),
        ethernet::TYPE_IPV4 => ipv4(packet, &attachment, &ethernet),
        _ => Err(DropReason::NotIpv4),
    }
}

/// On the way out, which is the kernel's own: the datagrams that answer a client of a published port. `None` for all else.
#[inline(always)]
fn answer_by_way_out(packet: &Skb, attachment: &Attachment) -> Option<Outcome> {
    let ethernet = Ethernet::parse(packet).ok()?;
    if ethernet.ether_type != ethernet::TYPE_IPV4 {
        return None;
    }
    let config = maps::config()?;
    let ip = Ipv4::parse(packet).ok()?;
    let flow = fragments::flow(packet, &ip).ok()?;
    if flow.tuple.protocol != UDP {
        return None;
    }
    let mut bound = flow;
    bound.tuple.source = attachment.address;
    let reply = track::reply(&bound)?;
    fragments::remember(&ip, &flow);
    Some(restore(config, packet, &flow, attachment.address, &reply))
}

/// Every node knows every endpoint: no question leaves it.
#[inline(always)]
fn answer_arp(packet: &Skb, attachment: &Attachment) -> Outcome {
    let request =
        arp::Request::parse(packet).map_err(|_| DropReason::Malformed)?.ok_or(DropReason::ArpUnanswered)?;
    if request.sender_mac != attachment.mac {
        return Err(DropReason::SourceAddress);
    }
    if request.target == attachment.address {
        return Err(DropReason::ArpUnanswered);
    }
    let mac = mac_of(attachment, request.target).ok_or(DropReason::ArpUnanswered)?;
    packet.write(0, &request.reply(mac))?;
    Ok(skb::send(packet.ifindex()))
}

#[inline(always)]
fn mac_of(attachment: &Attachment, address: Ip4) -> Option<MacAddr> {
    if address == attachment.gateway || is_vip(attachment, address) {
        return Some(ROUTER_MAC);
    }
    maps::endpoint(attachment.vni, address).map(|endpoint| endpoint.mac)
}

#[inline(always)]
fn is_vip(attachment: &Attachment, address: Ip4) -> bool {
    VIPS.get_ptr(VipKey { vni: attachment.vni, address }).is_some()
}

#[inline(always)]
fn ipv4(packet: &Skb, attachment: &Attachment, ethernet: &Ethernet) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let ip = Ipv4::parse(packet).map_err(|_| DropReason::Malformed)?;
    if ip.source != attachment.address {
        return Err(DropReason::SourceAddress);
    }
    if ip.destination.is_multicast_or_above() {
        return Err(DropReason::Group);
    }
    let is_ingress = attachment.flags & ATTACHMENT_INGRESS != 0;
    if is_ingress && let Some(outcome) = answer_client(config, packet, &ip) {
        return outcome;
    }
    if let Some(endpoint) = maps::endpoint(attachment.vni, ip.destination) {
        return if endpoint.is_local() {
            packet.set_macs(endpoint.mac, attachment.mac)?;
            Ok(skb::send_to_sandbox(endpoint.ifindex))
        } else {
            Ok(route::tunnel_to_endpoint(packet, attachment.vni, &endpoint))
        };
    }
    if is_ingress && let Some(owner) = maps::address_owner(ip.destination) {
        return Ok(route::to_host_process(config, packet, owner));
    }
    to_router(packet, attachment, ethernet, &ip)
}

/// The gateway and virtual addresses are nobody's: ping alone is answered for them, here.
#[inline(always)]
fn to_router(packet: &Skb, attachment: &Attachment, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    let is_vip = is_vip(attachment, ip.destination);
    if !is_vip && ip.destination != attachment.gateway {
        return Err(DropReason::NoRoute);
    }
    let Some(reply) = icmp::echo_reply(packet, ip) else {
        return Err(if is_vip { DropReason::VipProtocol } else { DropReason::NoRoute });
    };
    packet.set_macs(ethernet.source, ROUTER_MAC)?;
    packet.write(ipv4::SOURCE_OFFSET, &ip.destination.0)?;
    packet.write(ipv4::DESTINATION_OFFSET, &ip.source.0)?;
    packet.write(icmp::OFFSET, &reply)?;
    Ok(skb::send(packet.ifindex()))
}

/// An answer to a client of a published port leaves with the address and port that the client connected to.
#[inline(always)]
fn answer_client(config: &NodeConfig, packet: &Skb, ip: &Ipv4) -> Option<Outcome> {
    if let Ok(flow) = fragments::flow(packet, ip) {
        let reply = track::reply(&flow)?;
        fragments::remember(ip, &flow);
        return Some(restore(config, packet, &flow, ip.source, &reply));
    }
    errors::from_task(config, packet, ip)
}

#[inline(always)]
fn restore(config: &NodeConfig, packet: &Skb, flow: &Flow, task: Ip4, reply: &ReplyFlow) -> Outcome {
    let client = flow.tuple.destination;
    packet.set_source(flow, reply.service, reply.service_port)?;
    packet.set_destination(flow, client, reply.client_port)?;
    if reply.strayed != FLOW_STRAYED {
        return route::leave_from(config, packet, reply.service, client);
    }
    let service = (reply.service, reply.service_port);
    let tuple = FlowTuple::new((client, reply.client_port), service, flow.tuple.protocol);
    route::leave_and_tell(config, packet, &tuple, task)
}
