//! What becomes of each task of this node: assignments, results of the executor and of the data plane in; actions out.
//!
//! Pure. Every action that takes time (prepare, start, wait, shut down, remove) has exactly one result that comes back
//! as an input; no second action for the same task is begun before it, except that a shutdown goes beside a wait and a look
//! at the container's health.

mod entry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use control_model::executor::{ExecutorError, Exit, Found, SandboxPaths};
use control_model::object::{ContainerStatus, HealthStatus, TaskStatus};
use control_model::{Task, TaskId, TaskState, Timestamp};

pub use entry::Phase;
use entry::{Busy, Entry, Outside};

/// Preparations at once: pulls share the line, unpacking shares the disk; more at once makes each slower.
pub const MAX_PREPARES: usize = 8;
/// Tasks at once that the data plane has yet to say something of. It makes their sandboxes in one pass, some 30 ms each, in which
/// it hears nothing newer: with thousands of tasks it would be deaf for minutes.
pub const MAX_AWAITED: usize = 32;
/// Longest wait for the managers' word that no load balancer sends to a task any more. A manager gives up after 3 s;
/// only a node without one gets here.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A shutdown or removal that failed is tried again after this.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// What the executor already has; comes first, once.
    Found(Vec<Found>),
    /// All tasks of the set, after a complete update.
    Set(BTreeMap<TaskId, Task>),
    /// After an increment: tasks that changed (`None`: left the set).
    Changed(BTreeMap<TaskId, Option<Task>>),
    Prepared(TaskId, Result<(), ExecutorError>),
    Started(TaskId, Result<ContainerStatus, ExecutorError>),
    Exited(TaskId, Result<Exit, ExecutorError>),
    /// What its health is now, `None` without a check; an error once there is nothing to look at any more.
    Health(TaskId, Result<Option<HealthStatus>, ExecutorError>),
    Stopped(TaskId, Result<(), ExecutorError>),
    Removed(TaskId, Result<(), ExecutorError>),
    /// All sandboxes that the data plane has something to say of: its namespace, or why there is none yet.
    Sandboxes(BTreeMap<TaskId, Result<PathBuf, String>>),
    /// A view for the data plane was made of all tasks as they are now: its revision.
    Shown(u64),
    /// Revision of the newest view that the data plane holds.
    Applied(u64),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Prepare(Box<Task>),
    Start(Box<Task>, SandboxPaths),
    Wait(TaskId),
    /// Say when its health is something else than this.
    WatchHealth(TaskId, HealthStatus),
    Shutdown(Box<Task>),
    /// Kill it if it runs, and forget it.
    Remove(TaskId),
    /// Tell the managers.
    Report(TaskId, TaskStatus),
    /// The managers know nothing of this task any more: nothing more is to be told.
    Forget(TaskId),
}

/// All tasks of the node.
#[derive(Debug, Default)]
pub struct Machine {
    tasks: BTreeMap<TaskId, Entry>,
    found: BTreeMap<TaskId, Found>,
    sandboxes: BTreeMap<TaskId, Result<PathBuf, String>>,
    applied: u64,
    /// A task's namespace is made when it is prepared, and not by the data plane.
    gives_namespaces: bool,
}

impl Machine {
    /// For an executor that gives namespaces, or one that takes them ([`control_model::executor::Executor::gives_namespaces`]).
    pub fn new(gives_namespaces: bool) -> Self {
        Self { gives_namespaces, ..Self::default() }
    }

    /// Takes an input in; gives what is to be done now.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Found(found) => self.found = found.into_iter().map(|one| (one.task, one)).collect(),
            Input::Set(tasks) => self.take_set(tasks, now, &mut actions),
            Input::Changed(changes) => {
                for (id, task) in changes {
                    self.take_task(id, task, now, &mut actions);
                }
            }
            Input::Prepared(id, result) => self.with(id, |entry| entry.prepared(result, now, &mut actions)),
            Input::Started(id, result) => self.with(id, |entry| entry.started(result, now, &mut actions)),
            Input::Exited(id, result) => self.with(id, |entry| entry.exited(result, now, &mut actions)),
            Input::Health(id, result) => self.with(id, |entry| entry.health(&result, now, &mut actions)),
            Input::Stopped(id, result) => self.with(id, |entry| entry.stopped(&result, now)),
            Input::Removed(id, Ok(())) => self.with(id, Entry::removed),
            Input::Removed(id, Err(_)) => self.with(id, |entry| entry.not_removed(now)),
            Input::Sandboxes(all) => self.sandboxes = all,
            Input::Shown(revision) => self.tasks.values_mut().for_each(|entry| entry.shown(revision)),
            Input::Applied(revision) => self.applied = revision,
        }
        self.advance(now, &mut actions);
        actions
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.tasks.values().filter_map(Entry::deadline).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.advance(now, &mut actions);
        actions
    }

    /// The last known assignment and the own phase of every task.
    pub fn tasks(&self) -> impl Iterator<Item = (&Task, Phase)> {
        self.tasks.values().filter_map(Entry::task_and_phase)
    }

    /// Those of [`Self::tasks`] that may have anything on this node: the turn to be prepared has come, and they are not removed.
    /// Where a preparation gives the namespace, those that have it.
    pub fn begun(&self) -> impl Iterator<Item = (&Task, Phase)> {
        let begun = self.tasks.values().filter(|entry| entry.has_files()).filter_map(Entry::task_and_phase);
        begun.filter(|(_, phase)| {
            !(self.gives_namespaces && matches!(phase, Phase::Accepted | Phase::Preparing))
        })
    }

    fn take_set(&mut self, tasks: BTreeMap<TaskId, Task>, now: Timestamp, actions: &mut Vec<Action>) {
        let gone: Vec<TaskId> = self.tasks.keys().filter(|id| !tasks.contains_key(id)).copied().collect();
        for id in gone {
            self.take_task(id, None, now, actions);
        }
        for (id, task) in tasks {
            self.take_task(id, Some(task), now, actions);
        }
        // What was found and is in no set is nobody's any more.
        for (id, _) in std::mem::take(&mut self.found) {
            self.tasks.entry(id).or_insert_with(|| Entry::unwanted(now));
        }
    }

    fn take_task(&mut self, id: TaskId, task: Option<Task>, now: Timestamp, actions: &mut Vec<Action>) {
        match (self.tasks.get_mut(&id), task) {
            (Some(entry), Some(task)) => entry.assign(task, now),
            (Some(entry), None) => {
                entry.leave(now);
                actions.push(Action::Forget(id));
            }
            (None, Some(task)) => {
                let found = self.found.remove(&id);
                self.tasks.insert(id, Entry::new(task, found, now, actions));
            }
            (None, None) => {}
        }
    }

    /// Moves every task on as far as it goes by itself.
    fn advance(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut n_prepares = self.tasks.values().filter(|entry| entry.is_busy(Busy::Preparing)).count();
        let is_awaited =
            |(id, entry): &(&TaskId, &Entry)| entry.needs_sandbox() && !self.sandboxes.contains_key(id);
        let mut n_awaited = self.tasks.iter().filter(is_awaited).count();
        for (id, entry) in &mut self.tasks {
            let may_prepare = n_prepares < MAX_PREPARES && n_awaited < MAX_AWAITED;
            let sandbox = self.sandboxes.get(id);
            let outside = Outside { sandbox, may_prepare, applied: self.applied, now };
            if entry.advance(*id, &outside, actions) {
                n_prepares += 1;
                n_awaited += 1;
            }
        }
        self.tasks.retain(|_, entry| !entry.is_over());
    }

    fn with(&mut self, id: TaskId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.tasks.get_mut(&id) {
            change(entry);
        }
    }
}

/// The text of a task that ended by itself with an error (swarmkit `exec.ExitError`).
fn exit_error(exit: &Exit, is_unhealthy: bool) -> String {
    const UNHEALTHY: &str = "dockerexec: unhealthy container";
    let cause = match (exit.out_of_memory, is_unhealthy) {
        (true, _) => ": out of memory".to_owned(),
        (false, true) if exit.code == 0 => return UNHEALTHY.to_owned(),
        (false, true) => format!(": {UNHEALTHY}"),
        (false, false) => String::new(),
    };
    format!("task: non-zero exit ({}){cause}", exit.code)
}

/// A status with Docker's message.
fn status(state: TaskState, message: &str, now: Timestamp) -> TaskStatus {
    TaskStatus { state, at: now, message: message.to_owned(), ..TaskStatus::default() }
}
