//! Statuses on their way to the managers: the last one of each task, until a manager has acknowledged it; all of them
//! again for a new session, whose manager may know less than the one before. Pure.

use std::collections::BTreeMap;

use control_model::TaskId;
use control_model::object::TaskStatus;

/// Statuses in one message: far below the limit of messages, and one log entry's worth.
pub const BATCH_MAX: usize = 200;

/// The last status of each task.
#[derive(Debug, Default)]
pub struct Outbox {
    rows: BTreeMap<TaskId, Row>,
}

#[derive(Debug)]
struct Row {
    status: TaskStatus,
    acknowledged: bool,
}

impl Outbox {
    /// A newer status of a task.
    pub fn put(&mut self, task: TaskId, status: TaskStatus) {
        self.rows.insert(task, Row { status, acknowledged: false });
    }

    /// The managers have forgotten the task.
    pub fn forget(&mut self, task: TaskId) {
        self.rows.remove(&task);
    }

    /// What is to be sent next; empty if all is acknowledged.
    pub fn batch(&self) -> Vec<(TaskId, TaskStatus)> {
        let open = self.rows.iter().filter(|(_, row)| !row.acknowledged);
        open.take(BATCH_MAX).map(|(id, row)| (*id, row.status.clone())).collect()
    }

    /// A manager has written these. One that has changed meanwhile is still to be sent.
    pub fn acknowledge(&mut self, sent: &[(TaskId, TaskStatus)]) {
        for (id, status) in sent {
            if let Some(row) = self.rows.get_mut(id).filter(|row| row.status == *status) {
                row.acknowledged = true;
            }
        }
    }

    /// A new session: everything is to be said again.
    pub fn resend_all(&mut self) {
        self.rows.values_mut().for_each(|row| row.acknowledged = false);
    }
}

#[cfg(test)]
mod tests {
    use control_model::TaskState;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state, ..TaskStatus::default() }
    }

    #[test]
    fn the_last_status_is_sent_until_acknowledged() {
        let (mut outbox, task) = (Outbox::default(), TaskId::from_bits(1));
        outbox.put(task, status(TaskState::Preparing));
        let first = outbox.batch();
        outbox.put(task, status(TaskState::Running));
        outbox.acknowledge(&first);
        let second = outbox.batch();
        assert_eq!(second, vec![(task, status(TaskState::Running))], "the newer one is still open");
        outbox.acknowledge(&second);
        assert!(outbox.batch().is_empty());
        outbox.resend_all();
        assert_eq!(outbox.batch(), second);
        outbox.forget(task);
        assert!(outbox.batch().is_empty());
    }

    #[test]
    fn batches_are_bounded() {
        let mut outbox = Outbox::default();
        (0..1000).for_each(|bits| outbox.put(TaskId::from_bits(bits), status(TaskState::Running)));
        assert_eq!(outbox.batch().len(), BATCH_MAX);
    }
}
