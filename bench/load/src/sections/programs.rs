//! What the BPF programs cost by themselves: `BPF_PROG_TEST_RUN` over one packet, above what a program costs that does
//! nothing. One node with a backend of its own and one on another node; every run gets the packet afresh.

mod node;

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Result, ensure};
use dataplane_kernel::bpf::{Bpf, TestPacket};
use ebpf_abi::ProgramId;

use self::node::Node;
use crate::compare::{Better, Comparison, Metric, Peer, Plan, compare};

const METRIC: Metric =
    Metric { name: "BPF programs, above a no-op", unit: "ns per packet", better: Better::Lower };

/// Runs per sample, whose median counts: a run now and then is interrupted.
const N_RUNS: usize = 2000;

/// `XDP_TX` and `XDP_REDIRECT`, `TC_ACT_REDIRECT` (`linux/bpf.h`, `linux/pkt_cls.h`).
const FORWARDED_XDP: [u32; 2] = [3, 4];
const FORWARDED_TC: [u32; 1] = [7];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let node = Node::start().and_then(|node| {
        node.run(|bpf| open_connection(bpf, node.uplink))?;
        Ok(node)
    });
    let peers = Walk::ALL.map(|walk| Peer::maybe(walk.name, &node, move |node| sample(node, walk))).into();
    vec![compare(METRIC, plan, peers)]
}

/// A program and the packet that it gets.
#[derive(Clone, Copy)]
struct Walk {
    name: &'static str,
    program: ProgramId,
    /// The interface and the frame.
    packet: fn(&Node) -> (u32, Vec<u8>),
}

impl Walk {
    const ALL: [Self; 5] = [
        Self {
            name: "XDP: client to another node's backend, encapsulated",
            program: ProgramId::MeshXdp,
            packet: |node| (node.uplink, node::client_to_remote_backend()),
        },
        Self {
            name: "tc: client to another node's backend",
            program: ProgramId::MeshUplink,
            packet: |node| (node.uplink, node::client_to_remote_backend()),
        },
        Self {
            name: "tc: client to this node's backend, translated",
            program: ProgramId::MeshUplink,
            packet: |node| (node.uplink, node::client_to_local_backend()),
        },
        Self {
            name: "tc: backend's answer to a client, translated back",
            program: ProgramId::MeshTask,
            packet: |node| (node.ingress_end, node::backend_to_client()),
        },
        Self {
            name: "tc: task to a task on another node",
            program: ProgramId::MeshTask,
            packet: |node| (node.overlay_end, node::task_to_remote_task()),
        },
    ];
}

/// Nanoseconds of the median run, less those of a program that does nothing.
fn sample(node: &Node, walk: Walk) -> Result<f64> {
    let (ifindex, frame) = (walk.packet)(node);
    let nothing = node.run(|bpf| median_of(|| run_nothing(bpf, ifindex, &frame)))?;
    let forwarded = node.run(|bpf| median_of(|| run_walk(bpf, walk, ifindex, &frame)))?;
    Ok((forwarded.as_secs_f64() - nothing.as_secs_f64()) * 1e9)
}

/// The connection to this node's backend whose later packets are measured.
fn open_connection(bpf: &RefCell<&mut Bpf>, uplink: u32) -> Result<()> {
    let frame = node::client_opens_to_local_backend();
    let packet = TestPacket::received(&frame, uplink);
    let outcome = bpf.borrow_mut().hooks.programs().test_run(ProgramId::MeshUplink, &packet)?;
    ensure!(FORWARDED_TC.contains(&outcome.code), "a connection is refused");
    Ok(())
}

fn run_nothing(bpf: &RefCell<&mut Bpf>, ifindex: u32, frame: &[u8]) -> Result<Duration> {
    let packet = TestPacket::received(frame, ifindex);
    Ok(bpf.borrow_mut().hooks.programs().test_run_nothing(&packet)?.duration)
}

fn run_walk(bpf: &RefCell<&mut Bpf>, walk: Walk, ifindex: u32, frame: &[u8]) -> Result<Duration> {
    let packet = TestPacket::received(frame, ifindex);
    let outcome = bpf.borrow_mut().hooks.programs().test_run(walk.program, &packet)?;
    let is_forwarded = FORWARDED_TC.contains(&outcome.code) || FORWARDED_XDP.contains(&outcome.code);
    ensure!(is_forwarded, "the packet is not forwarded (verdict {})", outcome.code.cast_signed());
    Ok(outcome.duration)
}

fn median_of(mut run: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut durations = (0..N_RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    durations.sort();
    Ok(durations[durations.len() / 2])
}
