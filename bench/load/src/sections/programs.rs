//! What the BPF programs cost by themselves, in the steady state: each is run many times over a packet that is restored
//! before every run ([`replay`]), beside a program that does nothing after the same restoring.

mod node;
mod replay;
mod walks;

use std::time::Duration;

use anyhow::{Result, ensure};
use ebpf_abi::limits::MAX_NEW_CACHED_FLOWS;

use self::node::{Node, Others};
use self::walks::{Step, Walk};
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};

const METRIC: Metric = Metric { name: "BPF programs", unit: "ns per packet", better: Better::Lower };

/// Runs in a row, and how many rows; the median row counts: one now and then is interrupted. A row is a second to the
/// programs, which remember so many new flows in one.
const N_RUNS: u32 = if MAX_NEW_CACHED_FLOWS < 10_000 { MAX_NEW_CACHED_FLOWS } else { 10_000 };
const N_ROWS: usize = 101;

const GOALS: [Goal; 4] = [
    Goal { row: walks::XDP_ESTABLISHED, bound: Bound::Within { more: 40.0, of: walks::XDP_NOTHING } },
    Goal { row: walks::XDP_REMEMBERED, bound: Bound::Within { more: 220.0, of: walks::XDP_NOTHING } },
    Goal { row: walks::XDP_UNKNOWN, bound: Bound::Within { more: 80.0, of: walks::XDP_NOTHING } },
    Goal { row: walks::XDP_COUNTING, bound: Bound::Within { more: 3.0, of: walks::XDP_NOTHING } },
];

const LOOK_UPS: Metric = Metric {
    name: "Look-ups: first segment seen of a flow, by XDP",
    unit: "ns per packet",
    better: Better::Lower,
};
const AMONG_FEW: &str = "among 2 services with 1 backend each";
const AMONG_MANY: &str = "among 10,000 services with 100,000 backends";
const LOOK_UP_GOALS: [Goal; 1] =
    [Goal { row: AMONG_MANY, bound: Bound::AtMost { share: 1.05, of: AMONG_FEW } }];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let node = Node::start(Others::NONE);
    let peers = Walk::ALL.iter().map(|walk| Peer::maybe(walk.name, &node, move |node| sample(node, walk)));
    vec![compare(METRIC, plan, peers.collect()).aiming_at(&GOALS)]
}

/// The same packet where the tables hold little and where they hold much.
pub fn measure_look_ups(plan: Plan) -> Comparison {
    let few = Node::start(Others::NONE);
    let many = Node::start(Others { n_services: 10_000, n_backends: 10 });
    let walk = Walk::of_unknown_flow();
    let rows = vec![
        Peer::maybe(AMONG_FEW, &few, |node| sample(node, &walk)),
        Peer::maybe(AMONG_MANY, &many, |node| sample(node, &walk)),
    ];
    compare(LOOK_UPS, plan, rows).aiming_at(&LOOK_UP_GOALS)
}

/// Nanoseconds of one run.
fn sample(node: &Node, walk: &Walk) -> Result<f64> {
    for step in (walk.before)(node) {
        run(node, &step, (1, 1))?;
    }
    let duration = run(node, &(walk.measured)(node), (N_RUNS, N_ROWS))?;
    Ok(duration.as_secs_f64() * 1e9)
}

/// The median of `n_rows` rows of `n_runs` runs: the time of one.
fn run(node: &Node, step: &Step, (n_runs, n_rows): (u32, usize)) -> Result<Duration> {
    node.run(|bpf| {
        let replay = step.replay(bpf)?;
        let mut durations = Vec::with_capacity(n_rows);
        for _ in 0..n_rows {
            let tick = bpf.tables.tick.get()?;
            bpf.tables.tick.set(&tick.wrapping_add(1))?;
            node.tell_next_hop(&mut bpf.tables, tick.wrapping_add(1), step.is_of_xdp())?;
            let (duration, verdict) = replay.run(&step.frame(), step.ifindex, n_runs)?;
            // Now and then a packet is left to tc, to ask for the next hop: the last of these may be that, but not two.
            let expected =
                step.expects(verdict) || step.expects(replay.run(&step.frame(), step.ifindex, 1)?.1);
            ensure!(expected, "the verdict is {}", verdict.cast_signed());
            durations.push(duration);
        }
        durations.sort();
        Ok(durations[n_rows / 2])
    })
}
