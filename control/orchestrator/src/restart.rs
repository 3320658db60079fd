//! Restart policy and the delayed start of replacements, both read off the slot's tasks.

use std::time::Duration;

use control_model::object::{Node, Task};
use control_model::spec::RestartCondition;
use control_model::{TaskState, Timestamp};
use control_store::State;

use crate::node::{listens, node_of};
use crate::slot::{SlotTasks, is_wanted};

/// How long a replacement waits for the old task to stop (swarmkit's): a node may be up but stuck.
const OLD_TASK_TIMEOUT: Duration = Duration::from_mins(1);

/// Whether the policy allows another task in place of `task`, which ended, or was told to, at `at`. The window of its
/// attempts ends there.
pub(crate) fn should_restart(task: &Task, slot: &SlotTasks, at: Timestamp) -> bool {
    let policy = &task.spec.restart;
    let allowed = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        // A job's task that has done its work is done.
        RestartCondition::Any => !is_done(task),
    };
    if !allowed || policy.max_attempts == 0 {
        return allowed;
    }
    // The first task of a spec version (of a job's run) is no restart; those before belong to another one's account.
    let account = |task: &Task| (task.spec_version, task.job_iteration);
    let restarts = slot.tasks.iter().filter(|other| account(other) == account(task)).skip(1);
    let counted =
        restarts.filter(|t| policy.window.is_zero() || t.meta.created_at.after(policy.window) > at).count();
    u64::try_from(counted).is_ok_and(|counted| counted < policy.max_attempts)
}

/// When a task with desired state READY may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Now,
    /// Not before this time; earlier only if what it waits for ends.
    At(Timestamp),
}

/// When `task`, which waits with desired state READY, may start: after the restart delay, if it replaces one that
/// ended by itself, and when the tasks it replaces have stopped.
pub(crate) fn start(state: &State, task: &Task, slot: &SlotTasks, now: Timestamp) -> Start {
    let due = delay_ends(task, slot);
    if due > now {
        return Start::At(due);
    }
    let timeout = task.meta.created_at.after(OLD_TASK_TIMEOUT);
    let waits = slot.tasks.iter().any(|old| old.id != task.id && is_stopping(state, old));
    if waits && timeout > now { Start::At(timeout) } else { Start::Now }
}

/// The restart delay of a task that waits has ended, or there is none.
pub(crate) fn delay_ends(task: &Task, slot: &SlotTasks) -> Timestamp {
    let older = slot.tasks.iter().take_while(|other| other.id != task.id).last();
    // Another run of a job is no restart.
    let older = older.filter(|old| old.job_iteration == task.job_iteration);
    // One that fails while an update replaces it delays nothing. The end may be written by a manager whose clock is ahead of
    // the leader's: the same spec is no update.
    let is_restart = older.is_some_and(|old| {
        let ended_before = old.ended_at() <= task.meta.created_at || old.spec == task.spec;
        ended_by_itself(old) && ended_before
    });
    let delay = if is_restart { task.spec.restart.delay } else { Duration::ZERO };
    task.meta.created_at.after(delay)
}

/// What a new task is to become now, whatever it replaces: one that was scaled away, that had to leave its node, or whose
/// runtime does not stop it, may still run in its slot.
pub(crate) fn first_desire(state: &State, slot: Option<&SlotTasks>) -> TaskState {
    let waits = slot.is_some_and(|slot| slot.tasks.iter().any(|old| is_stopping(state, old)));
    if waits { TaskState::Ready } else { TaskState::Running }
}

/// For a replacement of `old` that is about to be made: whether it can have desired state RUNNING from the start.
pub(crate) fn starts_at_once(old: &Task, node: Option<&Node>) -> bool {
    let delayed = ended_by_itself(old) && !old.spec.restart.delay.is_zero();
    let is_waited_for = is_on_node(old) && listens(node);
    !delayed && !is_waited_for
}

/// The task was asked to stop, and may still run on a node that listens.
fn is_stopping(state: &State, task: &Task) -> bool {
    !is_wanted(task) && is_on_node(task) && listens(node_of(state, task.node))
}

/// A node has it and it has not ended.
pub(crate) fn is_on_node(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

/// It belongs to a job and has ended well.
pub(crate) fn is_done(task: &Task) -> bool {
    task.job_iteration.is_some() && task.status.state == TaskState::Complete
}

/// It ended without being asked to.
pub(crate) fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}
