//! A large cluster where nothing fails: what its leader has to do, as its nodes come, as they get their tasks, and when nothing
//! happens.

use std::collections::BTreeSet;
use std::time::Duration;

use control_model::change::{Change, Object};
use control_model::object::Service;
use control_model::spec::{ServiceMode, ServiceSpec};
use control_model::{NodeId, ServiceId, Task, TaskState};
use control_rpc::encode_assignments;
use control_store::State;

use crate::host::HostId;
use crate::log::Purpose;
use crate::scenario::Scenario;
use crate::world::{Broken, World};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Longest time for anything.
const PATIENCE: Duration = Duration::from_mins(5);
const IDLE: Duration = Duration::from_secs(20);
const N_MANAGERS: usize = 3;
const TASKS_PER_SERVICE: u64 = 1000;

/// A cluster's size.
#[derive(Debug, Clone, Copy)]
pub struct ScaleRun {
    pub n_nodes: usize,
    pub tasks_per_node: usize,
    /// A clock of the machine that runs the simulation: the time that the leader's code takes.
    pub clock: fn() -> Duration,
}

/// What a span of virtual time took.
#[derive(Debug, Clone)]
pub struct Span {
    pub what: &'static str,
    /// Virtual time.
    pub span: Duration,
    /// Time of the leader's code on the machine that runs the simulation.
    pub leader: Duration,
    /// Assignments that managers sent.
    pub n_updates: u64,
    pub update_bytes: u64,
}

/// Counts what the leader does.
pub struct Meter {
    clock: fn() -> Duration,
    leader: Duration,
    n_updates: u64,
    update_bytes: u64,
}

impl Meter {
    pub fn read(&self) -> Duration {
        (self.clock)()
    }

    pub fn leader_did(&mut self, span: Duration) {
        self.leader += span;
    }

    pub fn sent(&mut self, update: &control_model::AssignmentUpdate) {
        self.n_updates += 1;
        let bytes = encode_assignments(update).map_or(0, |bytes| bytes.len());
        self.update_bytes += u64::try_from(bytes).unwrap_or_default();
    }
}

impl ScaleRun {
    /// Runs; what each part took, and the state in the end.
    pub fn run(self) -> Result<(Vec<Span>, State), Broken> {
        let mut world = World::sized(Scenario::Calm, 1, N_MANAGERS, self.n_nodes);
        let (clock, leader) = (self.clock, Duration::ZERO);
        world.meter = Some(Meter { clock, leader, n_updates: 0, update_bytes: 0 });
        world.laws.is_off = true;
        world.begin();
        let n_tasks = self.n_nodes * self.tasks_per_node;
        let lost = HostId(self.n_nodes - 1);
        let mut spans = Vec::new();
        spans.push(world.measure("all nodes come", |state| n_ready(state) == state.nodes().len())?);
        world.ask_for(n_tasks);
        spans.push(world.measure("all tasks run", |state| n_running(state, None) == n_tasks)?);
        let end = world.now() + IDLE;
        spans.push(world.measure_until("nothing happens", end)?);
        world.crash_machine(lost);
        let gone = Some(lost.node());
        spans.push(
            world.measure("a node is lost and its tasks replaced", |state| {
                n_running(state, gone) == n_tasks
            })?,
        );
        Ok((spans, (*world.log.state).clone()))
    }
}

impl World {
    fn ask_for(&mut self, n_tasks: usize) {
        let Some(by) = self.log.leader.map(|leader| leader.host) else { return };
        let mut left = n_tasks as u64;
        while left > 0 {
            let replicas = left.min(TASKS_PER_SERVICE);
            left -= replicas;
            let mode = ServiceMode::Replicated { replicas };
            let mut spec = ServiceSpec { name: format!("s{left}"), mode, ..ServiceSpec::default() };
            spec.task.container.image = "v1".into();
            let id = ServiceId::from_bits(self.random.bits());
            let change = Change::Create(Object::Service(Box::new(Service::new(id, spec))));
            self.propose(by, vec![change], Purpose::User);
        }
    }

    fn measure(&mut self, what: &'static str, is_done: impl Fn(&State) -> bool) -> Result<Span, Broken> {
        let begun = self.span_so_far(what);
        let (begin, end) = (self.now(), self.now() + PATIENCE);
        while !is_done(&self.log.state) {
            self.run(LOOK)?;
            if self.now() >= end {
                let state = &self.log.state;
                let what = format!("{what}: {} ready, {} run", n_ready(state), n_running(state, None));
                return Err(Broken { law: "a large cluster comes to rest", what, at: self.now() });
            }
        }
        Ok(self.span_so_far(what).less(&begun, self.now().saturating_sub(begin)))
    }

    fn measure_until(&mut self, what: &'static str, end: Duration) -> Result<Span, Broken> {
        let (begin, begun) = (self.now(), self.span_so_far(what));
        self.run(end.saturating_sub(begin))?;
        Ok(self.span_so_far(what).less(&begun, self.now().saturating_sub(begin)))
    }

    fn span_so_far(&self, what: &'static str) -> Span {
        let meter = self.meter.as_ref();
        let count = |read: fn(&Meter) -> u64| meter.map_or(0, read);
        Span {
            what,
            span: Duration::ZERO,
            leader: meter.map_or(Duration::ZERO, |meter| meter.leader),
            n_updates: count(|meter| meter.n_updates),
            update_bytes: count(|meter| meter.update_bytes),
        }
    }
}

impl Span {
    fn less(self, before: &Self, span: Duration) -> Self {
        Self {
            span,
            leader: self.leader.saturating_sub(before.leader),
            n_updates: self.n_updates - before.n_updates,
            update_bytes: self.update_bytes - before.update_bytes,
            ..self
        }
    }
}

fn n_ready(state: &State) -> usize {
    let ready = |node: &&std::sync::Arc<control_model::Node>| {
        node.status.state == control_model::object::NodeState::Ready && node.status.data_path_alive
    };
    state.nodes().iter().filter(ready).count()
}

/// Slots with a task that runs, on another node than `but`.
fn n_running(state: &State, but: Option<NodeId>) -> usize {
    let runs = |task: &&Task| task.status.state == TaskState::Running && task.node != but;
    let running = state.tasks().iter().map(AsRef::as_ref).filter(runs);
    running.map(|task| (task.service, task.slot)).collect::<BTreeSet<_>>().len()
}
