//! The same by IPv6, for each drop reason that a family of its own can have.

use ebpf_abi::limits::{BRIDGE_VNI, ROUTER_MAC};
use ebpf_abi::names::map;
use ebpf_abi::stand_in::{CANDIDATES, candidate};
use ebpf_abi::{Attachment, DropReason, Ip, Ip4, MacAddr, Port, ProgramId, StandIn, protocol};
use ebpf_packet::hash::client_hash;
use etherparse::{IpNumber, PacketBuilder};

use crate::fixtures::{
    CLIENT_PORT, Fixture, GATEWAY, LOCAL, REMOTE, TO_LOCAL, TO_REMOTE, fill_flows, packet, plain, step,
    take_source_ports,
};
use crate::frame::checksum;
use crate::generate::world::{
    BEHIND, CLIENTS6, INGRESS, OVERLAY, OWN6, PEERS, SANDBOX_COOKIES, STRANGER, STRANGER6, VIPS, prefix6,
};
use crate::kernel::Machine;
use crate::network::pseudo_header;
use crate::packet::{
    INGRESS_ENDS, OVERLAY_ENDS, Packet, SocketAddress, SocketCall, Step, TUNNEL, UPLINK, UPLINK_MAC, WAYS_OUT,
};
use crate::tables::address6;

const CLIENT: Ip = CLIENTS6[0];
const ALL_NODES: Ip = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// Payload of a frame (RFC 8200 section 3).
const TRANSPORT: usize = 14 + 40;
const NEXT_HEADER: usize = 14 + 6;
const FRAGMENT: u8 = 44;
const HOP_BY_HOP: u8 = 0;

pub fn fixtures() -> Vec<Fixture> {
    [
        from_tunnel(),
        from_task(),
        asked_by_task(),
        by_way_out(),
        of_clients(),
        of_clients_of_ipv4(),
        of_sockets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// From a MAC and address to another.
type Ends = ((MacAddr, Ip), (MacAddr, Ip));

fn tcp((source, destination): Ends, ports: (u16, u16)) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(source.0.0, destination.0.0).ipv6(source.1.0, destination.1.0, 64);
    let mut frame = Vec::new();
    ip.tcp(ports.0, ports.1, 1000, 65_535).syn().write(&mut frame, b"").unwrap();
    frame
}

fn udp((source, destination): Ends, payload: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(source.0.0, destination.0.0).ipv6(source.1.0, destination.1.0, 64);
    let mut frame = Vec::new();
    ip.udp(1, 2).write(&mut frame, payload).unwrap();
    frame
}

fn icmp((source, destination): Ends, hop_limit: u8, mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    let covered = [&pseudo_header((source.1, destination.1), protocol::ICMP6, length)[..], &message].concat();
    message[2..4].copy_from_slice(&checksum(&covered).to_be_bytes());
    let ip =
        PacketBuilder::ethernet2(source.0.0, destination.0.0).ipv6(source.1.0, destination.1.0, hop_limit);
    let mut frame = Vec::new();
    ip.write(&mut frame, IpNumber::IPV6_ICMP, &message).unwrap();
    frame
}

/// Puts an extension header of eight bytes in front of all else.
fn extended(mut frame: Vec<u8>, kind: u8, rest: [u8; 7]) -> Vec<u8> {
    let next = std::mem::replace(&mut frame[NEXT_HEADER], kind);
    frame.splice(TRANSPORT..TRANSPORT, [&[next], &rest[..]].concat());
    frame[19] += 8;
    frame
}

fn in_network(name: Ip4) -> Ip {
    address6(&prefix6(INGRESS), name)
}

fn endpoint(name: Ip4) -> (MacAddr, Ip) {
    (MacAddr::of_endpoint(name), in_network(name))
}

fn from_tunnel() -> Vec<Fixture> {
    let tunnelled = |remote: Ip4, bytes: Vec<u8>| {
        let tunnel = Some((INGRESS, remote.into()));
        Step::Packet(Packet { tunnel, ..packet(ProgramId::MeshVxlan, TUNNEL, bytes) })
    };
    let by_peer = |bytes| tunnelled(PEERS[0], bytes);
    let of_client = ((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(LOCAL), OWN6));
    let elsewhere = ((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(REMOTE), OWN6));
    let later = extended(udp(of_client, &[0; 64]), FRAGMENT, [0, 0, 8, 0, 0, 0, 1]);
    let nobodys = udp(((ROUTER_MAC, STRANGER6), (ROUTER_MAC, CLIENT)), b"");
    let from_host = |source| udp(((ROUTER_MAC, source), (ROUTER_MAC, in_network(LOCAL))), b"");
    let out = |bytes| step(ProgramId::MeshVxlanOut, TUNNEL, bytes);
    let to_nobody = udp(((ROUTER_MAC, OWN6), (ROUTER_MAC, STRANGER6)), b"");
    let to_all = udp(((ROUTER_MAC, OWN6), (ROUTER_MAC, ALL_NODES)), b"");
    let echo = icmp(of_client, 64, vec![128, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        plain(DropReason::UnknownPeer, tunnelled(STRANGER, tcp(of_client, (CLIENT_PORT, TO_LOCAL)))),
        plain(DropReason::UnknownEndpoint, by_peer(tcp(elsewhere, (CLIENT_PORT, TO_REMOTE)))),
        plain(DropReason::InnerSource, by_peer(udp(((ROUTER_MAC, STRANGER6), endpoint(LOCAL)), b""))),
        plain(DropReason::UnpublishedPort, by_peer(tcp(of_client, (CLIENT_PORT, 22)))),
        plain(DropReason::UnpublishedPort, by_peer(echo)),
        plain(DropReason::Fragment, by_peer(later)),
        plain(DropReason::UnknownOwner, by_peer(nobodys)),
        plain(DropReason::HostSource, out(from_host(STRANGER6))),
        plain(DropReason::NoRoute, out(to_nobody)),
        plain(DropReason::Group, out(to_all)),
        Fixture {
            // The connection begins, and its packet can't be given an address that the network doesn't have.
            reason: DropReason::NotIp,
            step: by_peer(tcp(of_client, (CLIENT_PORT, TO_LOCAL))),
            prepare: |machine| machine.tables.prefixes6.remove(&INGRESS).unwrap(),
        },
    ]
}

fn from_task() -> Vec<Fixture> {
    let sent = |bytes| step(ProgramId::MeshTask, INGRESS_ENDS[0], bytes);
    let to = |address: Ip| (endpoint(LOCAL), (ROUTER_MAC, address));
    let datagram = |address: Ip| udp(to(address), b"");
    let with_byte = |position: usize, byte: u8| {
        let mut frame = datagram(in_network(REMOTE));
        frame[position] = byte;
        frame
    };
    let cut = |len: usize| datagram(in_network(REMOTE))[..len].to_vec();
    let mapped = datagram(Ip::v4(REMOTE));
    let mut six = datagram(in_network(REMOTE));
    for _ in 0..6 {
        six = extended(six, HOP_BY_HOP, [0, 1, 4, 0, 0, 0, 0]);
    }
    let too_long = extended(datagram(in_network(REMOTE)), HOP_BY_HOP, [200, 1, 4, 0, 0, 0, 0]);
    let too_long = extended(too_long, HOP_BY_HOP, [200, 1, 4, 0, 0, 0, 0]);
    let link_local = Ip([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x42, 0x0a, 0xff, 0xfe, 0, 0, 5]);
    let spoofed =
        |source| udp(((MacAddr::of_endpoint(LOCAL), source), (ROUTER_MAC, in_network(REMOTE))), b"");
    let mut no_flow = datagram(in_network(VIPS[1]));
    no_flow[20] = 47;
    let to_vip = |rest| sent(extended(datagram(in_network(VIPS[1])), FRAGMENT, rest));
    let answer = tcp(((ROUTER_MAC, in_network(VIPS[1])), endpoint(LOCAL)), (80, 1));
    let about_answer = [&[1, 4, 0, 0, 0, 0, 0, 0], &answer[14..]].concat();
    let of_overlay = udp(
        (
            (MacAddr::of_endpoint(LOCAL), address6(&prefix6(OVERLAY), LOCAL)),
            (ROUTER_MAC, address6(&prefix6(OVERLAY), GATEWAY)),
        ),
        b"",
    );
    vec![
        plain(DropReason::Malformed, sent(with_byte(14, 0x40))),
        plain(DropReason::Malformed, sent(cut(TRANSPORT - 1))),
        plain(DropReason::Malformed, sent(mapped)),
        plain(DropReason::Malformed, sent(six)),
        plain(DropReason::Malformed, sent(too_long)),
        plain(DropReason::NotIp, step(ProgramId::MeshTask, OVERLAY_ENDS[0], of_overlay)),
        plain(DropReason::NoRoute, sent(icmp(to(STRANGER6), 64, [&[1, 4][..], &[0; 54]].concat()))),
        plain(DropReason::NoRoute, sent(datagram(in_network(GATEWAY)))),
        plain(DropReason::SourceAddress, sent(spoofed(in_network(REMOTE)))),
        plain(DropReason::SourceAddress, sent(spoofed(link_local))),
        plain(DropReason::SourceAddress, sent(spoofed(Ip::UNSPECIFIED))),
        plain(DropReason::Group, sent(datagram(ALL_NODES))),
        plain(DropReason::VipProtocol, sent(no_flow)),
        plain(DropReason::NoBackend, to_vip([0, 0, 1, 0, 0, 0, 1])),
        plain(DropReason::Fragment, to_vip([0, 0, 8, 0, 0, 0, 2])),
        plain(DropReason::UnknownFlow, sent(icmp(to(in_network(VIPS[1])), 64, about_answer))),
        Fixture {
            reason: DropReason::Unconfigured,
            step: sent(datagram(in_network(REMOTE))),
            prepare: |machine| machine.tables.config.set(&ebpf_abi::NodeConfig::default()).unwrap(),
        },
    ]
}

/// Neighbour solicitations (RFC 4861 section 4.3).
fn asked_by_task() -> Vec<Fixture> {
    let asks = |source: Ip, target: Ip| {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.0);
        icmp(((MacAddr::of_endpoint(LOCAL), source), (ROUTER_MAC, ALL_NODES)), 255, message)
    };
    let sent = |bytes| step(ProgramId::MeshTask, INGRESS_ENDS[0], bytes);
    let own = in_network(LOCAL);
    let mut cut = asks(own, in_network(REMOTE));
    cut.pop();
    let mut by_router = asks(own, in_network(REMOTE));
    by_router[21] = 254;
    vec![
        plain(DropReason::NeighbourUnanswered, sent(asks(own, in_network(STRANGER)))),
        plain(DropReason::NeighbourUnanswered, sent(asks(own, STRANGER6))),
        plain(DropReason::NeighbourUnanswered, sent(asks(own, own))),
        plain(DropReason::NeighbourUnanswered, sent(asks(Ip::UNSPECIFIED, in_network(REMOTE)))),
        plain(DropReason::SourceAddress, sent(asks(in_network(REMOTE), in_network(GATEWAY)))),
        plain(DropReason::Malformed, sent(cut)),
        plain(DropReason::Malformed, sent(by_router)),
    ]
}

/// Others' addresses, and what only routers say.
fn by_way_out() -> Vec<Fixture> {
    const ADVERTISEMENT: u8 = 136;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    let behind = |name: Ip4| (MacAddr::of_endpoint(name), address6(&prefix6(BRIDGE_VNI), name));
    let (own, other) = (behind(BEHIND[0]), behind(BEHIND[1]));
    let to = (ROUTER_MAC, ALL_NODES);
    let says = |source: Ip, kind: u8, target: Ip| {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.0[..]].concat();
        icmp(((own.0, source), to), 255, message)
    };
    let (link_local, others) = (own.0.link_local(), other.0.link_local());
    let forged = says(own.1, ADVERTISEMENT, other.1);
    let mut cut = forged.clone();
    cut.truncate(TRANSPORT + 20);
    let spoofed = [
        udp(((own.0, other.1), (ROUTER_MAC, CLIENT)), b""),
        udp(((own.0, in_network(LOCAL)), (ROUTER_MAC, CLIENT)), b""),
        udp(((own.0, link_local), (ROUTER_MAC, CLIENT)), b""),
        udp(((own.0, Ip::UNSPECIFIED), to), b""),
        udp(((other.0, own.1), (ROUTER_MAC, CLIENT)), b""),
        extended(forged.clone(), HOP_BY_HOP, [0, 1, 4, 0, 0, 0, 0]),
        forged,
        says(link_local, ADVERTISEMENT, others),
        says(other.1, ADVERTISEMENT, own.1),
        says(Ip::UNSPECIFIED, 135, other.1),
        says(link_local, ROUTER_ADVERTISEMENT, Ip::UNSPECIFIED),
        says(others, 135, other.1),
    ];
    let sent = |bytes| step(ProgramId::MeshTask, WAYS_OUT[0], bytes);
    let spoofed = spoofed.into_iter().map(|bytes| plain(DropReason::SourceAddress, sent(bytes)));
    spoofed.chain([plain(DropReason::Malformed, sent(cut))]).collect()
}

fn of_clients() -> Vec<Fixture> {
    const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 100]);
    let ends = ((CLIENT_MAC, CLIENT), (UPLINK_MAC, OWN6));
    let arrives = |bytes| step(ProgramId::MeshUplink, UPLINK, bytes);
    let syn = |port| tcp(ends, (CLIENT_PORT, port));
    let mut cut = syn(TO_LOCAL);
    cut.truncate(TRANSPORT + 16);
    let answer = tcp(((ROUTER_MAC, OWN6), (ROUTER_MAC, CLIENT)), (TO_LOCAL, CLIENT_PORT));
    let too_big = [&[2, 0, 0, 0, 0, 0, 5, 0], &answer[14..]].concat();
    vec![
        plain(DropReason::Rewrite, arrives(cut)),
        plain(DropReason::UnknownFlow, arrives(icmp(ends, 64, too_big))),
        Fixture {
            reason: DropReason::FlowTableFull,
            step: arrives(syn(TO_LOCAL)),
            prepare: |machine| fill_flows(machine, OWN6),
        },
        Fixture {
            reason: DropReason::SourcePortsExhausted,
            step: arrives(syn(TO_LOCAL)),
            prepare: |machine| take_source_ports(machine, CLIENT),
        },
        Fixture {
            reason: DropReason::Tunnel,
            step: arrives(syn(TO_REMOTE)),
            prepare: |machine| machine.slate().set_tunnel.refusal = (-libc::ENOMEM).into(),
        },
    ]
}

/// To a task that listens on IPv4 alone: a first fragment whose own header isn't the last one; a client for whom no address
/// is free.
fn of_clients_of_ipv4() -> Vec<Fixture> {
    const DESTINATION_OPTIONS: u8 = 60;
    let ends = ((MacAddr([2, 0, 0, 0, 0, 100]), CLIENT), (UPLINK_MAC, OWN6));
    let syn = tcp(ends, (CLIENT_PORT, TO_LOCAL));
    let optional = extended(syn.clone(), DESTINATION_OPTIONS, [0, 1, 4, 0, 0, 0, 0]);
    let first = extended(optional, FRAGMENT, [0, 0, 1, 0, 0, 0, 1]);
    let arrives = |bytes| step(ProgramId::MeshUplink, UPLINK, bytes);
    vec![
        Fixture { reason: DropReason::Untranslatable, step: arrives(first), prepare: listen_to_ipv4 },
        Fixture {
            reason: DropReason::Untranslatable,
            step: arrives(syn),
            prepare: |machine| {
                listen_to_ipv4(machine);
                for number in 0..CANDIDATES {
                    let address = candidate(client_hash(CLIENT), number);
                    machine.insert(map::STAND_INS, &address, &StandIn::new(CLIENTS6[1], 1));
                }
            },
        },
    ]
}

fn listen_to_ipv4(machine: &mut Machine) {
    machine.slate().listens4 = 1;
    let attachment = machine.tables.attachments.get(&INGRESS_ENDS[0]).unwrap().unwrap();
    machine.tables.attachments.insert(&INGRESS_ENDS[0], &Attachment { sandbox: 1, ..attachment }).unwrap();
}

/// A virtual address that nobody serves; a service by a network that has lost its prefix.
fn of_sockets() -> Vec<Fixture> {
    let call = |program, address: Ip| {
        Step::Socket(SocketCall {
            program,
            netns_cookie: SANDBOX_COOKIES[0],
            socket_cookie: 1,
            protocol: protocol::TCP,
            address: SocketAddress::V6(address.0.into()),
            port: Port::new(80),
        })
    };
    let vip = in_network(VIPS[1]);
    vec![
        plain(DropReason::NoBackend, call(ProgramId::MeshConnect6, vip)),
        plain(DropReason::NoBackend, call(ProgramId::MeshSendmsg6, vip)),
    ]
}
