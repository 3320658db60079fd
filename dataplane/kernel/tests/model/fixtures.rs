//! For each drop reason a packet, or a socket's call, that one program drops for that reason and no other.

use std::collections::BTreeSet;

use ebpf_abi::limits::{BRIDGE_VNI, MAX_VIP_ROWS_OF_TASK, ROUTER_MAC, SOURCE_PORT_TRIES};
use ebpf_abi::names::map;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{
    Attachment, CounterRow, DropReason, Endpoint, EndpointKey, FlowTuple, ForwardFlow, ForwardKey, Frontend,
    FrontendKey, Ip, Ip4, MacAddr, NodeConfig, Peer, Port, ProgramId, ReplyFlow, ReplyKey, RingKey,
    SandboxNetworks, TargetPort, TargetPortKey, VipFlow, VipFlowKey, VipKey, protocol,
};

use crate::fixtures6;
use crate::generate::world::{
    BACKENDS, BEHIND, CLIENTS, INGRESS, OVERLAY, OWN, OWN6, PEERS, SANDBOX_COOKIES, STRANGER, VIPS, prefix6,
};
use crate::in_namespace;
use crate::kernel::{FLOW_ROWS, Machine, Ran, Slate};
use crate::packet::{
    INGRESS_ENDS, Listens, NextHop, OVERLAY_ENDS, Packet, STRAY_END, SocketAddress, SocketCall, Step, TUNNEL,
    UPLINK, WAYS_OUT,
};
use crate::packets::{Between, Segment, arp, between, fragment};
use crate::run::TC_ACT_SHOT;
use crate::tables::{Tables, Wanted};

/// Of this node, with a published port and its host end.
pub const LOCAL: Ip4 = BACKENDS[0];
/// Of the first peer, with another published port.
pub const REMOTE: Ip4 = BACKENDS[1];
pub const TO_LOCAL: u16 = 8080;
pub const TO_REMOTE: u16 = 8081;
const CLIENT: Ip4 = CLIENTS[0];
pub const CLIENT_PORT: u16 = 40_000;
pub const GATEWAY: Ip4 = Ip4([10, 0, 0, 1]);
const RINGS: [RingKey; 3] = [RingKey::new(1, INGRESS), RingKey::new(2, INGRESS), RingKey::new(3, OVERLAY)];

/// A packet that is dropped, and what must be so before.
pub struct Fixture {
    pub reason: DropReason,
    pub step: Step,
    pub prepare: fn(&mut Machine),
}

#[test]
fn every_drop_reason_has_a_fixture() {
    let reasons: BTreeSet<DropReason> = DropReason::ALL.iter().copied().collect();
    let fixtures: BTreeSet<DropReason> = fixtures().iter().map(|fixture| fixture.reason).collect();
    assert_eq!(fixtures, reasons);
}

#[test]
fn fixtures_are_dropped_for_their_reason_alone() {
    in_namespace(|| {
        let mut machine = Machine::load();
        let wanted = wanted();
        machine.fill(&Wanted::default(), &wanted);
        for fixture in fixtures() {
            machine.fill(&Wanted::default(), &wanted);
            *machine.slate() = Slate { netns_cookie: SANDBOX_COOKIES[0], random: 1, ..Slate::default() };
            (fixture.prepare)(&mut machine);
            let ran = run(&mut machine, &fixture.step);
            let mut expected = CounterRow { received: 1, ..CounterRow::default() };
            expected.drops[fixture.reason.number() as usize] = 1;
            assert_eq!(ran.counted, expected, "{:?}: {:?}", fixture.reason, fixture.step);
            let refused = if matches!(fixture.step, Step::Socket(_)) { 0 } else { TC_ACT_SHOT };
            assert_eq!(ran.code, refused, "{:?}", fixture.reason);
        }
    });
}

fn run(machine: &mut Machine, step: &Step) -> Ran {
    match step {
        Step::Packet(packet) => {
            let slate = machine.slate();
            if let Some((vni, remote)) = packet.tunnel {
                (slate.has_tunnel, slate.tunnel_vni, slate.tunnel_remote) = (1, vni, remote.low().to_u32());
            }
            machine.run(packet)
        }
        Step::Socket(call) => machine.run_socket(call),
        Step::Change(_) => unreachable!("not a fixture's"),
    }
}

fn wanted() -> Wanted {
    let config = NodeConfig {
        vtep: OWN[0].into(),
        vxlan_ifindex: TUNNEL,
        ingress_vni: INGRESS,
        uplink_ifindex: UPLINK,
        uplink_mtu: 1500,
        vxlan_port: Port::new(4789),
        ..NodeConfig::default()
    };
    let mut wanted = Wanted { config, tick: 1, ..Wanted::default() };
    wanted.peers.insert(PEERS[0].into(), Peer::default());
    let owners =
        [(OWN[0].into(), Ip::UNSPECIFIED), (OWN6, Ip::UNSPECIFIED), (PEERS[0].into(), PEERS[0].into())];
    wanted.address_owners.extend(owners);
    wanted.prefixes6.insert(INGRESS, prefix6(INGRESS));
    let local = Endpoint::local(MacAddr::of_endpoint(LOCAL), INGRESS_ENDS[0]);
    let remote = Endpoint::remote(MacAddr::of_endpoint(REMOTE), PEERS[0].into());
    for (address, endpoint) in [(LOCAL, local), (REMOTE, remote)] {
        wanted.endpoints.insert(EndpointKey { vni: INGRESS, address }, endpoint.serving(true));
    }
    let mac = MacAddr::of_endpoint(LOCAL);
    let attachment = Attachment {
        vni: INGRESS,
        address: LOCAL,
        gateway: GATEWAY,
        mtu: 1450,
        mac,
        flags: ATTACHMENT_INGRESS,
        prefix: 24,
        sandbox: 0,
    };
    wanted.attachments.insert(INGRESS_ENDS[0], attachment);
    // The overlay has no prefix.
    wanted.attachments.insert(OVERLAY_ENDS[0], Attachment { vni: OVERLAY, flags: 0, ..attachment });
    let way_out = Attachment {
        vni: BRIDGE_VNI,
        address: BEHIND[0],
        mac: MacAddr::of_endpoint(BEHIND[0]),
        flags: ATTACHMENT_WAY_OUT,
        ..attachment
    };
    wanted.attachments.insert(WAYS_OUT[0], way_out);
    wanted.prefixes6.insert(BRIDGE_VNI, prefix6(BRIDGE_VNI));
    for (ring, backend, port) in [(RINGS[0], LOCAL, TO_LOCAL), (RINGS[1], REMOTE, TO_REMOTE)] {
        wanted.swap_ring(ring, &[backend]);
        for address in [OWN[0].into(), OWN6] {
            let key = FrontendKey::new(address, Port::new(port), protocol::TCP);
            wanted.frontends.insert(key, Frontend::new(ring, Port::new(80)));
        }
    }
    wanted.swap_ring(RINGS[2], &[]);
    let key = TargetPortKey::new(LOCAL, Port::new(TO_LOCAL), protocol::TCP);
    wanted.target_ports.insert(key, TargetPort::new(Port::new(80)));
    for (vni, address) in [(INGRESS, VIPS[0]), (INGRESS, VIPS[1]), (OVERLAY, VIPS[0])] {
        wanted.vips.insert(VipKey { vni, address }, RINGS[2]);
    }
    wanted.sandboxes.insert(SANDBOX_COOKIES[0], SandboxNetworks::new(&[OVERLAY, INGRESS]).unwrap());
    wanted
}

fn fixtures() -> Vec<Fixture> {
    [from_tunnel(), from_task(), by_way_out(), of_clients(), of_sockets(), fixtures6::fixtures()]
        .into_iter()
        .flatten()
        .collect()
}

pub fn plain(reason: DropReason, step: Step) -> Fixture {
    Fixture { reason, step, prepare: |_| {} }
}

pub fn step(program: ProgramId, ifindex: u32, bytes: Vec<u8>) -> Step {
    Step::Packet(packet(program, ifindex, bytes))
}

pub fn packet(program: ProgramId, ifindex: u32, bytes: Vec<u8>) -> Packet {
    let next_hop = NextHop::default();
    let listens = Listens::default();
    let (tunnel, is_aggregate) = (None, false);
    Packet { program, bytes, ifindex, ingress_ifindex: ifindex, tunnel, is_aggregate, next_hop, listens }
}

fn endpoint(address: Ip4) -> (MacAddr, Ip4) {
    (MacAddr::of_endpoint(address), address)
}

fn with_type(mut frame: Vec<u8>, kind: [u8; 2]) -> Vec<u8> {
    frame[12..14].copy_from_slice(&kind);
    frame
}

fn from_tunnel() -> Vec<Fixture> {
    let tunnelled = |remote: Ip4, bytes: Vec<u8>| {
        let tunnel = Some((INGRESS, remote.into()));
        Step::Packet(Packet { tunnel, ..packet(ProgramId::MeshVxlan, TUNNEL, bytes) })
    };
    let of_client = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(LOCAL), OWN[0]));
    let segment = of_client.tcp((CLIENT_PORT, TO_LOCAL), Segment::Syn, b"");
    let elsewhere = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(REMOTE), OWN[0]));
    let spoofed = between((ROUTER_MAC, STRANGER), endpoint(LOCAL)).udp((1, 2), b"");
    let unpublished = of_client.tcp((CLIENT_PORT, 22), Segment::Syn, b"");
    let later = fragment(of_client.udp((1, 2), &[0; 64]), 8, false);
    let nobodys = between((ROUTER_MAC, STRANGER), (ROUTER_MAC, CLIENT)).udp((1, 2), b"");
    let from = |source: Ip4| between((ROUTER_MAC, source), (ROUTER_MAC, LOCAL)).udp((1, 2), b"");
    vec![
        plain(DropReason::UnknownPeer, tunnelled(STRANGER, segment)),
        plain(
            DropReason::UnknownEndpoint,
            tunnelled(PEERS[0], elsewhere.tcp((CLIENT_PORT, TO_REMOTE), Segment::Syn, b"")),
        ),
        plain(DropReason::InnerSource, tunnelled(PEERS[0], spoofed)),
        plain(DropReason::UnpublishedPort, tunnelled(PEERS[0], unpublished)),
        plain(DropReason::Fragment, tunnelled(PEERS[0], later)),
        plain(DropReason::UnknownOwner, tunnelled(PEERS[0], nobodys)),
        plain(DropReason::HostSource, step(ProgramId::MeshVxlanOut, TUNNEL, from(STRANGER))),
    ]
}

fn from_task() -> Vec<Fixture> {
    let to = |address: Ip4| between(endpoint(LOCAL), (ROUTER_MAC, address));
    let sent = |bytes| step(ProgramId::MeshTask, INGRESS_ENDS[0], bytes);
    let datagram = |address: Ip4| to(address).udp((1, 2), b"");
    let mut other_version = datagram(REMOTE);
    other_version[14] = 0x55;
    let asks = arp(1, endpoint(LOCAL), (MacAddr::default(), STRANGER), MacAddr::BROADCAST);
    let spoofed = between((MacAddr::of_endpoint(LOCAL), STRANGER), (ROUTER_MAC, REMOTE)).udp((1, 2), b"");
    let mut no_flow = datagram(VIPS[0]);
    no_flow[23] = 47;
    let of_vip = to(VIPS[0]);
    let answer = between((ROUTER_MAC, VIPS[0]), endpoint(LOCAL)).tcp((80, 1), Segment::Ack, b"");
    vec![
        plain(DropReason::Malformed, sent(other_version)),
        plain(DropReason::NotIp, sent(with_type(datagram(REMOTE), [0x88, 0xcc]))),
        plain(DropReason::NeighbourUnanswered, sent(asks)),
        plain(DropReason::NoRoute, sent(datagram(STRANGER))),
        plain(DropReason::SourceAddress, sent(spoofed)),
        plain(DropReason::UnknownAttachment, step(ProgramId::MeshTask, STRAY_END, datagram(REMOTE))),
        plain(DropReason::Group, sent(datagram(Ip4([224, 0, 0, 251])))),
        plain(DropReason::VipProtocol, sent(no_flow)),
        plain(DropReason::NoBackend, sent(fragment(of_vip.udp((1, 2), &[0; 64]), 0, true))),
        plain(DropReason::Fragment, sent(fragment(of_vip.udp((1, 2), &[0; 64]), 8, false))),
        plain(DropReason::UnknownFlow, sent(of_vip.port_unreachable(&answer))),
        Fixture {
            reason: DropReason::FlowTableFull,
            step: sent(of_vip.tcp((1, 80), Segment::Syn, b"")),
            prepare: fill_vip_flows,
        },
        Fixture {
            reason: DropReason::VipShareFull,
            step: sent(of_vip.tcp((1, 80), Segment::Syn, b"")),
            prepare: fill_vip_share,
        },
        Fixture {
            reason: DropReason::Unconfigured,
            step: sent(datagram(REMOTE)),
            prepare: |machine| machine.tables.config.set(&NodeConfig::default()).unwrap(),
        },
    ]
}

fn by_way_out() -> Vec<Fixture> {
    let sent = |bytes| step(ProgramId::MeshTask, WAYS_OUT[0], bytes);
    let (own, other) = (endpoint(BEHIND[0]), endpoint(BEHIND[1]));
    let outside = (ROUTER_MAC, CLIENT);
    let bridge = (MacAddr::default(), GATEWAY);
    let datagram = between(own, outside).udp((1, 2), b"");
    let spoofed = |(mac, _), address: Ip4| between((mac, address), outside).tcp((1, 2), Segment::Syn, b"");
    vec![
        plain(DropReason::SourceAddress, sent(spoofed(own, other.1))),
        plain(DropReason::SourceAddress, sent(spoofed(own, LOCAL))),
        plain(DropReason::SourceAddress, sent(spoofed(other, own.1))),
        plain(DropReason::SourceAddress, sent(arp(2, (own.0, other.1), bridge, MacAddr::BROADCAST))),
        plain(DropReason::SourceAddress, sent(arp(1, (other.0, own.1), bridge, MacAddr::BROADCAST))),
        plain(DropReason::NotIp, sent(with_type(datagram.clone(), [0x88, 0xcc]))),
        plain(DropReason::Malformed, sent(datagram[..30].to_vec())),
    ]
}

fn client() -> Between {
    between((MacAddr([2, 0, 0, 0, 0, 100]), CLIENT), (MacAddr([2, 0, 0, 0, 0, 11]), OWN[0]))
}

fn of_clients() -> Vec<Fixture> {
    let arrives = |bytes| step(ProgramId::MeshUplink, UPLINK, bytes);
    let syn = |port| client().tcp((CLIENT_PORT, port), Segment::Syn, b"");
    let mut cut = syn(TO_LOCAL);
    cut.truncate(14 + 20 + 16);
    let answer = between((ROUTER_MAC, OWN[0]), (ROUTER_MAC, CLIENT));
    let answer = answer.tcp((TO_LOCAL, CLIENT_PORT), Segment::Ack, b"");
    vec![
        plain(DropReason::Rewrite, arrives(cut)),
        plain(DropReason::UnknownFlow, arrives(client().port_unreachable(&answer))),
        Fixture {
            reason: DropReason::FlowTableFull,
            step: arrives(syn(TO_LOCAL)),
            prepare: |machine| fill_flows(machine, OWN[0].into()),
        },
        Fixture {
            reason: DropReason::SourcePortsExhausted,
            step: arrives(syn(TO_LOCAL)),
            prepare: |machine| take_source_ports(machine, CLIENT.into()),
        },
        Fixture {
            // The kernel refuses no key of ours: it would have to be out of memory.
            reason: DropReason::Tunnel,
            step: arrives(syn(TO_REMOTE)),
            prepare: |machine| machine.slate().set_tunnel.refusal = (-libc::ENOMEM).into(),
        },
    ]
}

fn of_sockets() -> Vec<Fixture> {
    let call = SocketCall {
        program: ProgramId::MeshConnect4,
        netns_cookie: SANDBOX_COOKIES[0],
        socket_cookie: 1,
        protocol: protocol::TCP,
        address: SocketAddress::V4(VIPS[0]),
        port: Port::new(80),
    };
    vec![plain(DropReason::NoBackend, Step::Socket(call))]
}

/// All rows, and a backend.
fn fill_vip_flows(machine: &mut Machine) {
    machine.tables.rings.swap(&RINGS[2], &[REMOTE]).unwrap();
    for number in 0..FLOW_ROWS {
        let ends = [LOCAL, Ip4::from_u32(number)].map(|address| (address, Port::new(1)));
        let key = VipFlowKey::new(INGRESS, ends[0], ends[1], protocol::TCP, 0);
        machine.insert(map::VIP_FLOWS, &key, &VipFlow::new(REMOTE, 1));
    }
}

/// The task's share, and a backend.
fn fill_vip_share(machine: &mut Machine) {
    machine.tables.rings.swap(&RINGS[2], &[REMOTE]).unwrap();
    let task = EndpointKey { vni: INGRESS, address: LOCAL };
    machine.tables.vip_shares.insert(&task, &MAX_VIP_ROWS_OF_TASK).unwrap();
}

pub fn fill_flows(machine: &mut Machine, service: Ip) {
    for number in 0..FLOW_ROWS {
        let client = (Ip4::from_u32(number), Port::new(1));
        let tuple = FlowTuple::new(client, (service, Port::new(TO_LOCAL)), protocol::TCP);
        let row = ForwardFlow::new(Port::new(80), client.1, 1);
        machine.insert(map::FLOWS, &ForwardKey::new(&tuple, LOCAL), &row);
    }
}

/// The client's own port, and all that the program will try.
pub fn take_source_ports(machine: &mut Machine, client: Ip) {
    let mut chance = Tables::new(Wanted::default(), machine.slate().random);
    let tried =
        (1..SOURCE_PORT_TRIES).map(|_| u16::try_from(0x8000 | (chance.next_random() & 0x7fff)).unwrap());
    for port in tried.chain([CLIENT_PORT]) {
        let key = ReplyKey::new((LOCAL, Port::new(80)), (client, Port::new(port)), protocol::TCP);
        machine.insert(
            map::REPLIES,
            &key,
            &ReplyFlow::new((OWN[1], Port::new(TO_LOCAL)), Port::new(port), 1),
        );
    }
}
