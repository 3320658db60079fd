//! What the BPF programs cost by themselves, in the steady state: each is run many times over a packet that is restored
//! before every run ([`replay`]), beside a program that does nothing after the same restoring.

mod node;
mod replay;
mod walks;

use std::time::Duration;

use anyhow::{Result, ensure};

use self::node::Node;
use self::walks::{Step, Walk};
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};

const METRIC: Metric = Metric { name: "BPF programs", unit: "ns per packet", better: Better::Lower };

/// Runs in a row, and how many rows; the median row counts: one now and then is interrupted.
const N_RUNS: u32 = 10_000;
const N_ROWS: usize = 101;

const GOALS: [Goal; 3] = [
    Goal { row: walks::XDP_ESTABLISHED, bound: Bound::AtMostAbove { more: 40.0, of: walks::XDP_NOTHING } },
    Goal { row: walks::XDP_REMEMBERED, bound: Bound::AtMostAbove { more: 220.0, of: walks::XDP_NOTHING } },
    Goal { row: walks::XDP_UNKNOWN, bound: Bound::AtMostAbove { more: 80.0, of: walks::XDP_NOTHING } },
];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let node = Node::start();
    let peers = Walk::ALL.iter().map(|walk| Peer::maybe(walk.name, &node, move |node| sample(node, walk)));
    vec![compare(METRIC, plan, peers.collect()).aiming_at(&GOALS)]
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
            let (duration, verdict) = replay.run(&step.frame(), step.ifindex, n_runs)?;
            ensure!(step.expects(verdict), "the verdict is {}", verdict.cast_signed());
            durations.push(duration);
        }
        durations.sort();
        Ok(durations[n_rows / 2])
    })
}
