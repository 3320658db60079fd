//! Laws of jobs and of services that are spread anew: what they may have at once, and what they have in the end.

use std::collections::{BTreeMap, BTreeSet};

use control_model::object::{Service, Slot};
use control_model::spec::ServiceMode;
use control_model::{NodeId, Task, TaskState};
use control_store::State;

use crate::world::World;

impl World {
    /// A task was made.
    pub(super) fn judge_new(&mut self, task: &Task) {
        let state = self.log.state.clone();
        let Some(service) = state.services().get(&task.service) else { return };
        if let Some(what) = job_exceeded(&state, service, task) {
            self.fail("a job keeps its limits", what);
        }
        if let Some(what) = moves_exceeded(&state, service, task) {
            self.fail("so many tasks are moved at once as the label says", what);
        }
    }
}

fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

fn tasks_of<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = &'a Task> {
    state.tasks_of_service(service.id).map(AsRef::as_ref)
}

/// What a job has too much of, now that it has `task` too.
fn job_exceeded(state: &State, service: &Service, task: &Task) -> Option<String> {
    // Made for a run that is over by now, or of what is no job.
    let run = service.job_iteration().filter(|run| task.job_iteration == Some(*run))?;
    let of_run = || tasks_of(state, service).filter(|other| other.job_iteration == Some(run));
    let is_done = of_run().any(|other| other.slot == task.slot && other.status.state == TaskState::Complete);
    if is_done {
        return Some(format!("{} is made in a slot that is done", task.name()));
    }
    let ServiceMode::ReplicatedJob { max_concurrent, total_completions } = service.spec.mode else {
        return None;
    };
    if !matches!(task.slot, Slot::Replica(number) if number < total_completions) {
        return Some(format!("{} is beyond {total_completions} completions", task.name()));
    }
    let active = of_run().filter(|other| is_wanted(other) && other.status.state != TaskState::Complete);
    let n_active = active.map(|other| other.slot).collect::<BTreeSet<_>>().len() as u64;
    (n_active > max_concurrent).then(|| format!("{n_active} run at once, not {max_concurrent}"))
}

/// A move is a task that is bound to a node from the start.
fn moves_exceeded(state: &State, service: &Service, task: &Task) -> Option<String> {
    let (Some(limit), ServiceMode::Replicated { replicas }) = (service.spec.rebalance(), service.spec.mode)
    else {
        return None;
    };
    task.node?;
    let mut wanted: BTreeMap<Slot, usize> = BTreeMap::new();
    for other in tasks_of(state, service).filter(|other| is_wanted(other)) {
        *wanted.entry(other.slot).or_default() += 1;
    }
    let n_moving = wanted.values().filter(|count| **count > 1).count() as u64;
    (n_moving > limit.of(replicas)).then(|| format!("{n_moving} of {replicas} of {}", service.spec.name))
}

/// A job that has not done what it was asked for, though nothing fails.
pub fn job_unfinished(state: &State, service: &Service) -> Option<String> {
    let (name, run) = (&service.spec.name, service.job_iteration());
    let left = tasks_of(state, service)
        .find(|task| is_wanted(task) && (task.job_iteration != run || !task.status.state.is_terminal()));
    if let Some(task) = left {
        return Some(format!("{} of {name} still runs: {:?}", task.name(), task.status));
    }
    let done = tasks_of(state, service)
        .filter(|task| task.job_iteration == run && task.status.state == TaskState::Complete);
    let done: BTreeSet<Slot> = done.map(|task| task.slot).collect();
    let wanted: BTreeSet<Slot> = match service.spec.mode {
        ServiceMode::ReplicatedJob { total_completions, .. } => {
            (0..total_completions).map(Slot::Replica).collect()
        }
        _ => state.nodes().iter().map(|node| Slot::Node(node.id)).collect(),
    };
    (done != wanted).then(|| format!("{name} has done {done:?}, not {wanted:?}"))
}

/// A service that is to be spread anew and is not even, though all nodes are open.
pub fn uneven(state: &State, service: &Service) -> Option<String> {
    service.spec.rebalance().filter(|_| matches!(service.spec.mode, ServiceMode::Replicated { .. }))?;
    let mut counts: BTreeMap<NodeId, usize> = state.nodes().iter().map(|node| (node.id, 0)).collect();
    for node in tasks_of(state, service).filter(|task| is_wanted(task)).filter_map(|task| task.node) {
        *counts.entry(node).or_default() += 1;
    }
    let (most, least) = (counts.values().max()?, counts.values().min()?);
    (most > &(least + 1)).then(|| format!("{} has {counts:?}", service.spec.name))
}
