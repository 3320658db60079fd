//! tc ingress of a task's host-side veth: all that a task sends into one network.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::protocol::TCP;
use ebpf_abi::stand_in;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{Attachment, DropReason, Ip4, MacAddr, ReplyFlow, VipKey};
use ebpf_packet::{Ethernet, Flow, IpHeader, Version, arp, ethernet, icmp, ip, ndp};

use crate::account::Account;
use crate::maps::{self, VIPS};
use crate::skb::{self, Skb};
use crate::verdict::{self, Outcome, Verdict};
use crate::{answer, errors, fragments, headers, route, scratch, track, translate, vips, way_out};

#[inline(always)]
pub fn run(account: &Account, packet: &Skb) -> i32 {
    let mut action = first_part(account, packet);
    if action == verdict::NEXT_PART {
        action = part_of_answers(account, packet);
    }
    action = match action {
        verdict::ERROR => part_of_errors(account, packet),
        verdict::NEXT_PART => last_part(account, packet),
        verdict::WAY_OUT => way_out::part(account, packet),
        other => other,
    };
    action = match action {
        verdict::TRANSLATE => part_of_translations(account, packet),
        verdict::TRANSLATE_ERROR => part_of_translated_errors(account, packet),
        other => other,
    };
    if action == verdict::TO_VIP {
        action = vips::part_of_questions(account, packet);
    }
    match action {
        verdict::TO_GATEWAY => vips::part_of_own_answers(account, packet),
        verdict::VIP_ERROR => vips::part_of_errors(account, packet),
        verdict::FOR_TASK => {
            vips::part_of_answers(account, packet, scratch::of_task().map_or(0, |task| task.0.vni))
        }
        verdict::REFUSED => part_of_refusals(account, packet),
        verdict::ANSWER => leaving_part(account, packet),
        other => other,
    }
}

#[inline(never)]
fn first_part(account: &Account, packet: &Skb) -> i32 {
    let outcome = match first(packet) {
        Ok(outcome) => outcome.map(Ok),
        Err(reason) => Some(Err(reason)),
    };
    verdict::part(account, &outcome)
}

#[inline(never)]
fn part_of_answers(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &answers(packet))
}

#[inline(never)]
fn part_of_translations(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(translate::answer(packet)))
}

#[inline(never)]
fn part_of_translated_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(translate::task_error(packet)))
}

#[inline(never)]
fn part_of_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(error(packet)))
}

#[inline(never)]
fn last_part(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(last(packet)))
}

#[inline(never)]
fn part_of_refusals(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(refuse(packet)))
}

#[inline(never)]
fn leaving_part(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(answer::leave(packet)))
}

/// Checks who sends, and answers who asks for a neighbour's MAC; `None` leaves the packet, kept by [`scratch`], to the others.
#[inline(always)]
fn first(packet: &Skb) -> Result<Option<Verdict>, DropReason> {
    let attachment = maps::attachment(packet.ifindex()).ok_or(DropReason::UnknownAttachment)?;
    let attachment = &*scratch::attachment(attachment).ok_or(DropReason::Unconfigured)?;
    let ethernet = Ethernet::parse(packet).map_err(|_| DropReason::Malformed)?;
    if ethernet.source != attachment.mac {
        return Err(DropReason::SourceAddress);
    }
    if attachment.flags & ATTACHMENT_WAY_OUT != 0 {
        return way_out::first(packet, attachment, ethernet.ether_type);
    }
    if ethernet.ether_type == ethernet::TYPE_ARP {
        return answer_arp(packet, attachment).map(Some);
    }
    let version = Version::of(ethernet.ether_type).ok_or(DropReason::NotIp)?;
    if version == Version::V6 && maps::prefix6(attachment.vni).is_none() {
        return Err(DropReason::NotIp);
    }
    maps::config().ok_or(DropReason::Unconfigured)?;
    let ip = headers::ip(packet, version).ok_or(DropReason::Malformed)?;
    if version == Version::V6
        && let Some(asks) = headers::solicitation(packet, ip)?
    {
        return answer_solicitation(packet, attachment, asks).map(Some);
    }
    if ip.version == Version::V6 && ip.source.is_unspecified() && ip.destination.is_multicast_or_above() {
        // Nobody's: so a kernel says which groups it listens to, before it has a link-local address (RFC 3590 section 4).
        return Err(DropReason::Group);
    }
    if maps::name(attachment.vni, ip.source) != Some(attachment.address) {
        return Err(DropReason::SourceAddress);
    }
    let is_group = ip.destination.is_multicast_or_above() && !may_stand_in(attachment, ip);
    if is_group { Err(DropReason::Group) } else { Ok(None) }
}

/// Sent to who may be a client that comes by IPv6.
#[inline(always)]
fn may_stand_in(attachment: &Attachment, ip: &IpHeader) -> bool {
    let is_ingress = attachment.flags & ATTACHMENT_INGRESS != 0;
    is_ingress && ip.version == Version::V4 && stand_in::is_one(ip.destination.low())
}

/// Answers to clients of published ports; `None` leaves the packet to the last part. On the way out, which is the kernel's
/// own, those are looked for whose source a route chose and not the client's question: datagrams, and SCTP, whose sockets
/// have all of the task's addresses. For all else see [`way_out`].
#[inline(always)]
fn answers(packet: &Skb) -> Option<Outcome> {
    let (attachment, ip) = scratch::of_task()?;
    if attachment.flags & ATTACHMENT_WAY_OUT != 0 {
        return Some(answer_client(packet, attachment, ip).unwrap_or(Ok(Verdict::WAY_OUT)));
    }
    if attachment.flags & ATTACHMENT_INGRESS == 0 {
        return None;
    }
    answer_client(packet, attachment, ip)
}

/// An answer to a client of a published port leaves with the address and port that the client connected to.
#[inline(always)]
fn answer_client(packet: &Skb, attachment: &Attachment, ip: &IpHeader) -> Option<Outcome> {
    let is_way_out = attachment.flags & ATTACHMENT_WAY_OUT != 0;
    maps::config()?;
    let Ok(flow) = fragments::flow(packet, ip) else {
        let is_error = !is_way_out && headers::embedded_flow(packet, ip).is_some();
        return is_error.then_some(Ok(Verdict::ERROR));
    };
    if is_way_out && flow.tuple.protocol == TCP {
        return None;
    }
    let reply = track::reply(flow, attachment.address)?;
    fragments::remember(ip, flow);
    if flow.version == Version::V4 && !reply.service.is_v4() {
        return Some(Ok(Verdict::TRANSLATE));
    }
    Some(restore(packet, flow, reply))
}

/// An ICMP error of the task: about a client's packet, or like any other packet.
#[inline(always)]
fn error(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    errors::from_task(packet, ip, attachment.address).unwrap_or_else(|| last(packet))
}

/// Every node knows every endpoint: no question leaves it.
#[inline(always)]
fn answer_arp(packet: &Skb, attachment: &Attachment) -> Outcome {
    let request = arp::Request::parse(packet)
        .map_err(|_| DropReason::Malformed)?
        .ok_or(DropReason::NeighbourUnanswered)?;
    if request.sender_mac != attachment.mac {
        return Err(DropReason::SourceAddress);
    }
    if request.target == attachment.address {
        return Err(DropReason::NeighbourUnanswered);
    }
    let mac = mac_of(attachment, request.target).ok_or(DropReason::NeighbourUnanswered)?;
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

/// The same for IPv6, by neighbour discovery. Who wants to know whether an address is taken is its owner, or nobody's guest.
#[inline(always)]
fn answer_solicitation(packet: &Skb, attachment: &Attachment, asks: &ndp::Solicitation) -> Outcome {
    if asks.sender.is_unspecified() {
        return Err(DropReason::NeighbourUnanswered);
    }
    if maps::name(attachment.vni, asks.sender) != Some(attachment.address) {
        return Err(DropReason::SourceAddress);
    }
    let target = maps::name(attachment.vni, asks.target).ok_or(DropReason::NeighbourUnanswered)?;
    if target == attachment.address {
        return Err(DropReason::NeighbourUnanswered);
    }
    let mac = mac_of(attachment, target).ok_or(DropReason::NeighbourUnanswered)?;
    packet.set_len(ndp::FRAME_LEN)?;
    packet.set_macs(asks.sender_mac, mac)?;
    packet.write(ip::OFFSET, &ndp::ip_start())?;
    packet.write(Version::V6.source_offset(), &asks.target.0)?;
    packet.write(Version::V6.destination_offset(), &asks.sender.0)?;
    packet.write(ndp::MESSAGE_OFFSET, &asks.advertisement(mac))?;
    Ok(skb::send(packet.ifindex()))
}

/// From endpoint to endpoint, to a node's process, or to the router that nobody is.
#[inline(always)]
fn last(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let named = maps::name(attachment.vni, ip.destination);
    let destination = named.unwrap_or(Ip4::UNSPECIFIED);
    if let Some(endpoint) = maps::endpoint(attachment.vni, destination) {
        return if endpoint.is_local() {
            packet.set_macs(endpoint.mac, attachment.mac)?;
            let goes =
                if vips::are_asked() { Verdict::FOR_TASK } else { skb::send_to_sandbox(endpoint.ifindex) };
            Ok(goes)
        } else {
            Ok(route::tunnel_to_endpoint(attachment.vni, &endpoint))
        };
    }
    let is_ingress = attachment.flags & ATTACHMENT_INGRESS != 0;
    if is_ingress && let Some(owner) = maps::address_owner(ip.destination) {
        return Ok(route::to_host_process(config, owner));
    }
    if named.is_none() && may_be_refused(packet, ip) {
        return Ok(Verdict::REFUSED);
    }
    to_router(packet, attachment, (ip, destination))
}

/// By IPv6 no way leads out of a network; of errors there is no error (RFC 4443 section 2.4 (e)), and of pieces none here.
#[inline(always)]
fn may_be_refused(packet: &Skb, ip: &IpHeader) -> bool {
    ip.part == ip::Part::Whole && !icmp::is_error6(packet, ip)
}

/// To an address outside of the network: the gateway says that there is no way, so that a task that asks for one goes on to
/// the next at once (RFC 8305 section 5). Nobody serves a virtual address: it answers as for a closed port, which is
/// `ECONNREFUSED` to who connects, as it is by the socket hooks.
#[inline(always)]
fn refuse(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    if ip.version == Version::V4 {
        return errors::refuse_port4(packet, ip, attachment.mac);
    }
    let (source, error) = if maps::name(attachment.vni, ip.destination).is_some() {
        (ip.destination, icmp::Error6::PORT)
    } else {
        let router = maps::address(attachment.vni, attachment.gateway, Version::V6);
        (router.ok_or(DropReason::NoRoute)?, icmp::Error6::NO_ROUTE)
    };
    errors::refuse6(packet, ip, attachment.mac, (&source, error))
}

/// The gateway and virtual addresses are nobody's: ping is answered for them, here. All else to a virtual address is a backend's.
#[inline(always)]
fn to_router(packet: &Skb, attachment: &Attachment, (ip, destination): (&IpHeader, Ip4)) -> Outcome {
    let is_vip = is_vip(attachment, destination);
    if !is_vip && destination != attachment.gateway {
        return Err(DropReason::NoRoute);
    }
    let Some(reply) = icmp::echo_reply(packet, ip) else {
        return match (is_vip, vips::are_asked()) {
            (true, _) => Ok(Verdict::TO_VIP),
            (false, true) => Ok(Verdict::TO_GATEWAY),
            (false, false) => Err(DropReason::NoRoute),
        };
    };
    packet.set_macs(attachment.mac, ROUTER_MAC)?;
    let (source_offset, destination_offset) = (ip.version.source_offset(), ip.version.destination_offset());
    match ip.version {
        Version::V4 => {
            packet.write(source_offset, &ip.destination.low().0)?;
            packet.write(destination_offset, &ip.source.low().0)?;
        }
        Version::V6 => {
            packet.write(source_offset, &ip.destination.0)?;
            packet.write(destination_offset, &ip.source.0)?;
        }
    }
    packet.write(ip.version.icmp_offset(), &reply)?;
    Ok(skb::send(packet.ifindex()))
}

/// What the task says becomes what the client asked.
#[inline(always)]
fn restore(packet: &Skb, flow: &Flow, reply: &ReplyFlow) -> Outcome {
    packet.set_source(flow, reply.service, reply.service_port)?;
    packet.set_destination(flow, flow.tuple.destination, reply.client_port)?;
    Ok(Verdict::ANSWER)
}
