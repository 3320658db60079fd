//! The tasks that wait, by what ends the wait: the index that all must pass, or the time.

use std::collections::{BTreeMap, BTreeSet};

use control_model::{TaskId, Timestamp};

#[derive(Debug, Default)]
pub(super) struct WaitingTasks {
    tasks: BTreeMap<TaskId, Waiting>,
    by_index: BTreeSet<(u64, TaskId)>,
    by_time: BTreeSet<(Timestamp, TaskId)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    /// Log index of the write that took the task out of the rings.
    pub(super) index: u64,
    pub(super) until: Timestamp,
}

impl WaitingTasks {
    /// The task waits, if it doesn't yet.
    pub(super) fn add(&mut self, task: TaskId, waiting: Waiting) {
        if self.tasks.contains_key(&task) {
            return;
        }
        self.tasks.insert(task, waiting);
        self.by_index.insert((waiting.index, task));
        self.by_time.insert((waiting.until, task));
    }

    /// The task doesn't wait any more; what it waited for, if it did.
    pub(super) fn remove(&mut self, task: TaskId) -> Option<Waiting> {
        let waiting = self.tasks.remove(&task)?;
        self.by_index.remove(&(waiting.index, task));
        self.by_time.remove(&(waiting.until, task));
        Some(waiting)
    }

    /// Takes one whose index is passed.
    pub(super) fn pop_passed(&mut self, is_passed: impl Fn(u64) -> bool) -> Option<TaskId> {
        let (_, task) = *self.by_index.first().filter(|(index, _)| is_passed(*index))?;
        self.remove(task);
        Some(task)
    }

    /// Takes one whose time is over.
    pub(super) fn pop_over(&mut self, now: Timestamp) -> Option<(TaskId, Waiting)> {
        let (_, task) = *self.by_time.first().filter(|(until, _)| *until <= now)?;
        Some((task, self.remove(task)?))
    }

    /// When the first wait is over.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(until, _)| *until)
    }
}
