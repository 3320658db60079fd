//! Connections that only begin, from borrowed addresses.

use dataplane_kernel::bpf::{Bpf, TestPacket};
use ebpf_abi::flow::FLOW_ESTABLISHED;
use ebpf_abi::limits::{MAX_HALF_OPEN, MAX_NEW_CACHED_FLOWS, ROUTER_MAC};
use ebpf_abi::{Ip4, MacAddr, ProgramId};

use crate::harness::{Bench, Expect, bench, client_to};
use crate::support::lab::{CLIENT, NODES, TASKS};
use crate::support::packets::{Between, Segment, between};

/// So many more than may be half-open.
const EXCESS: u32 = 1000;
/// Client ports of connections that are over before the flood: they are not half-open ones that make room.
const OVER: std::ops::Range<u16> = 30_000..30_010;

/// Client number `number` of the flood, to node 1.
fn borrowed(number: u32) -> Between {
    let client = Ip4::from_u32(0x1000_0000 + number);
    Between { addresses: (client.into(), NODES[1].into()), ..client_to(NODES[1]) }
}

/// SYNs of `n` different clients.
fn flood(bpf: &mut Bpf, uplink: u32, n: u32) {
    for number in 0..n {
        let frame = borrowed(number).tcp((1000, 8080), Segment::Syn, b"");
        bpf.hooks.programs().test_run(ProgramId::MeshUplink, &TestPacket::received(&frame, uplink)).unwrap();
    }
}

/// Both sides say goodbye.
fn close(bpf: &mut Bpf, uplink: u32, host_end: u32, port: u16) {
    let fin = client_to(NODES[1]).tcp((port, 8080), Segment::Fin, b"");
    Bench::received(bpf, ProgramId::MeshUplink, uplink).check_forwarded("FIN", &fin);
    let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
    let fin = between(task, (ROUTER_MAC, CLIENT)).tcp((80, port), Segment::Fin, b"");
    Bench::received(bpf, ProgramId::MeshTask, host_end).check_forwarded("the task's FIN", &fin);
}

/// Of this node's task 0 with the client: begins, is answered, goes on.
fn establish(bpf: &mut Bpf, uplink: u32, host_end: u32, port: u16) {
    let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
    let client = client_to(NODES[1]);
    Bench::received(bpf, ProgramId::MeshUplink, uplink)
        .check_forwarded("SYN", &client.tcp((port, 8080), Segment::Syn, b""));
    let answer = between(task, (ROUTER_MAC, CLIENT)).tcp((80, port), Segment::SynAck, b"");
    Bench::received(bpf, ProgramId::MeshTask, host_end).check_forwarded("SYN-ACK", &answer);
    Bench::received(bpf, ProgramId::MeshUplink, uplink)
        .check_forwarded("ACK", &client.tcp((port, 8080), Segment::Ack, b""));
}

#[test]
fn a_flood_takes_its_share_of_the_tables_and_no_more() {
    bench(1, |bpf, lab| {
        let (uplink, host_end) = (lab.nodes[1].ifindex("up0"), lab.nodes[1].ifindex("mv00"));
        let n_established = |bpf: &Bpf| {
            let rows = bpf.tables.flows.rows().unwrap();
            rows.values().filter(|row| row.state == FLOW_ESTABLISHED).count()
        };
        establish(bpf, uplink, host_end, 40_000);
        for port in OVER {
            establish(bpf, uplink, host_end, port);
            close(bpf, uplink, host_end, port);
        }

        flood(bpf, uplink, MAX_HALF_OPEN + EXCESS);

        let half_open = usize::try_from(MAX_HALF_OPEN).unwrap();
        assert_eq!(bpf.tables.flows.rows().unwrap().len(), half_open + 1);
        assert_eq!(bpf.tables.replies.rows().unwrap().len(), half_open + 1);
        assert_eq!(
            n_established(bpf),
            1,
            "what is open lives on, what is over makes room though nobody sweeps"
        );
        establish(bpf, uplink, host_end, 40_001);
        assert_eq!(n_established(bpf), 2, "others get in");
        let gate = bpf.tables.gate.counts().unwrap();
        assert_eq!(gate.n_displaced, u64::from(EXCESS) + 1);

        let to_task =
            between((ROUTER_MAC, borrowed(0).addresses.0), (MacAddr::of_endpoint(TASKS[0]), TASKS[0]));
        let goes_on = borrowed(0).tcp((1000, 8080), Segment::Ack, b"");
        let expected = Expect::ForwardAs(to_task.tcp((1000, 80), Segment::Ack, b""));
        Bench::received(bpf, ProgramId::MeshUplink, uplink).check(
            "one that was displaced",
            &goes_on,
            &expected,
        );
    });
}

#[test]
fn choices_beyond_the_rate_are_served_and_not_remembered() {
    bench(1, |bpf, lab| {
        let uplink = lab.nodes[1].ifindex("up0");
        let n_cpus = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let n_flows = (n_cpus + 1) * MAX_NEW_CACHED_FLOWS;

        flood(bpf, uplink, n_flows);

        let n_cached = |bpf: &Bpf| u32::try_from(bpf.tables.flow_cache.rows().unwrap().len()).unwrap();
        let n_unremembered = bpf.tables.gate.counts().unwrap().n_unremembered;
        assert!(n_unremembered >= u64::from(MAX_NEW_CACHED_FLOWS), "{n_unremembered}");
        assert_eq!(u64::from(n_cached(bpf)) + n_unremembered, u64::from(n_flows));
        assert_eq!(
            bpf.tables.flows.rows().unwrap().len(),
            usize::try_from(n_flows).unwrap(),
            "all are served"
        );

        let before = n_cached(bpf);
        bpf.tables.tick.set(&2).unwrap();
        let frame = client_to(NODES[1]).tcp((40_000, 8080), Segment::Syn, b"");
        Bench::received(bpf, ProgramId::MeshUplink, uplink).check_forwarded("in the next second", &frame);
        assert_eq!(n_cached(bpf), before + 1);
    });
}
