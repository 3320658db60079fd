//! A backend comes or goes where there are 10,000 services with 100,000 backends: how long the node takes, from the increment
//! of its assignments on, and what a packet's look-ups cost there and where there is one service.
//!
//! The kernel takes a changed ring at once, and then waits for the programs that may still use the old one: an RCU grace
//! period, which lasts as long with two services as with many. So two times are measured: until packets follow the new ring,
//! and until the driver has reported the view as applied. The view is made of the increment by the agent's own code.
//!
//! And: a node that knew few endpoints hears of 65,000 on other nodes, as one that joins a large cluster does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use control_model::AssignmentUpdate;
use dataplane_kernel::bpf::Tables;

use super::programs;
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::pair::{self, Assigned, Extent, Pair};

const SEEN: Metric = Metric {
    name: "One backend changed: from the increment to the map that packets read",
    unit: "ms",
    better: Better::Lower,
};
const CHANGE: Metric = Metric {
    name: "One backend changed: from the increment to the report (the kernel's RCU grace period included)",
    unit: "ms",
    better: Better::Lower,
};

const FEW: &str = "among 2 services with 1 backend each";
const MANY: &str = "among 10,000 services with 100,000 backends";

const LOAD: Metric = Metric {
    name: "Endpoints of other nodes: from the increment to the report",
    unit: "s",
    better: Better::Lower,
};
const ENDPOINTS: &str = "65,000 at once";
const N_ENDPOINTS: u32 = 65_000;

const GOALS: [Goal; 1] = [Goal { row: MANY, bound: Bound::Below(1.0) }];
const LOAD_GOALS: [Goal; 1] = [Goal { row: ENDPOINTS, bound: Bound::Below(1.0) }];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let nodes = Nodes::start();
    let rows = |change: fn(&Changing, &Pair) -> Result<f64>| {
        vec![
            Peer::maybe(FEW, &nodes, move |nodes: &Nodes| change(&nodes.few, &nodes.pair)),
            Peer::maybe(MANY, &nodes, move |nodes: &Nodes| change(&nodes.many, &nodes.pair)),
        ]
    };
    let seen = compare(SEEN, plan, rows(Changing::until_seen)).aiming_at(&GOALS);
    let change = compare(CHANGE, plan, rows(Changing::until_reported));
    let loading = vec![Peer::maybe(ENDPOINTS, &nodes, |nodes: &Nodes| nodes.few.until_loaded(&nodes.pair))];
    let load = compare(LOAD, plan, loading).aiming_at(&LOAD_GOALS);
    drop(nodes);
    vec![seen, change, load, programs::measure_look_ups(plan)]
}

/// How long a ring may take.
const LIMIT: Duration = Duration::from_secs(10);

/// One node knows few services, the other many.
struct Nodes {
    pair: Pair,
    few: Changing,
    many: Changing,
}

impl Nodes {
    fn start() -> Result<Self> {
        let pair = Pair::start()?;
        let few = Changing::start(&pair, 0, Extent { n_services: 2, n_backends: 1 })?;
        let many = Changing::start(&pair, 1, Extent { n_services: 10_000, n_backends: 10 })?;
        Ok(Self { pair, few, many })
    }
}

/// A node, and what it is assigned.
struct Changing {
    index: usize,
    extent: Extent,
    tables: Tables,
    has_one_more: Cell<bool>,
    assigned: RefCell<Assigned>,
}

impl Changing {
    fn start(pair: &Pair, index: usize, extent: Extent) -> Result<Self> {
        let assigned = Assigned::new(index, 1, extent);
        pair.node(index).converge(assigned.view())?;
        let tables = pair.node(index).tables()?;
        Ok(Self { index, extent, tables, has_one_more: Cell::new(false), assigned: RefCell::new(assigned) })
    }

    /// The next increment: the last service has a backend more, or less.
    fn next(&self) -> AssignmentUpdate {
        self.has_one_more.set(!self.has_one_more.get());
        self.assigned.borrow().one_more(self.has_one_more.get())
    }

    /// Milliseconds until the service's ring in the kernel has the backends that it should have; a look takes 0.1 of them.
    fn until_seen(&self, pair: &Pair) -> Result<f64> {
        let update = self.next();
        let node = pair.node(self.index);
        let start = Instant::now();
        let view = self.assigned.borrow_mut().take(update)?;
        node.want(view.clone());
        while self.n_in_ring()? != self.n_backends()? {
            ensure!(start.elapsed() < LIMIT, "the ring is as it was");
        }
        let taken = start.elapsed();
        node.converge(view)?;
        Ok(taken.as_secs_f64() * 1e3)
    }

    /// Milliseconds until the view is reported as applied.
    fn until_reported(&self, pair: &Pair) -> Result<f64> {
        Ok(self.converge(pair, self.next())?.as_secs_f64() * 1e3)
    }

    /// Seconds until many endpoints are in the kernel. They are taken out again.
    fn until_loaded(&self, pair: &Pair) -> Result<f64> {
        let idle = |is_there| self.assigned.borrow().idle_endpoints(is_there, N_ENDPOINTS);
        let taken = self.converge(pair, idle(true))?;
        self.converge(pair, idle(false))?;
        Ok(taken.as_secs_f64())
    }

    fn converge(&self, pair: &Pair, update: AssignmentUpdate) -> Result<Duration> {
        let start = Instant::now();
        let view = self.assigned.borrow_mut().take(update)?;
        pair.node(self.index).converge(view)?;
        Ok(start.elapsed())
    }

    fn n_in_ring(&self) -> Result<usize> {
        let places = self.tables.rings.places(&pair::last_ring(self.extent))?;
        Ok(places.unwrap_or_default().into_iter().collect::<BTreeSet<_>>().len())
    }

    fn n_backends(&self) -> Result<usize> {
        Ok(usize::try_from(self.extent.n_backends)? + usize::from(self.has_one_more.get()))
    }
}
