//! Published ports on the uplink, by tc and by XDP.

use dataplane_kernel::bpf::{Bpf, TestPacket};
use ebpf_abi::limits::{FRAGMENTS_SECS, PROBE_VNI, ROUTER_MAC};
use ebpf_abi::ring::{EARLIER_RINGS, fingerprint};
use ebpf_abi::{
    Chooser, DropReason, EndpointKey, Frontend, FrontendKey, Ip4, MacAddr, NodeConfig, Port, ProgramId,
    ReplyFlow, ReplyKey, TargetPortKey, protocol,
};

use crate::harness::{Bench, CLIENT_MAC, Expect, NODE_MAC, bench, client_to, tunnelled};
use crate::support::lab::{CLIENT, EMPTY_RING, INGRESS_VNI, Lab, NODES, RING, SHARED_RING, TASKS, tc_mode};
use crate::support::packets::{Segment, arp, between, fragment, vxlan, with_options, with_total_len};

#[test]
fn uplink_sends_clients_to_remote_backends() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        for frame in [
            client.tcp((40_000, 8080), Segment::Syn, b""),
            client.tcp((40_000, 8080), Segment::Ack, b"GET / HTTP/1.1\r\n"),
            client.tcp((40_000, 8080), Segment::Fin, b""),
            client.tcp((40_001, 8080), Segment::Ack, b"of a connection that another node began"),
            client.udp((40_000, 5353), b"datagram"),
            with_options(client.tcp((40_000, 8080), Segment::Ack, b"options")),
        ] {
            bench.check("to task 0", &frame, &Expect::ForwardAs(tunnelled(frame.clone(), TASKS[0])));
        }
        let cached = bench.bpf.tables.flow_cache.rows().unwrap();
        assert_eq!(cached.len(), 2, "one SYN and one datagram begin flows: {cached:?}");
    });
}

/// An address that moves here is served before user space has heard of it, and one that has gone until clients know; what
/// is only seen here is not.
#[test]
fn addresses_of_other_nodes_are_served_if_the_frame_is_for_this_machine() {
    bench(0, |bpf, lab| {
        lab.nodes[0].ip(&format!("link set up0 address {NODE_MAC}"));
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let syn = client_to(NODES[1]).tcp((40_000, 8080), Segment::Syn, b"");
        bench.check("to task 0", &syn, &Expect::ForwardAs(tunnelled(syn.clone(), TASKS[0])));
        let other_port = client_to(NODES[1]).tcp((40_000, 22), Segment::Syn, b"");
        bench.check("no published port", &other_port, &Expect::Pass);
        let stranger = client_to(Ip4([198, 18, 0, 66])).tcp((40_000, 8080), Segment::Syn, b"");
        bench.check("nobody's address", &stranger, &Expect::Pass);
        let flooded = between((CLIENT_MAC, CLIENT), (MacAddr([2, 0, 0, 0, 0, 12]), NODES[1]));
        bench.check("flooded", &flooded.tcp((40_000, 8080), Segment::Syn, b""), &Expect::Pass);
    });
}

/// A port is another service's from now on: datagrams go there at once, though the task that they went to still serves its other ports.
#[test]
fn datagrams_follow_a_port_to_another_service() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let [datagram, ack] =
            [client.udp((40_000, 5353), b"datagram"), client.tcp((40_000, 8080), Segment::Ack, b"")];
        bench.check_forwarded("a connection", &client.tcp((40_000, 8080), Segment::Syn, b""));
        bench.check("to task 0", &datagram, &Expect::ForwardAs(tunnelled(datagram.clone(), TASKS[0])));

        bench.bpf.tables.rings.swap(&SHARED_RING, &[TASKS[1]]).unwrap();
        for (published, protocol) in [(5353, protocol::UDP), (8080, protocol::TCP)] {
            let key = FrontendKey::new(NODES[0], Port::new(published), protocol);
            let row = bench.bpf.tables.frontends.get(&key).unwrap().unwrap();
            bench.bpf.tables.frontends.insert(&key, &Frontend::new(SHARED_RING, row.target)).unwrap();
        }

        let to_other = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[1]), TASKS[1]));
        let expected = Expect::ForwardAs(to_other.udp((40_000, 53), b"datagram"));
        bench.check("the other service's task", &datagram, &expected);
        bench.check("and again", &datagram, &expected);
        bench.check("a connection goes on", &ack, &Expect::ForwardAs(tunnelled(ack.clone(), TASKS[0])));
        let syn = client.tcp((40_000, 8080), Segment::Syn, b"");
        let expected = Expect::ForwardAs(to_other.tcp((40_000, 80), Segment::Syn, b""));
        bench.check("one that begins", &syn, &expected);
    });
}

/// At the node of the task that had the port.
#[test]
fn connections_outlive_their_port() {
    bench(1, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[1].ifindex("up0"));
        let client = client_to(NODES[1]);
        let [syn, ack] = [Segment::Syn, Segment::Ack].map(|segment| client.tcp((40_000, 8080), segment, b""));
        bench.check_forwarded("it begins", &syn);
        let key = TargetPortKey::new(TASKS[0], Port::new(8080), protocol::TCP);
        bench.bpf.tables.target_ports.remove(&key).unwrap();

        let to_task = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), TASKS[0]));
        let expected = Expect::ForwardAs(to_task.tcp((40_000, 80), Segment::Ack, b""));
        bench.check("it goes on", &ack, &expected);
        bench.check("one that begins", &syn, &Expect::Drop(DropReason::UnpublishedPort));
        let other = client.tcp((40_001, 8080), Segment::Ack, b"");
        bench.check("one that was never here", &other, &Expect::Drop(DropReason::UnpublishedPort));
    });
}

/// Task 1 is on the node itself, and all that the ring has now: a connection that it doesn't know began with another.
#[test]
fn connections_that_the_backend_does_not_know_go_to_earlier_rings_backends() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let [syn, ack, fin] = [Segment::Syn, Segment::Ack, Segment::Fin]
            .map(|segment| client.tcp((40_000, 8080), segment, b""));
        let earlier = |frame: &[u8]| {
            let mut bytes = tunnelled(frame.to_vec(), TASKS[0]);
            let chooser = Chooser { hops: 1, fingerprint: fingerprint(&[TASKS[0]]) };
            bytes[6..12].copy_from_slice(&chooser.mac().0);
            Expect::ForwardAs(bytes)
        };
        bench.bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();

        bench.check("a connection from before", &ack, &earlier(&ack));
        bench.check("its end", &fin, &earlier(&fin));
        for n_places in 2..=EARLIER_RINGS.into() {
            bench.bpf.tables.rings.swap(&RING, &vec![TASKS[1]; n_places]).unwrap();
            bench.check("after more changes", &ack, &earlier(&ack));
        }
        bench.check_forwarded("a connection that begins", &syn);
        bench.check_forwarded("goes on where it began", &ack);

        let other = client.tcp((40_001, 8080), Segment::Ack, b"");
        bench.bpf.tables.rings.swap(&RING, &[TASKS[1]; 99]).unwrap();
        bench.check_forwarded("a connection from before all earlier rings is reset by the task", &other);
        assert_eq!(bench.bpf.tables.flows.rows().unwrap().len(), 2);
    });
}

#[test]
fn fragments_follow_their_first() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let first = fragment(client.udp((40_000, 5353), &[0; 64]), 0, true);
        // What looks like a header in a later fragment is not one.
        let later = |offset, more| fragment(client.udp((1, 2), &[7; 64]), offset, more);
        bench.check("before the first", &later(9, true), &Expect::Pass);
        for frame in [first, later(9, true), later(18, false)] {
            bench.check("to task 0", &frame, &Expect::ForwardAs(tunnelled(frame.clone(), TASKS[0])));
        }
        let mut other = later(9, false);
        other[18..20].copy_from_slice(&[0x12, 0x34]);
        bench.check("of another packet", &fragment(other, 9, false), &Expect::Pass);

        let last = later(18, false);
        bench.bpf.tables.tick.set(&(1 + FRAGMENTS_SECS)).unwrap();
        bench.check("in time", &last, &Expect::ForwardAs(tunnelled(last.clone(), TASKS[0])));
        bench.bpf.tables.tick.set(&(2 + FRAGMENTS_SECS)).unwrap();
        bench.check("so late that it is another packet's", &last, &Expect::Pass);
    });
}

#[test]
fn packets_too_long_for_the_tunnel_are_refused_or_fragmented() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let fits = client.udp((40_000, 5353), &[7; 1422]);
        let too_long = client.udp((40_000, 5353), &[7; 1423]);
        bench.check("as long as can be", &fits, &Expect::ForwardAs(tunnelled(fits.clone(), TASKS[0])));
        // Who sends it on asks for the client's MAC.
        let error = between((CLIENT_MAC, NODES[0]), (NODE_MAC, CLIENT))
            .fragmentation_needed(&too_long[14..14 + 28], 1450);
        bench.check("a byte longer", &too_long, &Expect::ForwardAs(fragment(error, 0, false)));
        let may_be_fragmented = fragment(too_long, 0, false);
        let forwarded = Expect::ForwardAs(tunnelled(may_be_fragmented.clone(), TASKS[0]));
        bench.check("without DF", &may_be_fragmented, &forwarded);
    });
}

/// Task 0 is drained: it leaves the ring, and its endpoint stays for the connections that it has.
#[test]
fn a_backend_that_serves_no_more_keeps_its_connections_alone() {
    bench(0, |bpf, lab| {
        let uplink = lab.nodes[0].ifindex("up0");
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        let client = client_to(NODES[0]);
        let (syn, ack) =
            [Segment::Syn, Segment::Ack].map(|segment| client.tcp((40_000, 8080), segment, b"")).into();
        let datagram = client.udp((40_000, 5353), b"datagram");
        let to_first = |frame: &[u8]| Expect::ForwardAs(tunnelled(frame.to_vec(), TASKS[0]));
        for frame in [&syn, &datagram] {
            bench.check("before", frame, &to_first(frame));
        }

        // The endpoint's row is written before the ring.
        let key = EndpointKey { vni: INGRESS_VNI, address: TASKS[0] };
        let drained = bench.bpf.tables.endpoints.get(&key).unwrap().unwrap().serving(false);
        bench.bpf.tables.endpoints.insert(&key, &drained).unwrap();
        bench.check("a datagram while the ring is old", &datagram, &to_first(&datagram));
        bench.bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();

        bench.check("a segment of the connection", &ack, &to_first(&ack));
        let to_task = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[1]), TASKS[1]));
        let moved = to_task.udp((40_000, 53), b"datagram");
        bench.check("a datagram of the flow", &datagram, &Expect::ForwardAs(moved.clone()));
        let begun = to_task.tcp((40_000, 80), Segment::Syn, b"");
        bench.check("a connection that begins anew", &syn, &Expect::ForwardAs(begun));

        bench.bpf.tables.endpoints.insert(&key, &drained.serving(true)).unwrap();
        bench.bpf.tables.rings.swap(&RING, &[TASKS[0]]).unwrap();
        bench.check("a datagram stays where it went", &datagram, &Expect::ForwardAs(moved));
    });
}

#[test]
fn uplink_leaves_the_rest_to_the_host() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let syn = client.tcp((40_000, 8080), Segment::Syn, b"");
        for (name, frame) in [
            ("another port", client.tcp((40_000, 22), Segment::Syn, b"")),
            ("another protocol", client.udp((40_000, 8080), b"")),
            ("another node's address", client_to(NODES[1]).tcp((40_000, 8080), Segment::Syn, b"")),
            ("localhost from the wire", client_to(Ip4::LOCALHOST).tcp((40_000, 8080), Segment::Syn, b"")),
            ("no backend", client.tcp((40_000, 8082), Segment::Syn, b"")),
            ("a fragment whose first did not come", fragment(client.udp((40_000, 5353), &[0; 64]), 8, false)),
            ("ping", client.echo_request()),
            ("ARP", arp(1, (CLIENT_MAC, CLIENT), (MacAddr::default(), NODES[0]), MacAddr::BROADCAST)),
            ("a cut TCP header", syn[..40].to_vec()),
            ("a length shorter than its header", with_total_len(syn.clone(), 19)),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        bench.bpf.tables.config.set(&NodeConfig::default()).unwrap();
        bench.check("no configuration yet", &syn, &Expect::Pass);
    });
}

#[test]
fn uplink_answers_probes_of_nodes() {
    bench(0, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let probe = vxlan(PROBE_VNI, b"any bytes, they come back");
        let there = between((CLIENT_MAC, NODES[1]), (NODE_MAC, NODES[0]));
        let back = between((NODE_MAC, NODES[0]), (CLIENT_MAC, NODES[1]));
        let echo = Expect::ForwardAs(back.udp((4789, 51_000), &probe));
        bench.check("a peer's", &there.udp((51_000, 4789), &probe), &echo);
        bench.check("a stranger's", &client_to(NODES[0]).udp((51_000, 4789), &probe), &Expect::Pass);
        let tunnel = vxlan(INGRESS_VNI, b"an inner frame");
        bench.check("a tunnelled frame", &there.udp((51_000, 4789), &tunnel), &Expect::Pass);
        bench.check("an echo that looks like a probe", &there.udp((4789, 4789), &probe), &Expect::Pass);
        bench.check("too short", &there.udp((51_000, 4789), &probe[..7]), &Expect::Pass);
        bench.check("another port", &there.udp((51_000, 4790), &probe), &Expect::Pass);
    });
}

/// The whole frame as the task gets it, checksums computed afresh.
#[test]
fn uplink_translates_for_local_backends() {
    bench(1, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[1].ifindex("up0"));
        let client = client_to(NODES[1]);
        let to_task = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), TASKS[0]));
        for (segment, payload) in [(Segment::Syn, &b""[..]), (Segment::Ack, b"odd"), (Segment::Fin, b"even")]
        {
            let frame = client.tcp((40_000, 8080), segment, payload);
            bench.check("tcp", &frame, &Expect::ForwardAs(to_task.tcp((40_000, 80), segment, payload)));
        }
        let frame = client.udp((40_000, 5353), b"datagram");
        bench.check("udp", &frame, &Expect::ForwardAs(to_task.udp((40_000, 53), b"datagram")));
        let without_checksum = |mut frame: Vec<u8>| {
            frame[40..42].fill(0);
            frame
        };
        let expected = without_checksum(to_task.udp((40_000, 53), b"datagram"));
        bench.check("udp without checksum", &without_checksum(frame), &Expect::ForwardAs(expected));
        let flows = bench.bpf.tables.flows.rows().unwrap();
        assert_eq!((flows.len(), bench.bpf.tables.replies.rows().unwrap().len()), (2, 2), "{flows:?}");
    });
}

#[test]
fn uplink_drops_what_it_can_not_translate() {
    bench(1, |bpf, lab| {
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[1].ifindex("up0"));
        let client = client_to(NODES[1]);
        let mut cut = client.tcp((41_000, 8080), Segment::Syn, b"");
        cut.truncate(14 + 20 + 15);
        bench.check("no room for a checksum", &cut, &Expect::Drop(DropReason::Rewrite));
        let key = TargetPortKey::new(TASKS[0], Port::new(9999), protocol::UDP);
        bench.bpf.tables.target_ports.remove(&key).unwrap();
        let frame = client.udp((40_000, 9999), b"");
        bench.check("not published", &frame, &Expect::Drop(DropReason::UnpublishedPort));
        take_source_ports(bench.bpf);
        let frame = client.tcp((40_000, 8080), Segment::Syn, b"");
        bench.check("all ports taken", &frame, &Expect::Drop(DropReason::SourcePortsExhausted));
        fill_replies(bench.bpf);
        let frame = client.tcp((1_000, 8080), Segment::Syn, b"");
        bench.check("table full", &frame, &Expect::Drop(DropReason::FlowTableFull));
    });
}

/// Gives every upper port of the client at task 0 to another node's flow.
fn take_source_ports(bpf: &mut Bpf) {
    for port in 32_768..=u16::MAX {
        let key = ReplyKey::new((TASKS[0], Port::new(80)), (CLIENT, Port::new(port)), protocol::TCP);
        let flow = ReplyFlow::new((NODES[0], Port::new(8080)), Port::new(port), 1);
        bpf.tables.replies.insert(&key, &flow).unwrap();
    }
}

fn fill_replies(bpf: &mut Bpf) {
    let flow = ReplyFlow::new((NODES[0], Port::new(8080)), Port::new(1), 1);
    let mut number = 0;
    loop {
        number += 1;
        let key =
            ReplyKey::new((TASKS[0], Port::new(80)), (Ip4::from_u32(number), Port::new(1)), protocol::TCP);
        if bpf.tables.replies.insert(&key, &flow).is_err() {
            return;
        }
    }
}

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
        let client = client_to(NODES[0]);
        let syn = client.tcp((40_000, 8080), Segment::Syn, b"");
        let mut bench = Bench::received(bpf, ProgramId::MeshXdp, uplink);
        bench.check("tc has not asked for the next hop", &syn, &Expect::Pass);
        Bench::received(bench.bpf, ProgramId::MeshUplink, uplink).check_forwarded("by tc", &syn);
        for frame in [
            syn.clone(),
            client.tcp((40_000, 8080), Segment::Ack, b"payload"),
            client.udp((40_000, 5353), b"datagram"),
        ] {
            let packet = TestPacket::received(&frame, bench.ifindex);
            let outer = bench.bpf.hooks.programs().test_run(ProgramId::MeshXdp, &packet).unwrap().bytes;
            let source_port = u16::from_be_bytes([outer[34], outer[35]]);
            assert!(source_port >= 49_152);
            let inner = tunnelled(frame.clone(), TASKS[0]);
            let node = between((NODE_MAC, NODES[0]), (next_hop, NODES[1]));
            let mut expected = node.udp((source_port, 4789), &vxlan(INGRESS_VNI, &inner));
            // The kernel's VXLAN sends no UDP checksum, and neither does this; the other library sets DF.
            expected[40..42].fill(0);
            let expected = fragment(expected, 0, false);
            let same = |bytes: &[u8]| [&bytes[..18], &bytes[20..24], &bytes[26..]].concat();
            assert_eq!(same(&outer), same(&expected), "all but the id, and the checksum that covers it");
            assert_ne!(outer[18..20], [0, 0]);
            bench.check_forwarded("to task 0", &frame);
        }
        bench.bpf.tables.tick.set(&2).unwrap();
        bench.check("what was asked a second ago is asked again", &syn, &Expect::Pass);
        Bench::received(bench.bpf, ProgramId::MeshUplink, uplink).check_forwarded("by tc", &syn);
        bench.check_forwarded("and known again", &syn);
        for (name, frame) in [
            ("another port", client.tcp((40_000, 22), Segment::Syn, b"")),
            ("too long for one outer packet", client.udp((40_000, 5353), &[0; 1423])),
            ("options", with_options(client.tcp((40_000, 8080), Segment::Syn, b""))),
            ("a fragment", fragment(client.udp((40_000, 5353), &[0; 64]), 0, true)),
            ("no backend", client.tcp((40_000, 8082), Segment::Syn, b"")),
            ("ARP", arp(1, (CLIENT_MAC, CLIENT), (MacAddr::default(), NODES[0]), MacAddr::BROADCAST)),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        bench.bpf.tables.rings.swap(&EMPTY_RING, &[TASKS[1]]).unwrap();
        let frame = client.tcp((40_000, 8082), Segment::Syn, b"");
        bench.check("a backend of this node is for tc", &frame, &Expect::Pass);
    });
    lab.check_counters();
}
