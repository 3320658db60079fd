//! The machine: which events make what dirty, and the looks at it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::change::{Change, ObjectRef};
use control_model::object::{NO_SERVICE, Node, Service, Slot, TaskStatus};
use control_model::{NodeId, ServiceId, Task, TaskState, Timestamp};
use control_store::{Event, EventKind, State};

use crate::network::LeavingNetworks;
use crate::node::{is_gone, matters};
use crate::rebalance::Rebalancing;
use crate::restart::is_on_node;
use crate::rollout::Rollouts;
use crate::slot::{SlotTasks, is_wanted};
use crate::work::{Step, Timers, Work};

/// Where ids of new tasks come from: 128 random bits each.
pub type IdSource = Box<dyn FnMut() -> u128 + Send>;

/// Of a task whose node will not report on it any more.
const REMOVED_MESSAGE: &str = "the task's node was removed from the cluster";
const LOST_MESSAGE: &str = "the task's node has been down for too long";
/// After so long a lost node is not expected to say any more what became of its tasks (swarmkit's dispatcher).
const LOST_AFTER: Duration = Duration::from_hours(24);

/// Owns which tasks exist, their desired state, and the services' update status.
pub struct Orchestrator {
    ids: IdSource,
    work: BTreeSet<Work>,
    timers: Timers,
    globals: BTreeSet<ServiceId>,
    rollouts: Rollouts,
    leaving: LeavingNetworks,
    rebalancing: Rebalancing,
    /// Nodes came, went or changed since the last look.
    nodes_moved: bool,
    /// When everything became dirty; `None` once that was looked at.
    started: Option<Timestamp>,
}

impl Orchestrator {
    /// Everything is dirty.
    pub fn new(state: &State, now: Timestamp, ids: IdSource) -> Self {
        let mut machine = Self {
            ids,
            work: BTreeSet::new(),
            timers: Timers::default(),
            globals: BTreeSet::new(),
            rollouts: BTreeMap::new(),
            leaving: LeavingNetworks::default(),
            rebalancing: Rebalancing::default(),
            nodes_moved: true,
            started: Some(now),
        };
        for service in state.services().iter() {
            machine.note_service(service);
        }
        for network in state.networks().iter().filter(|network| network.pending_delete) {
            machine.leaving.add(state, network.id);
            machine.work.insert(Work::Network(network.id));
        }
        for task in state.tasks().iter() {
            if state.services().get(&task.service).is_none() {
                machine.work.insert(Work::Service(task.service));
            }
            let node = task.node.filter(|node| state.nodes().get(node).is_none());
            machine.work.extend(node.map(Work::GoneNode));
        }
        for node in state.nodes().iter().filter(|node| is_gone(Some(node))) {
            machine.timers.add(node.meta.updated_at.after(LOST_AFTER), Work::GoneNode(node.id));
        }
        machine
    }

    /// Takes in what was applied and returns what to write.
    pub fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        for event in events {
            self.note(state, event);
        }
        self.look(state, now)
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.started.into_iter().chain(self.timers.next()).min()
    }

    /// Looks at what is due.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.look(state, now)
    }

    fn note(&mut self, state: &State, event: &Event) {
        match &event.kind {
            EventKind::Service(before, Some(service)) => {
                let is_same = before.as_ref().is_some_and(|before| {
                    before.spec == service.spec
                        && before.update_status == service.update_status
                        && before.job == service.job
                        && before.pending_delete == service.pending_delete
                });
                if !is_same {
                    self.note_service(service);
                }
                let emptied = self.leaving.note_service(service.id, Some(service));
                self.work.extend(emptied.into_iter().map(Work::Network));
            }
            EventKind::Service(Some(service), None) => {
                self.globals.remove(&service.id);
                self.rollouts.remove(&service.id);
                self.rebalancing.forget(service.id);
                self.work.insert(Work::Service(service.id));
                let emptied = self.leaving.note_service(service.id, None);
                self.work.extend(emptied.into_iter().map(Work::Network));
            }
            EventKind::Task(before, after) => self.note_task(state, before.as_deref(), after.as_deref()),
            EventKind::Node(before, after) => self.note_node(state, before.as_deref(), after.as_deref()),
            EventKind::Network(_, Some(network)) if network.pending_delete => {
                self.leaving.add(state, network.id);
                self.work.insert(Work::Network(network.id));
            }
            EventKind::Network(Some(network), None) => self.leaving.forget(network.id),
            _ => {}
        }
    }

    fn note_service(&mut self, service: &Service) {
        if service.spec.mode.is_global() {
            self.globals.insert(service.id);
        }
        self.rebalancing.note_service(service);
        self.work.insert(Work::Service(service.id));
    }

    fn note_task(&mut self, state: &State, before: Option<&Task>, after: Option<&Task>) {
        let Some(task) = after.or(before) else { return };
        let is_lost = after.is_none() && is_wanted(task);
        let is_going = state.services().get(&task.service).is_some_and(|service| service.pending_delete);
        // Where a task of a job has ended, the next may begin.
        let makes_room = task.job_iteration.is_some()
            && after.is_none_or(|task| !is_wanted(task) || task.status.state.is_terminal());
        let is_followed = self.rollouts.contains_key(&task.service) || self.rebalancing.has(task.service);
        if is_lost || is_going || makes_room || is_followed {
            self.work.insert(Work::Service(task.service));
        } else {
            self.work.insert(Work::Slot(task.service, task.slot));
        }
        if after.is_none_or(|task| task.status.state.is_terminal()) {
            let emptied = self.leaving.note_task_end(task);
            self.work.extend(emptied.into_iter().map(Work::Network));
        }
    }

    fn note_node(&mut self, state: &State, before: Option<&Node>, after: Option<&Node>) {
        let Some(id) = after.or(before).map(|node| node.id) else { return };
        if let (Some(before), Some(after)) = (before, after)
            && !matters(before, after)
        {
            return;
        }
        self.nodes_moved = true;
        match after {
            None => drop(self.work.insert(Work::GoneNode(id))),
            Some(node) if is_gone(after) => {
                self.timers.add(node.meta.updated_at.after(LOST_AFTER), Work::GoneNode(id));
            }
            Some(_) => {}
        }
        let touched = state.tasks_of_node(id).map(|task| match state.services().get(&task.service) {
            // It stayed since its node satisfied other constraints too, which it may do no more: that is an update's to mend.
            Some(service) if is_wanted(task) && has_other_constraints(service, task) => {
                Work::Service(task.service)
            }
            _ => Work::Slot(task.service, task.slot),
        });
        self.work.extend(touched);
        self.work.extend(self.globals.iter().map(|service| Work::Slot(*service, Slot::Node(id))));
    }

    fn look(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.started = None;
        if std::mem::take(&mut self.nodes_moved) {
            for (at, work) in self.rebalancing.note_nodes(now) {
                self.timers.add(at, work);
            }
        }
        self.timers.expire(now, &mut self.work);
        let mut step = Step {
            state,
            now,
            ids: &mut *self.ids,
            changes: Vec::new(),
            timers: &mut self.timers,
            constraints: BTreeMap::new(),
            catching_up: BTreeMap::new(),
        };
        let mut looked = BTreeSet::new();
        while let Some(work) = self.work.pop_first() {
            match work {
                Work::Service(id) => {
                    looked.insert(id);
                    look_at_service(&mut step, &mut self.rollouts, &mut self.rebalancing, id);
                }
                // With its service.
                Work::Slot(id, _) if looked.contains(&id) => {}
                Work::Slot(id, slot) => look_at_slot(&mut step, id, slot),
                Work::Network(id) => step.changes.extend(self.leaving.delete_if_empty(id)),
                Work::GoneNode(id) => orphan_tasks(&mut step, id),
            }
        }
        step.changes
    }
}

fn look_at_service(step: &mut Step, rollouts: &mut Rollouts, rebalancing: &mut Rebalancing, id: ServiceId) {
    let state = step.state;
    let rollout = rollouts.remove(&id);
    match state.services().get(&id) {
        Some(service) if service.pending_delete => {
            step.remove_all(state.tasks_of_service(id));
            if state.tasks_of_service(id).next().is_none() {
                step.changes.push(Change::Delete(ObjectRef::Service(id)));
            }
        }
        Some(service) => {
            let rollout = step.service(service, rollout);
            if let (None, Some(balance)) = (&rollout, rebalancing.of(id)) {
                step.rebalance(service, balance);
            }
            rollouts.extend(rollout.map(|rollout| (id, rollout)));
        }
        None if id == NO_SERVICE => step.reap_attachments(state.tasks_of_service(id)),
        None => step.remove_all(state.tasks_of_service(id)),
    }
}

/// A replica that was left where it is when its service's constraints changed.
fn has_other_constraints(service: &Service, task: &Task) -> bool {
    !service.spec.mode.is_global()
        && service.spec.task.placement.constraints != task.spec.placement.constraints
}

fn look_at_slot(step: &mut Step, id: ServiceId, slot: Slot) {
    let tasks = SlotTasks::read(step.state, id, slot);
    match step.state.services().get(&id) {
        Some(service) if service.pending_delete => step.remove_all(tasks.tasks),
        Some(service) if service.spec.mode.is_global() => {
            if step.global_slot(service, &tasks) && !service.spec.mode.is_job() {
                step.catch_up(service, &tasks);
            }
        }
        Some(service) => {
            step.slot(service, &tasks);
        }
        None if id == NO_SERVICE => step.reap_attachments(tasks.tasks),
        None => step.remove_all(tasks.tasks),
    }
}

/// No agent will report on these tasks any more.
fn orphan_tasks(step: &mut Step, id: NodeId) {
    let node = step.state.nodes().get(&id).map(AsRef::as_ref);
    if let Some(node) = node {
        let until = node.meta.updated_at.after(LOST_AFTER);
        if !is_gone(Some(node)) {
            return;
        }
        if until > step.now {
            // Lost anew, or written since for something that is of no matter here.
            return step.timers.add(until, Work::GoneNode(id));
        }
    }
    for task in step.state.tasks_of_node(id).filter(|task| is_on_node(task)) {
        let status = TaskStatus {
            state: TaskState::Orphaned,
            at: step.now,
            message: if node.is_some() { LOST_MESSAGE } else { REMOVED_MESSAGE }.into(),
            ..task.status.clone()
        };
        step.changes.push(Change::TaskStatus { id: task.id, status });
    }
}
