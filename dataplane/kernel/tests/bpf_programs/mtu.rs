//! Underlays of several sizes: nothing is sent in fragments, and who sends too much learns what fits.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use dataplane_kernel::bpf::TestPacket;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Ip, MacAddr, Peer, Port, ProgramId, ReplyFlow, ReplyKey, protocol};

use crate::harness::{Bench, CLIENT_MAC, Expect, NODE_MAC, bench, client_to, tunnelled};
use crate::support::lab::{
    CLIENT, CLIENT6, Lab, NODES, NODES6, OVERLAY_PREFIX, RING, TASKS, TASKS_OVERLAY, tc_mode,
};
use crate::support::namespace::Namespace;
use crate::support::packets::{between, fragment};
use crate::support::traffic::{PATIENCE, path_mtu, serve_tcp, serve_udp, tcp, udp_path_mtu};

const OVERHEAD: u32 = 50;
const BULK: usize = 8 << 20;
/// The least of a link that has IPv6 (RFC 8200 section 5).
const LEAST6: u32 = 1280;

/// Two nodes whose underlays have these MTUs. The client has the lesser.
fn lab(mtus: [u32; 2]) -> Lab {
    let lab = Lab::new(tc_mode());
    for task in &lab.tasks {
        serve_tcp(task, 80);
        serve_udp(task, 53);
    }
    lab.start();
    (0..2).for_each(|node| lab.allow_own_headers(node));
    for (node, mtu) in mtus.into_iter().enumerate() {
        lab.set_underlay_mtu(node, mtu);
    }
    let least = mtus.into_iter().min().unwrap();
    lab.client.ip(&format!("link set up0 mtu {least}"));
    lab.switch.ip(&format!("link set sw-c mtu {least}"));
    lab
}

/// Packets that a node has cut up or put together, of either version.
fn n_fragments(node: &Namespace) -> Vec<u64> {
    let read =
        |file: &str| node.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap());
    let snmp = read("snmp");
    let rows: Vec<Vec<&str>> = snmp.lines().map(|line| line.split_whitespace().collect()).collect();
    let of_ip = |name: &str| {
        let position = rows[0].iter().position(|column| *column == name).unwrap();
        rows[1][position].parse().unwrap()
    };
    let snmp6 = read("snmp6");
    let of_ip6 = |name: &str| {
        let line = snmp6.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    vec![of_ip("FragCreates"), of_ip("ReasmReqds"), of_ip6("Ip6FragCreates"), of_ip6("Ip6ReasmReqds")]
}

/// Sends datagrams of `size` bytes that must not be fragmented until the kernel knows what fits.
fn learns(from: &Namespace, to: impl Into<Ip> + Copy, port: u16, (size, path): (u32, u32)) {
    let patience = Instant::now() + PATIENCE;
    while udp_path_mtu(from, to, port, size as usize).cast_unsigned() != path {
        assert!(Instant::now() < patience, "no error came: {size} bytes, {path} fit");
    }
}

/// What a task answers to a client of a published port may be too long for the node that the client's packets enter by.
fn answers_learn(lab: &Lab, (size, path): (u32, u32)) {
    let server = lab.tasks[0].run(|| UdpSocket::bind("0.0.0.0:99").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = lab.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.send_to(b"question", SocketAddr::new(Ip::from(NODES[0]).into(), 9999)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    server.connect(from).unwrap();
    let patience = Instant::now() + PATIENCE;
    let answer = vec![7; size as usize];
    while path_mtu(&server).cast_unsigned() != path {
        assert!(Instant::now() < patience, "no error came");
        // "Message too long" is what it is to learn.
        let _learned = server.send(&answer);
    }
}

fn walk(mtus: [u32; 2]) {
    let lab = lab(mtus);
    let least = mtus.into_iter().min().unwrap();
    let path = least - OVERHEAD;
    let has_ipv6 = path >= LEAST6 && lab.enable_ipv6();
    let before = [0, 1].map(|node| n_fragments(&lab.nodes[node]));
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    for (from, to) in [(0, 1), (1, 0)] {
        let leg = mtus[1 - from] - OVERHEAD;
        tcp(&lab.tasks[from], TASKS_OVERLAY[to], 80, &bulk).unwrap();
        learns(&lab.tasks[from], TASKS_OVERLAY[to], 53, (leg - 28, path));
        tcp(&lab.tasks[from], TASKS_OVERLAY[to], 80, &bulk).unwrap();
        if has_ipv6 {
            let to = OVERLAY_PREFIX.address(TASKS_OVERLAY[to]);
            tcp(&lab.tasks[from], to, 80, &bulk).unwrap();
            learns(&lab.tasks[from], to, 53, (leg - 48, path));
            tcp(&lab.tasks[from], to, 80, &bulk).unwrap();
        }
    }
    for node in NODES {
        tcp(&lab.client, node, 8080, &bulk).unwrap();
    }
    learns(&lab.client, NODES[0], 5353, (least - 28, path));
    answers_learn(&lab, (mtus[1] - OVERHEAD - 28, path));
    if has_ipv6 {
        for node in NODES6 {
            tcp(&lab.client, node, 8080, &bulk).unwrap();
        }
        learns(&lab.client, NODES6[0], 5353, (least - 48, path));
    }
    tcp(&lab.nodes[0], NODES[0], 8080, &bulk).unwrap();
    learns(&lab.nodes[0], TASKS[0], 53, (mtus[0] - OVERHEAD - 28, path));
    let after = [0, 1].map(|node| n_fragments(&lab.nodes[node]));
    assert_eq!(after, before, "{mtus:?}: FragCreates, ReasmReqds, of IPv4 and IPv6");
    lab.check_counters();
}

#[test]
fn underlays_of_one_size() {
    for mtu in [1280, 1500, 9000] {
        walk([mtu, mtu]);
    }
}

#[test]
fn a_large_underlay_and_a_small_one() {
    for mtus in [[9000, 1500], [1500, 9000], [1500, 1280]] {
        walk(mtus);
    }
}

/// Nobody on the way would cut up what only the far end's underlay is too small for: all senders are told but of later fragments.
#[test]
fn what_a_smaller_peer_does_not_take_is_refused() {
    bench(0, |bpf, lab| {
        bpf.tables.peers.insert(&NODES[1].into(), &Peer { mtu: 1280 }).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[0].ifindex("up0"));
        let client = client_to(NODES[0]);
        let fits = client.udp((40_000, 5353), &[7; 1202]);
        bench.check("as long as can be", &fits, &Expect::ForwardAs(tunnelled(fits.clone(), TASKS[0])));
        let too_long = client.udp((40_000, 5353), &[7; 1203]);
        let to_client = between((CLIENT_MAC, NODES[0]), (NODE_MAC, CLIENT));
        for (name, frame) in [
            ("a byte longer", too_long.clone()),
            ("without DF", fragment(too_long.clone(), 0, false)),
            ("a first fragment", fragment(too_long.clone(), 0, true)),
        ] {
            let error = fragment(to_client.fragmentation_needed(&frame[14..14 + 28], 1230), 0, false);
            bench.check(name, &frame, &Expect::ForwardAs(error));
        }
        let later = fragment(too_long, 200, false);
        bench.check("a later one", &later, &Expect::ForwardAs(tunnelled(later.clone(), TASKS[0])));
        let client6 = client_to(NODES6[0]);
        let too_long = client6.udp((40_000, 5353), &[7; 1233]);
        let error = between((CLIENT_MAC, NODES6[0]), (NODE_MAC, CLIENT6))
            .fragmentation_needed(&too_long[14..14 + 56], 1280);
        bench.check("IPv6 has a least", &too_long, &Expect::ForwardAs(error));
        bench.bpf.tables.peers.insert(&NODES[1].into(), &Peer { mtu: 9000 }).unwrap();
        let fits = client.udp((40_000, 5353), &[7; 1422]);
        bench.check("a larger one", &fits, &Expect::ForwardAs(tunnelled(fits.clone(), TASKS[0])));
    });
}

/// To another task, and to a client as whom the task has not sent it: the error is about what the task has sent.
#[test]
fn tasks_are_told_of_what_they_have_sent() {
    bench(1, |bpf, lab| {
        bpf.tables.peers.insert(&NODES[0].into(), &Peer { mtu: 1280 }).unwrap();
        let gateway = lab.nodes[1].ifindex("mv00");
        let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, gateway);
        let peer = (MacAddr::of_endpoint(TASKS[1]), TASKS[1]);
        let long = between(task, peer).udp((1, 2), &[7; 1203]);
        let error = between((ROUTER_MAC, TASKS[1]), task).fragmentation_needed(&long[14..14 + 28], 1230);
        bench.check("to a task", &long, &Expect::ForwardAs(fragment(error, 0, false)));

        // The client has come by the other node.
        let key = ReplyKey::new((TASKS[0], Port::new(53)), (CLIENT, Port::new(40_000)), protocol::UDP);
        let flow = ReplyFlow::new((NODES[0], Port::new(5353)), Port::new(40_000), 1);
        bench.bpf.tables.replies.insert(&key, &flow).unwrap();
        let answer = between(task, (ROUTER_MAC, CLIENT)).udp((53, 40_000), &[7; 1203]);
        let packet = TestPacket::received(&answer, gateway);
        let seen = bench.bpf.hooks.programs().test_run(ProgramId::MeshTask, &packet).unwrap();
        let error = between((ROUTER_MAC, CLIENT), task).fragmentation_needed(&answer[14..14 + 28], 1230);
        let error = fragment(error, 0, false);
        // But for the checksum of the datagram, and what covers it.
        let comparable = |frame: &[u8]| {
            let mut frame = frame.to_vec();
            frame[36..38].fill(0);
            frame[68..70].fill(0);
            frame
        };
        assert_eq!(comparable(&seen.bytes), comparable(&error), "to a client");
    });
}

/// A jumbo frame's MSS becomes what the way takes, whichever side says it; a small one stays.
#[test]
fn the_mss_is_cut_to_what_the_way_takes() {
    bench(1, |bpf, lab| {
        let uplink = lab.nodes[1].ifindex("up0");
        let task_end = lab.nodes[1].ifindex("mv00");
        let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
        let peer = (MacAddr::of_endpoint(TASKS[1]), TASKS[1]);
        bpf.tables.rings.swap(&RING, &[TASKS[1]]).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        for (peer_mtu, most) in [(0, 1410), (9000, 1410), (1280, 1190)] {
            bench.bpf.tables.peers.insert(&NODES[0].into(), &Peer { mtu: peer_mtu }).unwrap();
            for said in [8960, 1460, most, 536] {
                let cut = said.min(most);
                let name = format!("peer {peer_mtu}, MSS {said}");
                let port = 40_000 + said;
                bench.program = ProgramId::MeshUplink;
                (bench.ifindex, bench.ingress_ifindex) = (uplink, uplink);
                let client = client_to(NODES[1]);
                let expected = tunnelled(client.syn((port, 8080), cut), TASKS[1]);
                bench.check(&name, &client.syn((port, 8080), said), &Expect::ForwardAs(expected));
                let client = client_to(NODES6[1]);
                let cut6 = said.min(most - 20);
                let expected = tunnelled(client.syn((port, 8080), cut6), TASKS[1]);
                bench.check(&name, &client.syn((port, 8080), said), &Expect::ForwardAs(expected));
                bench.program = ProgramId::MeshTask;
                (bench.ifindex, bench.ingress_ifindex) = (task_end, task_end);
                let expected = between((ROUTER_MAC, task.1), peer).syn((port, 80), cut);
                let said = between(task, peer).syn((port, 80), said);
                bench.check(&name, &said, &Expect::ForwardAs(expected));
            }
        }
    });
}
