//! A backend comes or goes where there are 10,000 services with 100,000 backends: how long the node takes, and what a
//! packet's look-ups cost there and where there is one service.

use std::cell::Cell;
use std::time::Instant;

use anyhow::Result;

use super::programs;
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::pair::{self, Extent, Pair};

const CHANGE: Metric = Metric {
    name: "One backend changed: from the view to the kernel that holds it",
    unit: "ms",
    better: Better::Lower,
};

const FEW: &str = "among 2 services with 1 backend each";
const MANY: &str = "among 10,000 services with 100,000 backends";

const GOALS: [Goal; 1] = [Goal { row: MANY, bound: Bound::Below(1.0) }];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let nodes = Nodes::start();
    let rows = vec![
        Peer::maybe(FEW, &nodes, |nodes| nodes.few.change(&nodes.pair)),
        Peer::maybe(MANY, &nodes, |nodes| nodes.many.change(&nodes.pair)),
    ];
    let change = compare(CHANGE, plan, rows).aiming_at(&GOALS);
    drop(nodes);
    vec![change, programs::measure_look_ups(plan)]
}

/// One node knows few services, the other many.
struct Nodes {
    pair: Pair,
    few: Changing,
    many: Changing,
}

impl Nodes {
    fn start() -> Result<Self> {
        let pair = Pair::start()?;
        let few = Changing::start(&pair, 0, Extent { n_services: 2, n_backends: 1, one_more: false })?;
        let many = Changing::start(&pair, 1, Extent { n_services: 10_000, n_backends: 10, one_more: false })?;
        Ok(Self { pair, few, many })
    }
}

/// A node, and what it knows.
struct Changing {
    index: usize,
    extent: Cell<Extent>,
    revision: Cell<u64>,
}

impl Changing {
    fn start(pair: &Pair, index: usize, extent: Extent) -> Result<Self> {
        pair.node(index).converge(pair::view_of(pair::NODES[index], 1, extent))?;
        Ok(Self { index, extent: Cell::new(extent), revision: Cell::new(1) })
    }

    /// Milliseconds until the last service has a backend more, or less.
    fn change(&self, pair: &Pair) -> Result<f64> {
        let extent = self.extent.get();
        let changed = Extent { one_more: !extent.one_more, ..extent };
        let revision = self.revision.get() + 1;
        let view = pair::view_of(pair::NODES[self.index], revision, changed);
        let start = Instant::now();
        pair.node(self.index).converge(view)?;
        let taken = start.elapsed();
        self.extent.set(changed);
        self.revision.set(revision);
        Ok(taken.as_secs_f64() * 1e3)
    }
}
