//! Direct server return: answers of a task leave from its own node where the kernel would send them out of the uplink, and by
//! the tunnel everywhere else.

use dataplane_kernel::bpf::{Bpf, TestPacket};
use ebpf_abi::flow::FLOW_DSR;
use ebpf_abi::limits::{BRIDGE_VNI, ROUTER_MAC};
use ebpf_abi::table::ATTACHMENT_WAY_OUT;
use ebpf_abi::{DropReason, Frontend, FrontendKey, Ip, Ip4, MacAddr, Port, ProgramId, protocol};

use crate::harness::{Bench, Expect, bench, client_to};
use crate::support::capture::Capture;
use crate::support::lab::{CLIENT, Lab, NODES, RING, TASKS, answer_directly, tc_mode};
use crate::support::packets::{Between, Segment, between, fragment};
use crate::support::traffic::{connect_from, exchange, serve_tcp, serve_udp, tcp, udp, wait_until};

/// More than any socket buffer: segmentation offload and checksum offload are at work.
const BULK: usize = 4 << 20;
/// Of the client.
const PORT: u16 = 40_000;

/// How a packet leaves the task's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    Tunnel,
}

/// Task 0's node, which is not the one that the client asks.
struct Backend<'a> {
    bench: Bench<'a>,
    lab: &'a Lab,
    /// From the task to the client, as the task sends it and as the client gets it.
    sent: Between,
    restored: Between,
}

impl<'a> Backend<'a> {
    /// With the client's flows, TCP and UDP, begun.
    fn new(bpf: &'a mut Bpf, lab: &'a Lab) -> Self {
        for (protocol, published, target) in [(protocol::TCP, 8080, 80), (protocol::UDP, 5353, 53)] {
            let frontend = FrontendKey::new(NODES[0], Port::new(published), protocol);
            bpf.tables.frontends.insert(&frontend, &Frontend::new(RING, Port::new(target))).unwrap();
        }
        answer_directly(&mut bpf.tables, true);
        let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
        let router = (ROUTER_MAC, CLIENT);
        let bench = Bench::received(bpf, ProgramId::MeshTask, lab.nodes[1].ifindex("mv00"));
        let (sent, restored) = (between(task, router), between((task.0, NODES[0]), router));
        let mut backend = Self { bench, lab, sent, restored };
        backend.client_sends();
        backend
    }

    fn client_sends(&mut self) {
        let client = client_to(NODES[0]);
        let (ifindex, program) = (self.bench.ifindex, self.bench.program);
        self.bench.program = ProgramId::MeshUplink;
        self.bench.ifindex = self.lab.nodes[1].ifindex("up0");
        self.bench.check_forwarded("TCP", &client.tcp((PORT, 8080), Segment::Syn, b""));
        self.bench.check_forwarded("UDP", &client.udp((PORT, 5353), b"question"));
        (self.bench.ifindex, self.bench.program) = (ifindex, program);
    }

    /// Where a frame of the task goes that the client gets as `restored`.
    #[track_caller]
    fn way_of(&mut self, sent: &[u8], restored: &[u8]) -> Way {
        let packet = TestPacket::received(sent, self.bench.ifindex);
        let outcome = self.bench.bpf.hooks.programs().test_run(self.bench.program, &packet).unwrap();
        assert_eq!(outcome.code, 7, "not redirected");
        assert!(outcome.bytes.ends_with(&restored[14..]), "{:02x?}", outcome.bytes);
        if outcome.bytes == restored { Way::Straight } else { Way::Tunnel }
    }

    /// Where an answer with so much payload goes.
    #[track_caller]
    fn way(&mut self, n_bytes: usize) -> Way {
        let payload = vec![7; n_bytes];
        let sent = self.sent.tcp((80, PORT), Segment::Ack, &payload);
        let restored = self.restored.tcp((8080, PORT), Segment::Ack, &payload);
        let way = self.way_of(&sent, &restored);
        let sent = self.sent.udp((53, PORT), &payload);
        let restored = self.restored.udp((5353, PORT), &payload);
        assert_eq!(self.way_of(&sent, &restored), way, "UDP");
        way
    }

    /// The way with a route of the node's, which is gone again then.
    #[track_caller]
    fn way_with_route(&mut self, route: &str, n_bytes: usize) -> Way {
        self.lab.nodes[1].ip(&format!("route add {route}"));
        let way = self.way(n_bytes);
        self.lab.nodes[1].ip(&format!("route del {route}"));
        way
    }
}

#[test]
fn answers_go_straight_where_the_kernel_would_send_them_out_of_the_uplink() {
    bench(1, |bpf, lab| {
        let mut backend = Backend::new(bpf, lab);
        assert_eq!(backend.way(10), Way::Tunnel, "a kernel that doesn't forward tells no way");
        lab.allow_own_headers(1);
        assert_eq!(backend.way(10), Way::Straight, "the neighbour need not be known");
        let elsewhere = format!("{CLIENT}/32 dev mesh-vx");
        assert_eq!(backend.way_with_route(&elsewhere, 10), Way::Tunnel, "another interface");
        assert_eq!(backend.way_with_route(&format!("unreachable {CLIENT}/32"), 10), Way::Tunnel);
        let narrow = format!("{CLIENT}/32 dev up0 mtu lock 600");
        assert_eq!(backend.way_with_route(&narrow, 10), Way::Straight);
        assert_eq!(backend.way_with_route(&narrow, 600), Way::Tunnel, "too long for the way");
        assert_eq!(backend.way(1400), Way::Straight);
    });
}

#[test]
fn answers_to_nodes_and_from_foreign_addresses_do_not_go_straight() {
    bench(1, |bpf, lab| {
        lab.allow_own_headers(1);
        let mut backend = Backend::new(bpf, lab);
        for owner in [NODES[0].into(), Ip::UNSPECIFIED] {
            backend.bench.bpf.tables.address_owners.insert(&CLIENT.into(), &owner).unwrap();
            assert_eq!(backend.way(10), Way::Tunnel, "the client is {owner}");
        }
        backend.bench.bpf.tables.address_owners.remove(&CLIENT.into()).unwrap();
        assert_eq!(backend.way(10), Way::Straight);
        backend.bench.bpf.tables.address_owners.remove(&NODES[0].into()).unwrap();
        let frame = backend.sent.udp((53, PORT), b"answer");
        backend.bench.check("nobody's address", &frame, &Expect::Drop(DropReason::UnknownOwner));
    });
}

#[test]
fn fragments_errors_and_answers_by_the_way_out_go_straight_too() {
    bench(1, |bpf, lab| {
        lab.allow_own_headers(1);
        let mut backend = Backend::new(bpf, lab);
        let (sent, restored) = (backend.sent, backend.restored);
        let pieces = |frame: Vec<u8>| {
            let later = [&frame[..34], &[7; 64]].concat();
            let later = crate::support::packets::with_total_len(later, 84);
            [fragment(frame, 0, true), fragment(later, 100, false)]
        };
        let payload = [7; 800 - 8];
        let sent_pieces = pieces(sent.udp((53, PORT), &payload));
        let restored_pieces = pieces(restored.udp((5353, PORT), &payload));
        for (sent, restored) in sent_pieces.iter().zip(&restored_pieces) {
            assert_eq!(backend.way_of(sent, restored), Way::Straight, "a fragment");
        }

        let question = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), TASKS[0]));
        let error = sent.port_unreachable(&question.udp((PORT, 53), b"question"));
        let packet = TestPacket::received(&error, backend.bench.ifindex);
        let outcome = backend.bench.bpf.hooks.programs().test_run(ProgramId::MeshTask, &packet).unwrap();
        assert_eq!((outcome.code, outcome.bytes.len()), (7, error.len()), "no tunnel's headers");
        let macs = [ROUTER_MAC.0, MacAddr::of_endpoint(TASKS[0]).0].concat();
        assert_eq!((&outcome.bytes[..12], &outcome.bytes[26..30]), (&macs[..], &NODES[0].0[..]));

        let (ifindex, mac) = (lab.nodes[1].ifindex("mv01"), MacAddr([2, 0x42, 172, 18, 0, 3]));
        let mut row = backend.bench.bpf.tables.attachments.get(&ifindex).unwrap().unwrap();
        (row.vni, row.address) = (BRIDGE_VNI, TASKS[0]);
        (row.mac, row.flags) = (mac, ATTACHMENT_WAY_OUT);
        backend.bench.bpf.tables.attachments.insert(&ifindex, &row).unwrap();
        backend.bench.ifindex = ifindex;
        let bridge = (MacAddr([2, 0x42, 172, 18, 0, 1]), CLIENT);
        let sent = between((mac, Ip4([172, 18, 0, 3])), bridge).udp((53, PORT), b"answer");
        let restored = between((mac, NODES[0]), bridge).udp((5353, PORT), b"answer");
        assert_eq!(backend.way_of(&sent, &restored), Way::Straight, "by the way out");
    });
}

/// A flow follows its service with the client's next packet.
#[test]
fn flows_follow_what_their_service_wants() {
    bench(1, |bpf, lab| {
        lab.allow_own_headers(1);
        let mut backend = Backend::new(bpf, lab);
        for (is_direct, before, after) in
            [(false, Way::Straight, Way::Tunnel), (true, Way::Tunnel, Way::Straight)]
        {
            answer_directly(&mut backend.bench.bpf.tables, is_direct);
            assert_eq!(backend.way(10), before);
            backend.client_sends();
            assert_eq!(backend.way(10), after);
        }
    });
}

fn lab() -> Lab {
    let lab = Lab::new(tc_mode());
    for task in &lab.tasks {
        serve_tcp(task, 80);
        serve_udp(task, 53);
    }
    lab.start();
    lab
}

/// What a node's programs have sent on of what came by its uplink.
fn forwarded(lab: &Lab, node: usize) -> u64 {
    [ProgramId::MeshUplink, ProgramId::MeshVxlan]
        .map(|program| lab.counted(node, program).forwarded)
        .iter()
        .sum()
}

#[test]
fn the_node_that_is_asked_sees_no_answer() {
    let lab = lab();
    let n_forwarded = |node: Ip4| {
        let before = forwarded(&lab, 0);
        udp(&lab.client, node, 5353, 100).unwrap();
        forwarded(&lab, 0) - before
    };
    assert_eq!(n_forwarded(NODES[0]), 2, "the question and the answer");
    lab.answer_directly();
    assert_eq!(n_forwarded(NODES[0]), 1, "the question alone");
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    for node in NODES {
        assert_eq!(tcp(&lab.client, node, 8080, &bulk).unwrap().ip(), std::net::IpAddr::V4(CLIENT.into()));
    }
    // A node that asks gets its answers by the tunnel.
    tcp(&lab.nodes[0], NODES[1], 8081, &bulk).unwrap();
    lab.check_counters();
}

/// Answers that have to teach the node that was asked go there, and the next ones straight again.
#[test]
fn answers_to_flows_that_strayed_tell_first() {
    let lab = lab();
    lab.answer_directly();
    let [first, second] = TASKS.map(|task| vec![task]);
    let stream = connect_from(&lab.client, 0, NODES[0], 8080);
    (0..2).for_each(|node| lab.set_rings(node, &[second.clone(), first.clone()]));
    lab.empty_caches();
    let capture = Capture::new(&lab.nodes[0]);

    exchange(stream, b"looked for").unwrap();

    let (_, sender) = capture.next(NODES[1]);
    assert_eq!(sender.endpoint(), Some(TASKS[0]), "an answer told its backend");
    let cached: Vec<Ip4> = lab.with_tables(0, |tables| {
        tables.flow_cache.rows().unwrap().into_values().map(|row| row.backend).collect()
    });
    assert_eq!(cached, [TASKS[0]]);
    wait_until("the client's packets come straight, and so do the answers", || {
        let replies = lab.with_tables(1, |tables| tables.replies.rows().unwrap());
        replies.len() == 1 && replies.values().all(|row| row.way == FLOW_DSR)
    });
    lab.check_counters();
}
