//! Packets of clients that come by IPv6, as a task that listens on IPv4 alone gets them, and its answers as the clients do: the
//! rules are [`ebpf_packet::translate`]'s. Lengths change by 20 bytes, or 28 for a fragment.

use aya_ebpf::bindings::{__sk_buff, bpf_adj_room_mode};
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_change_proto};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{DropReason, Ip, Port, protocol};
use ebpf_packet::ip::Part;
use ebpf_packet::translate::{Common, FRAGMENT_LEN, common_of_error, error4, error6, sum_error4, sum_error6};
use ebpf_packet::{
    Bytes as _, Ethernet, Flow, IpHeader, Version, ethernet, flow, icmp, ip, ipv4, ipv6, translate,
};

use crate::path::{self, HEADERS6};
use crate::skb::{self, Skb};
use crate::verdict::{Outcome, Verdict};
use crate::{errors, headers, maps, scratch, stand_in};

/// A client's packet to the task that [`scratch::of_handed`] says.
#[inline(always)]
pub fn client_packet(packet: &Skb) -> Outcome {
    let (handed, flow) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    let header = scratch::of_header().ok_or(DropReason::Unconfigured)?;
    let mtu = maps::attachment(handed.endpoint.ifindex).ok_or(DropReason::UnknownAttachment)?.mtu;
    let common = said6(packet, header)?;
    let source = (Ip::v4(handed.stand_in), handed.translated.client_port);
    let destination = (Ip::v4(handed.backend), handed.translated.target_port);
    transport(packet, flow, (source, destination), mtu)?;
    change_version(packet, Version::V4)?;
    let n_extension = header.transport_offset as i32 - (ip::OFFSET + ipv6::LEN) as i32;
    if n_extension != 0 {
        resize(packet, -n_extension)?;
    }
    packet.write_counted(ip::OFFSET, &common.header4(handed.stand_in, handed.backend))?;
    let (destination, ether_type) = (handed.endpoint.mac, ethernet::TYPE_IPV4);
    packet.write(0, &Ethernet { destination, source: ROUTER_MAC, ether_type }.to_bytes())?;
    Ok(skb::send_to_sandbox(handed.endpoint.ifindex))
}

/// What an IPv6 packet's headers say. Extensions but for the fragment header are left out (RFC 7915 section 5.1).
#[inline(always)]
fn said6(packet: &Skb, header: &IpHeader) -> Result<Common, DropReason> {
    let start = packet.load::<8>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    let mut common = Common::of6(start);
    let extension = (header.transport_offset - (ip::OFFSET + ipv6::LEN)) as u16;
    common.protocol = header.protocol;
    common.payload_len = common.payload_len.checked_sub(extension).ok_or(DropReason::Malformed)?;
    if header.part != Part::Whole {
        let offset = header.transport_offset - FRAGMENT_LEN;
        let [_, _, high, low, id @ ..] =
            packet.load::<FRAGMENT_LEN>(offset).map_err(|_| DropReason::Malformed)?;
        common.fragment = u16::from_be_bytes([high, low & 0xf9]);
        let is_it = id == header.id && (header.part == Part::LaterFragment || common.fragment == 1);
        if !is_it {
            // Another extension lies between.
            return Err(DropReason::Untranslatable);
        }
        common.id = [id[2], id[3]];
    }
    Ok(common)
}

/// A task's answer, which [`scratch::of_answer`] tells the client of.
#[inline(always)]
pub fn answer(packet: &Skb) -> Outcome {
    let (attachment, header) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    let (reply, client, flow) = scratch::of_translated().ok_or(DropReason::Unconfigured)?;
    let start = packet.load::<{ ipv4::MIN_LEN }>(ip::OFFSET).map_err(|_| DropReason::Malformed)?;
    if header.has_options() {
        return Err(DropReason::Untranslatable);
    }
    let longest = path::path_longest_answer();
    let is_long = u32::from(header.total_len) + u32::from(translate::DIFFERENCE) > longest;
    // What only the other node's underlay doesn't take nobody cuts up.
    let is_told = header.dont_fragment || (longest < attachment.mtu && header.part != Part::LaterFragment);
    if is_long && is_told && !packet.is_aggregate() {
        return errors::refuse_answer(packet, header, attachment.mac, longest as u16 - translate::DIFFERENCE);
    }
    if flow.is_udp() && flow.has_transport() && packet.load::<2>(flow.checksum_offset()) == Ok([0; 2]) {
        // IPv6 has no datagrams without a checksum.
        return Err(DropReason::Untranslatable);
    }
    let common = Common::of4(&start);
    let source = (reply.service, reply.service_port);
    transport(packet, flow, (source, (*client, reply.client_port)), attachment.mtu)?;
    change_version(packet, Version::V6)?;
    if common.fragment != 0 {
        resize(packet, FRAGMENT_LEN as i32)?;
        packet.write_counted(ip::OFFSET + ipv6::LEN, &common.fragment6())?;
    }
    packet.write_counted(ip::OFFSET, &common.start6())?;
    packet.write_counted(ipv6::SOURCE_OFFSET, &reply.service.0)?;
    packet.write_counted(ipv6::DESTINATION_OFFSET, &client.0)?;
    answers6(packet)
}

/// The packet is an IPv6 answer now: for whoever sends it on.
#[inline(always)]
fn answers6(packet: &Skb) -> Outcome {
    packet.write(ETHER_TYPE_OFFSET, &ethernet::TYPE_IPV6)?;
    headers::ip(packet, Version::V6).ok_or(DropReason::Malformed)?;
    Ok(Verdict::ANSWER)
}

const ETHER_TYPE_OFFSET: usize = 12;

/// An error from outside about an answer, to the task that [`scratch::of_handed`] says: about what that sent.
#[inline(always)]
pub fn client_error(packet: &Skb) -> Outcome {
    const LEN: usize = Version::V4.embedded_offset() + icmp::CARRIED_LEN4;
    let (handed, _) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    let tuple = &*scratch::room_for_tuple().ok_or(DropReason::Unconfigured)?;
    let client = stand_in::known(&tuple.source);
    if client.is_unspecified() {
        return Err(DropReason::UnknownFlow);
    }
    let said = packet.load::<{ icmp::LEN }>(Version::V6.icmp_offset()).map_err(|_| DropReason::Malformed)?;
    let mut error = error4(said).ok_or(DropReason::Untranslatable)?;
    let start = packet.load::<8>(Version::V6.embedded_offset()).map_err(|_| DropReason::Malformed)?;
    let ports = (handed.translated.target_port, handed.translated.client_port);
    let transport = embedded_transport(packet, Version::V6, ports)?;
    let carried = Common::of6(start).header4(handed.backend, client);
    sum_error4(&mut error, &carried, transport);
    change_version(packet, Version::V4)?;
    packet.set_len(LEN)?;
    // Whoever it was that met the error: the task knows of the client alone.
    let header = common_of_error(protocol::ICMP, icmp::CARRIED_LEN4).header4(client, handed.backend);
    packet.write(ip::OFFSET, &header)?;
    packet.write(Version::V4.icmp_offset(), &error)?;
    packet.write(Version::V4.embedded_offset(), &carried)?;
    packet.write(Version::V4.embedded_transport_offset(), &transport)?;
    let (destination, ether_type) = (handed.endpoint.mac, ethernet::TYPE_IPV4);
    packet.write(0, &Ethernet { destination, source: ROUTER_MAC, ether_type }.to_bytes())?;
    Ok(skb::send_to_sandbox(handed.endpoint.ifindex))
}

/// A task's error about a client's packet: about what the client sent, from the address that it asked.
#[inline(always)]
pub fn task_error(packet: &Skb) -> Outcome {
    const LEN: usize = Version::V6.embedded_offset() + icmp::CARRIED_LEN6;
    const EMBEDDED: usize = Version::V6.embedded_offset() - ip::OFFSET;
    let (reply, client, _) = scratch::of_translated().ok_or(DropReason::Unconfigured)?;
    let said = packet.load::<{ icmp::LEN }>(Version::V4.icmp_offset()).map_err(|_| DropReason::Malformed)?;
    let mut error = error6(said).ok_or(DropReason::Untranslatable)?;
    let carried =
        packet.load::<{ ipv4::MIN_LEN }>(Version::V4.embedded_offset()).map_err(|_| DropReason::Malformed)?;
    let ports = (reply.client_port, reply.service_port);
    let transport = embedded_transport(packet, Version::V4, ports)?;
    let start = Common { fragment: 0, ..Common::of4(&carried) }.start6();
    sum_error6(&mut error, (&reply.service, client), start, transport);
    change_version(packet, Version::V6)?;
    packet.set_len(LEN)?;
    packet.write(ip::OFFSET, &common_of_error(protocol::ICMP6, icmp::CARRIED_LEN6).start6())?;
    packet.write(ipv6::SOURCE_OFFSET, &reply.service.0)?;
    packet.write(ipv6::DESTINATION_OFFSET, &client.0)?;
    packet.write(Version::V6.icmp_offset(), &error)?;
    packet.write(Version::V6.embedded_offset(), &start)?;
    packet.write(EMBEDDED + ipv6::SOURCE_OFFSET, &client.0)?;
    packet.write(EMBEDDED + ipv6::DESTINATION_OFFSET, &reply.service.0)?;
    packet.write(Version::V6.embedded_transport_offset(), &transport)?;
    answers6(packet)
}

/// The first bytes of the transport of the packet at fault, with other ports.
#[inline(always)]
fn embedded_transport(
    packet: &Skb,
    version: Version,
    (Port([a, b]), Port([c, d])): (Port, Port),
) -> Result<[u8; 8], DropReason> {
    let [_, _, _, _, rest @ ..] =
        packet.load::<8>(version.embedded_transport_offset()).map_err(|_| DropReason::Malformed)?;
    Ok([a, b, c, d, rest[0], rest[1], rest[2], rest[3]])
}

/// Ports, and the checksum that covers them and the addresses; the MSS of a segment that begins a connection.
#[inline(always)]
fn transport(
    packet: &Skb,
    flow: &Flow,
    (source, destination): ((Ip, Port), (Ip, Port)),
    mtu: u32,
) -> Result<(), DropReason> {
    if !flow.has_transport() {
        return Ok(());
    }
    if flow.is_syn() {
        path::cut_mss(packet, flow.transport_offset, mtu.saturating_sub(HEADERS6))?;
    }
    packet.replace_port(flow, flow::SOURCE_PORT_OFFSET, flow.tuple.source_port, source.1)?;
    packet.replace_port(flow, flow::DESTINATION_PORT_OFFSET, flow.tuple.destination_port, destination.1)?;
    packet.cover_address(flow, flow.tuple.source, source.0)?;
    packet.cover_address(flow, flow.tuple.destination, destination.0)
}

/// Behind the Ethernet header comes one of the other version, whose bytes are yet to be written.
#[inline(always)]
fn change_version(packet: &Skb, version: Version) -> Result<(), DropReason> {
    let protocol = u16::from_ne_bytes(version.ether_type());
    // SAFETY: a plain helper call.
    let result = unsafe { bpf_skb_change_proto(packet.context().cast::<__sk_buff>(), protocol, 0) };
    if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
}

/// Makes room behind the IP header, or takes it away.
#[inline(always)]
fn resize(packet: &Skb, change: i32) -> Result<(), DropReason> {
    // SAFETY: a plain helper call.
    let result = unsafe {
        bpf_skb_adjust_room(
            packet.context().cast::<__sk_buff>(),
            change,
            bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
}
