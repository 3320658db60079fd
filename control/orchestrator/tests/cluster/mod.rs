//! A cluster of pure machines in virtual time: the leader's loops over a [`LocalStore`], and agents that pretend.

mod agents;
mod build;
mod laws;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control_allocator::Allocator;
use control_model::object::{NodeState, NodeStatus};
use control_model::{Change, Generation, NodeId, Timestamp};
use control_orchestrator::{DrainLoop, Orchestrator, SlowStartLoop};
use control_scheduler::Scheduler;
use control_store::{ApplyError, Event, EventReceiver, LocalStore, ReplicatedStore, State};

pub use agents::Agents;
pub use build::{new_service, zero_node};

/// Agents act, and time advances, in steps of this.
pub const STEP: Duration = Duration::from_millis(100);
/// Changes per entry, as the real runner has it.
const MAX_CHANGES: usize = 200;
/// More rounds without time passing are a loop that never settles.
const MAX_ROUNDS: usize = 1000;

/// 128 bits that differ and are in no order, the same in each run.
pub struct Ids(u128);

impl Ids {
    pub fn next(&mut self) -> u128 {
        self.0 = self.0.wrapping_add(1);
        let mixed = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        mixed ^ (mixed >> 64)
    }
}

pub struct Cluster {
    pub store: LocalStore,
    clock: Arc<AtomicI64>,
    events: EventReceiver,
    pub ids: Ids,
    n_leaders: u128,
    allocator: Allocator,
    orchestrator: Orchestrator,
    scheduler: Scheduler,
    slow_start: SlowStartLoop,
    drain: DrainLoop,
    pub agents: Agents,
    /// Nodes whose data path lags behind do not acknowledge.
    pub silent: Vec<NodeId>,
    /// What others write between a loop's look and its write, of which it is told.
    pub interfere: Option<Interference>,
}

pub type Interference = Box<dyn FnMut(&State, &[Change]) -> Vec<Change>>;

impl Cluster {
    /// An empty cluster at the time of 1000 s, with its ingress network.
    pub fn new() -> Self {
        let clock = Arc::new(AtomicI64::new(1_000_000_000_000));
        let reader = clock.clone();
        let store = LocalStore::new(move || Timestamp(reader.load(Ordering::Relaxed)));
        let (state, events) = store.subscribe();
        let now = Timestamp(clock.load(Ordering::Relaxed));
        let mut cluster = Self {
            allocator: Allocator::new(&state, now),
            orchestrator: Orchestrator::new(&state, now, Box::new(|| 0)),
            scheduler: Scheduler::new(&state, now),
            slow_start: SlowStartLoop::new(&state, now),
            drain: DrainLoop::new(&state, now),
            agents: Agents::default(),
            ids: Ids(0),
            n_leaders: 0,
            silent: Vec::new(),
            interfere: None,
            store,
            clock,
            events,
        };
        cluster.change_leader();
        cluster.commit(build::first_objects());
        cluster
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::Relaxed))
    }

    /// What tells [`Self::now`] to who has no cluster at hand.
    pub fn clock(&self) -> impl Fn() -> Timestamp + 'static {
        let clock = self.clock.clone();
        move || Timestamp(clock.load(Ordering::Relaxed))
    }

    pub fn state(&self) -> Arc<State> {
        self.store.state()
    }

    /// What a user or an agent writes.
    pub fn commit(&mut self, changes: Vec<Change>) {
        self.store.commit(changes).expect("a valid write");
    }

    /// What is seen of a node's life; its agent acts only while it is ready.
    pub fn set_life(&mut self, id: NodeId, state: NodeState, data_path_alive: bool) {
        if state == NodeState::Ready {
            self.agents.dead.remove(&id);
        } else {
            self.agents.dead.insert(id);
        }
        let status = NodeStatus { state, data_path_alive, ..NodeStatus::default() };
        self.commit(vec![Change::NodeStatus { id, status }]);
    }

    /// All machines are made anew from the state, as by another leader.
    pub fn change_leader(&mut self) {
        let (state, now) = (self.state(), self.now());
        self.allocator = Allocator::new(&state, now);
        self.orchestrator = self.new_orchestrator();
        self.scheduler = Scheduler::new(&state, now);
        self.slow_start = SlowStartLoop::new(&state, now);
        self.drain = DrainLoop::new(&state, now);
    }

    fn new_orchestrator(&mut self) -> Orchestrator {
        self.n_leaders += 1;
        let mut ids = Ids(self.n_leaders << 40);
        Orchestrator::new(&self.state(), self.now(), Box::new(move || ids.next()))
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.now().after(span);
        while self.now() < end {
            self.step();
        }
    }

    /// A long time in one step.
    pub fn skip(&mut self, span: Duration) {
        self.clock.fetch_add(i64::try_from(span.as_nanos()).expect("short"), Ordering::Relaxed);
        self.step();
    }

    /// One step of time: agents act, the loops answer until nothing changes.
    pub fn step(&mut self) {
        self.clock.fetch_add(i64::try_from(STEP.as_nanos()).expect("short"), Ordering::Relaxed);
        self.settle();
        let reports = self.agents.act(&self.state(), self.now());
        self.commit(reports);
        self.settle();
    }

    pub fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut happened: Vec<Event> = Vec::new();
            while let Ok(batch) = self.events.try_recv() {
                happened.extend_from_slice(&batch.events);
            }
            let is_due = [
                self.allocator.next_deadline(),
                self.orchestrator.next_deadline(),
                self.scheduler.next_deadline(),
                self.slow_start.next_deadline(),
                self.drain.next_deadline(),
            ]
            .into_iter()
            .flatten()
            .any(|at| at <= self.now());
            if happened.is_empty() && !is_due {
                laws::check(&self.state());
                return;
            }
            self.round(&happened);
        }
        panic!("the loops do not settle");
    }

    fn round(&mut self, happened: &[Event]) {
        let (state, now) = (self.state(), self.now());
        let mut changes = self.allocator.handle(&state, happened, now);
        changes.extend(self.allocator.tick(&state, now));
        if self.propose(&changes).is_err() {
            self.allocator = Allocator::new(&self.state(), now);
        }
        let state = self.state();
        let changes = self.orchestrator.handle(&state, happened, now);
        if self.propose(&changes).is_err() {
            self.orchestrator = self.new_orchestrator();
        }
        let changes = self.orchestrator.tick(&self.state(), now);
        if self.propose(&changes).is_err() {
            self.orchestrator = self.new_orchestrator();
        }
        let state = self.state();
        let changes = self.scheduler.handle(&state, happened, now);
        if self.propose(&changes).is_err() {
            self.scheduler = Scheduler::new(&self.state(), now);
        }
        let changes = self.scheduler.tick(&self.state(), now);
        if self.propose(&changes).is_err() {
            self.scheduler = Scheduler::new(&self.state(), now);
        }
        let changes = self.slow_start.handle(&self.state(), happened, now);
        self.propose(&changes).expect("weights need no version");
        let acks = self.acks();
        let changes = self.drain.handle(&self.state(), happened, acks, now);
        self.propose(&changes).expect("drained tasks need no version");
    }

    fn propose(&mut self, changes: &[Change]) -> Result<(), ApplyError> {
        let state = self.state();
        if let Some(others) = self.interfere.as_mut().filter(|_| !changes.is_empty()) {
            self.store.commit(others(&state, changes)).expect("a valid write");
        }
        changes.chunks(MAX_CHANGES).try_for_each(|chunk| self.store.commit(chunk.to_vec()).map(drop))
    }

    /// Data paths of nodes that are up are as new as the state, unless silent.
    fn acks(&self) -> BTreeMap<NodeId, Generation> {
        let state = self.state();
        let newest = Generation { epoch: state.cluster().map_or(0, |c| c.epoch), index: state.index() };
        let up = state.nodes().iter().filter(|node| self.agents.is_up(node.id));
        up.filter(|node| !self.silent.contains(&node.id)).map(|node| (node.id, newest)).collect()
    }
}
