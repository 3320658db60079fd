//! Slow start: tasks that begin take the steps of [`control_model::slow_start`], by the leader's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::change::Change;
use control_model::slow_start::{FULL_WEIGHT, raised, step_period};
use control_model::{ServiceId, Task, TaskId, TaskState, Timestamp};
use control_store::{Event, EventKind, State};

/// Tasks that began within this time take their steps together: each step makes another ring of the service on every node,
/// which does not get dearer with the number of tasks.
const PACE: Duration = Duration::from_secs(1);

/// Owns `Task.weight` of tasks that serve; those that don't yet have what they were made with.
///
/// A step counts from the task's last write, which is the report that it runs or the step before: another leader goes on
/// where this one was.
#[derive(Debug)]
pub struct SlowStartLoop {
    starting: BTreeMap<TaskId, Starting>,
    /// Those whose step is not yet asked for, by time.
    queue: BTreeSet<(Timestamp, TaskId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Starting {
    weight: u8,
    /// Of the next step.
    due: Timestamp,
}

impl SlowStartLoop {
    /// With the tasks of `state` that are starting.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let mut machine = Self { starting: BTreeMap::new(), queue: BTreeSet::new() };
        for task in state.tasks().iter() {
            machine.note(state, task, now);
        }
        machine
    }

    /// Takes in what was applied; returns what to write.
    pub fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        for event in events {
            match &event.kind {
                EventKind::Task(_, Some(task)) => self.note(state, task, now),
                EventKind::Task(Some(task), None) => self.forget(task.id),
                EventKind::Service(before, Some(after))
                    if before.as_ref().and_then(|s| s.spec.slow_start()) != after.spec.slow_start() =>
                {
                    self.note_service(state, after.id, now);
                }
                _ => {}
            }
        }
        self.tick(state, now)
    }

    /// When the next step is due.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The steps that are due. A step's write brings the next one.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((due, id)) = self.queue.pop_first() {
            if due > now {
                self.queue.insert((due, id));
                break;
            }
            changes.extend(state.tasks().get(&id).map(|task| step(state, task, now)));
        }
        changes
    }

    /// Other times hold for the service's tasks.
    fn note_service(&mut self, state: &State, id: ServiceId, now: Timestamp) {
        for task in state.tasks_of_service(id) {
            self.forget(task.id);
            self.note(state, task, now);
        }
    }

    fn note(&mut self, state: &State, task: &Task, now: Timestamp) {
        let serves = task.status.state == TaskState::Running && task.is_to_run();
        if !serves || task.weight >= FULL_WEIGHT {
            return self.forget(task.id);
        }
        // A report in between begins nothing anew.
        if self.starting.get(&task.id).is_some_and(|known| known.weight == task.weight) {
            return;
        }
        self.forget(task.id);
        let since = task.meta.updated_at.min(now);
        let due = step_period_of(state, task).map_or(now, |period| due(since, period));
        self.starting.insert(task.id, Starting { weight: task.weight, due });
        self.queue.insert((due, task.id));
    }

    fn forget(&mut self, id: TaskId) {
        if let Some(known) = self.starting.remove(&id) {
            self.queue.remove(&(known.due, id));
        }
    }
}

/// The next step of `task`, or all that it has missed while nobody led; the last one if its service starts slowly no more.
fn step(state: &State, task: &Task, now: Timestamp) -> Change {
    let weight = step_period_of(state, task).map_or(FULL_WEIGHT, |period| {
        let n_periods = now.since(task.meta.updated_at).as_nanos() / period.as_nanos();
        raised(task.weight, u32::try_from(n_periods).unwrap_or(u32::MAX).max(1))
    });
    Change::TaskWeight { id: task.id, weight }
}

fn step_period_of(state: &State, task: &Task) -> Option<Duration> {
    let service = state.services().get(&task.service)?;
    service.spec.slow_start().map(step_period)
}

/// A period after `since`, moved by half of [`PACE`] at most to where others have theirs.
fn due(since: Timestamp, period: Duration) -> Timestamp {
    let pace = i64::try_from(PACE.min(period).as_nanos()).expect("at most a second");
    let Timestamp(exact) = since.after(period);
    Timestamp(exact.saturating_add(pace / 2).div_euclid(pace).saturating_mul(pace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_one_second_come_together_and_no_later_for_it() {
        let at = |ms: i64| Timestamp(ms * 1_000_000);
        let period = Duration::from_secs(6);
        for since_ms in [99_500, 99_900, 100_000, 100_499] {
            assert_eq!(due(at(since_ms), period), at(106_000), "{since_ms}");
        }
        // A step's write takes its time, which is not added to the next one.
        assert_eq!(due(at(106_004), period), at(112_000));
        let short = Duration::from_millis(200);
        assert_eq!((due(at(100_090), short), due(at(100_110), short)), (at(100_200), at(100_400)));
    }
}
