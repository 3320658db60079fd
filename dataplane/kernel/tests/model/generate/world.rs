//! Seeded tables: a node with two peers, a handful of backends here and there, services that have them or have none, and
//! now and then a row that is missing.

use std::ops::Range;

use ebpf_abi::limits::BRIDGE_VNI;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT, CONFIG_XDP_REDIRECT};
use ebpf_abi::{
    Attachment, Endpoint, EndpointKey, Frontend, FrontendKey, Ip, Ip4, MacAddr, NodeConfig, Peer, Port,
    Prefix6, RingKey, SandboxNetworks, TargetPort, TargetPortKey, VipKey, protocol,
};

use super::dice::Dice;
use crate::packet::{INGRESS_ENDS, OVERLAY_ENDS, TUNNEL, UPLINK, WAYS_OUT, XDP_UPLINK};
use crate::tables::Wanted;

pub const INGRESS: u32 = 4096;
pub const OVERLAY: u32 = 4097;
/// Its addresses are the ingress network's too.
pub const OVERLAPPING: u32 = 4098;
pub const OWN: [Ip4; 2] = [Ip4([198, 18, 0, 11]), Ip4([198, 18, 0, 21])];
pub const PEERS: [Ip4; 2] = [Ip4([198, 18, 0, 12]), Ip4([198, 18, 0, 13])];
/// A further address of the first peer.
pub const PEERS_OTHER: Ip4 = Ip4([198, 18, 0, 32]);
pub const STRANGER: Ip4 = Ip4([198, 18, 0, 66]);
pub const CLIENTS: [Ip4; 3] = [Ip4([203, 0, 113, 1]), Ip4([203, 0, 113, 2]), Ip4([203, 0, 113, 3])];
/// The same nodes' and other clients' IPv6 addresses.
pub const OWN6: Ip = outside6(0x11);
pub const PEER6: Ip = outside6(0x12);
pub const STRANGER6: Ip = outside6(0x66);
pub const CLIENTS6: [Ip; 3] = [outside6(0xc1), outside6(0xc2), outside6(0xc3)];
/// The last has no endpoint.
pub const BACKENDS: [Ip4; 6] = [
    Ip4([10, 0, 0, 5]),
    Ip4([10, 0, 0, 6]),
    Ip4([10, 0, 0, 7]),
    Ip4([10, 0, 0, 8]),
    Ip4([10, 0, 0, 9]),
    Ip4([10, 0, 0, 10]),
];
pub const OVERLAY_TASKS: [Ip4; 3] = [Ip4([10, 0, 1, 5]), Ip4([10, 0, 1, 6]), Ip4([10, 0, 1, 7])];
/// Who have the ways out.
pub const BEHIND: [Ip4; 2] = [Ip4([172, 18, 0, 3]), Ip4([172, 18, 0, 4])];
pub const VIPS: [Ip4; 2] = [Ip4([10, 0, 1, 2]), Ip4([10, 0, 0, 2])];
/// Service, protocol, published and target port. The third's ring is empty, the fourth has none.
pub const SERVICES: [(u64, u8, u16, u16); 8] = [
    (1, protocol::TCP, 8080, 80),
    (1, protocol::UDP, 5353, 53),
    (2, protocol::TCP, 8081, 80),
    (2, protocol::UDP, 8080, 8080),
    (1, protocol::SCTP, 9999, 7),
    (2, protocol::SCTP, 8080, 8080),
    (3, protocol::TCP, 8082, 81),
    (4, protocol::TCP, 8083, 83),
];
/// Which of them are SCTP's; before them are those that packets are mostly for.
pub const SCTP_SERVICES: Range<usize> = 4..6;
/// Whose sockets: the node's, two sandboxes', nobody's.
pub const NODE_COOKIE: u64 = 7;
pub const SANDBOX_COOKIES: [u64; 2] = [8, 9];
pub const STRANGE_COOKIE: u64 = 10;

const fn outside6(last: u8) -> Ip {
    Ip([0x20, 1, 0x0d, 0xb8, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

/// The IPv6 side of a network: its prefix has 64 bits, or as many as leave room for the host number alone.
pub fn prefix6(vni: u32) -> Prefix6 {
    let [_, _, high, low] = vni.to_be_bytes();
    let is_long = u8::from(vni == OVERLAPPING);
    let prefix = Ip([0xfd, 0, 0, 0, 0, 0, high, low, 0, 0, 0, is_long, 0, 0, is_long, 0]);
    let subnet = match vni {
        OVERLAY => Ip4([10, 0, 1, 0]),
        BRIDGE_VNI => Ip4([172, 18, 0, 0]),
        _ => Ip4([10, 0, 0, 0]),
    };
    Prefix6 { prefix, subnet, host_mask: 0xff }
}

/// The tables of one run.
pub fn wanted(dice: &mut Dice) -> Wanted {
    let mut wanted = Wanted { config: config(dice), tick: 100, ..Wanted::default() };
    for peer in PEERS {
        wanted.peers.insert(peer.into(), Peer { mtu: dice.pick(&[0, 1500, 1280, 1400, 9000]) });
    }
    for (address, owner) in [
        (OWN[0].into(), Ip::UNSPECIFIED),
        (OWN[1].into(), Ip::UNSPECIFIED),
        (OWN6, Ip::UNSPECIFIED),
        (PEERS[0].into(), PEERS[0].into()),
        (PEERS[1].into(), PEERS[1].into()),
        (PEERS_OTHER.into(), PEERS[0].into()),
        (PEER6, PEERS[0].into()),
    ] {
        if !dice.one_in(20) {
            wanted.address_owners.insert(address, owner);
        }
    }
    for vni in [INGRESS, OVERLAY, OVERLAPPING, BRIDGE_VNI] {
        if !dice.one_in(10) {
            wanted.prefixes6.insert(vni, prefix6(vni));
        }
    }
    endpoints(dice, &mut wanted);
    attachments(dice, &mut wanted);
    services(dice, &mut wanted);
    wanted
}

pub fn config(dice: &mut Dice) -> NodeConfig {
    if dice.one_in(12) {
        return NodeConfig::default();
    }
    NodeConfig {
        netns_cookie: NODE_COOKIE,
        vtep: OWN[0].into(),
        vxlan_ifindex: TUNNEL,
        ingress_vni: if dice.one_in(30) { 0 } else { INGRESS },
        uplink_ifindex: dice.pick(&[UPLINK, XDP_UPLINK]),
        uplink_mtu: dice.pick(&[1500, 1500, 1280, 9000]),
        flags: dice.pick(&[0, CONFIG_XDP_REDIRECT]),
        vxlan_port: Port::new(dice.pick(&[4789, 4789, 8472])),
        ..NodeConfig::default()
    }
}

/// The first three backends are this node's, if they are at all.
fn endpoints(dice: &mut Dice, wanted: &mut Wanted) {
    let mut add = |vni, address, ifindex: Option<&u32>| {
        if dice.one_in(12) {
            return;
        }
        let mac = MacAddr::of_endpoint(address);
        let endpoint = match ifindex.filter(|_| !dice.one_in(8)) {
            Some(ifindex) => Endpoint::local(mac, *ifindex),
            None => Endpoint::remote(mac, dice.pick(&PEERS).into()),
        };
        wanted.endpoints.insert(EndpointKey { vni, address }, endpoint.serving(!dice.one_in(4)));
    };
    for (index, address) in BACKENDS[..5].iter().enumerate() {
        add(INGRESS, *address, INGRESS_ENDS.get(index));
        add(OVERLAPPING, *address, None);
    }
    for (index, address) in OVERLAY_TASKS.into_iter().enumerate() {
        add(OVERLAY, address, OVERLAY_ENDS.get(index));
    }
}

fn attachments(dice: &mut Dice, wanted: &mut Wanted) {
    let attachment = |vni, address: Ip4, flags| {
        let [a, b, c, _] = address.0;
        let (gateway, mac) = (Ip4([a, b, c, 1]), MacAddr::of_endpoint(address));
        Attachment { vni, address, gateway, mtu: 1450, mac, flags, prefix: 24, sandbox: 0 }
    };
    // The namespace of the third is not known; the first may have a link that is too small for IPv6.
    let mtus = [dice.pick(&[1450, 1450, 1230]), 1450, 1450];
    for (((ifindex, address), sandbox), mtu) in
        INGRESS_ENDS.into_iter().zip(BACKENDS).zip([1, 7, 0]).zip(mtus)
    {
        let row = Attachment { sandbox, mtu, ..attachment(INGRESS, address, ATTACHMENT_INGRESS) };
        wanted.attachments.insert(ifindex, row);
    }
    for (ifindex, address) in OVERLAY_ENDS.into_iter().zip(OVERLAY_TASKS) {
        wanted.attachments.insert(ifindex, attachment(OVERLAY, address, 0));
    }
    // The first is of a task that is in the ingress network.
    for ((ifindex, behind), address) in WAYS_OUT.into_iter().zip(BEHIND).zip([BACKENDS[0], BEHIND[1]]) {
        let row = Attachment { address, ..attachment(BRIDGE_VNI, behind, ATTACHMENT_WAY_OUT) };
        wanted.attachments.insert(ifindex, row);
    }
}

fn services(dice: &mut Dice, wanted: &mut Wanted) {
    for (service, protocol, published, target) in SERVICES {
        let frontend = Frontend::new(RingKey::new(service, INGRESS), Port::new(target));
        for address in [OWN[0].into(), OWN[1].into(), OWN6, Ip::LOCALHOST4] {
            if !dice.one_in(15) {
                wanted.frontends.insert(FrontendKey::new(address, Port::new(published), protocol), frontend);
            }
        }
        for backend in &BACKENDS[..3] {
            if !dice.one_in(15) {
                let key = TargetPortKey::new(*backend, Port::new(published), protocol);
                let port = TargetPort::new(Port::new(target)).with_dsr(dice.one_in(3));
                wanted.target_ports.insert(key, port);
            }
        }
    }
    for (service, vni) in [(1, INGRESS), (2, INGRESS), (3, INGRESS), (2, OVERLAY), (3, OVERLAY)] {
        let key = RingKey::new(service, vni);
        let n_rings = if dice.one_in(12) { 10 } else { 1 + dice.below(4) };
        for _ in 0..n_rings {
            let places = if service == 3 { Vec::new() } else { ring(dice, vni) };
            wanted.swap_ring(key, &places);
        }
    }
    for vni in [OVERLAY, OVERLAPPING] {
        wanted.vips.insert(VipKey { vni, address: VIPS[0] }, RingKey::new(2, OVERLAY));
        wanted.vips.insert(VipKey { vni, address: VIPS[1] }, RingKey::new(3, OVERLAY));
    }
    wanted.vips.insert(VipKey { vni: INGRESS, address: VIPS[1] }, RingKey::new(1, INGRESS));
    let networks =
        [[OVERLAY, INGRESS], [INGRESS, OVERLAPPING]].map(|vnis| SandboxNetworks::new(&vnis).unwrap());
    wanted.sandboxes.extend(SANDBOX_COOKIES.into_iter().zip(networks));
}

/// Places of a ring; few, so that changes are felt.
pub fn ring(dice: &mut Dice, vni: u32) -> Vec<Ip4> {
    let among: &[Ip4] = if vni == INGRESS { &BACKENDS } else { &OVERLAY_TASKS };
    let n_backends = 1 + dice.below(4);
    let backends: Vec<Ip4> = (0..n_backends).map(|_| dice.pick(among)).collect();
    let n_places = if dice.one_in(12) { 0 } else { dice.pick(&[1, 2, 3, 7, 101]) };
    (0..n_places).map(|_| dice.pick(&backends)).collect()
}
