//! Virtual addresses for what no socket hook sees: a network namespace behind a task's sandbox, which forwards its packets and
//! gives them its own address, as nested containers have it.

use std::net::{IpAddr, UdpSocket};

use dataplane_kernel::bpf::{Bpf, FlowSweep};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::flow::FLOW_RESET;
use ebpf_abi::limits::{MAX_VIP_ROWS_OF_TASK, ROUTER_MAC};
use ebpf_abi::{
    Attachment, DropReason, Endpoint, EndpointKey, Ip, Ip4, MacAddr, Port, ProgramId, RingKey, VipFlow,
    VipFlowKey, VipKey, protocol,
};

use crate::harness::{Bench, Expect, bench};
use crate::support::lab::{Lab, NODES, OVERLAY_PREFIX, OVERLAY_VNI, TASKS_OVERLAY, VIP, VIP_RING, tc_mode};
use crate::support::namespace::Namespace;
use crate::support::packets::{Segment, between};
use crate::support::traffic::{
    PATIENCE, connect_from, exchange, serve_tcp, serve_udp, tcp, udp, udp_connected,
};

/// More than any socket buffer: segmentation and checksum offload are at work.
const BULK: usize = 4 << 20;
/// Another task of the client's node.
const NEIGHBOUR: Ip4 = Ip4([10, 0, 1, 7]);
const NEIGHBOURS_VIP: Ip4 = Ip4([10, 0, 1, 3]);
const NEIGHBOURS_RING: RingKey = RingKey::new(7, OVERLAY_VNI);
/// Of the overlay. A task that is its own backend is asked by it.
const GATEWAY: Ip4 = Ip4([10, 0, 1, 1]);
/// The client's own.
const OWN_VIP: Ip4 = Ip4([10, 0, 1, 4]);
const OWN_RING: RingKey = RingKey::new(8, OVERLAY_VNI);
/// The sandbox behind which the client is: of node 0.
const CLIENT: usize = 1;

struct Nested {
    lab: Lab,
    inner: Namespace,
    /// Of the client's node.
    neighbour: Namespace,
    has_ipv6: bool,
}

impl Nested {
    /// Task 0, on the other node, serves [`VIP`]; its neighbour and itself serve the other addresses.
    fn new(mode: HookMode) -> Self {
        let lab = Lab::new(mode);
        let has_ipv6 = lab.enable_ipv6();
        let nested = Self { inner: Namespace::new(), neighbour: Namespace::new(), lab, has_ipv6 };
        nested.plug_neighbour();
        nested.nest();
        for server in nested.lab.tasks.iter().chain([&nested.neighbour]) {
            serve_tcp(server, 80);
            serve_udp(server, 53);
        }
        nested.lab.start();
        nested.fill();
        nested
    }

    fn plug_neighbour(&self) {
        let node = &self.lab.nodes[0];
        let peer = format!("peer name eth1 netns {}", self.neighbour.path());
        node.ip(&format!("link add mv21 mtu 1450 type veth {peer}"));
        node.ip("link set mv21 up");
        self.neighbour.ip(&format!("link set eth1 address {} mtu 1450 up", MacAddr::of_endpoint(NEIGHBOUR)));
        self.neighbour.ip(&format!("addr add {NEIGHBOUR}/24 dev eth1"));
        if self.has_ipv6 {
            self.neighbour.add_address6("eth1", OVERLAY_PREFIX.address(NEIGHBOUR));
        }
    }

    /// The way back to the inner namespace takes less than its own way out: the sandbox says so to whom it forwards from.
    fn nest(&self) {
        let sandbox = &self.lab.tasks[CLIENT];
        sandbox.ip(&format!("link add in0 type veth peer name eth0 netns {}", self.inner.path()));
        sandbox.ip("addr add 192.168.77.1/24 dev in0");
        sandbox.ip("link set in0 mtu 1450 up");
        sandbox.ip("route add 192.168.77.2/32 dev in0 mtu lock 1300");
        sandbox.sysctl("ipv4/ip_forward", "1");
        self.inner.ip("addr add 192.168.77.2/24 dev eth0");
        self.inner.ip("link set eth0 mtu 1450 up");
        self.inner.ip("route add default via 192.168.77.1");
        if self.has_ipv6 {
            sandbox.add_address6("in0", ip("fd77::1"));
            // Whom it forwards to a router asks for from its link-local address.
            sandbox.ip("addr add fe80::1/64 dev in0 nodad");
            sandbox.sysctl("ipv6/conf/all/forwarding", "1");
            sandbox.ip("route add fd77::2/128 dev in0 mtu lock 1300");
            self.inner.add_address6("eth0", ip("fd77::2"));
            self.inner.ip("route add default via fd77::1");
        }
        sandbox.sh("nft 'add table inet nest; add chain inet nest post { type nat hook postrouting priority srcnat; }; \
                    add rule inet nest post oifname eth1 masquerade'");
    }

    fn fill(&self) {
        let ifindex = self.lab.nodes[0].ifindex("mv21");
        for node in 0..2 {
            self.lab.with_tables(node, |tables| {
                let mac = MacAddr::of_endpoint(NEIGHBOUR);
                let key = EndpointKey { vni: OVERLAY_VNI, address: NEIGHBOUR };
                let endpoint = if node == 0 {
                    Endpoint::local(mac, ifindex)
                } else {
                    Endpoint::remote(mac, NODES[0].into())
                };
                tables.endpoints.insert(&key, &endpoint.serving(true)).unwrap();
                for (vip, ring, backend) in
                    [(NEIGHBOURS_VIP, NEIGHBOURS_RING, NEIGHBOUR), (OWN_VIP, OWN_RING, TASKS_OVERLAY[CLIENT])]
                {
                    tables.rings.swap(&ring, &[backend]).unwrap();
                    tables.vips.insert(&VipKey { vni: OVERLAY_VNI, address: vip }, &ring).unwrap();
                }
            });
        }
        let mac = MacAddr::of_endpoint(NEIGHBOUR);
        let attachment = Attachment {
            vni: OVERLAY_VNI,
            address: NEIGHBOUR,
            gateway: GATEWAY,
            mtu: 1450,
            mac,
            flags: 0,
            prefix: 24,
            sandbox: 0,
        };
        self.lab.with_bpf(0, |bpf| {
            bpf.tables.attachments.insert(&ifindex, &attachment).unwrap();
            bpf.hooks.attach(ProgramId::MeshTask, ifindex, self.lab.mode()).unwrap();
        });
    }

    /// The addresses of a virtual address, and those that its backends see for the client.
    fn families(&self, vip: Ip4) -> Vec<(Ip, Ip)> {
        let seen = if vip == OWN_VIP { GATEWAY } else { TASKS_OVERLAY[CLIENT] };
        let v6 = self.has_ipv6.then(|| (OVERLAY_PREFIX.address(vip), OVERLAY_PREFIX.address(seen)));
        [Some((vip.into(), seen.into())), v6].into_iter().flatten().collect()
    }

    fn set_ring(&self, places: &[Ip4]) {
        self.lab.with_tables(0, |tables| tables.rings.swap(&VIP_RING, places).unwrap());
    }

    /// Whether a backend of [`VIP`] serves, on the client's node.
    fn set_serving(&self, backend: Ip4, serves: bool) {
        self.lab.with_tables(0, |tables| {
            let key = EndpointKey { vni: OVERLAY_VNI, address: backend };
            let row = tables.endpoints.get(&key).unwrap().unwrap();
            tables.endpoints.insert(&key, &row.serving(serves)).unwrap();
        });
    }

    /// The flows of the client's node, without their answers.
    fn flows(&self) -> Vec<(VipFlowKey, VipFlow)> {
        let rows = self.lab.with_tables(0, |tables| tables.vip_flows.rows().unwrap());
        rows.into_iter().filter(|(key, _)| !key.is_of_answers()).collect()
    }
}

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

fn walk(nested: &Nested) {
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    for vip in [Ip4(VIP), NEIGHBOURS_VIP, OWN_VIP] {
        for (to, seen) in nested.families(vip) {
            for payload in [&b""[..], b"hello", &bulk] {
                let peer =
                    tcp(&nested.inner, to, 80, payload).unwrap_or_else(|error| panic!("to {to}: {error}"));
                assert_eq!(Ip::from(peer.ip()), seen, "to {to}");
            }
            // Longer ones come in fragments, and are answered so.
            for size in [40, 1200, 4000, 60_000] {
                let (peer, answers) = udp(&nested.inner, to, 53, size)
                    .unwrap_or_else(|error| panic!("to {to}, {size}: {error}"));
                assert_eq!((Ip::from(peer.ip()), answers), (seen, (IpAddr::from(to), 53).into()), "to {to}");
            }
            udp_connected(&nested.inner, to, 53).unwrap();
        }
    }
    errors_name_the_virtual_address(nested);
    // Who is asked by its own address goes on beside that, and the task's own sockets by the hooks.
    for from in [&nested.inner, &nested.lab.tasks[CLIENT]] {
        for to in [TASKS_OVERLAY[0], NEIGHBOUR] {
            tcp(from, to, 80, b"hello").unwrap();
            udp(from, to, 53, 4000).unwrap();
        }
        tcp(from, Ip4(VIP), 80, b"hello").unwrap();
    }
    let rows = nested.lab.with_tables(0, |tables| tables.socket_nat.rows().unwrap());
    assert_eq!(rows.len(), 1, "a socket of the inner namespace was translated: {rows:?}");
    nested.lab.check_counters();
}

/// Ports that nobody listens on.
fn errors_name_the_virtual_address(nested: &Nested) {
    for vip in [Ip4(VIP), NEIGHBOURS_VIP, OWN_VIP] {
        for (to, _) in nested.families(vip) {
            for error in [
                tcp(&nested.inner, to, 81, b"").unwrap_err(),
                udp_connected(&nested.inner, to, 54).unwrap_err(),
            ] {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "to {to}: {error}");
            }
        }
    }
}

#[test]
fn a_nested_namespace_reaches_virtual_addresses() {
    walk(&Nested::new(tc_mode()));
}

#[test]
fn a_nested_namespace_reaches_virtual_addresses_by_clsact() {
    walk(&Nested::new(HookMode::Clsact));
}

#[test]
fn a_nested_namespace_reaches_virtual_addresses_beside_own_headers() {
    let nested = Nested::new(tc_mode());
    (0..2).for_each(|node| nested.lab.allow_own_headers(node));
    walk(&nested);
}

/// A connection stays with its backend while that drains; datagrams and new connections go to who serves.
#[test]
fn flows_stay_with_a_backend_that_drains() {
    let nested = Nested::new(tc_mode());
    for (to, seen) in nested.families(Ip4(VIP)) {
        nested.set_ring(&[TASKS_OVERLAY[0]]);
        nested.set_serving(TASKS_OVERLAY[0], true);
        let stream = connect_from(&nested.inner, 41_000, to, 80);
        let socket = nested
            .inner
            .run(|| UdpSocket::bind(if to.is_v4() { "0.0.0.0:42000" } else { "[::]:42000" }).unwrap());
        let asks = || {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"hello", (IpAddr::from(to), 53)).unwrap();
            assert_eq!(socket.recv_from(&mut [0; 200]).unwrap().1, (IpAddr::from(to), 53).into());
        };
        asks();
        assert_eq!(backends_of(&nested, to), [(41_000, TASKS_OVERLAY[0]), (42_000, TASKS_OVERLAY[0])]);
        nested.set_ring(&[NEIGHBOUR]);
        nested.set_serving(TASKS_OVERLAY[0], false);
        asks();
        let other = connect_from(&nested.inner, 43_000, to, 80);
        assert_eq!(
            backends_of(&nested, to),
            [(41_000, TASKS_OVERLAY[0]), (42_000, NEIGHBOUR), (43_000, NEIGHBOUR)]
        );
        for stream in [stream, other] {
            assert_eq!(Ip::from(exchange(stream, b"still there").unwrap().ip()), seen);
        }
    }
}

/// By their clients' ports, of the family of an address.
fn backends_of(nested: &Nested, to: Ip) -> Vec<(u16, Ip4)> {
    let is_meant = |key: &VipFlowKey| (key.kind == 0) == to.is_v4();
    let flows = nested.flows().into_iter().filter(|(key, _)| is_meant(key));
    let mut backends: Vec<_> = flows.map(|(key, row)| (key.client_port.get(), row.becomes)).collect();
    backends.sort_unstable();
    backends
}

/// As a closed port does, at once.
#[test]
fn a_service_without_backends_refuses() {
    let nested = Nested::new(tc_mode());
    nested.set_ring(&[]);
    for (to, _) in nested.families(Ip4(VIP)) {
        for error in
            [tcp(&nested.inner, to, 80, b"").unwrap_err(), udp_connected(&nested.inner, to, 53).unwrap_err()]
        {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "to {to}: {error}");
        }
    }
    assert!(nested.flows().is_empty());
}

/// Single packets, of a raw socket: what goes to the backend, and what comes back as from the virtual address.
#[test]
fn packets_are_asked_and_answered_by_the_virtual_address() {
    bench(0, |bpf, lab| {
        let task = (MacAddr::of_endpoint(TASKS_OVERLAY[CLIENT]), TASKS_OVERLAY[CLIENT]);
        let backend = (MacAddr::of_endpoint(TASKS_OVERLAY[0]), TASKS_OVERLAY[0]);
        let addresses = [task.1, Ip4(VIP), backend.1].map(|name| [name.into(), OVERLAY_PREFIX.address(name)]);
        let host_end = lab.nodes[0].ifindex("mv11");
        for family in [0, 1] {
            let [client, vip, server] = addresses.map(|of_families| of_families[family]);
            let asked = between((task.0, client), (ROUTER_MAC, vip));
            let sent = between((ROUTER_MAC, client), (backend.0, server));
            let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end);
            let (syn, datagram) = (Segment::Syn, b"question");
            bench.check(
                "TCP",
                &asked.tcp((1, 80), syn, b""),
                &Expect::ForwardAs(sent.tcp((1, 80), syn, b"")),
            );
            bench.check(
                "UDP",
                &asked.udp((1, 53), datagram),
                &Expect::ForwardAs(sent.udp((1, 53), datagram)),
            );
        }
        let rows = bpf.tables.vip_flows.rows().unwrap();
        assert_eq!(rows.len(), 8, "{rows:?}");
        assert_eq!(bpf.tables.vips_asked.get().unwrap(), 1);
    });
}

/// Rows go when their flows are over, or an end of theirs is gone; with the last one the search for answers ends.
#[test]
fn dead_flows_are_swept() {
    bench(0, |bpf, lab| {
        let own = TASKS_OVERLAY[CLIENT];
        let asked = between((MacAddr::of_endpoint(own), own), (ROUTER_MAC, Ip4(VIP)));
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, lab.nodes[0].ifindex("mv11"));
        for segment in [Segment::Syn, Segment::Rst] {
            bench.check_forwarded("closed", &asked.tcp((1, 80), segment, b""));
        }
        bench.check_forwarded("half-open", &asked.tcp((2, 80), Segment::Syn, b""));
        bench.check_forwarded("a single datagram", &asked.udp((3, 53), b""));
        let swept_at = |bpf: &mut Bpf, tick: u32| {
            bpf.tables.tick.set(&tick).unwrap();
            let FlowSweep { n_kept, n_removed } = bpf.tables.sweep_vip_flows().unwrap();
            (n_kept, n_removed)
        };
        assert_eq!(swept_at(bpf, 11), (6, 0));
        assert_eq!(swept_at(bpf, 12), (4, 2), "closed for more than 10 s");
        assert_eq!(swept_at(bpf, 32), (2, 2), "a datagram alone for more than 30 s");
        assert_eq!(bpf.tables.vips_asked.get().unwrap(), 1);
        let key = EndpointKey { vni: OVERLAY_VNI, address: TASKS_OVERLAY[0] };
        let endpoint = bpf.tables.endpoints.get(&key).unwrap().unwrap();
        bpf.tables.endpoints.remove(&key).unwrap();
        assert_eq!(swept_at(bpf, 33), (0, 2), "the backend is gone");
        assert_eq!(swept_at(bpf, 34), (0, 0));
        assert_eq!(bpf.tables.vips_asked.get().unwrap(), 0);

        // Answers of a backend that the flow has left may come for a while.
        bpf.tables.endpoints.insert(&key, &endpoint).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, lab.nodes[0].ifindex("mv11"));
        bench.check_forwarded("a question", &asked.udp((3, 53), b""));
        bench.bpf.tables.rings.swap(&VIP_RING, &[own]).unwrap();
        bench.bpf.tables.endpoints.insert(&key, &endpoint.serving(false)).unwrap();
        bench.check_forwarded("to another backend", &asked.udp((3, 53), b""));
        assert_eq!(swept_at(bpf, 64), (3, 0));
        assert_eq!(swept_at(bpf, 65), (0, 3));
    });
}

/// Whatever one task asks for, the others find room: it is refused what is beyond its share, and what is over goes sooner.
#[test]
fn a_task_has_its_share_of_the_table() {
    bench(0, |bpf, lab| {
        let own = TASKS_OVERLAY[CLIENT];
        let task = EndpointKey { vni: OVERLAY_VNI, address: own };
        let asked = between((MacAddr::of_endpoint(own), own), (ROUTER_MAC, Ip4(VIP)));
        let syn = |port| asked.tcp((port, 80), Segment::Syn, b"");
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, lab.nodes[0].ifindex("mv11"));
        bench.check_forwarded("a flow", &syn(1));
        bench.check_forwarded("anew, in the same rows", &syn(1));
        assert_eq!(bench.bpf.tables.vip_shares.get(&task).unwrap(), Some(2));

        bench.bpf.tables.vip_shares.insert(&task, &MAX_VIP_ROWS_OF_TASK).unwrap();
        bench.check("beyond its share", &syn(2), &Expect::Drop(DropReason::VipShareFull));
        bench.check_forwarded("what it has goes on", &asked.tcp((1, 80), Segment::Ack, b""));
        bench.bpf.tables.sweep_vip_flows().unwrap();
        assert_eq!(bench.bpf.tables.vip_shares.get(&task).unwrap(), Some(2), "counted anew");
        bench.check_forwarded("there is room again", &syn(2));

        let add_closed = |bpf: &mut Bpf, client: Ip4, n: u32| {
            for number in 0..n {
                let port = Port::new(u16::try_from(number + 1000).unwrap());
                let key =
                    VipFlowKey::new(OVERLAY_VNI, (client, port), (Ip4(VIP), Port::new(80)), protocol::TCP, 0);
                let row = |becomes| {
                    let mut row = VipFlow::new(becomes, 1);
                    row.closing = FLOW_RESET;
                    row
                };
                bpf.tables.vip_flows.insert(&key, &row(TASKS_OVERLAY[0])).unwrap();
                bpf.tables.vip_flows.insert(&key.answers(TASKS_OVERLAY[0]), &row(Ip4(VIP))).unwrap();
            }
        };
        let neighbour = EndpointKey { vni: OVERLAY_VNI, address: NEIGHBOUR };
        let endpoint = bpf.tables.endpoints.get(&task).unwrap().unwrap();
        bpf.tables.endpoints.insert(&neighbour, &endpoint).unwrap();
        add_closed(bpf, own, MAX_VIP_ROWS_OF_TASK / 16 * 7);
        add_closed(bpf, NEIGHBOUR, 3);
        bpf.tables.tick.set(&4).unwrap();
        let FlowSweep { n_kept, n_removed } = bpf.tables.sweep_vip_flows().unwrap();
        let n_removed = u32::try_from(n_removed).unwrap();
        assert_eq!((n_kept, n_removed), (4 + 6, MAX_VIP_ROWS_OF_TASK / 8 * 7));
        let shares = bpf.tables.vip_shares.rows().unwrap();
        assert_eq!(shares.into_iter().collect::<Vec<_>>(), [(task, 4), (neighbour, 6)]);
    });
}
