//! What is to be looked at, when, and what came of it.

use std::collections::{BTreeMap, BTreeSet};

use control_model::change::{Change, Object};
use control_model::constraint::{Constraint, node_matches, parse_constraints};
use control_model::object::{Node, Service, Slot, Task, TaskStatus};
use control_model::slow_start::{FIRST_WEIGHT, FULL_WEIGHT};
use control_model::{NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};
use control_store::State;

/// Something to look at. A service comes before its slots: looking at it looks at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Service(ServiceId),
    Slot(ServiceId, Slot),
    Network(NetworkId),
    /// Tasks of a node that was removed, or has been lost for long.
    GoneNode(NodeId),
}

/// Work that is due at a later time. Looking too often does no harm, so nothing is ever cancelled.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeMap<Timestamp, BTreeSet<Work>>);

impl Timers {
    pub(crate) fn add(&mut self, at: Timestamp, work: Work) {
        self.0.entry(at).or_default().insert(work);
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.0.keys().next().copied()
    }

    /// Moves what is due into `work`.
    pub(crate) fn expire(&mut self, now: Timestamp, work: &mut BTreeSet<Work>) {
        while let Some(entry) = self.0.first_entry()
            && *entry.key() <= now
        {
            work.append(&mut entry.remove());
        }
    }
}

/// One look at the state: what to read, and where decisions go.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: Timestamp,
    pub(crate) ids: &'a mut dyn FnMut() -> u128,
    pub(crate) changes: Vec<Change>,
    pub(crate) timers: &'a mut Timers,
    /// Those of services that were looked at: each is read once, for all of its nodes.
    pub(crate) constraints: BTreeMap<ServiceId, Option<Vec<Constraint>>>,
    /// Slots that catch up, as the state has them: counted once for all slots of a service that want to.
    pub(crate) catching_up: BTreeMap<ServiceId, usize>,
}

impl Step<'_> {
    /// Whether the node satisfies the service's constraints.
    pub(crate) fn satisfies(&mut self, service: &Service, node: &Node) -> bool {
        let read = || parse_constraints(&service.spec.task.placement.constraints).ok();
        let constraints = self.constraints.entry(service.id).or_insert_with(read);
        constraints.as_ref().is_some_and(|constraints| node_matches(constraints, node))
    }

    /// Asks for a desired state, if that is higher than what the task has.
    pub(crate) fn desire(&mut self, task: &Task, state: TaskState) {
        if task.desired_state < state {
            self.changes.push(Change::TaskDesired { id: task.id, state });
        }
    }

    /// Makes a new task of the service for the slot, to run at once or, with READY, when it is due.
    pub(crate) fn create(&mut self, service: &Service, slot: Slot, desired_state: TaskState) -> TaskId {
        let task = self.new_task(service, slot, desired_state);
        let id = task.id;
        self.changes.push(Change::Create(Object::Task(Box::new(task))));
        id
    }

    /// Makes one that is to run on this node, if the scheduler finds that it fits.
    pub(crate) fn create_on(&mut self, service: &Service, slot: Slot, node: NodeId) {
        let task = Task { node: Some(node), ..self.new_task(service, slot, TaskState::Running) };
        self.changes.push(Change::Create(Object::Task(Box::new(task))));
    }

    fn new_task(&mut self, service: &Service, slot: Slot, desired_state: TaskState) -> Task {
        let job_iteration = service.job_iteration();
        let id = TaskId::from_bits((self.ids)());
        Task {
            service_name: service.spec.name.clone(),
            spec: service.spec.task.clone(),
            spec_version: service.meta.spec_version,
            job_iteration,
            endpoint_mode: service.spec.endpoint.mode,
            ports: service.spec.endpoint.ports.clone(),
            status: TaskStatus { at: self.now, message: "created".into(), ..TaskStatus::default() },
            desired_state: if desired_state == TaskState::Running {
                goal(job_iteration)
            } else {
                desired_state
            },
            weight: if service.spec.slow_start().is_some() { FIRST_WEIGHT } else { FULL_WEIGHT },
            ..Task::new(id, service.id, slot)
        }
    }
}

/// What is wanted of a task in the end: that it runs, of a job's that it ends well.
pub(crate) fn goal(job_iteration: Option<u64>) -> TaskState {
    if job_iteration.is_some() { TaskState::Complete } else { TaskState::Running }
}
