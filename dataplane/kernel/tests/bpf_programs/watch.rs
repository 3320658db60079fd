//! What the programs tell of single packets.

use std::time::Duration;

use dataplane_kernel::bpf::{Bpf, TestPacket};
use dataplane_kernel::inspect::{Watch, Which};
use dataplane_model::inspect::{FlowSample, FlowSamples};
use ebpf_abi::limits::{EVENT_BUFFER_BYTES, ROUTER_MAC};
use ebpf_abi::{FlowEvent, Ip, MacAddr, ProgramId, protocol};

use crate::harness::{bench, client_to};
use crate::support::lab::{CLIENT, CLIENT6, INGRESS_VNI, Lab, NODES, NODES6, TASKS, tc_mode};
use crate::support::packets::{Segment, between};
use crate::tunnel::{Seen, Taker, inject};

/// For a machine that is busy; what is waited for ends the wait.
const PATIENCE: Duration = Duration::from_secs(30);
const NOW: Duration = Duration::ZERO;

fn run(bpf: &mut Bpf, frame: &[u8], ifindex: u32) {
    bpf.hooks.programs().test_run(ProgramId::MeshUplink, &TestPacket::received(frame, ifindex)).unwrap();
}

fn all(watch: &mut Watch) -> FlowSamples {
    watch.collect(NOW, usize::MAX, |_| false).unwrap()
}

fn told(sample: &FlowSample) -> (&str, &str, &str, &str, &str) {
    let FlowSample { program, verdict, .. } = sample;
    let (before, after) = (sample.before.innermost(), sample.after.innermost());
    (program, verdict, &before.source, &before.destination, &after.destination)
}

#[test]
fn every_packet_is_told_with_what_became_of_it() {
    bench(0, |bpf, lab| {
        let uplink = lab.nodes[0].ifindex("up0");
        // Port 8081 is served by this node's task and another; 9 is nobody's.
        let frames = [9, 8080, 9].map(|port| client_to(NODES[0]).tcp((40_000, port), Segment::Syn, b""));
        run(bpf, &frames[0], uplink);
        let mut watch = Watch::begin(&lab.node_pins(0), Which::OneOf(1), PATIENCE).unwrap();
        for frame in &frames {
            run(bpf, frame, uplink);
        }
        let report = all(&mut watch);
        assert_eq!((report.every, report.n_left_off, report.n_lost), (1, 0, 0));
        let client = format!("{CLIENT}:40000");
        let to = |port: u16| format!("{}:{port}", NODES[0]);
        let expected = [("passed", 9), ("forwarded", 8080), ("passed", 9)];
        assert_eq!(report.samples.len(), expected.len(), "{report:#?}");
        for (sample, (verdict, port)) in report.samples.iter().zip(expected) {
            // Into the tunnel a packet goes as it is.
            let to = to(port);
            assert_eq!(told(sample), ("mesh_uplink", verdict, client.as_str(), to.as_str(), to.as_str()));
            assert_eq!((sample.before.flags.as_str(), sample.before.protocol.as_str()), ("S", "tcp"));
        }
        let forwarded = &report.samples[1];
        let (before, after) = (&forwarded.before, forwarded.after.innermost());
        assert_eq!(after.destination_mac, MacAddr::of_endpoint(TASKS[0]).to_string());
        assert_ne!(before.destination_mac, after.destination_mac);

        // Of a few at most; switched off, of none.
        for frame in &frames {
            run(bpf, frame, uplink);
        }
        let report = watch.collect(NOW, 2, |_| false).unwrap();
        assert_eq!((report.samples.len(), report.n_left_off), (2, 1));
        drop(watch);
        let mut watch = Watch::begin(&lab.node_pins(0), Which::OneOf(u32::MAX), PATIENCE).unwrap();
        run(bpf, &frames[0], uplink);
        assert_eq!(all(&mut watch).samples, []);
        // Whoever forgets to switch it off is forgotten.
        drop(watch);
        let mut watch = Watch::begin(&lab.node_pins(0), Which::OneOf(1), NOW).unwrap();
        run(bpf, &frames[0], uplink);
        assert_eq!(all(&mut watch).samples, []);
    });
}

#[test]
fn marked_packets_alone_are_told_of() {
    bench(0, |bpf, lab| {
        let uplink = lab.nodes[0].ifindex("up0");
        let which = Which::Marked { protocol: protocol::UDP, port: 40_001 };
        let mut watch = Watch::begin(&lab.node_pins(0), which, PATIENCE).unwrap();
        for client in [client_to(NODES[0]), client_to(NODES6[0])] {
            for frame in [
                client.udp((40_000, 5353), b"x"),
                client.udp((40_001, 5353), b"x"),
                client.tcp((40_001, 8080), Segment::Syn, b""),
                client.udp((5353, 40_001), b"x"),
                vec![0; 14],
            ] {
                run(bpf, &frame, uplink);
            }
        }
        let report = all(&mut watch);
        let expected = [format!("{CLIENT}:40001"), format!("[{CLIENT6}]:40001")];
        let sources: Vec<&str> = report.samples.iter().map(|sample| sample.before.source.as_str()).collect();
        assert_eq!(sources, expected);
    });
}

/// A segment without options or payload is among the shortest frames.
#[test]
fn ipv6_is_told_to_the_flags() {
    bench(0, |bpf, lab| {
        let mut watch = Watch::begin(&lab.node_pins(0), Which::OneOf(1), PATIENCE).unwrap();
        let syn = client_to(NODES6[0]).tcp((40_000, 8080), Segment::Syn, b"");
        run(bpf, &syn, lab.nodes[0].ifindex("up0"));
        let report = all(&mut watch);
        let [sample] = &report.samples[..] else { panic!("{report:?}") };
        let (client, node) = (format!("[{CLIENT6}]:40000"), format!("[{}]:8080", NODES6[0]));
        assert_eq!(told(sample), ("mesh_uplink", "forwarded", client.as_str(), node.as_str(), node.as_str()));
        assert_eq!((sample.before.flags.as_str(), sample.before.protocol.as_str()), ("S", "tcp"));
    });
}

#[test]
fn what_finds_no_room_is_counted() {
    bench(0, |bpf, lab| {
        let uplink = lab.nodes[0].ifindex("up0");
        let frame = client_to(NODES[0]).tcp((40_000, 9), Segment::Syn, b"");
        let mut watch = Watch::begin(&lab.node_pins(0), Which::OneOf(1), PATIENCE).unwrap();
        let n_packets = EVENT_BUFFER_BYTES as usize / size_of::<FlowEvent>();
        for _ in 0..n_packets {
            run(bpf, &frame, uplink);
        }
        let report = all(&mut watch);
        let n_told = report.samples.len() as u64;
        assert!(n_told > 0 && report.n_lost > 0, "{n_told} told, {} lost", report.n_lost);
        assert!(2 * n_told + report.n_lost >= 2 * n_packets as u64 - 1, "{n_told} and {}", report.n_lost);
        run(bpf, &frame, uplink);
        let report = all(&mut watch);
        assert_eq!(report.samples.len(), 1, "there is room again");
    });
}

/// A packet that a tunnel brings tells whose tunnel it is, and why it is dropped.
#[test]
fn tunnelled_packets_tell_their_tunnel() {
    let lab = Lab::new(tc_mode());
    lab.start();
    let client = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), NODES[0]));
    let frame = client.tcp((40_000, 9), Segment::Syn, b"");
    let which = Which::Marked { protocol: protocol::TCP, port: 40_000 };
    let mut watch = lab.nodes[1].run(|| Watch::begin(&lab.node_pins(1), which, PATIENCE).unwrap());
    let dropped = Seen::Drop(ebpf_abi::DropReason::UnpublishedPort);
    inject(&lab, &lab.nodes[0], (INGRESS_VNI, &frame), (Taker::Uplink, dropped));
    let report = watch.collect(PATIENCE, 10, |samples| !samples.is_empty()).unwrap();
    let [sample] = &report.samples[..] else { panic!("{report:?}") };
    let tunnel = sample.tunnel.expect("it came by one");
    assert_eq!((tunnel.from, tunnel.vni), (Ip::from(NODES[0]).into(), INGRESS_VNI));
    let (program, verdict, reason) =
        (sample.program.as_str(), sample.verdict.as_str(), sample.reason.as_deref());
    assert_eq!((program, verdict, reason), ("mesh_uplink", "dropped", Some("unpublished-port")));
}
