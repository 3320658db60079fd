//! One slot: tasks that ended or must leave are replaced, waiting ones started, old ones forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Object, ObjectRef};
use control_model::object::{Node, Service, Slot, Task, UpdateState};
use control_model::spec::Availability;
use control_model::{ServiceId, TaskState, Timestamp};
use control_store::State;

use crate::dirty::is_task_dirty;
use crate::node::{is_gone, listens, must_leave, node_of, takes_global_tasks};
use crate::restart::{
    Start, delay_ends, ended_by_itself, first_desire, is_done, is_on_node, should_restart, start,
    starts_at_once,
};
use crate::work::{Step, Work, goal};

/// A slot that waits for others to catch up looks so often whether they have.
const CATCH_UP_PAUSE: Duration = Duration::from_secs(1);

/// The tasks of a slot, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct SlotTasks<'a> {
    pub(crate) slot: Slot,
    pub(crate) tasks: Vec<&'a Arc<Task>>,
}

impl<'a> SlotTasks<'a> {
    pub(crate) fn new(slot: Slot, mut tasks: Vec<&'a Arc<Task>>) -> Self {
        // Of two made at the same instant the one that is wanted is the newer.
        tasks.sort_by_key(|task| (task.meta.created_at, is_wanted(task), task.id));
        Self { slot, tasks }
    }

    pub(crate) fn read(state: &'a State, service: ServiceId, slot: Slot) -> Self {
        Self::new(slot, state.tasks_of_slot(service, slot).collect())
    }

    /// Tasks that are wanted to run, now or when their delay has passed.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &'a Arc<Task>> {
        self.tasks.iter().copied().filter(|task| is_wanted(task))
    }

    /// What an update has to look at: the wanted tasks; else the newest, if the restart policy leaves it ended.
    /// Empty: nothing is in the slot, it is free. A job's earlier runs leave it free.
    pub(crate) fn updatable(&self, service: &Service) -> Vec<&'a Arc<Task>> {
        let mut own = self.tasks.iter().copied().filter(|task| is_of_this_run(service, task));
        let done = self.done(service);
        let wanted: Vec<_> = own.clone().filter(|task| is_wanted(task)).collect();
        if !wanted.is_empty() {
            return wanted;
        }
        if done.is_some() {
            return done.into_iter().collect();
        }
        let newest = own.rfind(|task| task.desired_state != TaskState::Remove);
        // A rollback always ends converged: it refills slots whose old task ended for good. But not those of its own task.
        let state = service.update_status.as_ref().map(|status| status.state);
        let is_refilled = |task: &Task| {
            state == Some(UpdateState::RollbackStarted) && task.spec_version != service.meta.spec_version
        };
        newest
            .into_iter()
            .filter(|task| !should_restart(task, self, task.ended_at()) && !is_refilled(task))
            .collect()
    }

    /// The update that goes on has made a task here, which has ended and may not be restarted. What was there before stays,
    /// and the update has no more to do here.
    pub(crate) fn is_given_up(&self, service: &Service) -> bool {
        let Some(began) = update_began(service) else { return false };
        self.tasks.last().is_some_and(|newest| {
            newest.spec_version == service.meta.spec_version
                && newest.meta.created_at >= began
                && newest.desired_state == TaskState::Shutdown
                && ended_by_itself(newest)
                && !should_restart(newest, self, newest.ended_at())
        })
    }

    /// The task with which a job is done here: also one that was given up with its node, and ended well all the same.
    fn done(&self, service: &Service) -> Option<&'a Arc<Task>> {
        self.tasks.iter().copied().find(|task| is_done(task) && is_of_this_run(service, task))
    }
}

/// Tasks of the service's version that are older were made by an update that was paused and then taken up again. `None`: no
/// update has begun since the user's last write.
pub(crate) fn update_began(service: &Service) -> Option<Timestamp> {
    let status = service.update_status.as_ref()?;
    Some(match status.state {
        UpdateState::Updating | UpdateState::Paused | UpdateState::Completed => status.started_at,
        // A rollback has a version of its own; the time may be another manager's.
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => {
            Timestamp::default()
        }
    })
}

/// It is to run, now or later, or to have ended well.
pub(crate) fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete
}

/// `true` for all tasks of a service that is no job.
fn is_of_this_run(service: &Service, task: &Task) -> bool {
    task.job_iteration == service.job_iteration()
}

/// No update is there to stop the old task of a slot when the new one runs: it ended while this slot's node was away.
fn is_left_behind(service: &Service) -> bool {
    let state = service.update_status.as_ref().map(|status| status.state);
    matches!(state, Some(UpdateState::Completed | UpdateState::RollbackCompleted))
}

/// What must become of a wanted task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Stopped, and not replaced.
    Stop,
    /// Stopped, and replaced as far as the restart policy allows.
    Replace,
}

/// Nobody will start it: its node's agent is silent. What runs there already is kept by the node's data path.
fn is_stranded(task: &Task, node: Option<&Node>) -> bool {
    task.status.state < TaskState::Running && !listens(node)
}

/// It was bound to a node from the start, where the scheduler finds no room for it.
pub(crate) fn is_refused(task: &Task) -> bool {
    task.node.is_some() && task.status.state == TaskState::Pending && !task.status.error.is_empty()
}

impl Step<'_> {
    /// Looks at one slot of a service. `true` if nothing had to be done but wait or forget.
    pub(crate) fn slot(&mut self, service: &Service, slot: &SlotTasks) -> bool {
        let fates: Vec<(&Arc<Task>, Fate)> =
            slot.wanted().map(|task| (task, self.delayed_fate(service, task, slot))).collect();
        let is_up_to_date = |task: &Task| !is_task_dirty(service, task, node_of(self.state, task.node));
        // One that stays and is what the service asks for needs no other beside it.
        let stays = fates.iter().any(|(task, fate)| *fate == Fate::Keep && is_up_to_date(task));
        let mut is_filled = stays || slot.done(service).is_some();
        let is_outdated = |task: &Task| is_left_behind(service) && !is_up_to_date(task);
        let is_followed = fates.iter().any(|(task, fate)| {
            *fate == Fate::Keep && is_up_to_date(task) && task.status.state == TaskState::Running
        });
        let mut settled = true;
        for (task, fate) in fates {
            let fate = if is_followed && fate == Fate::Keep && is_outdated(task) { Fate::Stop } else { fate };
            match fate {
                Fate::Keep => self.start_if_due(task, slot),
                Fate::Stop => self.desire(task, TaskState::Shutdown),
                Fate::Replace => {
                    self.desire(task, TaskState::Shutdown);
                    let at = if task.status.state.is_terminal() { task.ended_at() } else { self.now };
                    if !is_filled && should_restart(task, slot, at) {
                        self.replace(service, task, slot);
                        is_filled = true;
                    }
                }
            }
            settled &= fate == Fate::Keep;
        }
        self.forget_old(service, slot);
        settled
    }

    fn fate(&mut self, service: &Service, task: &Task, node: Option<&Node>) -> Fate {
        if !is_of_this_run(service, task) {
            return Fate::Stop;
        }
        if is_done(task) {
            return Fate::Keep;
        }
        let ended = task.status.state.is_terminal();
        if service.spec.mode.is_global() {
            return match node {
                Some(node) if !must_leave(Some(node)) && self.satisfies(service, node) => match ended {
                    true if takes_global_tasks(node) => Fate::Replace,
                    true => Fate::Stop,
                    false => Fate::Keep,
                },
                _ => Fate::Stop,
            };
        }
        let leaves = task.node.is_some()
            && (must_leave(node)
                || is_stranded(task, node)
                || is_refused(task)
                || self.is_misplaced(service, task, node));
        if ended || leaves { Fate::Replace } else { Fate::Keep }
    }

    /// Its node has changed, and does not satisfy the constraints any more. A paused node keeps what it has; what an update is
    /// to replace is left to that.
    fn is_misplaced(&mut self, service: &Service, task: &Task, node: Option<&Node>) -> bool {
        !service.spec.task.placement.constraints.is_empty()
            && task.spec == service.spec.task
            && node.is_some_and(|node| {
                node.spec.availability == Availability::Active && !self.satisfies(service, node)
            })
    }

    /// As [`Self::fate`], but a task that fails while its own restart delay still runs is replaced only after that:
    /// an image that does not exist must not be asked for without pause.
    fn delayed_fate(&mut self, service: &Service, task: &Task, slot: &SlotTasks) -> Fate {
        let node = node_of(self.state, task.node);
        let fate = self.fate(service, task, node);
        let due = delay_ends(task, slot);
        let waits = task.desired_state < TaskState::Running && due > self.now && !must_leave(node);
        if fate == Fate::Replace && waits {
            self.timers.add(due, Work::Slot(service.id, slot.slot));
            return Fate::Keep;
        }
        fate
    }

    fn replace(&mut self, service: &Service, task: &Task, slot: &SlotTasks) {
        let at_once = starts_at_once(task, node_of(self.state, task.node));
        let desired = if at_once { first_desire(self.state, Some(slot)) } else { TaskState::Ready };
        self.create(service, slot.slot, desired);
    }

    fn start_if_due(&mut self, task: &Task, slot: &SlotTasks) {
        if task.desired_state != TaskState::Ready || task.status.state.is_terminal() {
            return;
        }
        match start(self.state, task, slot, self.now) {
            Start::At(due) => self.timers.add(due, Work::Slot(task.service, slot.slot)),
            Start::Now => self.desire(task, goal(task.job_iteration)),
        }
    }

    /// A global service's slot: as any, and a node that should have a task and has none gets one.
    /// `true` as in [`Self::slot`].
    pub(crate) fn global_slot(&mut self, service: &Service, slot: &SlotTasks) -> bool {
        let settled = self.slot(service, slot);
        let Slot::Node(id) = slot.slot else { return settled };
        let takes_one = self.state.nodes().get(&id).is_some_and(|node| {
            takes_global_tasks(node) && !must_leave(Some(node)) && self.satisfies(service, node)
        });
        if takes_one && slot.updatable(service).is_empty() {
            // So goes a task of a job's earlier run, which is asked to stop in this look.
            let waits = slot.tasks.iter().any(|old| !is_of_this_run(service, old) && is_on_node(old));
            let desired = if waits { TaskState::Ready } else { first_desire(self.state, Some(slot)) };
            self.create(service, slot.slot, desired);
            return false;
        }
        settled
    }

    /// A node that was paused while the service was updated catches up when it is active again. That is no rolling update, and
    /// has no status; but as in one, no more slots than its parallelism wait for their new task at a time.
    pub(crate) fn catch_up(&mut self, service: &Service, slot: &SlotTasks) {
        let is_rolling = service
            .update_status
            .as_ref()
            .is_some_and(|s| !matches!(s.state, UpdateState::Completed | UpdateState::RollbackCompleted));
        let wanted: Vec<_> = slot.wanted().collect();
        if is_rolling || wanted.is_empty() || !takes_updates(self.state, slot.slot) {
            return;
        }
        let is_dirty = |task: &Task| is_task_dirty(service, task, node_of(self.state, task.node));
        if !wanted.iter().all(|task| is_dirty(task)) || slot.is_given_up(service) {
            return;
        }
        let runs = wanted.iter().any(|task| task.status.state == TaskState::Running);
        let limit = usize::try_from(service.spec.update.parallelism).unwrap_or(usize::MAX);
        if runs && limit != 0 && self.n_catching_up(service) >= limit {
            return self.timers.add(self.now.after(CATCH_UP_PAUSE), Work::Slot(service.id, slot.slot));
        }
        for task in wanted {
            self.desire(task, TaskState::Shutdown);
        }
        self.create(service, slot.slot, TaskState::Ready);
    }

    /// Slots of the service that have no task that runs and are to have one, now or by what this look has decided. Where
    /// none was before and the new task has no node yet, for want of room say, nobody waits for it.
    fn n_catching_up(&mut self, service: &Service) -> usize {
        let state = self.state;
        let count = || n_coming(state, service.id);
        let n_coming = *self.catching_up.entry(service.id).or_insert_with(count);
        let begun = self.changes.iter().filter(
            |change| matches!(change, Change::Create(Object::Task(task)) if task.service == service.id),
        );
        n_coming + begun.count()
    }

    /// Deletes tasks that are done with: those to be removed, and history beyond the limit. The newest task says whether the
    /// slot is free: it stays. Older ones that are still wanted are no history.
    fn forget_old(&mut self, service: &Service, slot: &SlotTasks) {
        let newest = slot.tasks.last().map(|task| task.id);
        let is_counted = |task: &&&Arc<Task>| !is_wanted(task) || Some(task.id) == newest;
        let mut n_kept = slot.tasks.iter().filter(is_counted).count();
        for task in slot.tasks.iter().filter(|task| task.desired_state == TaskState::Remove) {
            n_kept -= 1;
            self.reap(task);
        }
        let Some(limit) = self.history_limit(service) else { return };
        let Some((_, older)) = slot.tasks.split_last() else { return };
        for task in older {
            if n_kept <= limit {
                break;
            }
            let unwanted = !is_wanted(task) && task.desired_state != TaskState::Remove;
            if unwanted && is_over(task) {
                self.changes.push(Change::Delete(ObjectRef::Task(task.id)));
                n_kept -= 1;
            }
        }
    }

    /// Deletes a task that is to be removed once no node has it any more.
    pub(crate) fn reap(&mut self, task: &Task) {
        if is_over(task) || is_gone(node_of(self.state, task.node)) {
            self.changes.push(Change::Delete(ObjectRef::Task(task.id)));
        }
    }

    /// Tasks kept per slot; `None` is all. Counting restarts needs one more than their limit.
    fn history_limit(&self, service: &Service) -> Option<usize> {
        let of_cluster = self.state.cluster().map_or(0, |cluster| cluster.spec.task_history_limit);
        let limit = match service.spec.task.restart.max_attempts {
            0 => of_cluster,
            attempts => i64::try_from(attempts).unwrap_or(i64::MAX).saturating_add(1),
        };
        // A negative limit keeps all.
        usize::try_from(limit).ok()
    }

    /// Places of containers that no service made: their nodes end them.
    pub(crate) fn reap_attachments<'t>(&mut self, tasks: impl IntoIterator<Item = &'t Arc<Task>>) {
        let ended =
            |task: &&Arc<Task>| task.status.state.is_terminal() || task.desired_state == TaskState::Remove;
        tasks.into_iter().filter(ended).for_each(|task| self.reap(task));
    }

    /// A service that is gone or going: all its tasks are removed.
    pub(crate) fn remove_all<'t>(&mut self, tasks: impl IntoIterator<Item = &'t Arc<Task>>) {
        for task in tasks {
            self.desire(task, TaskState::Remove);
            if task.desired_state == TaskState::Remove {
                self.reap(task);
            }
        }
    }
}

/// Nothing of it runs or will run on any node.
fn is_over(task: &Task) -> bool {
    task.status.state.is_terminal() || task.status.state < TaskState::Assigned
}

/// Whether an update may touch the slot now: a paused node's tasks stay as they are.
pub(crate) fn takes_updates(state: &State, slot: Slot) -> bool {
    match slot {
        Slot::Replica(_) => true,
        Slot::Node(id) => state
            .nodes()
            .get(&id)
            .is_some_and(|node| node.spec.availability == Availability::Active && listens(Some(node))),
    }
}

/// As [`Step::n_catching_up`], by what the state has.
fn n_coming(state: &State, service: ServiceId) -> usize {
    let (mut running, mut coming) = (BTreeSet::new(), BTreeSet::new());
    let mut counted = BTreeSet::new();
    for task in state.tasks_of_service(service) {
        if is_wanted(task) {
            let of = if task.status.state == TaskState::Running { &mut running } else { &mut coming };
            of.insert(task.slot);
        }
        if !is_wanted(task) || task.status.state >= TaskState::Assigned {
            counted.insert(task.slot);
        }
    }
    coming.difference(&running).filter(|slot| counted.contains(slot)).count()
}

#[cfg(test)]
mod tests {
    use control_model::TaskId;
    use control_model::object::JobStatus;
    use control_model::spec::ServiceSpec;

    use super::*;

    fn task(id: u128, state: TaskState, desired_state: TaskState) -> Arc<Task> {
        let mut task = Task::new(TaskId::from_bits(id), ServiceId::from_bits(1), Slot::Replica(0));
        task.meta.created_at = Timestamp(i64::try_from(id).expect("small"));
        (task.status.state, task.desired_state, task.job_iteration) = (state, desired_state, Some(0));
        Arc::new(task)
    }

    #[test]
    fn a_job_is_done_where_a_task_that_was_given_up_ended_well() {
        let mut service = Service::new(ServiceId::from_bits(1), ServiceSpec::default());
        service.job = Some(JobStatus::default());
        let given_up = task(1, TaskState::Complete, TaskState::Shutdown);
        let lost = task(2, TaskState::Failed, TaskState::Shutdown);
        let slot = SlotTasks::new(Slot::Replica(0), vec![&lost, &given_up]);
        assert_eq!(slot.updatable(&service), [&given_up], "the slot is not free");
        service.job = Some(JobStatus { iteration: 1, ..JobStatus::default() });
        assert!(slot.updatable(&service).is_empty(), "another run begins anew");
    }
}
