//! Published ports for clients that come by IPv6: single packets, on the uplink, out of tunnels and from tasks.

use dataplane_kernel::bpf::TestPacket;
use ebpf_abi::limits::{BRIDGE_VNI, FRAGMENTS_SECS, ROUTER_MAC};
use ebpf_abi::ring::{EARLIER_RINGS, fingerprint};
use ebpf_abi::table::ATTACHMENT_WAY_OUT;
use ebpf_abi::{Chooser, DropReason, EndpointKey, Ip, Ip4, MacAddr, ProgramId};

use crate::harness::{Bench, CLIENT_MAC, Expect, NODE_MAC, bench, client_to, tunnelled};
use crate::support::lab::{
    BRIDGE_PREFIX, CLIENT6, INGRESS_PREFIX, INGRESS_VNI, Lab, NODES, NODES6, RING, TASKS, TASKS_OVERLAY,
    tc_mode,
};
use crate::support::packets::{Segment, between, fragment, fragment6, vxlan, with_options6};
use crate::tunnel::{Seen, Taker, inject};

const fn ip6(last: u8) -> Ip {
    Ip([0xfd, 0, 0x0b, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

/// A task's MAC and IPv6 address in the ingress network.
fn task6(task: usize) -> (MacAddr, Ip) {
    (MacAddr::of_endpoint(TASKS[task]), INGRESS_PREFIX.address(TASKS[task]))
}

#[test]
fn uplink_sends_clients_to_remote_backends() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES6[0]);
        let ack = client.tcp((40_000, 8080), Segment::Ack, b"GET / HTTP/1.1\r\n");
        for frame in [
            client.tcp((40_000, 8080), Segment::Syn, b""),
            ack.clone(),
            client.tcp((40_000, 8080), Segment::Fin, b""),
            client.tcp((40_001, 8080), Segment::Ack, b"of a connection that another node began"),
            client.udp((40_000, 5353), b"datagram"),
            with_options6(&ack),
            with_options6(&with_options6(&ack)),
        ] {
            bench.check("to task 0", &frame, &Expect::ForwardAs(tunnelled(frame.clone(), TASKS[0])));
        }
        let cached = bench.bpf.tables.flow_cache.rows().unwrap();
        assert_eq!(cached.len(), 2, "one SYN and one datagram begin flows: {cached:?}");
        assert!(cached.keys().all(|flow| flow.source == CLIENT6), "{cached:?}");
    });
}

/// See the IPv4 test of this name.
#[test]
fn addresses_of_other_nodes_are_served_if_the_frame_is_for_this_machine() {
    bench(0, |bpf, lab| {
        lab.nodes[0].ip(&format!("link set up0 address {NODE_MAC}"));
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let syn = client_to(NODES6[1]).tcp((40_000, 8080), Segment::Syn, b"");
        bench.check("to task 0", &syn, &Expect::ForwardAs(tunnelled(syn.clone(), TASKS[0])));
        let other_port = client_to(NODES6[1]).tcp((40_000, 22), Segment::Syn, b"");
        bench.check("no published port", &other_port, &Expect::Pass);
        let stranger = client_to(ip6(66)).tcp((40_000, 8080), Segment::Syn, b"");
        bench.check("nobody's address", &stranger, &Expect::Pass);
        let flooded = between((CLIENT_MAC, CLIENT6), (MacAddr([2, 0, 0, 0, 0, 12]), NODES6[1]));
        bench.check("flooded", &flooded.tcp((40_000, 8080), Segment::Syn, b""), &Expect::Pass);
    });
}

#[test]
fn connections_that_the_backend_does_not_know_go_to_earlier_rings_backends() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES6[0]);
        let [syn, ack] = [Segment::Syn, Segment::Ack].map(|segment| client.tcp((40_000, 8080), segment, b""));
        let mut earlier = tunnelled(ack.clone(), TASKS[0]);
        let chooser = Chooser { hops: 1, fingerprint: fingerprint(&[TASKS[0]]) };
        earlier[6..12].copy_from_slice(&chooser.mac().0);
        for n_places in 1..=EARLIER_RINGS.into() {
            bench.bpf.tables.rings.swap(&RING, &vec![TASKS[1]; n_places]).unwrap();
            bench.check("a connection from before", &ack, &Expect::ForwardAs(earlier.clone()));
        }
        let to_task = between((ROUTER_MAC, CLIENT6), task6(1));
        for (frame, segment) in [(syn, Segment::Syn), (ack, Segment::Ack)] {
            let expected = Expect::ForwardAs(to_task.tcp((40_000, 80), segment, b""));
            bench.check("one that begins here", &frame, &expected);
        }
    });
}

/// Nobody on the way fragments IPv6, but senders do.
#[test]
fn fragments_follow_their_first() {
    for (node, address) in NODES6.into_iter().enumerate() {
        bench(node, |bpf, lab| {
            let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[node].ifindex("up0"));
            let whole = client_to(address).udp((40_000, 5353), &[7; 64]);
            let parts = |frame: &[u8]| [(0, 32), (32, 32), (64, 32)].map(|part| fragment6(frame, part, 77));
            let expected: Vec<_> = if node == 0 {
                parts(&whole).map(|part| tunnelled(part, TASKS[0])).into()
            } else {
                let to_task = between((ROUTER_MAC, CLIENT6), task6(0));
                parts(&to_task.udp((40_000, 53), &[7; 64])).into()
            };
            let [first, middle, last] = parts(&whole);
            bench.check("before the first", &middle, &Expect::Pass);
            for (frame, expected) in [&first, &middle, &last].into_iter().zip(&expected) {
                bench.check("to task 0", frame, &Expect::ForwardAs(expected.clone()));
            }
            bench.check("of another packet", &fragment6(&whole, (32, 32), 78), &Expect::Pass);
            bench.bpf.tables.tick.set(&(1 + FRAGMENTS_SECS)).unwrap();
            bench.check("in time", &last, &Expect::ForwardAs(expected[2].clone()));
            bench.bpf.tables.tick.set(&(2 + FRAGMENTS_SECS)).unwrap();
            bench.check("so late that it is another packet's", &last, &Expect::Pass);
        });
    }
}

#[test]
fn packets_too_long_for_the_tunnel_are_refused() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES6[0]);
        let fits = client.udp((40_000, 5353), &[7; 1402]);
        let too_long = client.udp((40_000, 5353), &[7; 1403]);
        bench.check("as long as can be", &fits, &Expect::ForwardAs(tunnelled(fits.clone(), TASKS[0])));
        // Who sends it on asks for the client's MAC.
        let to_client = between((CLIENT_MAC, NODES6[0]), (NODE_MAC, CLIENT6));
        let error = to_client.fragmentation_needed(&too_long[14..14 + 56], 1450);
        bench.check("a byte longer", &too_long, &Expect::ForwardAs(error));
        let whole = client.udp((40_000, 5353), &[7; 4000]);
        let [first, later] = [0, 1448].map(|offset| fragment6(&whole, (offset, 1448), 77));
        let error = to_client.fragmentation_needed(&first[14..14 + 56], 1450);
        bench.check("a fragment with ports", &first, &Expect::ForwardAs(error));
        bench.check("and the next", &later, &Expect::ForwardAs(tunnelled(later.clone(), TASKS[0])));
    });
}

/// Task 0 is drained: see the IPv4 test of this name.
#[test]
fn a_backend_that_serves_no_more_keeps_its_connections_alone() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES6[0]);
        let [syn, ack] = [Segment::Syn, Segment::Ack].map(|segment| client.tcp((40_000, 8080), segment, b""));
        let datagram = client.udp((40_000, 5353), b"datagram");
        let to_first = |frame: &[u8]| Expect::ForwardAs(tunnelled(frame.to_vec(), TASKS[0]));
        for frame in [&syn, &datagram] {
            bench.check("before", frame, &to_first(frame));
        }
        let key = EndpointKey { vni: INGRESS_VNI, address: TASKS[0] };
        let drained = bench.bpf.tables.endpoints.get(&key).unwrap().unwrap().serving(false);
        bench.bpf.tables.endpoints.insert(&key, &drained).unwrap();
        bench.bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();

        bench.check("a segment of the connection", &ack, &to_first(&ack));
        let to_task = between((ROUTER_MAC, CLIENT6), task6(1));
        let moved = Expect::ForwardAs(to_task.udp((40_000, 53), b"datagram"));
        bench.check("a datagram of the flow", &datagram, &moved);
        let begun = Expect::ForwardAs(to_task.tcp((40_000, 80), Segment::Syn, b""));
        bench.check("a connection that begins anew", &syn, &begun);
    });
}

#[test]
fn uplink_leaves_the_rest_to_the_host() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES6[0]);
        let syn = client.tcp((40_000, 8080), Segment::Syn, b"");
        let mapped = Ip::v4(NODES[0]);
        let mut to_mapped = syn.clone();
        to_mapped[38..54].copy_from_slice(&mapped.0);
        let mut version_4 = syn.clone();
        version_4[14] = 0x45;
        let options = (0..6).fold(syn.clone(), |frame, _| with_options6(&frame));
        let mut solicitation = client.echo_request();
        solicitation[54] = 135;
        for (name, frame) in [
            ("another port", client.tcp((40_000, 22), Segment::Syn, b"")),
            ("another protocol", client.udp((40_000, 8080), b"")),
            ("localhost from the wire", client_to(Ip::LOCALHOST6).tcp((40_000, 8080), Segment::Syn, b"")),
            ("an IPv4 address in IPv6", to_mapped),
            ("no backend", client.tcp((40_000, 8082), Segment::Syn, b"")),
            ("ping", client.echo_request()),
            ("a neighbour's question", solicitation),
            ("another version than the frame says", version_4),
            ("more extensions than there are", options),
            ("a cut TCP header", syn[..60].to_vec()),
            ("a cut extension", with_options6(&syn)[..56].to_vec()),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
    });
}

/// The whole frame as the task gets it, checksums computed afresh.
#[test]
fn uplink_translates_for_local_backends() {
    bench(1, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[1].ifindex("up0"));
        let client = client_to(NODES6[1]);
        let to_task = between((ROUTER_MAC, CLIENT6), task6(0));
        for (segment, payload) in [(Segment::Syn, &b""[..]), (Segment::Ack, b"odd"), (Segment::Fin, b"even")]
        {
            let frame = client.tcp((40_000, 8080), segment, payload);
            let expected = to_task.tcp((40_000, 80), segment, payload);
            bench.check("TCP", &frame, &Expect::ForwardAs(expected.clone()));
            bench.check("with options", &with_options6(&frame), &Expect::ForwardAs(with_options6(&expected)));
        }
        // A checksum that would be zero, "none", is sent as its other form (RFC 8200 section 8.1).
        let zero = (0..=u16::MAX)
            .map(u16::to_be_bytes)
            .find(|payload| to_task.udp((40_000, 53), payload)[60..62] == [0xff, 0xff])
            .unwrap();
        for payload in [&b"datagram"[..], &zero] {
            let expected = to_task.udp((40_000, 53), payload);
            bench.check("UDP", &client.udp((40_000, 5353), payload), &Expect::ForwardAs(expected));
        }
        let flows = bench.bpf.tables.flows.rows().unwrap();
        assert_eq!((flows.len(), bench.bpf.tables.replies.rows().unwrap().len()), (2, 2), "{flows:?}");
    });
}

/// A client's flow through this very node, and the task's answers to it.
#[test]
fn tasks_answer_clients_as_the_node() {
    bench(1, |bpf, lab| {
        let (uplink, host_end) = (lab.nodes[1].ifindex("up0"), lab.nodes[1].ifindex("mv00"));
        let (client, to_task) = (client_to(NODES6[1]), between((ROUTER_MAC, CLIENT6), task6(0)));
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        bench.check_forwarded("SYN", &client.tcp((40_000, 8080), Segment::Syn, b""));
        bench.check_forwarded("datagram", &client.udp((40_000, 5353), b"question"));

        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end);
        let answer = between(task6(0), (ROUTER_MAC, CLIENT6));
        let restored = between((task6(0).0, NODES6[1]), (ROUTER_MAC, CLIENT6));
        let expected = restored.tcp((8080, 40_000), Segment::SynAck, b"");
        let frame = answer.tcp((80, 40_000), Segment::SynAck, b"");
        bench.check("TCP", &frame, &Expect::ForwardAs(expected));
        let (frame, expected) =
            (answer.udp((53, 40_000), b"answer"), restored.udp((5353, 40_000), b"answer"));
        bench.check("UDP", &frame, &Expect::ForwardAs(expected.clone()));
        for part in [(0, 8), (8, 8)] {
            let (frame, expected) = (fragment6(&frame, part, 7), fragment6(&expected, part, 7));
            bench.check("a fragment of the answer", &frame, &Expect::ForwardAs(expected));
        }
        let frame = answer.port_unreachable(&to_task.udp((40_000, 53), b"question"));
        let expected = restored.port_unreachable(&client.udp((40_000, 5353), b"question"));
        bench.check(
            "an ICMPv6 error",
            &frame,
            &Expect::ForwardAs(with_embedded_checksum_of(expected, &frame)),
        );
        let frame = answer.tcp((80, 40_001), Segment::SynAck, b"");
        bench.check_forwarded("to no flow: the gateway knows no way there, and says so", &frame);
        bench.bpf.tables.address_owners.remove(&NODES6[1]).unwrap();
        let frame = answer.udp((53, 40_000), b"answer");
        bench.check("an address without owner", &frame, &Expect::Drop(DropReason::UnknownOwner));
    });
}

/// A server that answers datagrams from an unbound socket leaves the way to its routing table, which takes the way out.
#[test]
fn datagrams_answer_clients_by_the_way_out_too() {
    bench(1, |bpf, lab| {
        let (uplink, host_end) = (lab.nodes[1].ifindex("up0"), lab.nodes[1].ifindex("mv01"));
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        bench.check_forwarded("question", &client_to(NODES6[1]).udp((40_000, 5353), b"question"));

        let name = Ip4([172, 18, 0, 9]);
        let way_out = (MacAddr::of_endpoint(name), BRIDGE_PREFIX.address(name));
        let bridge = MacAddr([2, 0x42, 172, 18, 0, 1]);
        let mut row = bench.bpf.tables.attachments.get(&host_end).unwrap().unwrap();
        (row.vni, row.address) = (BRIDGE_VNI, TASKS[0]);
        (row.mac, row.flags) = (way_out.0, ATTACHMENT_WAY_OUT);
        bench.bpf.tables.attachments.insert(&host_end, &row).unwrap();
        bench.bpf.tables.prefixes6.insert(&BRIDGE_VNI, &BRIDGE_PREFIX).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end);
        let answer = between(way_out, (bridge, CLIENT6));
        let restored = between((way_out.0, NODES6[1]), (bridge, CLIENT6)).udp((5353, 40_000), b"answer");
        let frame = answer.udp((53, 40_000), b"answer");
        bench.check("answer", &frame, &Expect::ForwardAs(restored.clone()));
        for part in [(0, 8), (8, 8)] {
            let (frame, expected) = (fragment6(&frame, part, 7), fragment6(&restored, part, 7));
            bench.check("a fragment of the answer", &frame, &Expect::ForwardAs(expected));
        }
        for (name, frame) in [
            ("to another port of the client", answer.udp((53, 40_001), b"")),
            ("a connection of the task's own", answer.tcp((53, 40_000), Segment::Syn, b"")),
            ("an error of the task's own", answer.port_unreachable(&restored)),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        // Whatever source the task's routes gave it.
        let frame = between((way_out.0, task6(0).1), (bridge, CLIENT6)).udp((53, 40_000), b"answer");
        bench.check("answer", &frame, &Expect::ForwardAs(restored));
        let frame = between((way_out.0, task6(0).1), (bridge, CLIENT6)).udp((53, 40_001), b"");
        bench.check("to nobody's question", &frame, &Expect::Drop(DropReason::SourceAddress));
    });
}

/// Somebody on the way to the client, or the client, complains of an answer: the task hears of what it sent itself.
#[test]
fn errors_about_answers_reach_the_task() {
    let router = ip6(1);
    for (node, is_too_big) in [(0, false), (0, true), (1, false), (1, true)] {
        bench(node, |bpf, lab| {
            let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[node].ifindex("up0"));
            let client = client_to(NODES6[node]);
            let answer = |service: (Ip, u16)| {
                between((NODE_MAC, service.0), (CLIENT_MAC, CLIENT6)).udp((service.1, 40_000), &[3; 64])
            };
            let complain = |between: crate::support::packets::Between, about: &[u8]| {
                if is_too_big {
                    between.fragmentation_needed(&about[14..], 1300)
                } else {
                    between.port_unreachable(about)
                }
            };
            let frame = complain(
                between((CLIENT_MAC, router), (NODE_MAC, NODES6[node])),
                &answer((NODES6[node], 5353)),
            );
            bench.check_forwarded("the client", &client.udp((40_000, 5353), b"question"));
            let expected = if node == 0 {
                tunnelled(frame.clone(), TASKS[0])
            } else {
                let to_task = between((ROUTER_MAC, router), task6(0));
                with_embedded_checksum_of(complain(to_task, &answer((task6(0).1, 53))), &frame)
            };
            bench.check("to the task", &frame, &Expect::ForwardAs(expected));
            let other = complain(
                between((CLIENT_MAC, router), (NODE_MAC, NODES6[node])),
                &answer((NODES6[node], 1234)),
            );
            bench.check("about something else", &other, &Expect::Pass);
            let spoofed =
                complain(between((CLIENT_MAC, router), (NODE_MAC, ip6(9))), &answer((NODES6[node], 5353)));
            bench.check("to another than the sender", &spoofed, &Expect::Pass);
        });
    }
}

/// The embedded packet's own checksum is no one's to correct: it stays as it was. The error's covers it.
fn with_embedded_checksum_of(mut frame: Vec<u8>, other: &[u8]) -> Vec<u8> {
    const EMBEDDED_UDP_CHECKSUM: std::ops::Range<usize> = 14 + 40 + 8 + 40 + 6..14 + 40 + 8 + 40 + 8;
    frame[EMBEDDED_UDP_CHECKSUM].copy_from_slice(&other[EMBEDDED_UDP_CHECKSUM]);
    frame[56..58].fill(0);
    let len = u32::try_from(frame.len() - 54).unwrap();
    let covered = [&frame[22..54], &len.to_be_bytes(), &[0, 0, 0, 58], &frame[54..]].concat();
    frame[56..58].copy_from_slice(&ebpf_packet::checksum::full(&covered));
    frame
}

/// Frames through a real tunnel device: see the IPv4 test in `tunnel`.
#[test]
fn tunnels_carry_what_their_nodes_may_send() {
    let lab = Lab::new(tc_mode());
    if !lab.enable_ipv6() {
        println!("skipped: this kernel has no IPv6");
        return;
    }
    lab.start();
    let task = task6(0);
    let client = |to: Ip| between((ROUTER_MAC, CLIENT6), (task.0, to));
    let published = client(NODES6[0]).udp((40_000, 5353), b"datagram");
    let whole = client(NODES6[0]).udp((40_001, 5353), &[7; 64]);
    let mut mapped = published.clone();
    mapped[22..38].copy_from_slice(&Ip::v4(NODES[0]).0);
    let peer = (MacAddr::of_endpoint(TASKS[1]), INGRESS_PREFIX.address(TASKS[1]));
    let stranger = INGRESS_PREFIX.address(Ip4([10, 0, 0, 99]));
    let overlay = (MacAddr::of_endpoint(TASKS_OVERLAY[0]), task.1);
    for (name, frame, seen) in [
        ("a client's", published, Seen::Forwarded),
        ("a first fragment", fragment6(&whole, (0, 32), 5), Seen::Forwarded),
        ("a later fragment", fragment6(&whole, (32, 40), 5), Seen::Forwarded),
        ("its first did not come", fragment6(&whole, (32, 40), 6), Seen::Drop(DropReason::Fragment)),
        ("a node's process", between((ROUTER_MAC, NODES6[0]), task).udp((1, 2), b""), Seen::Forwarded),
        (
            "an answer to a client",
            between((ROUTER_MAC, NODES6[1]), (ROUTER_MAC, CLIENT6)).udp((1, 2), b""),
            Seen::Forwarded,
        ),
        (
            "an answer of another's",
            between((ROUTER_MAC, NODES6[0]), (ROUTER_MAC, CLIENT6)).udp((1, 2), b""),
            Seen::Drop(DropReason::UnknownOwner),
        ),
        (
            "to a process",
            between((ROUTER_MAC, peer.1), (ROUTER_MAC, NODES6[1])).udp((1, 2), b""),
            Seen::Passed,
        ),
        (
            "to a process, of nobody",
            between((ROUTER_MAC, ip6(9)), (ROUTER_MAC, NODES6[1])).udp((1, 2), b""),
            Seen::Drop(DropReason::InnerSource),
        ),
        ("task to task", between(peer, task).udp((1, 2), b""), Seen::Forwarded),
        (
            "nobody to task",
            between((peer.0, stranger), task).udp((1, 2), b""),
            Seen::Drop(DropReason::InnerSource),
        ),
        (
            "a port not published",
            client(NODES6[0]).udp((1, 1234), b""),
            Seen::Drop(DropReason::UnpublishedPort),
        ),
        ("ping", client(NODES6[0]).echo_request(), Seen::Drop(DropReason::UnpublishedPort)),
        (
            "another network's MAC",
            between((ROUTER_MAC, CLIENT6), (overlay.0, NODES6[0])).udp((1, 5353), b""),
            Seen::Drop(DropReason::UnknownEndpoint),
        ),
        ("an IPv4 address as source", mapped, Seen::Drop(DropReason::Malformed)),
    ] {
        println!("{name}");
        inject(&lab, &lab.nodes[0], (INGRESS_VNI, &frame), (Taker::Device, seen));
    }
    lab.check_counters();
}

/// The answer of a backend that was looked for tells the node that the client's packets enter by.
#[test]
fn answers_that_tell_their_backend_are_learned_from() {
    let lab = Lab::new(tc_mode());
    if !lab.enable_ipv6() {
        println!("skipped: this kernel has no IPv6");
        return;
    }
    lab.start();
    let teller = MacAddr::of_endpoint(TASKS[1]);
    let answer = between((teller, NODES6[1]), (ROUTER_MAC, CLIENT6)).tcp((8080, 40_000), Segment::Ack, b"");
    inject(&lab, &lab.nodes[0], (INGRESS_VNI, &answer), (Taker::Device, Seen::Forwarded));
    let cached = lab.with_tables(1, |tables| tables.flow_cache.rows().unwrap());
    assert_eq!(cached.len(), 1);
    for (flow, row) in cached {
        assert_eq!((flow.source, flow.destination, row.backend), (CLIENT6, NODES6[1], TASKS[1]));
    }
}

#[test]
fn host_processes_send_into_the_ingress_network_only() {
    bench(0, |bpf, lab| {
        let ifindex = lab.nodes[0].ifindex("mesh-vx");
        let mut bench = Bench { bpf, program: ProgramId::MeshVxlanOut, ifindex, ingress_ifindex: 0 };
        let from = |source: Ip, to: Ip| between((NODE_MAC, source), (NODE_MAC, to));
        for (task, forwards) in [(0, false), (1, true)] {
            let frame = from(NODES6[0], task6(task).1).tcp((1, 80), Segment::Syn, b"");
            let bytes = between((ROUTER_MAC, NODES6[0]), task6(task)).tcp((1, 80), Segment::Syn, b"");
            let expect = if forwards { Expect::ForwardAs(bytes) } else { Expect::PassAs(bytes) };
            bench.check("to a task", &frame, &expect);
        }
        let all_nodes = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let nobody = INGRESS_PREFIX.address(Ip4([10, 0, 0, 77]));
        for (name, frame, reason) in [
            ("from elsewhere", from(CLIENT6, task6(0).1).udp((1, 2), b""), DropReason::HostSource),
            ("to nobody", from(NODES6[0], nobody).udp((1, 2), b""), DropReason::NoRoute),
            ("outside", from(NODES6[0], CLIENT6).udp((1, 2), b""), DropReason::NoRoute),
            ("multicast", from(NODES6[0], all_nodes).udp((1, 2), b""), DropReason::Group),
        ] {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
    });
}

/// Next hops are tc's to find.
#[test]
fn xdp_encapsulates_or_passes() {
    let lab = Lab::new(tc_mode());
    lab.start();
    lab.start_xdp();
    let next_hop = MacAddr([2, 0, 0, 0, 0, 12]);
    lab.nodes[0].ip("link set up0 address 02:00:00:00:00:0b");
    lab.nodes[0].ip(&format!("neigh replace {} lladdr {next_hop} dev up0 nud permanent", NODES[1]));
    lab.with_bpf(0, |bpf| {
        let uplink = lab.nodes[0].ifindex("up0");
        let client = client_to(NODES6[0]);
        let syn = client.tcp((40_000, 8080), Segment::Syn, b"");
        let mut bench = Bench::received(bpf, ProgramId::MeshXdp, uplink);
        bench.check("tc has not asked for the next hop", &syn, &Expect::Pass);
        let asked = client_to(NODES[0]).tcp((40_000, 8080), Segment::Syn, b"");
        Bench::received(bench.bpf, ProgramId::MeshUplink, uplink).check_forwarded("by tc", &asked);
        let mut experienced = syn.clone();
        experienced[15] = 0x30;
        for (frame, tos) in [
            (syn.clone(), 0),
            (client.tcp((40_000, 8080), Segment::Ack, b"payload"), 0),
            (client.udp((40_000, 5353), b"datagram"), 0),
            (experienced, 2),
        ] {
            let packet = TestPacket::received(&frame, bench.ifindex);
            let outer = bench.bpf.hooks.programs().test_run(ProgramId::MeshXdp, &packet).unwrap().bytes;
            let source_port = u16::from_be_bytes([outer[34], outer[35]]);
            assert!(source_port >= 49_152);
            let inner = tunnelled(frame.clone(), TASKS[0]);
            let node = between((NODE_MAC, NODES[0]), (next_hop, NODES[1]));
            let mut expected = node.udp((source_port, 4789), &vxlan(INGRESS_VNI, &inner));
            expected[15] = tos;
            expected[40..42].fill(0);
            let expected = fragment(expected, 0, false);
            let same = |bytes: &[u8]| [&bytes[..18], &bytes[20..24], &bytes[26..]].concat();
            assert_eq!(same(&outer), same(&expected), "all but the id, and the checksum that covers it");
            bench.check_forwarded("to task 0", &frame);
        }
        for (name, frame) in [
            ("another port", client.tcp((40_000, 22), Segment::Syn, b"")),
            ("too long for one outer packet", client.udp((40_000, 5353), &[0; 1403])),
            ("options", with_options6(&syn)),
            ("a fragment", fragment6(&client.udp((40_000, 5353), &[0; 64]), (0, 32), 1)),
            ("no backend", client.tcp((40_000, 8082), Segment::Syn, b"")),
            ("an address of another node", client_to(NODES6[1]).tcp((1, 8080), Segment::Syn, b"")),
            ("a cut header", syn[..60].to_vec()),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        bench.bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();
        let other = client.tcp((40_002, 8080), Segment::Syn, b"");
        bench.check("a backend of this node is for tc", &other, &Expect::Pass);
    });
    lab.check_counters();
}
