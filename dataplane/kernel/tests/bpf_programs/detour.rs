//! Connections that are looked for: their backend is not the one that their packets were sent to.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, UdpSocket};

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::ring::{MAX_HOPS, fingerprint};
use ebpf_abi::{
    CachedBackend, Chooser, Endpoint, EndpointKey, FlowTuple, Ip4, MacAddr, Port, ProgramId, TargetPort,
    TargetPortKey, protocol,
};

use crate::harness::{Bench, Expect, bench, client_to};
use crate::support::capture::Capture;
use crate::support::lab::{CLIENT, INGRESS_VNI, Lab, NODES, RING, TASKS, tc_mode};
use crate::support::packets::{Segment, between, vxlan};
use crate::support::traffic::{PATIENCE, connect_from, exchange, serve_tcp, wait_until};

/// Sends a segment of the client's connection through a tunnel from the node beside `node` to task 0 or 1 there.
fn forward(lab: &Lab, node: usize, chooser: Chooser, client_port: u16) {
    let task = TASKS[1 - node];
    let client = between((chooser.mac(), CLIENT), (MacAddr::of_endpoint(task), NODES[1 - node]));
    let frame = client.tcp((client_port, 8080), Segment::Ack, b"");
    send(lab, node, &frame);
}

/// Through a tunnel to `node` from the node beside it.
fn send(lab: &Lab, node: usize, frame: &[u8]) {
    lab.nodes[1 - node].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let to = (std::net::Ipv4Addr::from(NODES[node]), 4789);
        socket.send_to(&vxlan(INGRESS_VNI, frame), to).unwrap();
    });
}

/// The same with an ICMP error about an answer of that connection.
fn forward_error(lab: &Lab, node: usize, chooser: Chooser, client_port: u16) {
    let (task, service) = (TASKS[1 - node], NODES[1 - node]);
    let answer = between((MacAddr::default(), service), (MacAddr::default(), CLIENT));
    let answer = answer.tcp((8080, client_port), Segment::Ack, b"");
    let client = between((chooser.mac(), CLIENT), (MacAddr::of_endpoint(task), service));
    send(lab, node, &client.port_unreachable(&answer));
}

/// A backend of node 0 for node 1, which no ring but one has.
fn stranger(number: u8) -> Ip4 {
    Ip4([10, 0, 0, 100 + number])
}

fn ring(number: u8) -> Vec<Ip4> {
    vec![stranger(number)]
}

fn chosen_by(hops: u8, ring: &[Ip4]) -> Chooser {
    Chooser { hops, fingerprint: fingerprint(ring) }
}

fn n_flows(lab: &Lab, node: usize) -> usize {
    lab.with_tables(node, |tables| tables.flows.rows().unwrap().len())
}

/// Node 1 has had nine rings. What asked task 0 before tells which of them are left to ask.
#[test]
fn a_search_goes_on_behind_the_ring_that_was_asked_last() {
    let lab = Lab::new(tc_mode());
    lab.start();
    lab.with_tables(1, |tables| {
        for number in 0..=8 {
            let key = EndpointKey { vni: INGRESS_VNI, address: stranger(number) };
            let endpoint = Endpoint::remote(MacAddr::of_endpoint(stranger(number)), NODES[0].into());
            tables.endpoints.insert(&key, &endpoint).unwrap();
        }
    });
    lab.set_rings(1, &(0..=8).map(ring).collect::<Vec<_>>());
    let capture = Capture::new(&lab.nodes[0]);
    let unknown = vec![Ip4([9, 9, 9, 9])];
    for (name, chooser, next) in [
        ("the sender's ring is not asked again", Chooser::IN_USE, 0),
        ("both have swapped", chosen_by(1, &ring(0)), 1),
        ("the sender has swapped once more", chosen_by(2, &ring(0)), 1),
        ("this node has swapped twice more", chosen_by(1, &ring(2)), 3),
        ("a ring that was never seen here", chosen_by(2, &unknown), 2),
        ("the same rings in another order", chosen_by(6, &ring(0)), 3),
        ("the last", chosen_by(8, &unknown), 8),
    ] {
        let expected = (MacAddr::of_endpoint(stranger(next)), chosen_by(chooser.hops + 1, &ring(next)).mac());
        forward(&lab, 1, chooser, 40_000);
        assert_eq!(capture.next(NODES[1]), expected, "{name}");
        forward_error(&lab, 1, chooser, 40_000);
        assert_eq!(capture.next(NODES[1]), expected, "{name}, an ICMP error");
    }
    assert_eq!(n_flows(&lab, 1), 0);

    for (port, chooser) in [(40_001, chosen_by(MAX_HOPS, &ring(0))), (40_002, chosen_by(1, &ring(8)))] {
        let before = n_flows(&lab, 1);
        forward(&lab, 1, chooser, port);
        wait_until("task 0 resets what nobody knows", || n_flows(&lab, 1) > before);
    }
    lab.check_counters();
}

/// Each node believes the other's task to be the one of the ring before.
#[test]
fn a_search_in_circles_ends() {
    let lab = Lab::new(tc_mode());
    lab.start();
    let [first, second] = TASKS.map(|task| vec![task]);
    lab.set_rings(0, &[second.clone(), first.clone()]);
    lab.set_rings(1, &[first.clone(), second]);

    forward(&lab, 1, chosen_by(1, &first), 40_000);

    wait_until("a task answers the client", || n_flows(&lab, 0) + n_flows(&lab, 1) > 0);
    // The first packet is there, and one for each hop; the reset of the task comes to node 1 or leaves it.
    let arrived = [ProgramId::MeshUplink, ProgramId::MeshVxlan];
    let counted = arrived.iter().flat_map(|program| (0..2).map(|node| lab.counted(node, *program)));
    let received: u64 = counted.map(|row| row.forwarded).sum();
    assert!((3..=u64::from(MAX_HOPS) + 2).contains(&received), "{received} packets");
}

/// After one packet's detour the connection depends on no ring any more, in whichever node it was found.
#[test]
fn answers_teach_the_node_that_clients_enter_by() {
    let lab = Lab::new(tc_mode());
    lab.tasks.iter().for_each(|task| serve_tcp(task, 80));
    lab.start();
    let [first, second] = TASKS.map(|task| vec![task]);
    // Task 0 is on the other node; task 1 on this one, and only that node still knows of its ring.
    for (backend, after) in [
        (0, [vec![second.clone(), first.clone()], vec![second.clone(), first.clone()]]),
        (1, [vec![first.clone()], vec![first.clone(), second.clone()]]),
    ] {
        (0..2).for_each(|node| lab.set_rings(node, &[vec![TASKS[backend]]]));
        let mut stream = connect_from(&lab.client, 0, NODES[0], 8080);
        (0..2).for_each(|node| lab.set_rings(node, &after[node]));
        lab.empty_caches();

        stream.write_all(b"looked for").unwrap();

        wait_until("the answer teaches", || {
            lab.with_tables(0, |tables| tables.flow_cache.rows().unwrap().len()) == 1
        });
        let cached: Vec<Ip4> = lab.with_tables(0, |tables| {
            tables.flow_cache.rows().unwrap().into_values().map(|row| row.backend).collect()
        });
        assert_eq!(cached, [TASKS[backend]]);
        let n_strayed = || {
            lab.with_tables(1 - backend, |tables| {
                let replies = tables.replies.rows().unwrap();
                let flows = tables.flows.rows().unwrap();
                (
                    replies.values().filter(|row| row.way != 0).count(),
                    flows.values().filter(|row| row.way != 0).count(),
                )
            })
        };
        assert_eq!(n_strayed(), (1, 1));

        (0..2).for_each(|node| lab.set_rings(node, &[vec![TASKS[1 - backend]; 7]]));
        stream.shutdown(Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("with task {backend}: {error}"));
        assert!(answer.ends_with(b"\nlooked for"));
        assert_eq!(n_strayed(), (0, 0), "packets that go straight say so");
        lab.empty_caches();
    }
    lab.check_counters();
}

/// Both backends are on the node that the client's packets enter by: it finds out by itself.
#[test]
fn a_flow_found_where_it_enters_goes_straight() {
    bench(1, |bpf, lab| {
        let client = client_to(NODES[1]);
        let [syn, ack] = [Segment::Syn, Segment::Ack].map(|segment| client.tcp((40_000, 8080), segment, b""));
        let (uplink, host_end) = (lab.nodes[1].ifindex("up0"), lab.nodes[1].ifindex("mv00"));
        let moved = EndpointKey { vni: INGRESS_VNI, address: TASKS[1] };
        let local = Endpoint::local(MacAddr::of_endpoint(TASKS[1]), host_end).serving(true);
        bpf.tables.endpoints.insert(&moved, &local).unwrap();
        let port = TargetPortKey::new(TASKS[1], Port::new(8080), protocol::TCP);
        bpf.tables.target_ports.insert(&port, &TargetPort::new(Port::new(80))).unwrap();
        bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();
        Bench::received(bpf, ProgramId::MeshUplink, uplink).check_forwarded("begins", &syn);
        bpf.tables.rings.swap(&RING, &[TASKS[0]]).unwrap();
        let tuple = *bpf.tables.flow_cache.rows().unwrap().keys().next().unwrap();
        bpf.tables.flow_cache.remove(&tuple).unwrap();

        let to_task = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[1]), TASKS[1]));
        let expected = Expect::ForwardAs(to_task.tcp((40_000, 80), Segment::Ack, b""));
        Bench::received(bpf, ProgramId::MeshUplink, uplink).check("goes on", &ack, &expected);

        assert_eq!(bpf.tables.flow_cache.get(&tuple).unwrap().unwrap().backend, TASKS[1]);
        assert!(bpf.tables.replies.rows().unwrap().values().all(|row| row.way == 0));
    });
}

/// A node is believed what it says of its own backends.
#[test]
fn a_node_teaches_of_its_own_backends_alone() {
    let lab = Lab::new(tc_mode());
    lab.start();
    let service = |task: Ip4| between((MacAddr::of_endpoint(task), NODES[1]), (ROUTER_MAC, CLIENT));
    // Task 0 is on node 1 itself, which gets what node 0 sends.
    for (task, client_port) in [(TASKS[0], 40_000), (TASKS[1], 40_001)] {
        send(&lab, 1, &service(task).tcp((8080, client_port), Segment::Ack, b""));
    }
    let cached = || lab.with_tables(1, |tables| tables.flow_cache.rows().unwrap());
    wait_until("the second teaches", || !cached().is_empty());
    let tuple = FlowTuple::new((CLIENT, Port::new(40_001)), (NODES[1], Port::new(8080)), protocol::TCP);
    let row = CachedBackend { backend: TASKS[1], ring: 0 };
    assert_eq!(cached(), BTreeMap::from([(tuple, row)]));
    lab.check_counters();
}

/// A connection began with the one ring, and its packets enter by a node that still has, or again has, the other.
#[test]
fn connections_live_on_while_one_node_alone_has_swapped() {
    let lab = Lab::new(tc_mode());
    lab.tasks.iter().for_each(|task| serve_tcp(task, 80));
    lab.start();
    let [first, second] = TASKS.map(|task| vec![task]);
    let (old, new) = (vec![first.clone()], vec![second.clone(), first.clone()]);
    let swapped_back = vec![first.clone(), second.clone()];
    for (name, ring, rings) in [
        ("the ingress node has swapped", &first, [&new, &old]),
        ("the other has swapped", &second, [&old, &new]),
        ("both have, in another order", &second, [&swapped_back, &new]),
    ] {
        for node in 0..2 {
            lab.set_rings(node, std::slice::from_ref(ring));
        }
        let stream = connect_from(&lab.client, 0, NODES[0], 8080);
        (0..2).for_each(|node| lab.set_rings(node, rings[node]));
        lab.empty_caches();
        exchange(stream, b"still here").unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    lab.check_counters();
}
