//! One service: as many slots as asked for, each looked at, and the rolling update over them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_model::object::{Service, Slot, Task};
use control_model::spec::ServiceMode;
use control_model::{NodeId, ServiceId, TaskState};
use control_store::State;

use crate::restart::first_desire;
use crate::rollout::Rollout;
use crate::slot::{SlotTasks, takes_updates};
use crate::work::{Step, Work};

/// Tasks made in one look at a service, as many as an entry of the log takes: between the looks at a large one others are served,
/// and each look reads all tasks that it has so far.
const MAX_NEW_TASKS: usize = 2000;
/// Tasks of one service that wait for a node: more of them find none sooner, and the cluster keeps each of them. What nobody can
/// place, a billion replicas among them, stays at this many.
const MAX_WAITING_TASKS: usize = 20_000;
/// As soon as some have found a node, others are made.
const WAITING_LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A slot after a look at it.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    pub(crate) tasks: SlotTasks<'a>,
    /// Nothing is under way in it but an update.
    pub(crate) settled: bool,
}

impl Step<'_> {
    /// Looks at a whole service. Returns its rolling update, if one goes on.
    pub(crate) fn service(&mut self, service: &Service, rollout: Option<Rollout>) -> Option<Rollout> {
        let state = self.state;
        let slots = slots_of(state, service.id);
        let looked = match service.spec.mode {
            ServiceMode::Replicated { replicas } => self.scale(service, slots, replicas),
            ServiceMode::Global => self.cover(service, slots),
            ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
                self.job(service, &slots, max_concurrent, total_completions);
                return None;
            }
            ServiceMode::GlobalJob => {
                self.cover(service, slots);
                return None;
            }
        };
        let updatable = looked.into_iter().filter(|looked| takes_updates(state, looked.tasks.slot)).collect();
        self.roll(service, rollout, updatable)
    }

    /// Makes or removes slots until there are `replicas`. Returns those that stay.
    fn scale<'s>(
        &mut self,
        service: &Service,
        slots: BTreeMap<Slot, SlotTasks<'s>>,
        replicas: u64,
    ) -> Vec<Looked<'s>> {
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
        let (mut used, free): (Vec<_>, Vec<_>) =
            slots.into_values().partition(|slot| !slot.updatable(service).is_empty());
        if used.len() > replicas {
            used.sort_by_key(|slot| (!is_running(slot), slot.slot));
            keep_balanced(&mut used);
            for slot in used.split_off(replicas) {
                self.remove_slot(&slot);
            }
        }
        let taken: BTreeSet<Slot> = used.iter().map(|slot| slot.slot).collect();
        let waiting = used.iter().flat_map(SlotTasks::wanted).filter(|task| task.node.is_none()).count();
        let n_new = self.n_new_tasks(service.id, waiting, replicas - used.len());
        let fresh: BTreeSet<Slot> =
            (1..).map(Slot::Replica).filter(|slot| !taken.contains(slot)).take(n_new).collect();
        for slot in free.iter().filter(|slot| !fresh.contains(&slot.slot)) {
            self.remove_slot(slot);
        }
        let free: BTreeMap<Slot, &SlotTasks> = free.iter().map(|free| (free.slot, free)).collect();
        for slot in fresh {
            self.create(service, slot, first_desire(self.state, free.get(&slot).copied()));
        }
        used.into_iter().map(|tasks| Looked { settled: self.slot(service, &tasks), tasks }).collect()
    }

    /// How many of the `missing` tasks to make now, while `waiting` have no node yet; the others come with a later look.
    pub(crate) fn n_new_tasks(&mut self, service: ServiceId, waiting: usize, missing: usize) -> usize {
        let room = MAX_WAITING_TASKS.saturating_sub(waiting);
        let n_new = missing.min(MAX_NEW_TASKS).min(room);
        if n_new < missing {
            let at = if n_new < room { self.now } else { self.now.after(WAITING_LOOK_PERIOD) };
            self.timers.add(at, Work::Service(service));
        }
        n_new
    }

    pub(crate) fn remove_slot(&mut self, slot: &SlotTasks) {
        self.remove_all(slot.tasks.iter().copied());
    }

    /// A task on each node that may have one. Returns all slots.
    fn cover<'s>(&mut self, service: &Service, mut slots: BTreeMap<Slot, SlotTasks<'s>>) -> Vec<Looked<'s>> {
        for node in self.state.nodes().iter() {
            let slot = Slot::Node(node.id);
            slots.entry(slot).or_insert_with(|| SlotTasks::new(slot, Vec::new()));
        }
        let slots = slots.into_values();
        slots.map(|tasks| Looked { settled: self.global_slot(service, &tasks), tasks }).collect()
    }
}

pub(crate) fn slots_of(state: &State, service: ServiceId) -> BTreeMap<Slot, SlotTasks<'_>> {
    let mut slots: BTreeMap<Slot, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.tasks_of_service(service) {
        slots.entry(task.slot).or_default().push(task);
    }
    slots.into_iter().map(|(slot, tasks)| (slot, SlotTasks::new(slot, tasks))).collect()
}

fn is_running(slot: &SlotTasks) -> bool {
    slot.wanted().any(|task| task.status.state == TaskState::Running)
}

/// Orders slots so that cutting the end off leaves nodes evenly used: the nth copy on its node comes before every
/// (n+1)th, those without a node last. Slots that are equal in this keep their order.
fn keep_balanced(slots: &mut Vec<SlotTasks>) {
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, SlotTasks)> = Vec::with_capacity(slots.len());
    for slot in slots.drain(..) {
        let wanted: Vec<_> = slot.wanted().collect();
        let node = if let [only] = wanted.as_slice() { only.node } else { None };
        let rank = node.map_or(usize::MAX, |node| {
            let copy = copies.entry(node).or_default();
            *copy += 1;
            *copy
        });
        ranked.push((rank, slot));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    slots.extend(ranked.into_iter().map(|(_, slot)| slot));
}
