//! The leader's loops, in the order in which they answer the same events: what one writes, the next may need.

use std::sync::Arc;

use control_allocator::Allocator;
use control_model::{Change, Generation, NodeId, Timestamp};
use control_orchestrator::{DrainLoop, GivenUp, IdSource, Orchestrator, SlowStartLoop};
use control_scheduler::Scheduler;
use control_store::{Event, State};

use crate::gossip_keys::GossipKeyLoop;
use crate::leader::{Factory, LeaderLoop};
use crate::liveness::table::LivenessTable;

/// Makes each loop. The drain loop reads acknowledgements from `table`; tasks have random ids.
pub fn all(table: Arc<LivenessTable>) -> Vec<Factory> {
    with_ids(table, || Box::new(rand::random))
}

/// As [`all`], but each life of the orchestrator takes the ids of its tasks from a source of its own.
pub fn with_ids(
    table: Arc<LivenessTable>,
    new_ids: impl Fn() -> IdSource + Send + Sync + 'static,
) -> Vec<Factory> {
    vec![
        Factory {
            name: "orchestrator",
            make: Box::new(move |state, now| Box::new(Orchestrator::new(state, now, new_ids()))),
        },
        Factory { name: "allocator", make: Box::new(|state, now| Box::new(Allocator::new(state, now))) },
        Factory { name: "scheduler", make: Box::new(|state, now| Box::new(Scheduler::new(state, now))) },
        Factory {
            name: "gossip keys",
            make: Box::new(|state, _| Box::new(GossipKeyLoop::new(state, rand::random))),
        },
        Factory { name: "slow start", make: Box::new(|state, now| Box::new(SlowStartLoop::new(state, now))) },
        Factory {
            name: "drain",
            make: Box::new(move |state, now| Box::new(Drain::new(DrainLoop::new(state, now), table.clone()))),
        },
    ]
}

macro_rules! leader_loop {
    ($($machine:ty),*) => {$(
        impl LeaderLoop for $machine {
            fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
                self.handle(state, events, now)
            }
            fn next_deadline(&self) -> Option<Timestamp> {
                self.next_deadline()
            }
            fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
                self.tick(state, now)
            }
        }
    )*};
}

leader_loop!(Orchestrator, Allocator, Scheduler, SlowStartLoop);

/// The drain loop with what the nodes have acknowledged.
struct Drain {
    machine: DrainLoop,
    table: Arc<LivenessTable>,
    /// As far as the table was read.
    seen: u64,
}

impl Drain {
    fn new(machine: DrainLoop, table: Arc<LivenessTable>) -> Self {
        Self { machine, table, seen: 0 }
    }

    /// What was acknowledged since the last time.
    fn new_acks(&mut self) -> Vec<(NodeId, Generation)> {
        self.table
            .acknowledged_since(&mut self.seen)
            .into_iter()
            .map(|(node, heard)| (node, heard.applied))
            .collect()
    }

    /// Requests may have been lost at the nodes that are named.
    fn tell_given_up(&mut self, state: &State) {
        for GivenUp { task, nodes } in self.machine.take_given_up() {
            let name = |id: &NodeId| {
                state.nodes().get(id).map_or_else(String::new, |node| node.description.hostname.clone())
            };
            let nodes: Vec<String> = nodes.iter().map(|id| format!("{id} ({})", name(id))).collect();
            let nodes = nodes.join(", ");
            tracing::warn!(%task, nodes, "a task is stopped before these nodes have taken it out of their rings");
            self.table.drain_given_up();
        }
    }
}

impl LeaderLoop for Drain {
    fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        let acks = self.new_acks();
        let changes = self.machine.handle(state, events, acks, now);
        self.tell_given_up(state);
        changes
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        self.machine.next_deadline()
    }

    fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        let acks = self.new_acks();
        let changes = self.machine.tick(state, acks, now);
        self.tell_given_up(state);
        changes
    }

    fn acknowledged(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.tick(state, now)
    }
}
