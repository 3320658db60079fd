//! Clients that come by IPv6 to tasks that listen on IPv4 alone, with real sockets at both ends.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use crate::support::lab::{CLIENT6, INGRESS_PREFIX, Lab, NODES6, TASKS, tc_mode};
use crate::support::namespace::Namespace;
use crate::support::traffic::{
    PATIENCE, close, connect_from, exchange, path_mtu, serve_tcp_at, serve_udp_at, tcp, udp, udp_connected,
    udp_path_mtu,
};
use dataplane_kernel::bpf::has_tcx;
use dataplane_kernel::inspect;
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::stand_in::{RESERVED_SECS, is_one};
use ebpf_abi::{Attachment, Ip, ProgramId};
use ebpf_packet::ipv6;

/// More than any socket buffer: segmentation offload and checksum offload are at work.
const BULK: usize = 8 << 20;

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// `None` if this kernel has no IPv6.
fn lab(mode: HookMode) -> Option<Lab> {
    let lab = Lab::new(mode);
    for task in &lab.tasks {
        serve_tcp_at(task, ANY4, 80);
        serve_udp_at(task, ANY4, 53);
    }
    lab.start();
    let has_ipv6 = lab.enable_ipv6();
    if !has_ipv6 {
        println!("skipped: this kernel has no IPv6");
    }
    has_ipv6.then_some(lab)
}

#[track_caller]
fn assert_stands_in(seen: SocketAddr) {
    let IpAddr::V4(seen) = seen.ip() else { panic!("seen as {seen}") };
    assert!(is_one(seen.into()), "seen as {seen}");
}

/// All are served, and one client is one address whichever way it comes.
fn clients_are_served(lab: &Lab) {
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    let mut seen_as = Vec::new();
    for node in NODES6 {
        for payload in [&b""[..], b"hello", &bulk] {
            let seen =
                tcp(&lab.client, node, 8080, payload).unwrap_or_else(|error| panic!("{node}: {error}"));
            assert_stands_in(seen);
            seen_as.push(seen.ip());
        }
        for size in [1, 1382, 1400, 1402, 4000, 60_000] {
            let (seen, from) =
                udp(&lab.client, node, 5353, size).unwrap_or_else(|error| panic!("{node} {size}: {error}"));
            assert_stands_in(seen);
            assert_eq!((from.ip(), from.port()), (node.into(), 5353));
            seen_as.push(seen.ip());
        }
        udp_connected(&lab.client, node, 5353).unwrap();
    }
    seen_as.dedup();
    assert_eq!(seen_as.len(), 1, "{seen_as:?}");
}

fn clients_learn_the_path_mtu(lab: &Lab) {
    let patience = Instant::now() + PATIENCE;
    while udp_path_mtu(&lab.client, NODES6[0], 5353, 1452) != 1450 {
        assert!(Instant::now() < patience, "no error came");
    }
}

/// See the test of this name in [`crate::walk`].
fn connections_outlive_cache_and_ring(lab: &Lab) {
    let bulk = vec![7; BULK];
    for (ingress, (before, after)) in NODES6.into_iter().zip([(0, 1), (1, 0)]) {
        lab.swap_ring(&[TASKS[before]]);
        let source = 42_000 + u16::try_from(before).unwrap();
        let stream = connect_from(&lab.client, source, ingress, 8080);
        lab.swap_ring(&[TASKS[after]]);
        lab.empty_caches();

        let seen = exchange(stream, &bulk).unwrap_or_else(|error| panic!("through {ingress}: {error}"));

        assert_stands_in(seen);
        assert_eq!(seen.port(), source);
    }
    lab.swap_ring(&[TASKS[0]]);
}

fn colliding_flows_are_told_apart(lab: &Lab) {
    let first = connect_from(&lab.client, 40_078, NODES6[0], 8080);
    let second = connect_from(&lab.client, 40_078, NODES6[1], 8080);
    let (first, second) = (exchange(first, b"first").unwrap(), exchange(second, b"second").unwrap());
    assert_eq!((first.ip(), first.port()), (second.ip(), 40_078));
    assert_ne!(second.port(), 40_078);
}

/// A task's socket, and a client's that has its first datagram answered.
fn pair(lab: &Lab, node: Ip) -> (UdpSocket, UdpSocket, SocketAddr) {
    let server = lab.tasks[0].run(|| UdpSocket::bind((ANY4, 99)).unwrap());
    let client = lab.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.connect((IpAddr::from(node), 9999)).unwrap();
    client.send(b"question").unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    assert_stands_in(from);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 6);
    (server, client, from)
}

/// Who is gone refuses what the other one sends, and that hears of it.
fn errors_reach_both_sides(lab: &Lab) {
    for node in NODES6 {
        let (server, client, from) = pair(lab, node);
        close(&lab.client, client);
        server.connect(from).unwrap();
        server.send(b"answer").unwrap();
        let error = server.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "to the task, through {node}");
        close(&lab.tasks[0], server);

        let (server, client, _) = pair(lab, node);
        close(&lab.tasks[0], server);
        client.send(b"again").unwrap();
        let error = client.recv(&mut [0; 8]).unwrap_err();
        if error.kind() != ErrorKind::ConnectionRefused {
            let (drops, [task, client]) = (lab.check_counters(), [&lab.tasks[0], &lab.client].map(errors_of));
            panic!("to the client, through {node}: {error}; {drops:?}\ntask:\n{task}\nclient:\n{client}");
        }

        let error = tcp(&lab.client, node, 8082, b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "no backend, through {node}");
    }
}

/// What a namespace's kernel has counted of ICMP and UDP.
fn errors_of(place: &Namespace) -> String {
    let text = place.run(|| {
        ["snmp", "snmp6"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))
    });
    let lines = text.iter().flatten().flat_map(|text| text.lines());
    let counts = lines.filter(|line| line.contains("Icmp") || line.contains("Udp"));
    counts.filter(|line| !line.ends_with("\t0")).collect::<Vec<_>>().join("\n")
}

/// A task learns how long its datagrams may be, once they are longer than fits behind an IPv6 header.
fn tasks_learn_the_path_mtu(lab: &Lab) {
    let (server, client, from) = pair(lab, NODES6[0]);
    server.connect(from).unwrap();
    let patience = Instant::now() + PATIENCE;
    while path_mtu(&server) != 1430 {
        assert!(Instant::now() < patience, "no error came");
        // It may be told of the one before.
        let _ = server.send(&[7; 1403]);
    }
    // In two parts now, once the socket has told of the last error.
    while server.send(&[7; 1403]).is_err() {
        assert!(Instant::now() < patience, "errors without end");
    }
    assert_eq!(client.recv(&mut [0; 1500]).unwrap(), 1403);
}

/// A reset is one on the other side, whichever that is.
fn resets_go_both_ways(lab: &Lab) {
    let listener = lab.tasks[0].run(|| TcpListener::bind((ANY4, 81)).unwrap());
    lab.publish(8083, 81);
    for node in NODES6 {
        for is_server_first in [true, false] {
            let client = connect_from(&lab.client, 0, node, 8083);
            let (server, _) = listener.accept().unwrap();
            let (mut leaves, mut stays) = if is_server_first { (server, client) } else { (client, server) };
            for stream in [&leaves, &stays] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            stays.write_all(b"never read").unwrap();
            leaves.peek(&mut [0; 1]).unwrap();
            leaves.write_all(b"so much").unwrap();
            stays.read_exact(&mut [0; 7]).unwrap();
            drop(leaves);
            let error = stays.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "server first: {is_server_first}");
        }
    }
}

fn walk(lab: &Lab) {
    // First: nobody but its sender cuts up IPv6.
    clients_learn_the_path_mtu(lab);
    clients_are_served(lab);
    connections_outlive_cache_and_ring(lab);
    colliding_flows_are_told_apart(lab);
    errors_reach_both_sides(lab);
    tasks_learn_the_path_mtu(lab);
    resets_go_both_ways(lab);
    lab.check_counters();
}

#[test]
fn v4_only_by_tcx() {
    if !has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    lab(HookMode::Tcx).iter().for_each(walk);
}

#[test]
fn v4_only_by_clsact() {
    lab(HookMode::Clsact).iter().for_each(walk);
}

#[test]
fn v4_only_by_xdp() {
    let Some(lab) = lab(tc_mode()) else { return };
    lab.start_xdp();
    walk(&lab);
    // IPv6 alone renews no next hop in `mesh_task`: XDP leaves what it sees to tc, beneath.
    let xdp = lab.counted(0, ProgramId::MeshXdp);
    assert!(xdp.received > 1000, "the bulk did not come by XDP: {xdp:?}");
}

#[test]
fn v4_only_by_xdp_generic() {
    let Some(lab) = lab(tc_mode()) else { return };
    lab.start_xdp_generic();
    walk(&lab);
    let xdp = lab.counted(0, ProgramId::MeshXdp);
    assert!(xdp.received > 100, "next to nothing came by XDP: {xdp:?}");
}

#[test]
fn v4_only_by_own_headers() {
    let Some(lab) = lab(tc_mode()) else { return };
    (0..2).for_each(|node| lab.allow_own_headers(node));
    walk(&lab);
}

#[test]
fn v4_only_with_direct_answers() {
    let Some(lab) = lab(tc_mode()) else { return };
    lab.answer_directly();
    walk(&lab);
}

/// Who begins to listen to IPv6 gets new clients as they are; connections from before go on as they began.
#[test]
fn tasks_may_begin_to_listen_to_ipv6() {
    let Some(lab) = lab(tc_mode()) else { return };
    let before = connect_from(&lab.client, 0, NODES6[0], 8080);
    let task6 = IpAddr::from(INGRESS_PREFIX.address(TASKS[0]));
    serve_tcp_at(&lab.tasks[0], task6, 80);
    serve_udp_at(&lab.tasks[0], task6, 53);
    for node in NODES6 {
        assert_eq!(tcp(&lab.client, node, 8080, b"x").unwrap().ip(), IpAddr::from(CLIENT6));
        assert_eq!(udp(&lab.client, node, 5353, 7).unwrap().0.ip(), IpAddr::from(CLIENT6));
    }
    assert_stands_in(exchange(before, b"y").unwrap());
    lab.check_counters();
}

/// A link whose packets are too small for IPv6 (RFC 8200 section 5) has no address of it, whatever its task listens to.
#[test]
fn links_too_small_for_ipv6_get_their_clients_by_ipv4() {
    let Some(lab) = lab(tc_mode()) else { return };
    let task6 = IpAddr::from(INGRESS_PREFIX.address(TASKS[0]));
    serve_tcp_at(&lab.tasks[0], task6, 80);
    lab.with_tables(1, |tables| {
        for (ifindex, row) in tables.attachments.rows().unwrap() {
            tables.attachments.insert(&ifindex, &Attachment { mtu: ipv6::MIN_MTU - 1, ..row }).unwrap();
        }
    });
    for node in NODES6 {
        assert_stands_in(tcp(&lab.client, node, 8080, b"x").unwrap());
        assert_stands_in(udp(&lab.client, node, 5353, 7).unwrap().0);
    }
    lab.check_counters();
}

/// A client's datagrams that come before the task listens don't decide for those that come then.
#[test]
fn a_flow_that_nobody_answers_is_asked_for_again() {
    let Some(lab) = lab(tc_mode()) else { return };
    let client = lab.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect((IpAddr::from(NODES6[1]), 9999)).unwrap();
    client.send(b"nobody").unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    serve_udp_at(&lab.tasks[0], ANY4, 99);
    client.send(b"somebody").unwrap();
    let mut answer = [0; 64];
    let len = client.recv(&mut answer).unwrap();
    assert_stands_in(std::str::from_utf8(&answer[..len]).unwrap().trim_end().parse().unwrap());
}

/// An address stands for its client as long as a flow needs it.
#[test]
fn addresses_that_stand_for_nobody_are_swept() {
    let Some(lab) = lab(tc_mode()) else { return };
    let stream: TcpStream = connect_from(&lab.client, 0, NODES6[1], 8080);
    let later = 2 + RESERVED_SECS;
    let shown = inspect::flows(&lab.node_pins(1), 10).unwrap().kept;
    assert!(shown.iter().all(|flow| flow.client.ip() == IpAddr::from(CLIENT6)), "{shown:?}");
    assert!(shown[0].client_address_seen.is_some_and(|address| is_one(address.into())), "{shown:?}");
    lab.with_tables(1, |tables| {
        let rows = tables.stand_ins.rows().unwrap();
        assert_eq!(rows.values().map(|row| row.client).collect::<Vec<_>>(), [CLIENT6]);
        tables.tick.set(&later).unwrap();
        tables.sweep_flows().unwrap();
        assert_eq!(tables.stand_ins.rows().unwrap(), rows, "its flow lives");
    });
    exchange(stream, b"still here").unwrap();
    lab.with_tables(1, |tables| {
        tables.tick.set(&(later + 20)).unwrap();
        tables.sweep_flows().unwrap();
        assert!(tables.flows.rows().unwrap().is_empty());
        assert!(tables.stand_ins.rows().unwrap().is_empty());
    });
}
