//! Frames as they come from outside, from other nodes, from this node's processes and from its tasks.

use ebpf_abi::flow::{FLOW_AS_IPV4, VIP_FLOW_V6};
use ebpf_abi::limits::{BRIDGE_VNI, PROBE_VNI, ROUTER_MAC};
use ebpf_abi::ring::{MAX_HOPS, fingerprint};
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{
    Attachment, Chooser, FlowTuple, ForwardKey, Ip, Ip4, MacAddr, Port, ReplyKey, VipFlowKey, protocol,
};

use super::dice::Dice;
use super::frames::{Headers, icmp_checksum, icmp_error, transport};
use super::world::{
    BACKENDS, CLIENTS, CLIENTS6, INGRESS, OVERLAY, OVERLAY_TASKS, OWN, OWN6, PEER6, PEERS, PEERS_OTHER,
    SCTP_SERVICES, SERVICES, STRANGER, STRANGER6, VIPS, prefix6,
};
use crate::frame::checksum;
use crate::network::Family;
use crate::packet::{INGRESS_ENDS, OVERLAY_ENDS, STRAY_END, UPLINK_MAC, WAYS_OUT};
use crate::tables::{Tables, address6};

const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 100]);
const OUTSIDE: (MacAddr, MacAddr) = (CLIENT_MAC, UPLINK_MAC);
/// To another machine, by a switch that doesn't know where that is.
const FLOODED: (MacAddr, MacAddr) = (CLIENT_MAC, MacAddr([2, 0, 0, 0, 0, 12]));
const DONT_FRAGMENT: u16 = 1 << 14;
const MORE_FRAGMENTS: u16 = 1 << 13;
/// `ff02::1`.
const ALL_NODES: Ip = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// A client's flow: one that is known, or one of the few that there are.
fn client_flow(dice: &mut Dice, tables: &Tables) -> FlowTuple {
    let known = match dice.below(4) {
        0 => dice.pick_from(tables.written.flow_cache.keys()).copied(),
        1 => dice.pick_from(tables.written.flows.keys()).map(as_tuple),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let services = match dice.below(8) {
            0 => &SERVICES[..],
            1 => &SERVICES[SCTP_SERVICES],
            _ => &SERVICES[..SCTP_SERVICES.start],
        };
        let (_, protocol, published, _) = dice.pick(services);
        let (client, service) = if dice.one_in(3) { client_and_node6(dice) } else { client_and_node(dice) };
        let port = dice.pick(&[40_000, 40_001, 33_333, 65_535]);
        let published = if dice.one_in(40) { 22 } else { published };
        FlowTuple::new((client, Port::new(port)), (service, Port::new(published)), protocol)
    })
}

fn client_and_node(dice: &mut Dice) -> (Ip, Ip) {
    let client = if dice.one_in(15) { dice.pick(&[OWN[0], PEERS[0]]) } else { dice.pick(&CLIENTS) };
    let service = match dice.below(25) {
        0 => dice.pick(&[Ip4::LOCALHOST, STRANGER]),
        1 => dice.pick(&[PEERS[0], PEERS_OTHER]),
        2..8 => OWN[1],
        _ => OWN[0],
    };
    (client.into(), service.into())
}

fn client_and_node6(dice: &mut Dice) -> (Ip, Ip) {
    let client = if dice.one_in(15) { dice.pick(&[OWN6, PEER6]) } else { dice.pick(&CLIENTS6) };
    let service = match dice.below(25) {
        0 => dice.pick(&[Ip::LOCALHOST6, STRANGER6]),
        1 => PEER6,
        _ => OWN6,
    };
    (client, service)
}

fn as_tuple(key: &ForwardKey) -> FlowTuple {
    FlowTuple::new((key.client, key.client_port), (key.service, key.service_port), key.protocol)
}

fn reversed(tuple: &FlowTuple) -> FlowTuple {
    let (source, destination) =
        ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    FlowTuple::new(destination, source, tuple.protocol)
}

/// A packet of a flow, whole or a fragment, or an error about its answer.
fn of_client(dice: &mut Dice, macs: (MacAddr, MacAddr), tuple: &FlowTuple) -> Vec<u8> {
    let mut headers = Headers::of(macs, tuple);
    if dice.one_in(9) {
        headers.protocol = headers.family().icmp_protocol();
        if dice.one_in(3) {
            headers.source = if tuple.source.is_v4() { STRANGER.into() } else { STRANGER6 };
        }
        let message = icmp_error(dice, &headers, &reversed(tuple));
        return headers.frame(dice, &message);
    }
    headers.id = u8::try_from(dice.below(4)).unwrap();
    headers.fragment = match dice.below(16) {
        0 => MORE_FRAGMENTS,
        1 => 3,
        2 => MORE_FRAGMENTS | 5,
        3..9 => DONT_FRAGMENT,
        _ => 0,
    };
    let mut segment = transport(dice, tuple);
    if dice.one_in(60) {
        segment.resize(dice.pick(&[1190, 1191, 1210, 1211, 1410, 1411, 1430, 1431]), 7);
    }
    headers.frame(dice, &segment)
}

/// On the uplink.
pub fn from_outside(dice: &mut Dice, tables: &Tables) -> Vec<u8> {
    let tuple = client_flow(dice, tables);
    match dice.below(30) {
        0 => probe(dice, tables),
        1 => {
            let mut frame = of_client(dice, OUTSIDE, &tuple);
            let kind = dice.pick(&[[8, 6], [0x88, 0xcc], [0x81, 0]]);
            frame[12..14].copy_from_slice(&kind);
            frame
        }
        2 => ping(dice, OUTSIDE, (tuple.source, tuple.destination)),
        3 => of_client(dice, FLOODED, &tuple),
        _ => of_client(dice, OUTSIDE, &tuple),
    }
}

fn probe(dice: &mut Dice, tables: &Tables) -> Vec<u8> {
    let port = tables.wanted.config.vxlan_port;
    let from =
        (dice.pick(&[PEERS[0], PEERS[1], STRANGER]), Port::new(dice.pick(&[51_000, 51_000, 4789, 8472])));
    let tuple = FlowTuple::new(from, (dice.pick(&[OWN[0], OWN[0], OWN[1]]), port), protocol::UDP);
    let vni = dice.pick(&[PROBE_VNI, PROBE_VNI, PROBE_VNI, INGRESS]);
    let mut datagram = [tuple.source_port.0, tuple.destination_port.0, [0, 20], [0, 0]].concat();
    datagram.extend([dice.pick(&[8, 8, 8, 0]), 0, 0, 0]);
    datagram.extend((vni << 8).to_be_bytes());
    datagram.extend(b"echo");
    Headers::of(OUTSIDE, &tuple).frame(dice, &datagram)
}

/// What a node sends that has tunnelled a frame; now and then one that the kernel has to judge.
pub fn in_tunnel(dice: &mut Dice, tables: &Tables, (vni, remote): (u32, Ip4), inner: &[u8]) -> Vec<u8> {
    let port = tables.wanted.config.vxlan_port;
    let to = if dice.one_in(30) { OWN[1] } else { OWN[0] };
    let tuple = FlowTuple::new((remote, Port::new(51_000)), (to, port), protocol::UDP);
    let length = u16::try_from(inner.len() + 16).unwrap();
    let mut datagram = [tuple.source_port.0, port.0, length.to_be_bytes(), [0, 0]].concat();
    datagram.extend([8, 0, 0, 0]);
    datagram.extend((vni << 8).to_be_bytes());
    datagram.extend(inner);
    if dice.one_in(20) {
        let position = 6 + dice.below(10);
        datagram[position] ^= 1 << dice.below(8);
    }
    let macs = if dice.one_in(30) { (CLIENT_MAC, CLIENT_MAC) } else { OUTSIDE };
    let mut frame = Headers::of(macs, &tuple).frame(dice, &datagram);
    let congestion = dice.pick(&[0, 0, 0, 1, 2, 3]);
    let sound = checksum(&frame[14..34]) == 0;
    frame[15] = congestion;
    if sound && frame[14] == 0x45 {
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    }
    frame
}

fn ping(dice: &mut Dice, macs: (MacAddr, MacAddr), between: (Ip, Ip)) -> Vec<u8> {
    let nowhere = Port::default();
    let family = Family::of_address(between.0);
    let tuple = FlowTuple::new((between.0, nowhere), (between.1, nowhere), family.icmp_protocol());
    let kinds = match family {
        Family::V4 => [8, 8, 8, 0, 13],
        Family::V6 => [128, 128, 128, 129, 133],
    };
    let mut message = vec![dice.pick(&kinds), dice.pick(&[0, 0, 0, 3])];
    message.extend(dice.bytes(10));
    let headers = Headers::of(macs, &tuple);
    icmp_checksum(dice, &headers, &mut message);
    headers.frame(dice, &message)
}

/// Between any two of these addresses.
fn between(
    dice: &mut Dice,
    macs: (MacAddr, MacAddr),
    source: impl Into<Ip>,
    destination: impl Into<Ip>,
) -> Vec<u8> {
    let ports = [40_000, 80, 53].map(Port::new);
    let kind = dice.pick(&[protocol::TCP, protocol::UDP, protocol::SCTP]);
    let tuple = FlowTuple::new((source, dice.pick(&ports)), (destination, dice.pick(&ports)), kind);
    let segment = transport(dice, &tuple);
    Headers::of(macs, &tuple).frame(dice, &segment)
}

/// Inside the tunnel.
pub fn from_node(dice: &mut Dice, tables: &Tables, vni: u32, remote: Ip4) -> Vec<u8> {
    let endpoints = tables.wanted.endpoints.iter().filter(|(key, _)| key.vni == vni);
    let endpoints: Vec<Ip4> = endpoints.map(|(key, _)| key.address).collect();
    let endpoint = |dice: &mut Dice| {
        if endpoints.is_empty() || dice.one_in(20) { STRANGER } else { dice.pick(&endpoints) }
    };
    if dice.one_in(if vni == INGRESS { 10 } else { 2 })
        && let Some(key) = pick_vip_flow(dice, tables, |key| key.is_of_answers() && key.vni == vni)
    {
        let macs = (ROUTER_MAC, MacAddr::of_endpoint(key.client));
        return of_client(dice, macs, &vip_tuple(&key));
    }
    match (vni == INGRESS, dice.below(12)) {
        // Answers to clients, and packets for this node's processes.
        (true, 0) => {
            let (from, to) = if dice.one_in(3) {
                (OWN6, dice.pick(&[CLIENTS6[0], OWN6, PEER6]))
            } else {
                (dice.pick(&OWN).into(), dice.pick(&[CLIENTS[0], OWN[0], PEERS[1]]).into())
            };
            let backend = endpoint(dice);
            let sender = if dice.one_in(2) { ROUTER_MAC } else { MacAddr::of_endpoint(backend) };
            if dice.one_in(2) {
                let answer = reversed(&client_flow(dice, tables));
                return of_client(dice, (sender, ROUTER_MAC), &answer);
            }
            between(dice, (sender, ROUTER_MAC), from, to)
        }
        (true, 1) => {
            let from = endpoint(dice);
            if dice.one_in(3) {
                let to = dice.pick(&[OWN6, OWN6, CLIENTS6[1]]);
                return between(dice, (ROUTER_MAC, ROUTER_MAC), in_network6(vni, from), to);
            }
            let to = dice.pick(&[OWN[0], OWN[1], CLIENTS[1]]);
            between(dice, (ROUTER_MAC, ROUTER_MAC), from, to)
        }
        (true, 2) => {
            let to = endpoint(dice);
            let macs = (ROUTER_MAC, MacAddr::of_endpoint(to));
            if dice.one_in(3) {
                let from = dice.pick(&[PEER6, CLIENTS6[0], OWN6]);
                return between(dice, macs, from, in_network6(vni, to));
            }
            let from = dice.pick(&[remote, PEERS_OTHER, CLIENTS[0], OWN[0]]);
            between(dice, macs, from, to)
        }
        (true, 3..) => {
            let tuple = client_flow(dice, tables);
            let among: &[Ip4] = if dice.one_in(8) { &BACKENDS } else { &BACKENDS[..3] };
            let known = tables.written.flows.keys().find(|key| as_tuple(key) == tuple);
            let known = known.map(|key| key.endpoint).filter(|_| !dice.one_in(3));
            let to = known.unwrap_or_else(|| dice.pick(among));
            let from = inner_source(dice, tables);
            of_client(dice, (from, MacAddr::of_endpoint(to)), &tuple)
        }
        (false, _) => {
            let (from, to) = (endpoint(dice), endpoint(dice));
            let mac = if dice.one_in(12) { ROUTER_MAC } else { MacAddr::of_endpoint(to) };
            let to = if dice.one_in(12) { OVERLAY_TASKS[2] } else { to };
            if dice.one_in(3) {
                return between(dice, (ROUTER_MAC, mac), in_network6(vni, from), in_network6(vni, to));
            }
            between(dice, (ROUTER_MAC, mac), from, to)
        }
    }
}

fn pick_vip_flow(
    dice: &mut Dice,
    tables: &Tables,
    is_meant: impl Fn(&VipFlowKey) -> bool,
) -> Option<VipFlowKey> {
    let keys: Vec<VipFlowKey> =
        tables.written.vip_flows.keys().filter(|key| is_meant(key)).copied().collect();
    dice.pick_from(keys.into_iter())
}

/// As the packets have it that a row is about.
fn vip_tuple(key: &VipFlowKey) -> FlowTuple {
    // Who asked itself was asked by the gateway.
    let asks_itself = key.is_of_answers() && key.client == key.service;
    let [a, b, c, _] = key.client.0;
    let client = if asks_itself { Ip4([a, b, c, 1]) } else { key.client };
    let address = |name: Ip4| {
        if key.kind & VIP_FLOW_V6 != 0 { in_network6(key.vni, name) } else { name.into() }
    };
    let (client, service) = ((address(client), key.client_port), (address(key.service), key.service_port));
    let asked = FlowTuple::new(client, service, key.protocol);
    if key.is_of_answers() { reversed(&asked) } else { asked }
}

/// What a task sends to a virtual address, answers to who asked it by one, or says of such a packet.
fn by_vip(dice: &mut Dice, tables: &Tables, attachment: &Attachment) -> Vec<u8> {
    let of_task = |key: &VipFlowKey| {
        let sender = if key.is_of_answers() { key.service } else { key.client };
        key.vni == attachment.vni && sender == attachment.address
    };
    if dice.one_in(2)
        && let Some(key) = pick_vip_flow(dice, tables, of_task)
    {
        return of_client(dice, macs(attachment), &vip_tuple(&key));
    }
    let vip = if attachment.vni == INGRESS || dice.one_in(8) { VIPS[1] } else { VIPS[0] };
    let kind = if dice.one_in(3) { VIP_FLOW_V6 } else { 0 };
    let from = dice.pick(&[40_000, 40_001, 40_002, 40_003, 40_004, 80]);
    let to = dice.pick(&[80, 80, 53]);
    let (client, service) = ((attachment.address, Port::new(from)), (vip, Port::new(to)));
    let protocol = dice.pick(&[protocol::TCP, protocol::UDP]);
    let key = VipFlowKey::new(attachment.vni, client, service, protocol, kind);
    of_client(dice, macs(attachment), &vip_tuple(&key))
}

/// An address of a network's prefix, which that may not have now.
fn in_network6(vni: u32, name: Ip4) -> Ip {
    address6(&prefix6(vni), name)
}

/// What chose a packet's destination: mostly a ring in use, or one that this node has had.
fn inner_source(dice: &mut Dice, tables: &Tables) -> MacAddr {
    let rings: Vec<&Vec<Ip4>> = tables.wanted.rings.values().flatten().collect();
    let hops = 1 + u8::try_from(dice.below(usize::from(MAX_HOPS) + 1)).unwrap();
    match dice.below(8) {
        0 => Chooser { hops, fingerprint: u16::from_be_bytes(dice.word()) }.mac(),
        1..4 if !rings.is_empty() => {
            let places = rings[dice.below(rings.len())];
            Chooser { hops: 1 + hops % 4, fingerprint: fingerprint(places) }.mac()
        }
        4 if dice.one_in(4) => CLIENT_MAC,
        _ => ROUTER_MAC,
    }
}

/// Into the tunnel device.
pub fn from_host(dice: &mut Dice, tables: &Tables) -> Vec<u8> {
    let mut frame = if dice.one_in(4) {
        let to = match dice.below(12) {
            0 => dice.pick(&[ALL_NODES, CLIENTS6[0]]),
            _ => in_network6(INGRESS, dice.pick(&BACKENDS)),
        };
        let from = dice.pick(&[OWN6, OWN6, OWN6, CLIENTS6[0]]);
        between(dice, OUTSIDE, from, to)
    } else {
        let from = dice.pick(&[OWN[0], OWN[0], OWN[1], CLIENTS[0], BACKENDS[0]]);
        let to = match dice.below(12) {
            0 => dice.pick(&[Ip4([224, 0, 0, 1]), Ip4([255, 255, 255, 255]), CLIENTS[0]]),
            1 => dice.pick(&OVERLAY_TASKS),
            _ => dice.pick(&BACKENDS),
        };
        between(dice, OUTSIDE, from, to)
    };
    if dice.one_in(30) || tables.wanted.config == ebpf_abi::NodeConfig::default() {
        frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    }
    frame
}

/// From one of the node's tasks, or who says to be one.
pub fn from_task(dice: &mut Dice, tables: &Tables) -> (u32, Vec<u8>) {
    let ifindex = match dice.below(40) {
        0 => STRAY_END,
        1..6 => dice.pick(&WAYS_OUT),
        6..12 => dice.pick(&OVERLAY_ENDS),
        _ => dice.pick(&INGRESS_ENDS),
    };
    let Some(attachment) = tables.wanted.attachments.get(&ifindex) else {
        return (ifindex, between(dice, OUTSIDE, CLIENTS[0], OWN[0]));
    };
    let mut frame = match dice.below(12) {
        0 if dice.one_in(2) => solicitation(dice, attachment),
        0 => question(dice, attachment),
        1 if attachment.flags & ATTACHMENT_WAY_OUT != 0 => of_link(dice, attachment),
        1..3 => to_neighbour(dice, attachment),
        3 if attachment.flags & ATTACHMENT_WAY_OUT == 0 => by_vip(dice, tables, attachment),
        5..11 if attachment.flags & (ATTACHMENT_INGRESS | ATTACHMENT_WAY_OUT) == 0 => {
            by_vip(dice, tables, attachment)
        }
        4 => error(dice, tables, attachment),
        _ => answer(dice, tables, attachment),
    };
    if dice.one_in(40) {
        frame[6 + dice.below(6)] ^= 1;
    }
    if dice.one_in(60) {
        frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    }
    (ifindex, frame)
}

/// Who the task is on this leg.
fn own_name(attachment: &Attachment) -> Ip4 {
    attachment.mac.endpoint().expect("all of the world's MACs name their address")
}

fn macs(attachment: &Attachment) -> (MacAddr, MacAddr) {
    (attachment.mac, ROUTER_MAC)
}

/// What a task of the ingress network answers to a client; from the way out, by the address there.
fn answer(dice: &mut Dice, tables: &Tables, attachment: &Attachment) -> Vec<u8> {
    let answered = tables.written.replies.iter().filter(|(key, _)| key.endpoint == attachment.address);
    let answered: Vec<_> = answered.map(|(key, _)| *key).collect();
    let Some(key) = (!answered.is_empty()).then(|| dice.pick(&answered)) else {
        let client = dice.pick(&CLIENTS);
        return between(dice, macs(attachment), own_name(attachment), client);
    };
    let client = as_task_sees(tables, &key);
    // Any address of its own, by the way out.
    let others = [own_name(attachment), key.endpoint, STRANGER];
    let is_way_out = attachment.flags & ATTACHMENT_WAY_OUT != 0;
    let (name, vni) = if is_way_out {
        (dice.pick(&others), dice.pick(&[BRIDGE_VNI, OVERLAY]))
    } else {
        (key.endpoint, INGRESS)
    };
    let source = match Family::of_address(client) {
        Family::V4 => name.into(),
        Family::V6 => in_network6(vni, name),
    };
    let tuple = FlowTuple::new((source, key.target_port), (client, key.client_port), key.protocol);
    let mut headers = Headers::of(macs(attachment), &tuple);
    headers.id = u8::try_from(dice.below(3)).unwrap();
    headers.fragment = dice.pick(&[0, 0, 0, 0, DONT_FRAGMENT, DONT_FRAGMENT, MORE_FRAGMENTS, 9]);
    let mut segment = transport(dice, &tuple);
    if dice.one_in(60) {
        segment.resize(dice.pick(&[1390, 1391, 1410, 1411, 1430]), 7);
    }
    headers.frame(dice, &segment)
}

/// The client's address, or the one that stands for it if the flow is translated.
fn as_task_sees(tables: &Tables, key: &ReplyKey) -> Ip {
    let written = &tables.written;
    let forward = written.replies.get(key).and_then(|row| written.flows.get(&key.forward_key(row)));
    let stand_in = written.stand_ins.iter().find(|(_, row)| row.client == key.client);
    match (forward, stand_in) {
        (Some(row), Some((address, _))) if row.family == FLOW_AS_IPV4 => (*address).into(),
        _ => key.client,
    }
}

fn error(dice: &mut Dice, tables: &Tables, attachment: &Attachment) -> Vec<u8> {
    let own = tables.written.replies.keys().filter(|key| key.endpoint == attachment.address);
    let own: Vec<ReplyKey> = own.copied().collect();
    let about = if own.is_empty() || dice.one_in(4) {
        dice.pick_from(tables.written.replies.keys()).copied()
    } else {
        Some(dice.pick(&own))
    };
    let Some(key) = about else { return to_neighbour(dice, attachment) };
    let client = (as_task_sees(tables, &key), key.client_port);
    let of_client = |name: Ip4| if client.0.is_v4() { name.into() } else { in_network6(INGRESS, name) };
    let asked = FlowTuple::new(client, (of_client(key.endpoint), key.target_port), key.protocol);
    let mut headers = Headers::of(macs(attachment), &reversed(&asked));
    headers.protocol = headers.family().icmp_protocol();
    headers.source = of_client(attachment.address);
    let message = icmp_error(dice, &headers, &asked);
    headers.frame(dice, &message)
}

fn to_neighbour(dice: &mut Dice, attachment: &Attachment) -> Vec<u8> {
    let source = if dice.one_in(15) { STRANGER } else { own_name(attachment) };
    let destinations = [
        attachment.gateway,
        VIPS[0],
        VIPS[1],
        OVERLAY_TASKS[0],
        OVERLAY_TASKS[1],
        OVERLAY_TASKS[2],
        BACKENDS[0],
        BACKENDS[1],
        BACKENDS[3],
        BACKENDS[5],
        OWN[0],
        PEERS[0],
        PEERS_OTHER,
        CLIENTS[0],
        Ip4([239, 1, 1, 1]),
    ];
    let to = dice.pick(&destinations);
    let (source, to) = if dice.one_in(3) {
        let others = [OWN6, PEER6, CLIENTS6[0], ALL_NODES];
        let to = if dice.one_in(5) { dice.pick(&others) } else { in_network6(attachment.vni, to) };
        (in_network6(attachment.vni, source), to)
    } else {
        (source.into(), to.into())
    };
    if dice.one_in(3) {
        return ping(dice, macs(attachment), (source, to));
    }
    between(dice, macs(attachment), source, to)
}

/// A neighbour solicitation (RFC 4861 section 4.3): from an address, or from nobody yet; to many, or to one.
fn solicitation(dice: &mut Dice, attachment: &Attachment) -> Vec<u8> {
    let targets = [
        attachment.gateway,
        attachment.gateway,
        attachment.address,
        VIPS[0],
        OVERLAY_TASKS[1],
        BACKENDS[1],
        BACKENDS[2],
        CLIENTS[0],
    ];
    let target = in_network6(attachment.vni, dice.pick(&targets));
    let target = if dice.one_in(20) { STRANGER6 } else { target };
    let source = match dice.below(12) {
        0 => Ip::UNSPECIFIED,
        1 => in_network6(attachment.vni, STRANGER),
        _ => in_network6(attachment.vni, own_name(attachment)),
    };
    let nowhere = Port::default();
    let to = if dice.one_in(3) { target } else { ALL_NODES };
    let tuple = FlowTuple::new((source, nowhere), (to, nowhere), protocol::ICMP6);
    let mut message =
        vec![dice.pick(&[135, 135, 135, 135, 136]), u8::from(dice.one_in(20)), 0, 0, 0, 0, 0, 0];
    message.extend(target.0);
    if !dice.one_in(4) {
        message.extend([1, 1]);
        message.extend(attachment.mac.0);
    }
    let headers = Headers::of(macs(attachment), &tuple);
    icmp_checksum(dice, &headers, &mut message);
    headers.frame(dice, &message)
}

/// What nodes say to their link of themselves, and what routers alone or others would say.
fn of_link(dice: &mut Dice, attachment: &Attachment) -> Vec<u8> {
    let own = in_network6(attachment.vni, own_name(attachment));
    let other = in_network6(attachment.vni, attachment.gateway);
    let (link_local, others) = (link_local(attachment.mac), link_local(ROUTER_MAC));
    let source = dice.pick(&[own, own, link_local, link_local, Ip::UNSPECIFIED, other, others]);
    let target = dice.pick(&[own, own, own, link_local, other, others]);
    let nowhere = Port::default();
    let tuple = FlowTuple::new((source, nowhere), (ALL_NODES, nowhere), protocol::ICMP6);
    let mut message = vec![dice.pick(&[136, 136, 136, 135, 135, 133, 134, 137, 130, 131, 132, 143])];
    message.extend([0; 7]);
    message.extend(target.0);
    let mut headers = Headers::of(macs(attachment), &tuple);
    headers.fragment = dice.pick(&[0, 0, 0, 0, 0, 0, MORE_FRAGMENTS, 3]);
    icmp_checksum(dice, &headers, &mut message);
    if dice.one_in(20) {
        message.truncate(dice.below(message.len()));
    }
    headers.frame(dice, &message)
}

/// RFC 4291 appendix A.
fn link_local(MacAddr(mac): MacAddr) -> Ip {
    let [start, end] = [[mac[0] ^ 2, mac[1], mac[2], 0xff], [0xfe, mac[3], mac[4], mac[5]]];
    let all = [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0], &start[..], &end].concat();
    Ip(all.try_into().unwrap())
}

fn question(dice: &mut Dice, attachment: &Attachment) -> Vec<u8> {
    let targets =
        [attachment.gateway, attachment.address, VIPS[0], OVERLAY_TASKS[1], BACKENDS[1], CLIENTS[0]];
    let mut frame = [[0xff; 6], attachment.mac.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, dice.pick(&[1, 1, 1, 1, 2])]);
    frame.extend(if dice.one_in(20) { ROUTER_MAC.0 } else { attachment.mac.0 });
    frame.extend(if dice.one_in(10) { STRANGER.0 } else { own_name(attachment).0 });
    frame.extend([0; 6]);
    frame.extend(dice.pick(&targets).0);
    frame
}
