//! What comes out of tunnels, by the VXLAN device or by [`crate::uplink`], and what the node's own processes send into the ingress network.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Chooser, DropReason, Endpoint, Ip, Ip4, MacAddr, NodeConfig, protocol};
use ebpf_packet::{Ethernet, Flow, IpHeader, NoFlow, Version, icmp};

use crate::account::Account;
use crate::ingress::Arrival;
use crate::path::{self, Sender};
use crate::skb::{self, Skb, Tunnel};
use crate::verdict::{self, Outcome, Verdict};
use crate::{errors, family, fragments, headers, ingress, maps, route, scratch, tunnel, vips};

/// tc ingress.
#[inline(always)]
pub fn run(account: &Account, packet: &Skb) -> i32 {
    let action = part_of_tunnels(account, packet);
    if action == verdict::NEXT_PART {
        let action = arrive(account, packet);
        return family::finish(account, packet, action);
    }
    action
}

/// A packet of a peer, out of the tunnel that [`scratch`] keeps. What [`family`] has to finish is left to that.
#[inline(always)]
pub fn arrive(account: &Account, packet: &Skb) -> i32 {
    match part_of_all(account, packet) {
        verdict::ERROR => part_of_errors(account, packet),
        verdict::FOR_TASK => {
            vips::part_of_answers(account, packet, scratch::of_tunnel().map_or(0, |tunnel| tunnel.vni))
        }
        verdict::FROM_PROCESS => {
            let action = part_of_processes(account, packet);
            if action == verdict::NEXT_PART { part_of_pieces(account, packet) } else { action }
        }
        other => other,
    }
}

#[inline(never)]
fn part_of_tunnels(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &not_tunnelled(packet))
}

/// What came through no tunnel, or not from a node of the cluster; `None` leaves the packet, its tunnel kept by [`scratch`].
#[inline(always)]
fn not_tunnelled(packet: &Skb) -> Option<Outcome> {
    let Some(tunnel) = packet.tunnel() else {
        // Put here by `route::to_host_process`: nothing else arrives without a tunnel.
        return Some(packet.pass_to_host());
    };
    if maps::config().is_none() {
        return Some(Err(DropReason::Unconfigured));
    }
    if !maps::is_peer(tunnel.remote) || scratch::tunnel(tunnel).is_none() {
        return Some(Err(DropReason::UnknownPeer));
    }
    None
}

#[inline(never)]
fn part_of_all(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(decide(packet)))
}

#[inline(never)]
fn part_of_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(error(packet)))
}

#[inline(never)]
fn part_of_processes(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &from_process(packet))
}

#[inline(never)]
fn part_of_pieces(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(asked(packet).map(|(_, endpoint)| skb::send_to_sandbox(endpoint.ifindex))))
}

/// To the endpoint of this node that the Ethernet header names; `None` for what has no ports that are known.
#[inline(always)]
fn from_process(packet: &Skb) -> Option<Outcome> {
    let config = maps::config()?;
    let ip = scratch::of_header()?;
    let flow = fragments::flow_of_network(packet, ip, config.ingress_vni).ok()?;
    fragments::remember_in_network(ip, flow, config.ingress_vni);
    let (address, endpoint) = match asked(packet) {
        Ok(asked) => asked,
        Err(reason) => return Some(Err(reason)),
    };
    Some(ingress::from_process(flow, (address, &endpoint)))
}

/// The endpoint of the ingress network that the Ethernet header names.
#[inline(always)]
fn asked(packet: &Skb) -> Result<(Ip4, Endpoint), DropReason> {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    let address = ethernet.destination.endpoint().ok_or(DropReason::UnknownEndpoint)?;
    Ok((address, maps::endpoint(config.ingress_vni, address).ok_or(DropReason::UnknownEndpoint)?))
}

/// The packet, in the ingress network, is an error about an answer of an endpoint of this node.
#[inline(always)]
fn error(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    let version = Version::of(ethernet.ether_type).ok_or(DropReason::NotIp)?;
    let ip = headers::ip(packet, version).ok_or(DropReason::Malformed)?;
    let address = ethernet.destination.endpoint().ok_or(DropReason::UnknownEndpoint)?;
    let chooser = Chooser::of(ethernet.source).ok_or(DropReason::InnerSource)?;
    let tuple = headers::answered_flow(packet, ip).ok_or(DropReason::UnpublishedPort)?;
    errors::deliver(config, tuple, address, chooser)
}

#[inline(always)]
fn decide(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let tunnel = scratch::of_tunnel().ok_or(DropReason::Unconfigured)?;
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    let version = Version::of(ethernet.ether_type).ok_or(DropReason::NotIp)?;
    let ip = headers::ip(packet, version).ok_or(DropReason::Malformed)?;
    if ethernet.destination == ROUTER_MAC && tunnel.vni == config.ingress_vni {
        return to_node(config, packet, tunnel, ip, ethernet.source);
    }
    let address = ethernet.destination.endpoint().ok_or(DropReason::UnknownEndpoint)?;
    let endpoint = maps::endpoint(tunnel.vni, address).ok_or(DropReason::UnknownEndpoint)?;
    if !endpoint.is_local() {
        return Err(DropReason::UnknownEndpoint);
    }
    if maps::name(tunnel.vni, ip.destination) == Some(address) {
        return to_endpoint(config, tunnel, ip, &endpoint);
    }
    if tunnel.vni != config.ingress_vni {
        return Err(DropReason::UnknownEndpoint);
    }
    let chooser = Chooser::of(ethernet.source).ok_or(DropReason::InnerSource)?;
    if icmp::is_message(ip) {
        return Ok(Verdict::ERROR);
    }
    let flow = fragments::flow(packet, ip).map_err(|error| match error {
        NoFlow::Fragment => DropReason::Fragment,
        NoFlow::Protocol => DropReason::UnpublishedPort,
        NoFlow::Malformed | NoFlow::Options => DropReason::Malformed,
    })?;
    fragments::remember(ip, flow);
    ingress::deliver(config, flow, (address, &endpoint), Arrival::Tunnel(chooser))
}

/// To the node itself: an answer to a client outside, or to a process here.
#[inline(always)]
fn to_node(config: &NodeConfig, packet: &Skb, tunnel: &Tunnel, ip: &IpHeader, sender: MacAddr) -> Outcome {
    if maps::is_own(ip.source) {
        if let Some(backend) = sender.endpoint() {
            learn(config, packet, tunnel, ip, backend);
        }
        return Ok(route::leave_here(config, ip.destination));
    }
    if !maps::is_own(ip.destination) {
        return Err(DropReason::UnknownOwner);
    }
    check_source(config, tunnel, ip.source)?;
    if packet.ifindex() == config.vxlan_ifindex {
        return packet.pass_to_host();
    }
    // The strictest reverse path filter wants it from there.
    Ok(skb::receive_at(config.vxlan_ifindex))
}

/// An answer that tells its backend: the client's packets, which enter here, went astray. A node speaks for its own backends.
#[inline(always)]
fn learn(config: &NodeConfig, packet: &Skb, tunnel: &Tunnel, ip: &IpHeader, backend: Ip4) {
    let endpoint = maps::endpoint(config.ingress_vni, backend);
    if endpoint.is_some_and(|endpoint| endpoint.vtep == tunnel.remote)
        && let Ok(answer) = Flow::of(packet, ip)
        && let Some(tuple) = scratch::tuple(answer.tuple.reversed())
    {
        ingress::learn(tuple, backend);
    }
}

/// From endpoint to endpoint, or from a process of another node to an endpoint of the ingress network.
#[inline(always)]
fn to_endpoint(config: &NodeConfig, tunnel: &Tunnel, ip: &IpHeader, endpoint: &Endpoint) -> Outcome {
    check_source(config, tunnel, ip.source)?;
    if tunnel.vni == config.ingress_vni && is_of_process(ip) {
        return Ok(Verdict::FROM_PROCESS);
    }
    Ok(if vips::are_asked() { Verdict::FOR_TASK } else { skb::send_to_sandbox(endpoint.ifindex) })
}

/// A node's own process has sent the packet, into the ingress network, and the answer may come by another way: see
/// [`ingress::from_process`].
#[inline(always)]
fn is_of_process(ip: &IpHeader) -> bool {
    (ip.protocol == protocol::UDP || ip.protocol == protocol::SCTP) && maps::is_of_node(&ip.source)
}

/// A node speaks for its own endpoints, and in the ingress network for its own addresses.
#[inline(always)]
fn check_source(config: &NodeConfig, tunnel: &Tunnel, source: Ip) -> Result<(), DropReason> {
    if let Some(name) = maps::name(tunnel.vni, source)
        && maps::endpoint(tunnel.vni, name).is_some_and(|endpoint| endpoint.vtep == tunnel.remote)
    {
        return Ok(());
    }
    if tunnel.vni == config.ingress_vni && maps::address_owner(source) == Some(tunnel.remote) {
        return Ok(());
    }
    Err(DropReason::InnerSource)
}

/// tc egress: packets of the node's own processes, and of tasks that come by their way out and have the node's address by
/// now. What other programs sent here has its tunnel already.
#[inline(always)]
pub fn run_out(account: &Account, packet: &Skb) -> i32 {
    let mut action = part_out(account, packet);
    if action == verdict::FROM_PROCESS {
        action = part_of_processes(account, packet);
    }
    match action {
        verdict::BY_DEVICE => to_other_node(account, packet),
        verdict::HAND_OVER | verdict::FAMILY => part_to_task(account, packet),
        verdict::NEXT_PART => part_of_own_pieces(account, packet),
        other => other,
    }
}

#[inline(always)]
fn to_other_node(account: &Account, packet: &Skb) -> i32 {
    path::clamp(packet);
    match path::told(packet, Sender::Other) {
        0 => part_by_device(account, packet),
        mtu => verdict::refused(account, packet, (mtu, Sender::Other)),
    }
}

#[inline(never)]
fn part_out(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(decide_out(packet)))
}

#[inline(never)]
fn part_of_own_pieces(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(asked(packet).map(|(_, endpoint)| skb::send(endpoint.ifindex))))
}

#[inline(never)]
fn part_to_task(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(to_task(packet)))
}

#[inline(never)]
fn part_by_device(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(go_on(packet)))
}

/// By the version that it came by: a node's routes lead its processes to tasks by IPv4 alone.
#[inline(always)]
fn to_task(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (handed, flow) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    ingress::rewrite(config, packet, flow, (handed.backend, &handed.endpoint), &handed.translated)?;
    Ok(skb::send(handed.endpoint.ifindex))
}

#[inline(always)]
fn decide_out(packet: &Skb) -> Outcome {
    if packet.ingress_ifindex() != 0 && packet.tunnel().is_some() {
        return Ok(Verdict::Pass);
    }
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    let version = Version::of(ethernet.ether_type).ok_or(DropReason::NotIp)?;
    let ip = headers::ip(packet, version).ok_or(DropReason::Malformed)?;
    if ip.destination.is_multicast_or_above() {
        return Err(DropReason::Group);
    }
    if !maps::is_own(ip.source) {
        return Err(DropReason::HostSource);
    }
    let name = maps::name(config.ingress_vni, ip.destination).ok_or(DropReason::NoRoute)?;
    let endpoint = maps::endpoint(config.ingress_vni, name).ok_or(DropReason::NoRoute)?;
    if !endpoint.is_local() {
        route::tunnel_to_endpoint(config.ingress_vni, &endpoint);
        return Ok(Verdict::BY_DEVICE);
    }
    packet.set_macs(endpoint.mac, ROUTER_MAC)?;
    Ok(if is_of_process(ip) { Verdict::FROM_PROCESS } else { skb::send(endpoint.ifindex) })
}

/// The packet is at the device: it needs but its tunnel.
#[inline(always)]
fn go_on(packet: &Skb) -> Outcome {
    tunnel::aim_device(packet)?;
    Ok(Verdict::Pass)
}
