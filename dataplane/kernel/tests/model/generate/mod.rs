//! What a run does, decided by its seed and by what the tables hold by then: mostly packets of flows that go on, and their
//! answers.

pub mod dice;
mod frames;
mod places;
pub mod world;

use std::net::Ipv6Addr;

use ebpf_abi::limits::{BRIDGE_VNI, MAX_VIP_ROWS_OF_TASK};
use ebpf_abi::{Endpoint, EndpointKey, Frontend, Ip, Ip4, MacAddr, Port, ProgramId, RingKey, protocol};

use crate::kernel::SHORTEST_SKB;
use crate::packet::{
    Change, Listens, NextHop, Packet, STRAY_END, SocketAddress, SocketCall, Step, TUNNEL, UPLINK,
};
use crate::tables::{Tables, address6};
use dice::Dice;
use world::{
    BACKENDS, CLIENTS, INGRESS, NODE_COOKIE, OVERLAPPING, OVERLAY, OVERLAY_TASKS, OWN, OWN6, PEERS,
    SANDBOX_COOKIES, SERVICES, STRANGE_COOKIE, STRANGER, VIPS, prefix6,
};

/// The next step of a run whose tables are these.
pub fn next(dice: &mut Dice, tables: &Tables) -> Step {
    match dice.below(100) {
        0 => Step::Change(change(dice, tables)),
        1..6 => Step::Socket(socket_call(dice, tables)),
        6..17 => {
            Step::Packet(packet(dice, tables, ProgramId::MeshXdp, |dice| places::from_outside(dice, tables)))
        }
        17..27 => Step::Packet(packet(dice, tables, ProgramId::MeshUplink, |dice| {
            let (vni, remote) = (vni(dice), dice.pick(&[PEERS[0], PEERS[1], STRANGER]));
            let inner = places::from_node(dice, tables, vni, remote);
            places::in_tunnel(dice, tables, (vni, remote), &inner)
        })),
        27..48 => Step::Packet(packet(dice, tables, ProgramId::MeshUplink, |dice| {
            places::from_outside(dice, tables)
        })),
        48..70 => Step::Packet(tunnelled(dice, tables)),
        70..76 => Step::Packet(packet(dice, tables, ProgramId::MeshVxlanOut, |dice| {
            places::from_host(dice, tables)
        })),
        _ => {
            let (ifindex, frame) = places::from_task(dice, tables);
            let mut packet = packet(dice, tables, ProgramId::MeshTask, |_| frame);
            (packet.ifindex, packet.ingress_ifindex) = (ifindex, ifindex);
            Step::Packet(packet)
        }
    }
}

fn packet(
    dice: &mut Dice,
    tables: &Tables,
    program: ProgramId,
    frame: impl FnOnce(&mut Dice) -> Vec<u8>,
) -> Packet {
    let mut bytes = frame(dice);
    if dice.one_in(100) {
        let count = 14 + dice.below(100);
        bytes = dice.bytes(count);
    }
    frames::spoil(dice, &mut bytes);
    let is_out = program == ProgramId::MeshVxlanOut;
    let ifindex = if is_out { TUNNEL } else { UPLINK };
    // Cutting a frame makes one packet of an aggregate.
    let is_aggregate = dice.one_in(10) && bytes.len() >= SHORTEST_SKB;
    let from_host = is_out && !dice.one_in(4);
    Packet {
        program,
        bytes,
        ifindex,
        ingress_ifindex: if from_host { 0 } else { UPLINK },
        tunnel: (is_out && dice.one_in(6)).then_some((INGRESS, PEERS[0].into())),
        is_aggregate,
        next_hop: next_hop(dice, tables),
        listens: Listens { v6: dice.one_in(4), v4: !dice.one_in(4) },
    }
}

fn next_hop(dice: &mut Dice, tables: &Tables) -> NextHop {
    let uplink = tables.wanted.config.uplink_ifindex;
    let ifindex = if dice.one_in(12) { STRAY_END } else { uplink };
    let [source, destination] = [11, 12].map(|last| MacAddr([2, 0, 0, 0, 0, last]));
    let result = match dice.below(24) {
        0 => 4,
        1 | 2 => 7,
        _ => 0,
    };
    let (gateway, mtu) = (dice.pick(&[PEERS[0], STRANGER]), dice.pick(&[1500, 1500, 100, 9000]));
    NextHop { result, ifindex, gateway: gateway.into(), mtu, source, destination }
}

fn vni(dice: &mut Dice) -> u32 {
    match dice.below(20) {
        0 => dice.pick(&[0, 5000, OVERLAPPING, BRIDGE_VNI]),
        1..4 => OVERLAY,
        _ => INGRESS,
    }
}

fn tunnelled(dice: &mut Dice, tables: &Tables) -> Packet {
    let vni = vni(dice);
    let remote = if dice.one_in(25) { STRANGER } else { dice.pick(&PEERS) };
    let mut packet =
        packet(dice, tables, ProgramId::MeshVxlan, |dice| places::from_node(dice, tables, vni, remote));
    (packet.ifindex, packet.ingress_ifindex) = (TUNNEL, TUNNEL);
    packet.tunnel = if dice.one_in(60) { None } else { Some((vni, remote.into())) };
    packet
}

fn socket_call(dice: &mut Dice, tables: &Tables) -> SocketCall {
    let program = dice.pick(&[
        ProgramId::MeshConnect4,
        ProgramId::MeshSendmsg4,
        ProgramId::MeshRecvmsg4,
        ProgramId::MeshGetpeername4,
        ProgramId::MeshConnect6,
        ProgramId::MeshSendmsg6,
        ProgramId::MeshRecvmsg6,
        ProgramId::MeshGetpeername6,
    ]);
    let netns_cookie = match dice.below(10) {
        0 => STRANGE_COOKIE,
        1..4 => NODE_COOKIE,
        _ => dice.pick(&SANDBOX_COOKIES),
    };
    let (_, mut kind, published, _) = dice.pick(&SERVICES);
    let addresses = [OWN[0], OWN[1], VIPS[0], VIPS[1], Ip4::LOCALHOST, Ip4::UNSPECIFIED, CLIENTS[0]];
    let (mut address, mut port): (Ip, Port) = (dice.pick(&addresses).into(), Port::new(published));
    let mut socket_cookie = 1 + dice.number() % 4;
    let asks = [
        ProgramId::MeshRecvmsg4,
        ProgramId::MeshRecvmsg6,
        ProgramId::MeshGetpeername4,
        ProgramId::MeshGetpeername6,
    ]
    .contains(&program);
    if asks
        && dice.one_in(2)
        && let Some(key) = dice.pick_from(tables.written.socket_nat.keys())
    {
        (address, port, kind, socket_cookie) = (key.backend, key.port, key.protocol, key.socket_cookie);
    }
    let protocol = if dice.one_in(30) { protocol::ICMP } else { kind };
    let is_v6 = [
        ProgramId::MeshConnect6,
        ProgramId::MeshSendmsg6,
        ProgramId::MeshRecvmsg6,
        ProgramId::MeshGetpeername6,
    ]
    .contains(&program);
    let address = if is_v6 { address_in_v6(dice, address) } else { SocketAddress::V4(address.low()) };
    SocketCall { program, netns_cookie, socket_cookie, protocol, address, port }
}

/// Mostly as it is, IPv4 mapped (RFC 4291 section 2.5.5.2); this host's own; the same in a network's prefix, and one that
/// differs in a bit of that.
fn address_in_v6(dice: &mut Dice, address: Ip) -> SocketAddress {
    let of_network = match address.to_v4() {
        Some(name) => address6(&prefix6(dice.pick(&[OVERLAY, OVERLAY, OVERLAPPING])), name),
        None => address,
    };
    let mut other = of_network;
    other.0[dice.below(16)] ^= 1;
    let address = match dice.below(16) {
        0 => Ip::LOCALHOST6,
        1 => Ip::UNSPECIFIED,
        2 => other,
        3 => OWN6,
        4..9 => of_network,
        _ => address,
    };
    SocketAddress::V6(Ipv6Addr::from(address.0))
}

fn change(dice: &mut Dice, tables: &Tables) -> Change {
    let wanted = &tables.wanted;
    let backend = dice.pick(&BACKENDS);
    let key = EndpointKey { vni: INGRESS, address: backend };
    match dice.below(31) {
        0..5 => Change::Tick(wanted.tick + u32::try_from(dice.below(40)).unwrap()),
        5..9 => {
            let ring = RingKey::new(1 + dice.number() % 2, INGRESS);
            Change::Ring(ring, world::ring(dice, INGRESS))
        }
        10 | 11 => Change::EmptyCaches,
        12 => Change::EmptyFlows,
        13..16 => {
            let forward = dice.pick_from(tables.written.flows.keys()).copied();
            Change::ForgetFlow(forward, dice.pick_from(tables.written.replies.keys()).copied())
        }
        16 => Change::Endpoint(key, None),
        17 | 18 => {
            let mac = MacAddr::of_endpoint(backend);
            let endpoint = Endpoint::remote(mac, dice.pick(&PEERS).into()).serving(dice.one_in(2));
            Change::Endpoint(key, Some(endpoint))
        }
        19 | 20 => {
            let row = wanted.endpoints.get(&key).map(|row| row.serving(!row.serves()));
            Change::Endpoint(key, row)
        }
        21 => Change::AddressOwner(
            dice.pick(&[OWN[1].into(), PEERS[0].into(), OWN6]),
            dice.pick(&[None, Some(Ip::UNSPECIFIED), Some(PEERS[1].into())]),
        ),
        22 => {
            let port = dice.pick_from(wanted.target_ports.iter());
            let toggled = dice.one_in(2);
            port.map_or(Change::EmptyCaches, |(key, row)| {
                Change::TargetPort(*key, toggled.then(|| row.with_dsr(row.way == 0)))
            })
        }
        9 => {
            let vni = dice.pick(&[INGRESS, OVERLAY]);
            let address =
                if vni == INGRESS { dice.pick(&BACKENDS[..3]) } else { dice.pick(&OVERLAY_TASKS[..2]) };
            let left = dice.pick(&[0, 1, 2, 3, MAX_VIP_ROWS_OF_TASK]);
            Change::VipShare(EndpointKey { vni, address }, MAX_VIP_ROWS_OF_TASK - left)
        }
        25 => {
            let key = dice.pick_from(tables.written.vip_flows.keys());
            key.map_or(Change::EmptyCaches, |key| Change::ForgetVipFlow(*key))
        }
        26 | 27 => {
            let key = EndpointKey { vni: OVERLAY, address: dice.pick(&OVERLAY_TASKS) };
            let row = wanted.endpoints.get(&key).map(|row| row.serving(!row.serves()));
            Change::Endpoint(key, row.filter(|_| !dice.one_in(4)))
        }
        29 => {
            let frontend = dice.pick_from(wanted.frontends.iter());
            let ring = RingKey::new(1 + dice.number() % 2, INGRESS);
            frontend.map_or(Change::EmptyCaches, |(key, row)| {
                Change::Frontend(*key, Frontend::new(ring, row.target))
            })
        }
        28 => Change::Ring(RingKey::new(2, OVERLAY), world::ring(dice, OVERLAY)),
        23 | 24 => {
            let vni = dice.pick(&[INGRESS, OVERLAY, BRIDGE_VNI]);
            Change::Prefix6(vni, (!dice.one_in(3)).then(|| prefix6(vni)))
        }
        _ => Change::Config(world::config(dice)),
    }
}
