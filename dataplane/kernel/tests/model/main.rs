//! A pure model of the data path against the programs: generated tables and packets go through both, and verdict, bytes,
//! way, tunnel, counters and the rows that flows leave must be equal. And a fixture for each drop reason.
//!
//! A failing run prints its seed and the command that replays it.
#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

mod fixtures;
mod fixtures6;
mod frame;
mod generate;
mod kernel;
#[path = "../bpf_programs/support/namespace.rs"]
#[expect(dead_code, reason = "the walks need more of it")]
mod namespace;
mod network;
mod packet;
#[path = "../bpf_programs/support/packets.rs"]
#[expect(dead_code, reason = "the packet tests need more of it")]
mod packets;
mod run;
mod sctp;
mod step;
mod tables;

use std::collections::BTreeMap;
use std::{env, thread};

use ebpf_abi::{NodeConfig, ProgramId};

use generate::dice::Dice;
use generate::world;
use namespace::Namespace;
use packet::{Change, INGRESS_ENDS, OVERLAY_ENDS, STRAY_END, Step, TUNNEL, UPLINK, UPLINK_MAC, WAYS_OUT};
use run::{Bench, End, Mismatch};

/// Steps of a run: enough for flows to begin, go on and end under changing tables.
const N_STEPS: usize = 2000;
const N_RUNS: u64 = 48;
/// Of `cargo xtask test --long`: 10^7 packets; 94 of 100 steps are.
const N_LONG_RUNS: u64 = 5_400;
/// The kernel lets a change of rings wait for all programs that run: several runs at a time wait together.
const N_WORKERS: u64 = 4;
const SEED: &str = "MESH_MODEL_SEED";
const STEPS: &str = "MESH_MODEL_STEPS";

/// What packets must have come to, or the generator has lost its bite.
const ENDS: [(ProgramId, &str); 75] = [
    (ProgramId::MeshXdp, "Forward(Back { redirected: false })"),
    (ProgramId::MeshXdp, "Forward(Back { redirected: true })"),
    (ProgramId::MeshXdp, "Pass"),
    (ProgramId::MeshUplink, "Forward(In(11))"),
    (ProgramId::MeshUplink, "to a client"),
    (ProgramId::MeshUplink, "Pass"),
    (ProgramId::MeshUplink, "asked elsewhere"),
    (ProgramId::MeshUplink, "flow-table-full"),
    // The first of an SCTP packet's whose port would change.
    (ProgramId::MeshUplink, "fragment"),
    (ProgramId::MeshUplink, "rewrite"),
    (ProgramId::MeshUplink, "sent out"),
    (ProgramId::MeshUplink, "told what fits"),
    (ProgramId::MeshVxlan, "told what fits"),
    (ProgramId::MeshVxlanOut, "told what fits"),
    (ProgramId::MeshTask, "told what fits"),
    (ProgramId::MeshTask, "told what fits for a virtual address"),
    (ProgramId::MeshUplink, "to a task"),
    (ProgramId::MeshUplink, "inner-source"),
    (ProgramId::MeshUplink, "tunnelled"),
    (ProgramId::MeshUplink, "tunnelled by own headers"),
    (ProgramId::MeshUplink, "unknown-endpoint"),
    (ProgramId::MeshUplink, "unknown-flow"),
    (ProgramId::MeshUplink, "unpublished-port"),
    (ProgramId::MeshVxlan, "Forward(In(11))"),
    (ProgramId::MeshVxlan, "to a client"),
    (ProgramId::MeshVxlan, "Pass"),
    (ProgramId::MeshVxlan, "tunnelled by own headers"),
    (ProgramId::MeshVxlan, "asked elsewhere"),
    (ProgramId::MeshVxlan, "flow-table-full"),
    (ProgramId::MeshVxlan, "fragment"),
    (ProgramId::MeshVxlan, "inner-source"),
    (ProgramId::MeshVxlan, "malformed"),
    (ProgramId::MeshVxlan, "not-ip"),
    (ProgramId::MeshVxlan, "to a task"),
    (ProgramId::MeshVxlan, "unconfigured"),
    (ProgramId::MeshVxlan, "unknown-endpoint"),
    (ProgramId::MeshVxlan, "unknown-flow"),
    (ProgramId::MeshVxlan, "unknown-owner"),
    (ProgramId::MeshVxlan, "unknown-peer"),
    (ProgramId::MeshVxlan, "unpublished-port"),
    (ProgramId::MeshVxlanOut, "Pass"),
    (ProgramId::MeshVxlanOut, "group"),
    (ProgramId::MeshVxlanOut, "host-source"),
    (ProgramId::MeshVxlanOut, "no-route"),
    (ProgramId::MeshVxlanOut, "sent out"),
    (ProgramId::MeshTask, "Forward(In(11))"),
    (ProgramId::MeshTask, "to a client"),
    (ProgramId::MeshTask, "Pass"),
    (ProgramId::MeshTask, "neighbour-unanswered"),
    (ProgramId::MeshTask, "sent out"),
    (ProgramId::MeshTask, "straight to a client"),
    (ProgramId::MeshTask, "to a task"),
    (ProgramId::MeshTask, "tunnelled"),
    (ProgramId::MeshTask, "tunnelled by own headers"),
    (ProgramId::MeshTask, "vip-protocol"),
    (ProgramId::MeshTask, "flow-table-full"),
    (ProgramId::MeshTask, "vip-share-full"),
    (ProgramId::MeshTask, "no-backend"),
    (ProgramId::MeshTask, "unknown-flow"),
    (ProgramId::MeshTask, "sent out as nobody serves it"),
    (ProgramId::MeshTask, "to a task for a virtual address"),
    (ProgramId::MeshTask, "to a task from a virtual address"),
    (ProgramId::MeshTask, "to a task for its virtual address"),
    (ProgramId::MeshTask, "to a task from its virtual address"),
    (ProgramId::MeshTask, "tunnelled by own headers for a virtual address"),
    (ProgramId::MeshVxlan, "to a task from a virtual address"),
    (ProgramId::MeshConnect4, "Forward(Translated)"),
    (ProgramId::MeshConnect4, "no-backend"),
    (ProgramId::MeshSendmsg4, "Forward(Translated)"),
    (ProgramId::MeshRecvmsg4, "Forward(Translated)"),
    (ProgramId::MeshGetpeername4, "Forward(Translated)"),
    (ProgramId::MeshConnect6, "Forward(Translated)"),
    (ProgramId::MeshConnect6, "no-backend"),
    (ProgramId::MeshRecvmsg6, "Forward(Translated)"),
    (ProgramId::MeshGetpeername6, "Forward(Translated)"),
];

/// The same, for IPv6 alone.
const ENDS6: [(ProgramId, &str); 65] = [
    (ProgramId::MeshXdp, "Forward(Back { redirected: false }), IPv6"),
    (ProgramId::MeshXdp, "Forward(Back { redirected: true }), IPv6"),
    (ProgramId::MeshXdp, "Pass, IPv6"),
    (ProgramId::MeshUplink, "Pass, IPv6"),
    (ProgramId::MeshUplink, "asked elsewhere, IPv6"),
    (ProgramId::MeshUplink, "flow-table-full, IPv6"),
    (ProgramId::MeshUplink, "not-ip, IPv6"),
    (ProgramId::MeshUplink, "rewrite, IPv6"),
    (ProgramId::MeshUplink, "told what fits, IPv6"),
    (ProgramId::MeshTask, "told what fits, IPv6"),
    (ProgramId::MeshUplink, "to a task, IPv6"),
    (ProgramId::MeshUplink, "tunnelled, IPv6"),
    (ProgramId::MeshUplink, "unknown-flow, IPv6"),
    (ProgramId::MeshUplink, "unpublished-port, IPv6"),
    (ProgramId::MeshVxlan, "Forward(In(11)), IPv6"),
    (ProgramId::MeshVxlan, "to a client, IPv6"),
    (ProgramId::MeshVxlan, "Pass, IPv6"),
    (ProgramId::MeshVxlan, "asked elsewhere, IPv6"),
    (ProgramId::MeshVxlan, "flow-table-full, IPv6"),
    (ProgramId::MeshVxlan, "fragment, IPv6"),
    (ProgramId::MeshVxlan, "inner-source, IPv6"),
    (ProgramId::MeshVxlan, "malformed, IPv6"),
    (ProgramId::MeshVxlan, "not-ip, IPv6"),
    (ProgramId::MeshVxlan, "to a task, IPv6"),
    (ProgramId::MeshVxlan, "unconfigured, IPv6"),
    (ProgramId::MeshVxlan, "unknown-endpoint, IPv6"),
    (ProgramId::MeshVxlan, "unknown-flow, IPv6"),
    (ProgramId::MeshVxlan, "unknown-owner, IPv6"),
    (ProgramId::MeshVxlan, "unknown-peer, IPv6"),
    (ProgramId::MeshVxlan, "unpublished-port, IPv6"),
    (ProgramId::MeshVxlanOut, "Pass, IPv6"),
    (ProgramId::MeshVxlanOut, "group, IPv6"),
    (ProgramId::MeshVxlanOut, "host-source, IPv6"),
    (ProgramId::MeshVxlanOut, "no-route, IPv6"),
    (ProgramId::MeshVxlanOut, "sent out, IPv6"),
    (ProgramId::MeshTask, "Forward(In(11)), IPv6"),
    (ProgramId::MeshTask, "to a client, IPv6"),
    (ProgramId::MeshTask, "Pass, IPv6"),
    (ProgramId::MeshTask, "group, IPv6"),
    (ProgramId::MeshTask, "malformed, IPv6"),
    (ProgramId::MeshTask, "neighbour-unanswered, IPv6"),
    (ProgramId::MeshTask, "no-route, IPv6"),
    (ProgramId::MeshTask, "not-ip, IPv6"),
    (ProgramId::MeshTask, "sent out, IPv6"),
    (ProgramId::MeshTask, "source-address, IPv6"),
    (ProgramId::MeshTask, "to a task, IPv6"),
    (ProgramId::MeshTask, "tunnelled, IPv6"),
    (ProgramId::MeshTask, "vip-protocol, IPv6"),
    (ProgramId::MeshTask, "flow-table-full, IPv6"),
    (ProgramId::MeshTask, "no-backend, IPv6"),
    (ProgramId::MeshTask, "unknown-flow, IPv6"),
    (ProgramId::MeshTask, "sent out as nobody serves it, IPv6"),
    (ProgramId::MeshTask, "to a task for a virtual address, IPv6"),
    (ProgramId::MeshTask, "to a task from a virtual address, IPv6"),
    (ProgramId::MeshTask, "to a task for its virtual address, IPv6"),
    (ProgramId::MeshTask, "to a task from its virtual address, IPv6"),
    (ProgramId::MeshTask, "tunnelled for a virtual address, IPv6"),
    (ProgramId::MeshVxlan, "to a task from a virtual address, IPv6"),
    (ProgramId::MeshConnect6, "Forward(Translated), IPv6"),
    (ProgramId::MeshConnect6, "no-backend, IPv6"),
    (ProgramId::MeshSendmsg6, "Forward(Translated), IPv6"),
    (ProgramId::MeshSendmsg6, "no-backend, IPv6"),
    (ProgramId::MeshRecvmsg6, "Forward(Translated), IPv6"),
    (ProgramId::MeshGetpeername6, "Forward(Translated), IPv6"),
    (ProgramId::MeshGetpeername6, "Pass, IPv6"),
];

/// The same, for IPv6 clients of tasks that listen on IPv4 alone.
const ENDS_TRANSLATED: [(ProgramId, &str); 12] = [
    (ProgramId::MeshUplink, "to a task, IPv6, as IPv4"),
    (ProgramId::MeshUplink, "to a task, IPv6, an error of IPv4"),
    (ProgramId::MeshUplink, "untranslatable, IPv6"),
    (ProgramId::MeshVxlan, "to a task, IPv6, as IPv4"),
    (ProgramId::MeshVxlan, "to a task, IPv6, an error of IPv4"),
    (ProgramId::MeshVxlan, "untranslatable, IPv6"),
    (ProgramId::MeshTask, "Forward(In(11)), as IPv6"),
    (ProgramId::MeshTask, "to a client, as IPv6"),
    (ProgramId::MeshTask, "to a client, an error of IPv6"),
    (ProgramId::MeshTask, "asked elsewhere, as IPv6"),
    (ProgramId::MeshTask, "tunnelled, as IPv6"),
    (ProgramId::MeshTask, "untranslatable"),
];

/// Works in a namespace with the interfaces that packets name.
fn in_namespace(work: impl FnOnce() + Send) {
    let namespace = Namespace::new();
    let ends = INGRESS_ENDS.into_iter().chain(OVERLAY_ENDS).chain(WAYS_OUT);
    for ifindex in [UPLINK, TUNNEL, STRAY_END].into_iter().chain(ends) {
        namespace.ip(&format!("link add if{ifindex} index {ifindex} type bridge"));
    }
    namespace.ip(&format!("link set if{UPLINK} address {UPLINK_MAC}"));
    namespace.run(work);
}

#[test]
fn the_programs_do_what_the_model_says() {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number(SEED) {
        let n_steps = number(STEPS).map_or(N_STEPS, |count| usize::try_from(count).unwrap());
        in_namespace(|| run(&mut Bench::new(), seed, n_steps));
        return;
    }
    let n_runs = if env::var_os("MESH_TEST_LONG").is_some() { N_LONG_RUNS } else { N_RUNS };
    let workers: Vec<_> = (0..N_WORKERS).map(|worker| thread::spawn(move || work(worker, n_runs))).collect();
    let mut ends: BTreeMap<End, u64> = BTreeMap::new();
    for worker in workers {
        for (end, count) in worker.join().unwrap() {
            *ends.entry(end).or_default() += count;
        }
    }
    println!("{} packets and calls", ends.values().sum::<u64>());
    let is_missing = |(program, end): &&(ProgramId, &str)| !ends.contains_key(&(*program, (*end).into()));
    let missing: Vec<_> = ENDS.iter().chain(&ENDS6).chain(&ENDS_TRANSLATED).filter(is_missing).collect();
    assert!(missing.is_empty(), "no packet came to {missing:?}, but to {ends:?}");
}

/// Every so many of the runs; returns what packets came to.
fn work(worker: u64, n_runs: u64) -> BTreeMap<End, u64> {
    let mut ends = BTreeMap::new();
    in_namespace(|| {
        let mut bench = Bench::new();
        for seed in (worker..n_runs).step_by(usize::try_from(N_WORKERS).unwrap()) {
            run(&mut bench, seed, N_STEPS);
        }
        ends = std::mem::take(&mut bench.ends);
    });
    ends
}

/// The programs know another node than the model.
#[test]
fn a_difference_is_found() {
    in_namespace(|| {
        let mut bench = Bench::new();
        // A run may change the configuration before it has looked at it.
        let differs = (0..8).any(|seed| {
            let mut dice = Dice::new(seed);
            bench.begin(world::wanted(&mut dice));
            let elsewhere = NodeConfig { ingress_vni: 1, ..bench.model.wanted.config };
            bench.machine.apply(&Change::Config(elsewhere));
            (0..N_STEPS).any(|_| {
                let step = generate::next(&mut dice, &bench.model);
                bench.take(&step).is_err()
            })
        });
        assert!(differs);
    });
}

fn run(bench: &mut Bench, seed: u64, n_steps: usize) {
    let mut steps = Vec::new();
    if let Err(mismatch) = bench.run(seed, n_steps, &mut steps) {
        fail(bench, seed, steps, &mismatch);
    }
}

fn fail(bench: &mut Bench, seed: u64, steps: Vec<Step>, mismatch: &Mismatch) -> ! {
    let n_steps = mismatch.position + 1;
    println!("seed {seed}, step {}: {}", mismatch.position, mismatch.what);
    println!("at {:?}", steps.last());
    println!("replay: {SEED}={seed} {STEPS}={n_steps} cargo test -p dataplane-kernel --test model");
    match bench.shrink(seed, steps) {
        Some((steps, still)) => {
            println!("these steps are enough:");
            for step in &steps {
                println!("{step:?}");
            }
            panic!("seed {seed}: {}", still.what);
        }
        None => panic!("seed {seed}: {}; it does not happen again", mismatch.what),
    }
}
