//! The scheduler by itself, in this process: all tasks are there at once, and wait.
//!
//! The machine knows the nodes. Counted is what it takes to decide, and, in a row of its own, what the store takes to apply
//! the decisions as well, in writes as long as the leader's: swarmkit's own benchmark can't tell these apart.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use control_manager::leader::packed_in_entries;
use control_model::Timestamp;
use control_model::change::Change;
use control_scheduler::Scheduler;
use control_store::State;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::synthetic::{Doing, Extent, add_services, apply, nodes};

const GROUPED: Metric = Metric {
    name: "Scheduler alone, simulated: 100,000 tasks of one service on 1,000 nodes",
    unit: "s",
    better: Better::Lower,
};
const SINGLE: Metric = Metric {
    name: "Scheduler alone, simulated: 1,000 services of one task on 100,000 nodes",
    unit: "s",
    better: Better::Lower,
};

const DECIDED: &str = "decided";
const APPLIED: &str = "decided, and applied by the store";

const GROUPED_GOALS: [Goal; 1] = [Goal { row: DECIDED, bound: Bound::Below(0.2) }];
const SINGLE_GOALS: [Goal; 1] = [Goal { row: DECIDED, bound: Bound::Below(0.1) }];

const NOW: Timestamp = Timestamp(1);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let grouped = Extent { n_nodes: 1_000, n_services: 1, n_tasks_each: 100_000 };
    let single = Extent { n_nodes: 100_000, n_services: 1_000, n_tasks_each: 1 };
    vec![
        compare(GROUPED, plan, rows(grouped)).aiming_at(&GROUPED_GOALS),
        compare(SINGLE, plan, rows(single)).aiming_at(&SINGLE_GOALS),
    ]
}

fn rows(extent: Extent) -> Vec<Peer<'static>> {
    vec![
        Peer::new(DECIDED, move || Ok(place(extent)?.decided.as_secs_f64())),
        Peer::new(APPLIED, move || {
            let taken = place(extent)?;
            Ok((taken.decided + taken.applied).as_secs_f64())
        }),
    ]
}

struct Taken {
    decided: Duration,
    applied: Duration,
}

fn place(extent: Extent) -> Result<Taken> {
    let mut state = State::default();
    apply(&mut state, nodes(extent))?;
    let mut machine = Scheduler::new(&state, NOW);
    let events = add_services(&mut state, extent, Doing::Wait)?;
    let start = Instant::now();
    let changes = machine.handle(&state, &events, NOW);
    let decided = start.elapsed();
    let n_assigned = changes.iter().filter(|change| matches!(change, Change::Update { .. })).count();
    ensure!(n_assigned == extent.n_tasks(), "{n_assigned} of {} tasks have a node", extent.n_tasks());
    let start = Instant::now();
    for changes in packed_in_entries(changes, &state) {
        apply(&mut state, changes)?;
    }
    Ok(Taken { decided, applied: start.elapsed() })
}
