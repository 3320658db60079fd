//! The whole packet walk between two nodes, with real sockets at both ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Instant;

use crate::support::lab::{
    CLIENT, CLIENT6, INGRESS_VNI, Lab, NODES, NODES6, OVERLAY_VNI, TASKS, TASKS_OVERLAY, VIP, tc_mode,
};
use crate::support::packets::between;
use crate::support::traffic::{
    PATIENCE, close, connect_from, exchange, ping, serve_tcp, serve_udp, tcp, udp, udp_by_ipv6_socket,
    udp_connected, udp_path_mtu, wait_until,
};
use dataplane_kernel::bpf::{Bpf, has_tcx};
use dataplane_kernel::inspect::{self, InspectError};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::{EndpointKey, Ip, Ip4, MacAddr, ProgramId};

/// More than any socket buffer: segmentation offload and checksum offload are at work.
const BULK: usize = 8 << 20;

fn lab(mode: HookMode) -> Lab {
    let lab = Lab::new(mode);
    for task in &lab.tasks {
        serve_tcp(task, 80);
        serve_udp(task, 53);
    }
    lab.start();
    lab
}

fn ip(address: impl Into<Ip>) -> IpAddr {
    address.into().into()
}

/// The addresses by which a client comes, and what fits into the tunnel.
pub struct Side {
    client: Ip,
    nodes: [Ip; 2],
    any: IpAddr,
    largest_datagram: usize,
    path_mtu: i32,
}

impl Side {
    /// The same with a tunnel that takes so many bytes less.
    pub fn narrower(&self, by: u16) -> Self {
        let largest_datagram = self.largest_datagram - usize::from(by);
        Self { largest_datagram, path_mtu: self.path_mtu - i32::from(by), ..*self }
    }
}

pub const V4: Side = Side {
    client: Ip::v4(CLIENT),
    nodes: [Ip::v4(NODES[0]), Ip::v4(NODES[1])],
    any: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    largest_datagram: 1450 - 20 - 8,
    path_mtu: 1450,
};
pub const V6: Side = Side {
    client: CLIENT6,
    nodes: NODES6,
    any: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    largest_datagram: 1450 - 40 - 8,
    path_mtu: 1450,
};

/// A client outside reaches the task through either node, and is seen as itself.
pub fn clients_are_served(lab: &Lab, side: &Side) {
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    for node in side.nodes {
        for payload in [&b""[..], b"hello", &bulk] {
            let seen =
                tcp(&lab.client, node, 8080, payload).unwrap_or_else(|error| panic!("{node}: {error}"));
            assert_eq!(seen.ip(), ip(side.client));
        }
        for size in [1, 1400, side.largest_datagram, 4000, 60_000] {
            let (seen, from) =
                udp(&lab.client, node, 5353, size).unwrap_or_else(|error| panic!("{node} {size}: {error}"));
            assert_eq!((seen.ip(), from.ip(), from.port()), (ip(side.client), ip(node), 5353));
        }
        udp_connected(&lab.client, node, 5353).unwrap();
    }
}

/// A datagram that is too long for the tunnel is lost, and its sender learns what fits.
pub fn clients_learn_the_path_mtu(lab: &Lab, side: &Side) {
    let patience = Instant::now() + PATIENCE;
    while udp_path_mtu(&lab.client, side.nodes[0], 5353, side.largest_datagram + 50) != side.path_mtu {
        assert!(Instant::now() < patience, "no error came");
    }
    udp(&lab.client, side.nodes[0], 5353, side.largest_datagram + 50).unwrap();
}

/// A connection finds the backend that it began with, on another node than the one its packets go to now, although the node
/// that they enter by has forgotten it and the ring is another.
pub fn connections_outlive_cache_and_ring(lab: &Lab, side: &Side) {
    let bulk = vec![7; BULK];
    for (ingress, (before, after)) in side.nodes.into_iter().zip([(0, 1), (1, 0)]) {
        lab.swap_ring(&[TASKS[before]]);
        let source = 41_000 + u16::try_from(before).unwrap();
        let stream = connect_from(&lab.client, source, ingress, 8080);
        lab.swap_ring(&[TASKS[after]]);
        lab.empty_caches();

        let seen = exchange(stream, &bulk).unwrap_or_else(|error| panic!("through {ingress}: {error}"));

        assert_eq!((seen.ip(), seen.port()), (ip(side.client), source));
    }
    lab.swap_ring(&[TASKS[0]]);
}

/// Processes of the nodes reach published ports on own addresses and localhost.
pub fn nodes_are_served(lab: &Lab) {
    let error = tcp(&lab.client, Ip4::LOCALHOST, 8080, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "sockets of others are left alone");
    for (index, node) in NODES.into_iter().enumerate() {
        for address in [node, Ip4::LOCALHOST] {
            let seen = tcp(&lab.nodes[index], address, 8080, b"hello").unwrap();
            assert_eq!(seen.ip(), ip(node), "through {address}");
            let (seen, from) = udp(&lab.nodes[index], address, 5353, 5).unwrap();
            assert_eq!((seen.ip(), from.ip(), from.port()), (ip(node), ip(address), 5353));
            udp_connected(&lab.nodes[index], address, 5353).unwrap();
        }
        let seen = tcp(&lab.nodes[index], NODES[1 - index], 8080, b"hello").unwrap();
        assert_eq!(seen.ip(), ip(node), "through the other node");
    }
}

/// Tasks reach each other across nodes, by address and by the service's virtual address.
pub fn tasks_are_served(lab: &Lab) {
    let bulk = vec![3; BULK];
    let seen = tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, &bulk).unwrap();
    assert_eq!(seen.ip(), ip(TASKS_OVERLAY[1]));
    let seen = tcp(&lab.tasks[1], Ip4(VIP), 80, &bulk).unwrap();
    assert_eq!(seen.ip(), ip(TASKS_OVERLAY[1]));
    let (seen, from) = udp(&lab.tasks[1], Ip4(VIP), 53, 5).unwrap();
    assert_eq!((seen.ip(), from.ip()), (ip(TASKS_OVERLAY[1]), ip(Ip4(VIP))));
    udp_connected(&lab.tasks[1], Ip4(VIP), 53).unwrap();
    for address in [Ip4(VIP), TASKS_OVERLAY[0], Ip4([10, 0, 1, 1]), Ip4([10, 0, 0, 1])] {
        assert!(ping(&lab.tasks[1], address), "{address} does not answer a ping");
    }
}

/// IPv6 sockets reach the same by mapped addresses, and a node's processes by `::1` too; they see what they asked for.
fn ipv6_sockets_are_served(lab: &Lab) {
    let mapped = |address: Ip4, port: u16| SocketAddr::from((Ipv4Addr::from(address).to_ipv6_mapped(), port));
    let localhost = SocketAddr::from((Ipv6Addr::LOCALHOST, 8080));
    let vip = mapped(Ip4(VIP), 80);
    for (from, to, seen) in [
        (&lab.tasks[1], vip, TASKS_OVERLAY[1]),
        (&lab.nodes[0], mapped(NODES[0], 8080), NODES[0]),
        (&lab.nodes[0], mapped(Ip4::LOCALHOST, 8080), NODES[0]),
        (&lab.nodes[0], localhost, NODES[0]),
        (&lab.nodes[1], localhost, NODES[1]),
    ] {
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername");
        assert_eq!(exchange(stream, b"hello").unwrap().ip(), ip(seen), "to {to}");
    }
    for (from, to, seen) in [
        (&lab.tasks[1], mapped(Ip4(VIP), 53), TASKS_OVERLAY[1]),
        (&lab.nodes[0], mapped(Ip4::LOCALHOST, 5353), NODES[0]),
    ] {
        for is_connected in [false, true] {
            let (peer, answers) = udp_by_ipv6_socket(from, to, is_connected).unwrap();
            assert_eq!((answers, peer.ip()), (to, ip(seen)), "to {to}, connected: {is_connected}");
        }
    }
    for (from, to) in
        [(&lab.client, localhost), (&lab.tasks[1], localhost), (&lab.nodes[0], mapped(Ip4::LOCALHOST, 8082))]
    {
        let error = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "to {to}");
    }
}

/// One client port through two nodes to one task: two flows.
fn colliding_flows_are_told_apart(lab: &Lab, side: &Side) {
    let first = connect_from(&lab.client, 40_077, side.nodes[0], 8080);
    let second = connect_from(&lab.client, 40_077, side.nodes[1], 8080);
    let first = exchange(first, b"first").unwrap();
    let second = exchange(second, b"second").unwrap();
    assert_eq!((first.ip(), second.ip()), (ip(side.client), ip(side.client)));
    assert_eq!(first.port(), 40_077);
    assert_ne!(second.port(), 40_077);
}

/// A client that is gone refuses the task's answer, and the task hears of it.
pub fn errors_reach_tasks(lab: &Lab, side: &Side) {
    for node in side.nodes {
        let server = lab.tasks[0].run(|| UdpSocket::bind((side.any, 99)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = lab.client.run(|| UdpSocket::bind((side.any, 0)).unwrap());
        client.send_to(b"question", (ip(node), 9999)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        close(&lab.client, client);
        server.connect(from).unwrap();
        server.send(b"answer").unwrap();
        let error = server.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "through {node}");
        close(&lab.tasks[0], server);
    }
}

fn errors_reach_clients(lab: &Lab, side: &Side) {
    for node in side.nodes {
        let error = udp_connected(&lab.client, node, 9999).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "a closed target port through {node}"
        );
        let error = tcp(&lab.client, node, 8082, b"").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "no backend, through {node}");
    }
    let error = tcp(&lab.nodes[0], Ip4::LOCALHOST, 8082, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "no backend, at the socket");
}

/// Processes of a node ask for its IPv6 addresses, and for the other node's.
pub fn nodes_are_served_by_ipv6(lab: &Lab) {
    for (index, node) in NODES6.into_iter().enumerate() {
        for address in [node, Ip::LOCALHOST6] {
            let seen = tcp(&lab.nodes[index], address, 8080, b"hello").unwrap();
            assert_eq!(seen.ip(), ip(NODES[index]), "served by IPv4: through {address}");
            let (seen, from) = udp(&lab.nodes[index], address, 5353, 5).unwrap();
            assert_eq!((seen.ip(), from.ip(), from.port()), (ip(node), ip(address), 5353));
            udp_connected(&lab.nodes[index], address, 5353).unwrap();
        }
        let seen = tcp(&lab.nodes[index], NODES6[1 - index], 8080, b"hello").unwrap();
        assert_eq!(seen.ip(), ip(node), "through the other node");
        let (seen, from) = udp(&lab.nodes[index], NODES6[1 - index], 5353, 5).unwrap();
        assert_eq!((seen.ip(), from.ip()), (ip(node), ip(NODES6[1 - index])));
    }
    let error = tcp(&lab.client, Ip::LOCALHOST6, 8080, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "sockets of others are left alone");
    let error = tcp(&lab.nodes[0], Ip::LOCALHOST6, 8082, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "no backend, at the socket");
}

/// A task asks for the published ports of all nodes, its own service's among them.
fn tasks_reach_published_ports_by_ipv6(lab: &Lab) {
    for (task, seen) in TASKS.into_iter().enumerate() {
        for node in NODES6 {
            let peer = tcp(&lab.tasks[task], node, 8080, b"hello").unwrap();
            assert_eq!(peer.ip(), ip(seen), "task {task} through {node}");
            let (peer, from) = udp(&lab.tasks[task], node, 5353, 5).unwrap();
            assert_eq!((from.ip(), from.port()), (ip(node), 5353), "task {task}, seen as {peer}");
        }
    }
}

fn clients_walk(lab: &Lab, side: &Side) {
    // First: nobody but its sender cuts up IPv6.
    clients_learn_the_path_mtu(lab, side);
    clients_are_served(lab, side);
    connections_outlive_cache_and_ring(lab, side);
    colliding_flows_are_told_apart(lab, side);
    errors_reach_tasks(lab, side);
    errors_reach_clients(lab, side);
}

fn walk(lab: &Lab) {
    nodes_are_served(lab);
    tasks_are_served(lab);
    ipv6_sockets_are_served(lab);
    clients_walk(lab, &V4);
    if lab.enable_ipv6() {
        clients_walk(lab, &V6);
        nodes_are_served_by_ipv6(lab);
        tasks_reach_published_ports_by_ipv6(lab);
    } else {
        println!("skipped: this kernel has no IPv6");
    }
    let drops = lab.check_counters();
    println!("{drops:?}");
}

#[test]
fn walk_by_xdp() {
    let lab = lab(tc_mode());
    lab.start_xdp();
    walk(&lab);
    let xdp = lab.counted(0, ProgramId::MeshXdp);
    assert!(xdp.forwarded > 1000, "the bulk did not go by XDP: {xdp:?}");
}

#[test]
fn walk_by_xdp_redirect() {
    let lab = lab(tc_mode());
    lab.start_xdp_redirect();
    walk(&lab);
    let xdp = lab.counted(0, ProgramId::MeshXdp);
    assert!(xdp.forwarded > 1000, "the bulk did not go by XDP: {xdp:?}");
}

/// Once with offloads at work, where aggregates are left to tc, and the bulk again in single segments.
#[test]
fn walk_by_xdp_generic() {
    let lab = lab(tc_mode());
    lab.start_xdp_generic();
    walk(&lab);
    let before = lab.counted(0, ProgramId::MeshXdp).forwarded;
    assert!(before > 50, "next to nothing went by XDP: {before}");
    lab.switch_off_offloads();
    clients_are_served(&lab, &V4);
    let bulk = lab.counted(0, ProgramId::MeshXdp).forwarded - before;
    assert!(bulk > 1000, "the bulk did not go by XDP: {bulk}");
    lab.check_counters();
}

/// Nobody holds the programs and maps but their pins; opening them again swaps the programs and keeps the rows.
#[test]
fn connections_outlive_the_loader() {
    let lab = lab(tc_mode());
    let mut streams: Vec<_> = NODES.map(|node| connect_from(&lab.client, 0, node, 8080)).into();
    streams.push(lab.tasks[1].run(|| TcpStream::connect("10.0.1.2:80").unwrap()));
    for node in 0..2 {
        let before: Vec<_> = lab.with_bpf(node, |bpf| bpf.hooks.attached().unwrap());
        let after = lab.with_bpf(node, |bpf| {
            assert_eq!(bpf.tables.rings.keys().unwrap().len(), 4);
            bpf.hooks.attached().unwrap()
        });
        assert_eq!(before.len(), 13);
        assert_eq!(before, after);
    }
    for stream in streams {
        exchange(stream, b"still here").unwrap();
    }
    clients_are_served(&lab, &V4);
}

/// A node that leaves: programs off, pins gone, and the network as the kernel alone has it.
#[test]
fn a_released_node_keeps_nothing() {
    for mode in [tc_mode(), HookMode::Clsact] {
        let lab = lab(mode);
        let pins = lab.node_pins(0);
        lab.nodes[0].run(|| Bpf::open(&pins).unwrap().release().unwrap());
        assert!(!pins.exists());
        let error = tcp(&lab.client, NODES[0], 8080, b"").unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{mode:?}: a program is still attached"
        );
    }
}

/// A removed ring or endpoint sends flows to those that are left; closed flows are swept.
#[test]
fn flows_follow_endpoints_and_are_swept() {
    let lab = lab(tc_mode());
    let mut seen_by = BTreeSet::new();
    for _ in 0..16 {
        tcp(&lab.client, NODES[0], 8081, b"x").unwrap();
        seen_by.extend(lab.with_tables(0, |tables| {
            tables.flow_cache.rows().unwrap().into_values().map(|row| row.backend).collect::<Vec<_>>()
        }));
    }
    assert_eq!(seen_by.into_iter().collect::<Vec<_>>(), TASKS);
    let swept = lab.with_tables(1, |tables| {
        let kept = tables.sweep_flows().unwrap();
        assert!(kept.n_kept > 0 && kept.n_removed == 0, "{kept:?}");
        tables.tick.set(&12).unwrap();
        tables.sweep_flows().unwrap()
    });
    assert!(swept.n_kept == 0 && swept.n_removed > 0, "closed flows stay: {swept:?}");
    let flow = connect_from(&lab.client, 0, NODES[0], 8080);
    lab.with_tables(1, |tables| {
        assert_eq!(tables.sweep_flows().unwrap().n_kept, 1);
        tables.endpoints.remove(&EndpointKey { vni: INGRESS_VNI, address: TASKS[0] }).unwrap();
        assert_eq!(tables.sweep_flows().unwrap().n_removed, 1);
        assert!(tables.flows.rows().unwrap().is_empty() && tables.replies.rows().unwrap().is_empty());
    });
    drop(flow);
}

#[test]
fn the_pins_tell_what_is_there() {
    let lab = lab(tc_mode());
    let pins = lab.node_pins(0);
    let (balancers, endpoints, hooks) = lab.nodes[0].run(|| {
        let balancers = inspect::load_balancers(&pins).unwrap();
        (balancers, inspect::endpoints(&pins).unwrap(), inspect::hooks(&pins).unwrap())
    });
    assert_eq!(balancers.len(), 16);
    let shared = balancers.iter().find(|row| row.frontend == "198.18.0.11:8081/tcp").unwrap();
    let by_ipv6 = balancers.iter().find(|row| row.frontend == "[fd00:18::11]:8081/tcp").unwrap();
    assert_eq!(by_ipv6.backends, shared.backends);
    assert_eq!((shared.ring_size, shared.backends.len(), shared.kind.as_str()), (2, 2, "ingress"));
    assert_eq!(shared.backends[0].vtep.to_string(), "198.18.0.12");
    assert_eq!(shared.backends[1].vtep.to_string(), "198.18.0.11");
    assert!(
        balancers.iter().any(|row| row.kind == "vip" && row.frontend == "10.0.1.2" && row.vni == OVERLAY_VNI)
    );
    let local: Vec<_> = endpoints.iter().filter_map(|row| row.interface.clone()).collect();
    assert_eq!(local, ["mv10", "mv11"]);
    assert_eq!(endpoints.len(), 4);
    let tc = if has_tcx() { "tcx" } else { "clsact" };
    assert!(hooks.iter().any(|row| row.interface == "up0" && row.hook == format!("{tc} ingress")));
    assert!(hooks.iter().any(|row| row.interface == "mesh-vx" && row.hook == format!("{tc} egress")));
    assert_eq!(hooks.iter().filter(|row| row.interface == "cgroup root").count(), 8);
    assert!(matches!(
        inspect::drops(Path::new("/sys/fs/bpf/meshd-absent")),
        Err(InspectError::Absent { .. })
    ));
}

/// A VLAN on the uplink is another interface, whose clients the mesh does not serve. VLAN 0 is none, but a priority.
#[test]
fn frames_of_vlans_are_left_alone() {
    let lab = lab(tc_mode());
    let everyone = MacAddr([0xff; 6]);
    let datagram =
        between((MacAddr([2, 0, 0, 0, 0, 9]), CLIENT), (everyone, NODES[0])).udp((5000, 5353), b"x");
    let counted = || {
        let counters = lab.counted(0, ProgramId::MeshUplink);
        (counters.forwarded, counters.passed)
    };
    for (vlan, is_served) in [(0_u16, true), (100, false), (4095, false)] {
        let [high, low] = vlan.to_be_bytes();
        let tagged = [&datagram[..12], &[0x81, 0, high, low], &datagram[12..]].concat();
        let (forwarded, passed) = counted();

        lab.client.send_frame("up0", &tagged);

        let what = format!("VLAN {vlan} is counted");
        wait_until(&what, || if is_served { counted().0 > forwarded } else { counted().1 > passed });
        assert_eq!(counted().0 > forwarded, is_served, "VLAN {vlan}");
    }
    lab.check_counters();
}

/// Both ends put headers of their own in front of packets, or one does: the wire has the same.
#[test]
fn walk_by_own_headers() {
    for nodes in [&[0, 1][..], &[0], &[1]] {
        let lab = lab(tc_mode());
        for node in nodes {
            lab.allow_own_headers(*node);
        }
        walk(&lab);
        for node in 0..2 {
            let known =
                lab.with_tables(node, |tables| tables.next_hops.get(&NODES[1 - node].into()).unwrap());
            let is_own = known.is_some_and(|hop| hop.ifindex == lab.nodes[node].ifindex("up0"));
            assert_eq!(is_own, nodes.contains(&node), "node {node}: {known:?}");
        }
    }
}

/// The way to the other node leads by a router, then elsewhere, then is shorter than the uplink allows.
#[test]
fn tunnels_follow_the_nodes_routes() {
    let lab = lab(tc_mode());
    (0..2).for_each(|node| lab.allow_own_headers(node));
    let ifindex = lab.nodes[0].ifindex("up0");
    let mut tick = 1;
    let mut walk_by = |change: &str| {
        lab.nodes[0].ip(change);
        tick += 1;
        lab.with_tables(0, |tables| tables.tick.set(&tick).unwrap());
        tasks_are_served(&lab);
        lab.with_tables(0, |tables| tables.next_hops.get(&NODES[1].into()).unwrap().unwrap())
    };
    let peer = Ip::from(NODES[1]);
    let hop = walk_by("link set lo up");
    assert_eq!((hop.ifindex, hop.gateway, hop.mtu), (ifindex, peer, 1500));
    // The switch is a router too, where it has an address and may forward.
    let router = Ip::from(Ip4([198, 18, 0, 1]));
    lab.switch.ip(&format!("addr add {router}/24 dev br0"));
    lab.switch.sysctl("ipv4/conf/all/forwarding", "1");
    let hop = walk_by(&format!("route add {peer} via {router} dev up0"));
    assert_eq!((hop.ifindex, hop.gateway), (ifindex, router));
    let hop = walk_by(&format!("route change {peer} dev up0 mtu lock 1400"));
    assert_eq!((hop.ifindex, hop.gateway, hop.mtu), (ifindex, peer, 1400));
    lab.nodes[0].ip("link add aside link up0 type macvlan mode bridge");
    lab.nodes[0].ip("link set aside up");
    let hop = walk_by(&format!("route change {peer} dev aside"));
    assert_eq!(hop.ifindex, 0, "another interface is the kernel's");
    lab.check_counters();
}

/// What can go straight does, and nothing else changes.
#[test]
fn walk_with_direct_answers() {
    let lab = lab(tc_mode());
    lab.answer_directly();
    walk(&lab);
}

#[test]
fn walk_by_tcx() {
    if !has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    walk(&lab(HookMode::Tcx));
}

#[test]
fn walk_by_clsact() {
    walk(&lab(HookMode::Clsact));
}
