//! Rolling updates and rollbacks of one service (swarmkit `manager/orchestrator/update`).
//!
//! Which slots are still to be done follows from the state at any time. Kept beside it is only what the state has no
//! place for: which tasks this update made and when they were seen to run. A new leader reads that off the history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Object, UpdateSeen};
use control_model::object::{Service, Slot, Task, UpdateState, UpdateStatus};
use control_model::spec::{FailureAction, UpdateConfig, UpdateOrder};
use control_model::{ServiceId, TaskId, TaskState, Timestamp};
use control_store::State;

use crate::dirty::is_task_dirty;
use crate::node::node_of;
use crate::rebalance::wants as wants_rebalancing;
use crate::restart::{ended_by_itself, first_desire, is_on_node};
use crate::service::Looked;
use crate::slot::{SlotTasks, is_wanted, update_began};
use crate::work::{Step, Work};

/// An update that goes on.
#[derive(Debug)]
pub(crate) struct Rollout {
    /// What it rolls out; another version is another update.
    spec_version: u64,
    made: BTreeMap<TaskId, Made>,
}

/// A task that the update made.
#[derive(Debug, Clone, Copy)]
struct Made {
    slot: Slot,
    /// When it was seen to run or to have ended, by the leader's clock: its place is free for the next slot.
    done_at: Option<Timestamp>,
    failed: bool,
}

impl Rollout {
    /// The update that `service` is in. Tasks of its version that follow others in their slot were made by it, as far as it
    /// was not taken up again since.
    fn read(state: &State, service: &Service, now: Timestamp) -> Self {
        let version = service.meta.spec_version;
        let began = update_began(service).unwrap_or(now);
        let (new, old): (Vec<_>, Vec<_>) = state
            .tasks_of_service(service.id)
            .partition(|task| task.spec_version == version && task.meta.created_at >= began);
        let replaced: BTreeSet<Slot> = old.iter().map(|task| task.slot).collect();
        let mut first: BTreeMap<Slot, &Arc<Task>> = BTreeMap::new();
        for task in new.into_iter().filter(|task| replaced.contains(&task.slot)) {
            let known = first.entry(task.slot).or_insert(task);
            if task.meta.created_at < known.meta.created_at {
                *known = task;
            }
        }
        let mut rollout = Self { spec_version: version, made: BTreeMap::new() };
        for task in first.into_values() {
            rollout.note_made(task.id, task.slot);
            if task.status.state >= TaskState::Running {
                let done_at = Some(task.life.ran_at.unwrap_or(task.ended_at()).min(now));
                rollout.made.entry(task.id).and_modify(|made| made.done_at = done_at);
            }
        }
        rollout
    }

    fn note_made(&mut self, task: TaskId, slot: Slot) {
        self.made.insert(task, Made { slot, done_at: None, failed: false });
    }

    /// Looks at how the made tasks do. A task that ended by itself within `monitor` of its start has failed.
    /// Returns one that failed since the last look.
    fn watch(&mut self, state: &State, monitor: Duration, now: Timestamp) -> Option<TaskId> {
        let mut newly_failed = None;
        for (id, made) in &mut self.made {
            let Some(task) = state.tasks().get(id) else {
                made.done_at.get_or_insert(now);
                continue;
            };
            if task.status.state >= TaskState::Running || !is_wanted(task) {
                made.done_at.get_or_insert(now);
            }
            // Both by its node's clock: it may be told late.
            let in_time = task.life.ran.is_none_or(|ran| task.status.at.since(ran) <= monitor);
            if !made.failed && ended_by_itself(task) && in_time {
                made.failed = true;
                newly_failed = Some(*id);
            }
        }
        newly_failed
    }

    fn n_failed(&self) -> usize {
        self.made.values().filter(|made| made.failed).count()
    }

    /// When the last place becomes free; `None` while a task is still to come up.
    fn all_done_at(&self, started: Timestamp) -> Option<Timestamp> {
        self.made.values().try_fold(started, |latest, made| Some(latest.max(made.done_at?)))
    }

    /// Places in use, and when the next becomes free by time alone.
    fn n_busy(&self, delay: Duration, now: Timestamp) -> (usize, Option<Timestamp>) {
        let ends = |made: &Made| made.done_at.map(|done_at| done_at.after(delay));
        let busy: Vec<Option<Timestamp>> =
            self.made.values().map(ends).filter(|end| end.is_none_or(|end| end > now)).collect();
        (busy.len(), busy.iter().flatten().min().copied())
    }
}

/// A slot that is not as the service asks.
struct DirtySlot<'a> {
    slot: Slot,
    /// Wanted tasks, or the newest one where the slot ended for good.
    tasks: Vec<&'a Arc<Task>>,
    /// The one of `tasks` that is as asked, the most advanced.
    clean: Option<&'a Arc<Task>>,
    settled: bool,
}

impl Step<'_> {
    /// Takes the update of a service further. Returns it while it goes on.
    pub(crate) fn roll(
        &mut self,
        service: &Service,
        rollout: Option<Rollout>,
        slots: Vec<Looked>,
    ) -> Option<Rollout> {
        let dirty = self.dirty_slots(service, slots);
        let status = service.update_status.as_ref();
        let is_under_way = status.is_some_and(|status| is_under_way(status.state));
        if dirty.is_empty() && !is_under_way {
            return None;
        }
        let is_paused =
            status.is_some_and(|s| matches!(s.state, UpdateState::Paused | UpdateState::RollbackPaused));
        let same = rollout.filter(|rollout| rollout.spec_version == service.meta.spec_version);
        let mut rollout = if is_under_way || is_paused {
            same.unwrap_or_else(|| Rollout::read(self.state, service, self.now))
        } else {
            // A new one, or a paused one taken up again: what failed before does not count.
            Rollout { spec_version: service.meta.spec_version, made: BTreeMap::new() }
        };
        let config = *config(service);
        let failed = rollout.watch(self.state, config.monitor, self.now);
        self.finish_slots(&dirty, config.order);
        if is_paused {
            // Slots are looked at one by one, but for those that are half done: their old tasks leave when the new ones run.
            return dirty.iter().any(|slot| slot.clean.is_some()).then_some(rollout);
        }
        if is_under_way && self.act_on_failure(service, &rollout, &dirty, failed) {
            return Some(rollout);
        }
        if !is_under_way {
            self.set_update(service, UpdateState::Updating, "update in progress");
        }
        self.next_slots(service, &mut rollout, &dirty);
        if is_under_way && dirty.is_empty() && self.complete(service, &rollout) {
            return None;
        }
        Some(rollout)
    }

    fn dirty_slots<'s>(&self, service: &Service, slots: Vec<Looked<'s>>) -> Vec<DirtySlot<'s>> {
        let mut dirty = Vec::new();
        for Looked { tasks: slot, settled } in slots {
            if slot.is_given_up(service) {
                continue;
            }
            let tasks = slot.updatable(service);
            let is_clean = |task: &Task| !is_task_dirty(service, task, node_of(self.state, task.node));
            let clean = tasks
                .iter()
                .copied()
                .filter(|task| is_wanted(task) && is_clean(task))
                .max_by_key(|task| (task.desired_state, task.status.state));
            let is_moving =
                wants_rebalancing(service) && tasks.iter().all(|task| is_wanted(task) && is_clean(task));
            let is_as_asked = tasks.is_empty() || (tasks.len() == 1 && is_clean(tasks[0])) || is_moving;
            if !is_as_asked {
                dirty.push(DirtySlot { slot: slot.slot, tasks, clean, settled });
            }
        }
        dirty
    }

    /// Slots that have their new task already: the others in them stop, with start-first once it runs.
    fn finish_slots(&mut self, dirty: &[DirtySlot], order: UpdateOrder) {
        for slot in dirty {
            let Some(clean) = slot.clean else { continue };
            if order == UpdateOrder::StartFirst && clean.status.state != TaskState::Running {
                continue;
            }
            for task in slot.tasks.iter().filter(|task| task.id != clean.id && is_wanted(task)) {
                self.desire(task, TaskState::Shutdown);
            }
        }
    }

    /// Gives places to slots that have no new task yet.
    fn next_slots(&mut self, service: &Service, rollout: &mut Rollout, dirty: &[DirtySlot]) {
        let config = *config(service);
        let (mut n_busy, free_at) = rollout.n_busy(config.delay, self.now);
        let limit = match config.parallelism {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        for slot in dirty.iter().filter(|slot| slot.clean.is_none() && slot.settled) {
            if n_busy >= limit {
                break;
            }
            let id = self.renew(service, slot, config.order);
            rollout.note_made(id, slot.slot);
            n_busy += 1;
        }
        if let Some(free_at) = free_at {
            self.timers.add(free_at, Work::Service(service.id));
        }
    }

    fn renew(&mut self, service: &Service, slot: &DirtySlot, order: UpdateOrder) -> TaskId {
        let wanted: Vec<_> = slot.tasks.iter().filter(|task| is_wanted(task)).collect();
        let mut desired = TaskState::Running;
        if order == UpdateOrder::StopFirst {
            let all = SlotTasks::read(self.state, service.id, slot.slot);
            let waits = wanted.iter().any(|task| is_on_node(task));
            desired = if waits { TaskState::Ready } else { first_desire(self.state, Some(&all)) };
        }
        let id = self.create(service, slot.slot, desired);
        if order == UpdateOrder::StopFirst {
            for task in wanted {
                self.desire(task, TaskState::Shutdown);
            }
        }
        id
    }

    /// What the failure action asks for, when more failed than the ratio allows. `true` if that ends this update.
    fn act_on_failure(
        &mut self,
        service: &Service,
        rollout: &Rollout,
        dirty: &[DirtySlot],
        failed: Option<TaskId>,
    ) -> bool {
        let Some(failed) = failed else { return false };
        let config = config(service);
        let slots: BTreeSet<Slot> =
            rollout.made.values().map(|made| made.slot).chain(dirty.iter().map(|slot| slot.slot)).collect();
        if !exceeds(rollout.n_failed(), slots.len(), config.max_failure_ratio) {
            return false;
        }
        let reason = format!("due to failure or early termination of task {failed}");
        let rolls_back =
            service.update_status.as_ref().is_some_and(|s| s.state == UpdateState::RollbackStarted);
        match (config.failure_action, &service.previous_spec) {
            (FailureAction::Continue, _) => return false,
            // A rollback is never rolled back.
            (FailureAction::Rollback, Some(previous)) if !rolls_back => {
                let status = UpdateStatus {
                    state: UpdateState::RollbackStarted,
                    message: format!("update rolled back {reason}"),
                    ..self.update_status(service)
                };
                let rolled_back = Service {
                    spec: (**previous).clone(),
                    previous_spec: None,
                    previous_spec_version: 0,
                    update_status: Some(status),
                    ..service.clone()
                };
                let object = Object::Service(Box::new(rolled_back));
                self.changes.push(Change::Update { object, expected: service.meta.version });
            }
            // swarmkit's words: a rollback whose action is to pause is paused as an update.
            (action, _) if rolls_back => {
                let what = if action == FailureAction::Rollback { "rollback" } else { "update" };
                self.set_update(service, UpdateState::RollbackPaused, &format!("{what} paused {reason}"));
            }
            _ => self.set_update(service, UpdateState::Paused, &format!("update paused {reason}")),
        }
        true
    }

    /// Ends an update whose tasks have all run for the monitor time.
    fn complete(&mut self, service: &Service, rollout: &Rollout) -> bool {
        let Some(status) = &service.update_status else { return false };
        let Some(done_at) = rollout.all_done_at(status.started_at) else { return false };
        let ends = if rollout.made.is_empty() { self.now } else { done_at.after(config(service).monitor) };
        if ends > self.now {
            self.timers.add(ends, Work::Service(service.id));
            return false;
        }
        let (state, message) = match status.state {
            UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
            _ => (UpdateState::Completed, "update completed"),
        };
        self.set_update(service, state, message);
        true
    }

    fn set_update(&mut self, service: &Service, state: UpdateState, message: &str) {
        let ended = matches!(state, UpdateState::Completed | UpdateState::RollbackCompleted);
        let status = UpdateStatus {
            state,
            message: message.into(),
            completed_at: ended.then_some(self.now),
            ..self.update_status(service)
        };
        let of = Some(UpdateSeen::of(service));
        self.changes.push(Change::UpdateStatus { id: service.id, status: Some(status), of });
    }

    /// The status of the update that goes on, or of one that begins now.
    fn update_status(&self, service: &Service) -> UpdateStatus {
        let going_on = service.update_status.as_ref().filter(|status| is_under_way(status.state));
        going_on.cloned().unwrap_or(UpdateStatus {
            state: UpdateState::Updating,
            started_at: self.now,
            completed_at: None,
            message: String::new(),
        })
    }
}

/// Updating or rolling back, not paused or done.
fn is_under_way(state: UpdateState) -> bool {
    matches!(state, UpdateState::Updating | UpdateState::RollbackStarted)
}

fn config(service: &Service) -> &UpdateConfig {
    match service.update_status.as_ref().map(|status| status.state) {
        Some(UpdateState::RollbackStarted | UpdateState::RollbackPaused) => &service.spec.rollback,
        _ => &service.spec.update,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of slots are far below 2^24")]
fn exceeds(n_failed: usize, n_slots: usize, ratio: f32) -> bool {
    n_failed as f32 / n_slots.max(1) as f32 > ratio
}

/// Rolling updates by service.
pub(crate) type Rollouts = BTreeMap<ServiceId, Rollout>;
