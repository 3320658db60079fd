//! Replicated jobs: so many tasks are to end well, and so many of them at once (swarmkit `manager/orchestrator/jobs`).
//!
//! A run fills the slots from 0 up. A slot is done with when a task of the run has ended well in it; one that failed is
//! replaced as the restart policy allows, and keeps its slot where that allows no more: the job is then never complete.

use std::collections::{BTreeMap, BTreeSet};

use control_model::TaskState;
use control_model::object::{Service, Slot};

use crate::restart::is_on_node;
use crate::slot::{SlotTasks, is_wanted};
use crate::work::Step;

impl Step<'_> {
    /// Looks at a whole job: tasks of earlier runs stop, and new ones are made where there is room for them.
    pub(crate) fn job(
        &mut self,
        service: &Service,
        slots: &BTreeMap<Slot, SlotTasks>,
        max_concurrent: u64,
        total_completions: u64,
    ) {
        let mut n_active: u64 = 0;
        let mut n_waiting = 0;
        let mut taken = BTreeSet::new();
        for tasks in slots.values() {
            let Slot::Replica(number) = tasks.slot else { continue };
            if number >= total_completions {
                self.remove_slot(tasks);
                continue;
            }
            self.slot(service, tasks);
            let held = tasks.updatable(service);
            if !held.is_empty() {
                taken.insert(number);
            }
            let is_active =
                held.iter().any(|task| is_wanted(task) && task.status.state != TaskState::Complete);
            n_active += u64::from(is_active);
            n_waiting += held.iter().filter(|task| is_wanted(task) && task.node.is_none()).count();
        }
        let room = max_concurrent.saturating_sub(n_active);
        let n_free = total_completions - taken.len() as u64;
        let missing = usize::try_from(room.min(n_free)).unwrap_or(usize::MAX);
        let n_new = self.n_new_tasks(service.id, n_waiting, missing);
        let free = (0..total_completions).filter(|number| !taken.contains(number));
        for number in free.take(n_new) {
            let slot = Slot::Replica(number);
            // A task of an earlier run that is still there goes first.
            let waits = slots.get(&slot).is_some_and(|old| old.tasks.iter().any(|task| is_on_node(task)));
            self.create(service, slot, if waits { TaskState::Ready } else { TaskState::Running });
        }
    }
}
