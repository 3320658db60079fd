//! Virtual addresses for what passes the socket hooks: raw sockets, and network namespaces behind a sandbox, whose packets it
//! forwards. The client's node chooses the backend by the same ring as the hooks do, and the packet goes on to that like
//! one to any endpoint; where the answer is handed to the client's sandbox it gets the virtual address back. No other node
//! knows of it.
//!
//! Packets that are no such answers pay for it with one load from memory that nobody writes, see [`are_asked`], and with a
//! look-up as long as there are such flows on their node.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use ebpf_abi::flow::{FLOW_FIN_CLIENT, FLOW_FIN_TASK, FLOW_RESET, VIP_FLOW_V6, VIP_FLOW_WENT_ON};
use ebpf_abi::limits::{MAX_VIP_ROWS_OF_TASK, ROUTER_MAC};
use ebpf_abi::{Attachment, DropReason, Endpoint, EndpointKey, Ip, Ip4, Port, VipFlow, VipFlowKey, VipKey};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::ip::Part;
use ebpf_packet::{Flow, IpHeader, NoFlow, Version};

use crate::account::Account;
use crate::maps::{self, VIP_FLOWS, VIPS, VIPS_ASKED};
use crate::skb::{self, Skb};
use crate::verdict::{self, Outcome, Verdict};
use crate::{atomic, errors, fragments, headers, route, scratch, track};

/// Packets for this node's tasks may be answers of such flows.
#[inline(always)]
pub fn are_asked() -> bool {
    VIPS_ASKED.get(0).is_some_and(|tick| *tick != 0)
}

/// Written once a second at most. User space writes zero when it has found no row; should a flow begin at that moment, its
/// client's next packet writes it again.
#[inline(always)]
fn are_asked_in(tick: u32) {
    if let Some(asked) = VIPS_ASKED.get_ptr_mut(0) {
        // SAFETY: the row stays; who writes it meanwhile writes the same.
        unsafe {
            if *asked != tick {
                *asked = tick;
            }
        }
    }
}

/// A packet of the task, which [`scratch`] keeps, to a virtual address.
#[inline(never)]
pub fn part_of_questions(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(ask(packet)))
}

/// The same, if it may be an ICMP error about an answer.
#[inline(never)]
pub fn part_of_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(error(packet)))
}

/// A packet of the task to its gateway.
#[inline(never)]
pub fn part_of_own_answers(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(answer_itself(packet)))
}

/// A packet to a task of this node in the network with this VNI, which may be an answer. Its header is kept by [`scratch`], and
/// its MACs are as they are to be.
#[inline(never)]
pub fn part_of_answers(account: &Account, packet: &Skb, vni: u32) -> i32 {
    verdict::part(account, &Some(answer(packet, vni)))
}

#[inline(always)]
fn ask(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let vip = maps::name(attachment.vni, ip.destination).ok_or(DropReason::NoRoute)?;
    let flow = match fragments::flow_of_network(packet, ip, attachment.vni) {
        Ok(flow) => flow,
        Err(NoFlow::Protocol) => return Ok(Verdict::VIP_ERROR),
        Err(NoFlow::Fragment) => return Err(DropReason::Fragment),
        Err(NoFlow::Malformed | NoFlow::Options) => return Err(DropReason::Malformed),
    };
    let tick = maps::tick();
    are_asked_in(if tick == 0 { 1 } else { tick });
    let key = &*key_of(flow, attachment.vni, (attachment.address, vip)).ok_or(DropReason::Unconfigured)?;
    let known = known(flow, key, tick);
    let (backend, endpoint) = match known {
        Some(known) => known,
        None => match choose(flow, key) {
            Some(chosen) => {
                open(key, chosen.0, tick)?;
                chosen
            }
            // Of pieces there is no error here, and none that would carry IPv4 options.
            None if ip.part != Part::Whole || (ip.version == Version::V4 && ip.has_options()) => {
                return Err(DropReason::NoBackend);
            }
            None => return Ok(Verdict::REFUSED),
        },
    };
    fragments::remember_in_network(ip, flow, attachment.vni);
    if backend == attachment.address {
        let gateway = gateway(attachment, ip.version)?;
        return bounce(packet, flow, attachment, (gateway, ip.source));
    }
    let address = maps::address(attachment.vni, backend, ip.version).ok_or(DropReason::NotIp)?;
    packet.set_destination_address(flow, address)?;
    hand_over(packet, attachment, &endpoint)
}

/// From the task to an endpoint, like any other packet.
#[inline(always)]
fn hand_over(packet: &Skb, attachment: &Attachment, endpoint: &Endpoint) -> Outcome {
    if !endpoint.is_local() {
        return Ok(route::tunnel_to_endpoint(attachment.vni, endpoint));
    }
    packet.set_macs(endpoint.mac, attachment.mac)?;
    Ok(skb::send_to_sandbox(endpoint.ifindex))
}

/// The flow's key, by the names of its client and of whom it asks.
#[inline(always)]
fn key_of(flow: &Flow, vni: u32, (client, service): (Ip4, Ip4)) -> Option<&'static mut VipFlowKey> {
    let tuple = &flow.tuple;
    let (client, service) = ((client, tuple.source_port), (service, tuple.destination_port));
    scratch::vip_key(VipFlowKey::new(vni, client, service, tuple.protocol, kind(flow.version)))
}

#[inline(always)]
const fn kind(version: Version) -> u8 {
    match version {
        Version::V4 => 0,
        Version::V6 => VIP_FLOW_V6,
    }
}

/// The backend that the flow has, if it may stay there.
#[inline(always)]
fn known(flow: &Flow, key: &VipFlowKey, tick: u32) -> Option<(Ip4, Endpoint)> {
    let row = VIP_FLOWS.get_ptr_mut(key)?;
    // SAFETY: the row stays in its place while this program runs; two CPUs that write it write the same.
    let row = unsafe { &mut *row };
    let endpoint = maps::endpoint(key.vni, row.becomes)?;
    if !flow.may_stay_with(&endpoint) {
        return None;
    }
    note(flow, row, (tick, FLOW_FIN_CLIENT));
    Some((row.becomes, endpoint))
}

/// Remembers that a packet came, and what it says of the flow's beginning and end. A RST of the client's counts as its FIN once the
/// client went on, as it does at published ports.
#[inline(always)]
fn note(flow: &Flow, row: &mut VipFlow, (tick, fin): (u32, u8)) {
    if row.last_seen != tick {
        row.last_seen = tick;
    }
    let is_doubtful = fin == FLOW_FIN_CLIENT && row.state == VIP_FLOW_WENT_ON;
    let closing = track::closing(flow, fin, if is_doubtful { FLOW_FIN_CLIENT } else { FLOW_RESET });
    if row.closing & closing != closing {
        row.closing |= closing;
    }
    if row.state != VIP_FLOW_WENT_ON && !flow.is_first_syn() && !flow.is_reset() {
        row.state = VIP_FLOW_WENT_ON;
    }
}

#[inline(always)]
fn choose(flow: &Flow, key: &VipFlowKey) -> Option<(Ip4, Endpoint)> {
    // SAFETY: user space alone writes this table; the row is copied at once.
    let ring = *unsafe { VIPS.get(VipKey { vni: key.vni, address: key.service }) }?;
    let backend = maps::pick(&ring, flow_hash(&flow.tuple))?;
    Some((backend, maps::endpoint(key.vni, backend)?))
}

/// Both rows of a flow to `backend`, unless its task has its share. What was known of its answers is of an older flow with its ports; those of the backend
/// that it had before keep theirs for as long as they may be on their way.
#[inline(always)]
fn open(key: &VipFlowKey, backend: Ip4, tick: u32) -> Result<(), DropReason> {
    let share = maps::vip_share(&EndpointKey { vni: key.vni, address: key.client })?;
    // SAFETY: the row stays, and is a number that is read whole.
    if unsafe { share.read_volatile() } >= MAX_VIP_ROWS_OF_TASK {
        return Err(DropReason::VipShareFull);
    }
    let answers = &*scratch::vip_answers_key(key.answers(backend)).ok_or(DropReason::Unconfigured)?;
    let n_answers = put(answers, VipFlow::new(key.service, tick))?;
    let Ok(n_questions) = put(key, VipFlow::new(backend, tick)) else {
        let _ = VIP_FLOWS.remove(answers);
        return Err(DropReason::FlowTableFull);
    };
    // SAFETY: as above; other CPUs add to it in the same way.
    unsafe { atomic::add(share, n_answers + n_questions) };
    Ok(())
}

/// How many rows that makes: none if there was one.
#[inline(always)]
fn put(key: &VipFlowKey, row: VipFlow) -> Result<u32, DropReason> {
    if VIP_FLOWS.insert(key, row, BPF_NOEXIST.into()).is_ok() {
        return Ok(1);
    }
    VIP_FLOWS.insert(key, row, BPF_ANY.into()).map(|()| 0).map_err(|_| DropReason::FlowTableFull)
}

/// The task is its own backend. A kernel takes no packet from outside that has its own address as source: so the gateway's is
/// that, which nobody has, and the answer comes here again. The virtual address would not do: a server's socket that answers
/// it would be translated by the socket hooks.
#[inline(always)]
fn bounce(packet: &Skb, flow: &Flow, attachment: &Attachment, (source, destination): (Ip, Ip)) -> Outcome {
    packet.set_source_address(flow, source)?;
    packet.set_destination_address(flow, destination)?;
    to_itself(packet, attachment)
}

#[inline(always)]
fn to_itself(packet: &Skb, attachment: &Attachment) -> Outcome {
    packet.set_macs(attachment.mac, ROUTER_MAC)?;
    Ok(skb::send_to_sandbox(packet.ifindex()))
}

#[inline(always)]
fn gateway(attachment: &Attachment, version: Version) -> Result<Ip, DropReason> {
    maps::address(attachment.vni, attachment.gateway, version).ok_or(DropReason::NotIp)
}

/// A packet to the gateway: nobody's, unless the task answers itself.
#[inline(always)]
fn answer_itself(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let Ok(flow) = fragments::flow_of_network(packet, ip, attachment.vni) else {
        return error_to_itself(packet, attachment, ip);
    };
    let tuple = &flow.tuple;
    let key =
        key_to_itself(attachment, (tuple.destination_port, tuple.source_port), ip.version, tuple.protocol);
    let key = &*scratch::vip_answers_key(key).ok_or(DropReason::Unconfigured)?;
    let row = VIP_FLOWS.get_ptr_mut(key).ok_or(DropReason::NoRoute)?;
    // SAFETY: as in `known`.
    let row = unsafe { &mut *row };
    note(flow, row, (maps::tick(), FLOW_FIN_TASK));
    fragments::remember_in_network(ip, flow, attachment.vni);
    let vip = maps::address(attachment.vni, row.becomes, ip.version).ok_or(DropReason::NotIp)?;
    bounce(packet, flow, attachment, (vip, ip.source))
}

/// Of the task's answers to itself.
#[inline(always)]
fn key_to_itself(
    attachment: &Attachment,
    (client_port, service_port): (Port, Port),
    version: Version,
    protocol: u8,
) -> VipFlowKey {
    let own = attachment.address;
    let ends = ((own, client_port), (own, service_port));
    VipFlowKey::new(attachment.vni, ends.0, ends.1, protocol, kind(version)).answers(own)
}

/// What the task says of a packet that it has sent to itself.
#[inline(always)]
fn error_to_itself(packet: &Skb, attachment: &Attachment, ip: &IpHeader) -> Outcome {
    let asked = headers::embedded_flow(packet, ip).ok_or(DropReason::NoRoute)?;
    if asked.source != ip.destination || asked.destination != ip.source {
        return Err(DropReason::NoRoute);
    }
    let ports = (asked.source_port, asked.destination_port);
    let key = key_to_itself(attachment, ports, ip.version, asked.protocol);
    let vip = other_name(scratch::vip_answers_key(key)).ok_or(DropReason::NoRoute)?;
    let vip = maps::address(attachment.vni, vip, ip.version).ok_or(DropReason::NotIp)?;
    errors::replace_source_at_fault(packet, ip, &ip.source)?;
    errors::replace_destination_at_fault(packet, ip, &vip)?;
    to_itself(packet, attachment)
}

/// What the client says of its backend's answer the backend hears of what it sent itself.
#[inline(always)]
fn error(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let tuple = headers::answered_flow(packet, ip).ok_or(DropReason::VipProtocol)?;
    if tuple.source != ip.source {
        return Err(DropReason::VipProtocol);
    }
    let vip = maps::name(attachment.vni, ip.destination).ok_or(DropReason::NoRoute)?;
    let (client, service) = ((attachment.address, tuple.source_port), (vip, tuple.destination_port));
    let key = VipFlowKey::new(attachment.vni, client, service, tuple.protocol, kind(ip.version));
    let backend = other_name(scratch::vip_key(key)).ok_or(DropReason::UnknownFlow)?;
    if backend == attachment.address {
        errors::replace_source_at_fault(packet, ip, &ip.source)?;
        errors::replace_destination_at_fault(packet, ip, &gateway(attachment, ip.version)?)?;
        return to_itself(packet, attachment);
    }
    let endpoint = maps::endpoint(attachment.vni, backend).ok_or(DropReason::UnknownFlow)?;
    let address = maps::address(attachment.vni, backend, ip.version).ok_or(DropReason::NotIp)?;
    errors::replace_source_at_fault(packet, ip, &address)?;
    hand_over(packet, attachment, &endpoint)
}

/// What the service of the flow with this key is replaced by.
#[inline(always)]
fn other_name(key: Option<&'static mut VipFlowKey>) -> Option<Ip4> {
    // SAFETY: the row is copied at once.
    Some(unsafe { VIP_FLOWS.get(&*key?) }?.becomes)
}

#[inline(always)]
fn answer(packet: &Skb, vni: u32) -> Outcome {
    let ip = scratch::of_header().ok_or(DropReason::Unconfigured)?;
    let client = maps::name(vni, ip.destination).ok_or(DropReason::NoRoute)?;
    let endpoint = maps::endpoint(vni, client).ok_or(DropReason::UnknownEndpoint)?;
    // Another source is a node's own: no backend.
    if let Some(backend) = maps::name(vni, ip.source) {
        restore(packet, ip, vni, (client, backend))?;
    }
    Ok(skb::send_to_sandbox(endpoint.ifindex))
}

/// What a backend says to a client becomes what the virtual address says; anything else stays as it is.
#[inline(always)]
fn restore(packet: &Skb, ip: &IpHeader, vni: u32, (client, backend): (Ip4, Ip4)) -> Result<(), DropReason> {
    let Ok(flow) = fragments::flow_of_network(packet, ip, vni) else {
        return restore_error(packet, ip, vni, (client, backend));
    };
    let tuple = &flow.tuple;
    let (client, service) = ((client, tuple.destination_port), (backend, tuple.source_port));
    let key = VipFlowKey::new(vni, client, service, tuple.protocol, kind(ip.version)).answers(backend);
    let key = &*scratch::vip_answers_key(key).ok_or(DropReason::Unconfigured)?;
    let Some(row) = VIP_FLOWS.get_ptr_mut(key) else { return Ok(()) };
    // SAFETY: as in `known`.
    let row = unsafe { &mut *row };
    note(flow, row, (maps::tick(), FLOW_FIN_TASK));
    fragments::remember_in_network(ip, flow, vni);
    let vip = maps::address(vni, row.becomes, ip.version).ok_or(DropReason::NotIp)?;
    packet.set_source_address(flow, vip)
}

/// The backend's ICMP error about a packet of the client's names the virtual address that this was sent to.
#[inline(always)]
fn restore_error(
    packet: &Skb,
    ip: &IpHeader,
    vni: u32,
    (client, backend): (Ip4, Ip4),
) -> Result<(), DropReason> {
    let Some(asked) = headers::embedded_flow(packet, ip) else { return Ok(()) };
    if asked.destination != ip.source || asked.source != ip.destination {
        return Ok(());
    }
    let (client, service) = ((client, asked.source_port), (backend, asked.destination_port));
    let key = VipFlowKey::new(vni, client, service, asked.protocol, kind(ip.version)).answers(backend);
    let Some(vip) = other_name(scratch::vip_answers_key(key)) else { return Ok(()) };
    let vip: Ip = maps::address(vni, vip, ip.version).ok_or(DropReason::NotIp)?;
    errors::replace_destination_at_fault(packet, ip, &vip)
}
