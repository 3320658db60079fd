//! Packets go where the tables say: each way is traced through the maps of both nodes, then a real packet is sent, and the
//! programs' own words are compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use dataplane_kernel::inspect::trace::{Origin, TaskOrigin, trace, trace_arrival, trace_live, trace_marked};
use dataplane_kernel::inspect::{Watch, Which};
use dataplane_kernel::net::namespace::Namespace;
use dataplane_model::inspect::{TraceEnd, TraceReport, TraceWay};
use ebpf_abi::{Endpoint, EndpointKey, Ip, Ip4, MacAddr, Peer, Prefix6, protocol};

use crate::support::lab::{
    INGRESS_PREFIX, INGRESS_VNI, Lab, NODES, NODES6, OVERLAY_PREFIX, OVERLAY_VNI, SHARED_RING, TASKS,
    TASKS_OVERLAY, VIP, VIP_RING, tc_mode,
};

const PATIENCE: Duration = Duration::from_mins(1);
/// A VNI that node 1 has no network of.
const STRANGE_VNI: u32 = 4999;

/// An address of the network that no endpoint has.
fn nobody_of(network: Ip4) -> Ip4 {
    Ip4([network.0[0], network.0[1], network.0[2], 77])
}

/// From task 1, on node 0. Each with the protocol.
fn destinations4() -> Vec<(SocketAddr, u8)> {
    let to = |address: Ip4, port: u16| SocketAddr::new(Ipv4Addr::from(address).into(), port);
    let of_both = [
        to(Ip4(VIP), 8081),
        to(TASKS[0], 80),
        to(TASKS_OVERLAY[0], 80),
        to(nobody_of(TASKS[0]), 80),
        to(nobody_of(TASKS_OVERLAY[0]), 80),
    ];
    let both = of_both.into_iter().flat_map(|to| [(to, protocol::TCP), (to, protocol::UDP)]);
    // Published: by both tasks, by the other node's, by nobody; as datagrams.
    let published = [8081, 8080, 8082].map(|port| (to(NODES[0], port), protocol::TCP));
    let datagrams = [5353, 9999].map(|port| (to(NODES[0], port), protocol::UDP));
    both.chain(published).chain(datagrams).collect()
}

/// The same by IPv6; published ports also at the other node's address, and an address that nobody has.
fn destinations6() -> Vec<(SocketAddr, u8)> {
    let to = |address: Ip, port: u16| SocketAddr::new(address.into(), port);
    let inside = |prefix: Prefix6, address| to(prefix.address(address), 80);
    let nobody = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1));
    let of_both = [
        inside(OVERLAY_PREFIX, Ip4(VIP)),
        inside(INGRESS_PREFIX, TASKS[0]),
        inside(OVERLAY_PREFIX, TASKS_OVERLAY[0]),
        inside(OVERLAY_PREFIX, nobody_of(TASKS_OVERLAY[0])),
        to(nobody.into(), 80),
    ];
    let both = of_both.into_iter().flat_map(|to| [(to, protocol::TCP), (to, protocol::UDP)]);
    let published = [8081, 8080, 8082].map(|port| (to(NODES6[0], port), protocol::TCP));
    let further = [(to(NODES6[1], 8081), protocol::TCP), (to(NODES6[0], 5353), protocol::UDP)];
    both.chain(published).chain(further).collect()
}

/// What is wrong, and how it is made and put right.
struct Case {
    name: &'static str,
    make: fn(&Lab),
    mend: fn(&Lab),
}

fn nothing(_: &Lab) {}

fn key(vni: u32) -> EndpointKey {
    EndpointKey { vni, address: if vni == INGRESS_VNI { TASKS[0] } else { TASKS_OVERLAY[0] } }
}

fn far() -> Endpoint {
    Endpoint::remote(MacAddr::of_endpoint(TASKS_OVERLAY[0]), NODES[1].into()).serving(true)
}

/// Task 0's rows at a node, in both networks.
fn endpoints(lab: &Lab, node: usize, put: bool) {
    for vni in [INGRESS_VNI, OVERLAY_VNI] {
        let key = key(vni);
        let mac = MacAddr::of_endpoint(key.address);
        let local = lab.nodes[1].ifindex(if vni == INGRESS_VNI { "mv00" } else { "mv01" });
        let row =
            if node == 0 { Endpoint::remote(mac, NODES[1].into()) } else { Endpoint::local(mac, local) };
        lab.with_tables(node, |tables| {
            if put {
                tables.endpoints.insert(&key, &row.serving(true)).unwrap();
            } else {
                tables.endpoints.remove(&key).unwrap();
            }
        });
    }
}

fn rings(lab: &Lab, backends: usize) {
    lab.with_tables(0, |tables| {
        tables.rings.swap(&SHARED_RING, &TASKS[..backends]).unwrap();
        tables.rings.swap(&VIP_RING, &TASKS_OVERLAY[..backends]).unwrap();
    });
}

/// The VNI of task 1's leg in the overlay, and where task 0 is in it.
fn vni(lab: &Lab, from: u32, to: u32) {
    lab.with_tables(0, |tables| {
        let leg = lab.nodes[0].ifindex("mv11");
        let mut row = tables.attachments.get(&leg).unwrap().unwrap();
        assert_eq!(row.vni, from);
        row.vni = to;
        tables.attachments.insert(&leg, &row).unwrap();
        if to == STRANGE_VNI {
            let key = EndpointKey { vni: to, address: TASKS_OVERLAY[0] };
            tables.endpoints.insert(&key, &far()).unwrap();
            tables.prefixes6.insert(&to, &OVERLAY_PREFIX).unwrap();
        }
    });
}

const CASES: [Case; 7] = [
    Case { name: "all is well", make: nothing, mend: nothing },
    Case {
        name: "this node misses the endpoint's row",
        make: |lab| endpoints(lab, 0, false),
        mend: |lab| endpoints(lab, 0, true),
    },
    Case {
        name: "the other node misses the endpoint's row",
        make: |lab| endpoints(lab, 1, false),
        mend: |lab| endpoints(lab, 1, true),
    },
    Case {
        name: "the other node does not know this one",
        make: |lab| lab.with_tables(1, |tables| tables.peers.remove(&NODES[0].into()).unwrap()),
        mend: |lab| {
            lab.with_tables(1, |tables| tables.peers.insert(&NODES[0].into(), &Peer::default()).unwrap());
        },
    },
    Case {
        name: "a VNI that the other node has not",
        make: |lab| vni(lab, OVERLAY_VNI, STRANGE_VNI),
        mend: |lab| vni(lab, STRANGE_VNI, OVERLAY_VNI),
    },
    Case { name: "the other node's backend drains", make: |lab| rings(lab, 1), mend: |lab| rings(lab, 2) },
    Case { name: "no backend serves", make: |lab| rings(lab, 0), mend: |lab| rings(lab, 2) },
];

/// One node's part of a trace.
fn origin(lab: &Lab, port: u16, case: &Case) -> TaskOrigin {
    let is_strange = case.name.starts_with("a VNI");
    let overlay = if is_strange { STRANGE_VNI } else { OVERLAY_VNI };
    let addresses = vec![(INGRESS_VNI, TASKS[1].into()), (overlay, Ipv4Addr::from(TASKS_OVERLAY[1]))];
    TaskOrigin { netns_cookie: lab.tasks[1].cookie(), addresses, far_source4: None, far_source6: None, port }
}

fn joined(way: &mut TraceWay, rest: TraceReport) {
    let rest = rest.ways.into_iter().next().unwrap();
    way.steps.extend(rest.steps);
    way.end = rest.end;
}

fn by_the_tables(lab: &Lab, task: &TaskOrigin, to: SocketAddr, protocol: u8) -> Vec<TraceWay> {
    let origin = Origin::Task(task.clone());
    let mut report = lab.nodes[0].run(|| trace(&lab.node_pins(0), &origin, to, protocol).unwrap());
    for way in &mut report.ways {
        if let TraceEnd::Tunnel(packet) = way.end {
            joined(way, lab.nodes[1].run(|| trace_arrival(&lab.node_pins(1), &packet).unwrap()));
        }
    }
    report.ways
}

fn by_a_packet(lab: &Lab, task: &TaskOrigin, to: SocketAddr, protocol: u8) -> TraceWay {
    let which = Which::Marked { protocol, port: task.port };
    let mut watch = Watch::begin(&lab.node_pins(1), which, PATIENCE).unwrap();
    let sandbox = Namespace::open(Path::new(&lab.tasks[1].path())).unwrap().unwrap();
    let report = lab.nodes[0].run(|| trace_live(&lab.node_pins(0), &sandbox, task, to, protocol).unwrap());
    let mut way = report.ways.into_iter().next().unwrap();
    if let TraceEnd::Tunnel(packet) = way.end {
        let rest = lab.nodes[1].run(|| trace_marked(&lab.node_pins(1), &mut watch, &packet).unwrap());
        joined(&mut way, rest.expect("it comes to the other node"));
    }
    way
}

#[test]
fn packets_go_where_the_tables_say() {
    let lab = Lab::new(tc_mode());
    let mut destinations = destinations4();
    if lab.enable_ipv6() {
        destinations.extend(destinations6());
    }
    lab.start();
    rings(&lab, 2);
    let (mut port, mut ends) = (41_000, [0; 5]);
    for case in CASES {
        (case.make)(&lab);
        for &(to, protocol) in &destinations {
            port += 1;
            // A neighbour that the task remembers would be sent to.
            lab.tasks[1].ip("neigh flush all");
            let task = origin(&lab, port, &case);
            let told = by_the_tables(&lab, &task, to, protocol);
            let went = by_a_packet(&lab, &task, to, protocol);
            let is_told = told.iter().any(|way| way.hops() == went.hops() && way.end == went.end);
            assert!(is_told, "{}, to {to} by protocol {protocol}: told {told:#?}, went {went:#?}", case.name);
            let kind = match went.end {
                TraceEnd::Sandbox { .. } => 0,
                TraceEnd::Dropped { .. } => 1,
                TraceEnd::Refused { .. } => 2,
                TraceEnd::NoRoute { .. } => 3,
                TraceEnd::Host | TraceEnd::Tunnel(_) => 4,
            };
            ends[kind] += 1;
        }
        (case.mend)(&lab);
    }
    // Without IPv6 there is nobody to whom it is told.
    let n_kinds = if destinations.iter().any(|(to, _)| to.is_ipv6()) { 4 } else { 3 };
    assert!(ends[..n_kinds].iter().all(|n| *n > 5) && ends[4] == 0, "each end is among them: {ends:?}");
}
