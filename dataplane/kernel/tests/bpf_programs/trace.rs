//! A trace and the programs agree, over generated tables and packets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use dataplane_kernel::bpf::{Bpf, TestPacket};
use dataplane_kernel::inspect::trace::{TaskOrigin, Walk};
use dataplane_model::inspect::{TraceEnd, TraceReport};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{
    DropReason, Endpoint, EndpointKey, Ip, Ip4, MacAddr, NodeConfig, Peer, Port, ProgramId, RingKey,
    TargetPort, TargetPortKey, protocol,
};
use nix::sys::socket::AddressFamily;

use crate::harness::{CLIENT_MAC, NODE_MAC, bench};
use crate::support::lab::{
    CLIENT, CLIENT6, INGRESS_PREFIX, INGRESS_VNI, Lab, NODES, NODES6, OVERLAY_PREFIX, OVERLAY_VNI, RING,
    SHARED_RING, TASKS, TASKS_OVERLAY, VIP, VIP_RING, tc_mode,
};
use crate::support::packets::{Between, Segment, arp, between};
use crate::tunnel::{Seen, Taker, inject};

/// Tables and packets of each kind: some seconds.
const N_TABLES: u64 = 50;
const N_PACKETS: u64 = 25;

/// A generator of numbers that every run repeats (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::try_from(self.next() % values.len() as u64).unwrap()]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn client_port(&mut self) -> u16 {
        30_000 + u16::try_from(self.next() % 30_000).unwrap()
    }
}

/// What a trace says that becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Host,
    /// With this inner destination MAC; otherwise as it was.
    Tunnel(MacAddr),
    /// With this MAC, address and port as its destination.
    Sandbox(MacAddr, (Ip, Port)),
    /// Back as "port unreachable".
    Refused,
    Drop(DropReason),
}

fn fate(report: &TraceReport, sandbox_mac: impl Fn(Ip4) -> MacAddr) -> Fate {
    let [way] = &report.ways[..] else { panic!("one way is left: {report:?}") };
    match &way.end {
        TraceEnd::Host => Fate::Host,
        TraceEnd::Tunnel(packet) => Fate::Tunnel(MacAddr::of_endpoint(packet.endpoint.into())),
        TraceEnd::Sandbox { destination, .. } => {
            let address = Ip::from(destination.ip());
            Fate::Sandbox(sandbox_mac(name(address)), (address, Port::new(destination.port())))
        }
        TraceEnd::Dropped { reason, .. } => {
            let named = DropReason::ALL.iter().find(|known| known.label() == reason);
            Fate::Drop(*named.expect("a reason of ours"))
        }
        TraceEnd::Refused { .. } => Fate::Refused,
        refused @ TraceEnd::NoRoute { .. } => panic!("no packet is refused: {refused:?}"),
    }
}

/// Whose address it is, in either network.
fn name(address: Ip) -> Ip4 {
    let names = [INGRESS_PREFIX, OVERLAY_PREFIX].map(|prefix| prefix.name(address));
    address.to_v4().or(names[0]).or(names[1]).unwrap()
}

/// What the program did with the frame, in the same words; `passes_tunnels` is true of the program whose tunnel is the
/// device's own.
fn done(bpf: &mut Bpf, program: ProgramId, packet: &TestPacket<'_>, passes_tunnels: bool) -> Fate {
    let before = bpf.tables.counters.program(program).unwrap();
    let outcome = bpf.hooks.programs().test_run(program, packet).unwrap();
    let after = bpf.tables.counters.program(program).unwrap();
    if let Some(reason) = DropReason::ALL.iter().find(|reason| {
        let number = reason.number() as usize;
        after.drops[number] > before.drops[number]
    }) {
        return Fate::Drop(*reason);
    }
    let bytes = &outcome.bytes;
    let mac = MacAddr(bytes[..6].try_into().unwrap());
    let is_as_it_was = bytes[12..] == packet.bytes[12..];
    let passed = after.passed > before.passed;
    assert!(passed || after.forwarded > before.forwarded, "counted: {after:?}");
    if passed && !(passes_tunnels && bytes[..12] != packet.bytes[..12]) {
        assert_eq!(bytes, packet.bytes);
        return Fate::Host;
    }
    let is_v4 = bytes[12..14] == [8, 0];
    if (is_v4 && bytes[23] == protocol::ICMP && bytes[34..36] == [3, 3])
        || (!is_v4 && bytes[20] == protocol::ICMP6 && bytes[54..56] == [1, 4])
    {
        return Fate::Refused;
    }
    let destination = if bytes[12..14] == [0x86, 0xdd] {
        (Ip(bytes[38..54].try_into().unwrap()), Port(bytes[56..58].try_into().unwrap()))
    } else {
        (Ip4(bytes[30..34].try_into().unwrap()).into(), Port(bytes[36..38].try_into().unwrap()))
    };
    // A packet to a sandbox has the task's own address; one in a tunnel is as the sender made it, behind the router's MAC.
    if is_as_it_was && bytes[6..12] == ROUTER_MAC.0 && (passed || !passes_tunnels) {
        Fate::Tunnel(mac)
    } else {
        Fate::Sandbox(mac, destination)
    }
}

/// Protocols and ports, those that are published more often than others.
const ASKED: [(u8, u16); 10] = [
    (protocol::TCP, 8080),
    (protocol::TCP, 8080),
    (protocol::TCP, 8080),
    (protocol::UDP, 5353),
    (protocol::UDP, 5353),
    (protocol::UDP, 5353),
    (protocol::TCP, 8081),
    (protocol::TCP, 8082),
    (protocol::UDP, 8080),
    (protocol::TCP, 9),
];

fn frame(protocol: u8, between: &Between, ports: (u16, u16)) -> Vec<u8> {
    if protocol == protocol::TCP {
        between.tcp(ports, Segment::Syn, b"")
    } else {
        between.udp(ports, b"datagram")
    }
}

fn socket(address: impl Into<Ip>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into().into(), port)
}

/// Rings with any of the tasks, and one that has no endpoint; endpoints that are here, there, serve or are gone.
fn disarrange(numbers: &mut Numbers, bpf: &mut Bpf, lab: &Lab) {
    const GONE: Ip4 = Ip4([10, 0, 0, 77]);
    let tables = &mut bpf.tables;
    for ring in [RING, SHARED_RING] {
        let n_places = numbers.next() % 5;
        let places: Vec<Ip4> =
            (0..n_places).map(|_| numbers.one_of(&[TASKS[0], TASKS[0], TASKS[1], TASKS[1], GONE])).collect();
        tables.rings.swap(&ring, &places).unwrap();
    }
    for (index, (vni, addresses)) in
        [(INGRESS_VNI, TASKS), (OVERLAY_VNI, TASKS_OVERLAY)].into_iter().enumerate()
    {
        for address in addresses {
            let (key, mac) = (EndpointKey { vni, address }, MacAddr::of_endpoint(address));
            let local = lab.nodes[0].ifindex(&format!("mv1{index}"));
            let endpoint = match numbers.next() % 10 {
                0 => None,
                1..5 => Some(Endpoint::local(mac, local)),
                _ => Some(Endpoint::remote(mac, NODES[1].into())),
            };
            let serves = numbers.chance(70);
            match endpoint {
                Some(endpoint) => tables.endpoints.insert(&key, &endpoint.serving(serves)).unwrap(),
                None => tables.endpoints.remove(&key).unwrap(),
            }
        }
    }
    for task in TASKS {
        for (protocol, published) in [(protocol::TCP, 8080), (protocol::UDP, 5353)] {
            let key = TargetPortKey::new(task, Port::new(published), protocol);
            if numbers.chance(80) {
                tables.target_ports.insert(&key, &TargetPort::new(Port::new(80))).unwrap();
            } else {
                tables.target_ports.remove(&key).unwrap();
            }
        }
    }
}

#[test]
fn clients_go_where_the_trace_says() {
    bench(0, |bpf, lab| {
        let (mut numbers, mut seen) = (Numbers(1), [0_u32; 4]);
        // Frames are for this machine, whosever address they ask for.
        lab.nodes[0].ip(&format!("link set up0 address {NODE_MAC}"));
        let uplink = lab.nodes[0].ifindex("up0");
        for _ in 0..N_TABLES {
            disarrange(&mut numbers, bpf, lab);
            for _ in 0..N_PACKETS {
                let (own, own6) = (Ip::from(NODES[0]), NODES6[0]);
                let others = [NODES[1].into(), NODES6[1], Ip::LOCALHOST4, Ip::LOCALHOST6];
                let other = numbers.one_of(&others);
                let to = numbers.one_of(&[own, own, own, own6, own6, own6, other]);
                let client = if to.is_v4() { CLIENT.into() } else { CLIENT6 };
                let (protocol, port) = numbers.one_of(&ASKED);
                let ports = (numbers.client_port(), port);
                let between = between((CLIENT_MAC, client), (NODE_MAC, to));
                let frame = frame(protocol, &between, ports);
                // Twice: the second one of a datagram finds its flow in the cache.
                for _ in 0..2 {
                    let walk = Walk::new(&bpf.tables, protocol).unwrap();
                    let report = walk.from_outside(socket(client, ports.0), socket(to, ports.1)).unwrap();
                    let told = fate(&report, MacAddr::of_endpoint);
                    let packet = TestPacket::received(&frame, uplink);
                    assert_eq!(done(bpf, ProgramId::MeshUplink, &packet, false), told, "{report:#?}");
                    count(&mut seen, told);
                }
            }
        }
        assert!(seen.iter().all(|n| *n > 50), "each fate is among them: {seen:?}");
    });
}

fn count(seen: &mut [u32; 4], fate: Fate) {
    let index = match fate {
        Fate::Host => 0,
        Fate::Tunnel(_) => 1,
        Fate::Sandbox(..) => 2,
        Fate::Refused | Fate::Drop(_) => 3,
    };
    seen[index] += 1;
}

#[test]
fn tasks_packets_go_where_the_trace_says() {
    bench(0, |bpf, lab| {
        let (mut numbers, mut seen) = (Numbers(2), [0_u32; 4]);
        let task = task_origin(0);
        for _ in 0..N_TABLES {
            disarrange(&mut numbers, bpf, lab);
            for _ in 0..N_PACKETS {
                let network = numbers.one_of(&[0, 1]);
                let own = [TASKS, TASKS_OVERLAY][network][1];
                let [a, b, c, _] = own.0;
                let other = [TASKS, TASKS_OVERLAY][network][0];
                let to =
                    numbers.one_of(&[other, other, other, Ip4([a, b, c, 77]), Ip4(VIP), Ip4([a, b, c, 1])]);
                let network = if to == Ip4(VIP) { 1 } else { network };
                let own = [TASKS, TASKS_OVERLAY][network][1];
                let leg = lab.nodes[0].ifindex(&format!("mv1{network}"));
                let ports = (40_000, numbers.client_port());
                let between = between((MacAddr::of_endpoint(own), own), (ROUTER_MAC, to));
                let protocol = numbers.one_of(&[protocol::TCP, protocol::UDP]);
                let frame = frame(protocol, &between, ports);
                let walk = Walk::new(&bpf.tables, protocol).unwrap();
                let report = walk.from_task(&task, socket(to, ports.1)).unwrap();
                let told = match fate(&report, MacAddr::of_endpoint) {
                    // A virtual address has become the backend's by then.
                    Fate::Tunnel(mac) if to == Ip4(VIP) => {
                        Fate::Sandbox(mac, (TASKS_OVERLAY[0].into(), Port::new(ports.1)))
                    }
                    told => told,
                };
                // Without a neighbour there is a question only.
                let frame = if told == Fate::Drop(DropReason::NeighbourUnanswered) {
                    arp(1, (MacAddr::of_endpoint(own), own), (MacAddr::default(), to), MacAddr::BROADCAST)
                } else {
                    frame
                };
                let packet = TestPacket::received(&frame, leg);
                assert_eq!(done(bpf, ProgramId::MeshTask, &packet, false), told, "{report:#?}");
                count(&mut seen, told);
            }
        }
        assert!(seen[1..].iter().all(|n| *n > 50), "each fate is among them: {seen:?}");
        bpf.tables.config.set(&NodeConfig::default()).unwrap();
        let walk = Walk::new(&bpf.tables, protocol::TCP).unwrap();
        let report = walk.from_task(&task, socket(TASKS[0], 80)).unwrap();
        assert_eq!(fate(&report, MacAddr::of_endpoint), Fate::Drop(DropReason::Unconfigured));
    });
}

/// Task 1 of node 0, whose sockets have this cookie.
fn task_origin(netns_cookie: u64) -> TaskOrigin {
    let addresses = vec![(INGRESS_VNI, TASKS[1].into()), (OVERLAY_VNI, Ipv4Addr::from(TASKS_OVERLAY[1]))];
    TaskOrigin { netns_cookie, addresses, far_source4: None, far_source6: None, port: 40_000 }
}

/// The backends that ways lead to, whichever way they end.
fn backends(report: &TraceReport) -> BTreeSet<SocketAddr> {
    let backend = |end: &TraceEnd| match end {
        TraceEnd::Sandbox { destination, .. } => Some(*destination),
        TraceEnd::Tunnel(packet) => Some(packet.destination),
        _ => None,
    };
    report.ways.iter().filter_map(|way| backend(&way.end)).collect()
}

#[test]
fn sockets_go_where_the_trace_says() {
    bench(0, |bpf, lab| {
        let (vip, vip6) = (Ip::from(Ip4(VIP)), OVERLAY_PREFIX.address(Ip4(VIP)));
        let mut asked = vec![vip, NODES[0].into()];
        if lab.enable_ipv6() {
            asked.extend([vip6, NODES6[0], NODES6[1]]);
        }
        let task = task_origin(lab.tasks[1].cookie());
        let rings: [(RingKey, [Ip4; 2]); 2] = [(SHARED_RING, TASKS), (VIP_RING, TASKS_OVERLAY)];
        for (n_backends, n_seen) in [(2, 2), (1, 1), (0, 0)] {
            for (ring, all) in rings {
                bpf.tables.rings.swap(&ring, &all[..n_backends]).unwrap();
            }
            for address in &asked {
                // UDP is not published at this port: the trace of a connection, and real connected sockets.
                let (to, is_vip) = (socket(*address, 8081), [vip, vip6].contains(address));
                let protocol = if is_vip { protocol::UDP } else { protocol::TCP };
                let report = Walk::new(&bpf.tables, protocol).unwrap().from_task(&task, to).unwrap();
                let is_refused = matches!(report.ways[0].end, TraceEnd::Refused { .. });
                let told = backends(&report);
                assert_eq!((told.len(), is_refused), (n_seen, n_seen == 0), "{report:#?}");
                let went = connect(bpf, lab, to, is_vip);
                assert_eq!(went, (told, is_refused), "{report:#?}");
            }
        }
        let outside = socket(CLIENT, 8081);
        let report = Walk::new(&bpf.tables, protocol::UDP).unwrap().from_task(&task, outside).unwrap();
        assert_eq!(report.ways[0].end, TraceEnd::Host);
    });
}

/// Where 64 sockets of the task were translated to, and whether a call was refused.
fn connect(bpf: &Bpf, lab: &Lab, to: SocketAddr, by_udp: bool) -> (BTreeSet<SocketAddr>, bool) {
    let before = bpf.tables.socket_nat.rows().unwrap();
    let is_refused = lab.tasks[1].run(|| {
        let connect = || -> std::io::Result<()> {
            if by_udp {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                return UdpSocket::bind(any)?.connect(to);
            }
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = nix::sys::socket::socket(
                family,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            let to = nix::sys::socket::SockaddrStorage::from(to);
            match nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to) {
                Err(nix::errno::Errno::EINPROGRESS) | Ok(()) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        };
        let results: Vec<std::io::Result<()>> = (0..64).map(|_| connect()).collect();
        results.iter().any(|result| {
            result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    });
    let after = bpf.tables.socket_nat.rows().unwrap();
    let new = after.into_iter().filter(|(key, original)| before.get(key) != Some(original));
    (new.map(|(key, _)| socket(key.backend, key.port.get())).collect(), is_refused)
}

/// What node 0 sends by the tunnel, traced on node 1 and sent there.
#[test]
fn arrivals_go_where_the_trace_says() {
    let lab = Lab::new(tc_mode());
    lab.start();
    let client = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), NODES[0]));
    let frame = client.tcp((40_000, 8080), Segment::Syn, b"");
    let packet = lab.with_tables(0, |tables| {
        let walk = Walk::new(tables, protocol::TCP).unwrap();
        let report = walk.from_outside(socket(CLIENT, 40_000), socket(NODES[0], 8080)).unwrap();
        let TraceEnd::Tunnel(packet) = report.ways[0].end else { panic!("{report:?}") };
        packet
    });
    let check = |expected: Fate| {
        let report = lab
            .with_tables(1, |tables| Walk::new(tables, protocol::TCP).unwrap().from_tunnel(&packet).unwrap());
        let told = fate(&report, MacAddr::of_endpoint);
        assert_eq!(told, expected, "{report:#?}");
        let seen = match told {
            Fate::Sandbox(..) => Seen::Forwarded,
            Fate::Drop(reason) => Seen::Drop(reason),
            Fate::Host | Fate::Tunnel(_) | Fate::Refused => Seen::Passed,
        };
        let program = match &report.ways[0].end {
            TraceEnd::Dropped { program, .. } => program.clone(),
            _ => ProgramId::MeshUplink.label().to_owned(),
        };
        let is_uplink = program == ProgramId::MeshUplink.label();
        let taker = if is_uplink { Taker::Uplink } else { Taker::DeviceInSpiteOf };
        assert!(is_uplink || program == ProgramId::MeshVxlan.label(), "{program}");
        inject(&lab, &lab.nodes[0], (packet.vni, &frame), (taker, seen));
    };
    check(Fate::Sandbox(MacAddr::of_endpoint(TASKS[0]), (TASKS[0].into(), Port::new(80))));
    // The flow that this began is found by its row, also when the port is published no more: then it ends.
    check(Fate::Sandbox(MacAddr::of_endpoint(TASKS[0]), (TASKS[0].into(), Port::new(80))));
    lab.with_tables(1, |tables| {
        let key = TargetPortKey::new(TASKS[0], Port::new(8080), protocol::TCP);
        tables.target_ports.remove(&key).unwrap();
    });
    check(Fate::Drop(DropReason::UnpublishedPort));
    lab.with_tables(1, |tables| {
        tables.endpoints.remove(&EndpointKey { vni: INGRESS_VNI, address: TASKS[0] }).unwrap();
    });
    check(Fate::Drop(DropReason::UnknownEndpoint));
    lab.with_tables(1, |tables| tables.peers.remove(&NODES[0].into()).unwrap());
    check(Fate::Drop(DropReason::UnknownPeer));
    lab.with_tables(1, |tables| tables.peers.insert(&NODES[0].into(), &Peer::default()).unwrap());
    check(Fate::Drop(DropReason::UnknownEndpoint));
    lab.check_counters();
}
