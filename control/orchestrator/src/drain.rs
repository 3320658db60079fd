//! Leaving without a lost request: a task that is to stop is signalled only when no load balancer sends to it.

use std::collections::BTreeMap;
use std::time::Duration;

use control_model::change::Change;
use control_model::object::NodeState;
use control_model::{Generation, NodeId, Task, TaskId, TaskState, Timestamp};
use control_store::{Event, EventKind, State};

#[cfg(test)]
mod tests;

/// How long a node that is up but silent can hold a task back.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Owns `Task.drained`.
///
/// A task that runs and shall stop, or whose health check has given it up, waits until every node that is up has acknowledged a generation at or beyond the
/// write that said so. Nodes that are down are not waited for; the wait ends after [`DRAIN_TIMEOUT`] in any case.
#[derive(Debug)]
pub struct DrainLoop {
    waiting: BTreeMap<TaskId, Waiting>,
    /// In no ring: may be signalled at once.
    free: Vec<TaskId>,
    given_up: Vec<GivenUp>,
    started: Option<Timestamp>,
}

/// A task that was let go although nodes that are up may still send to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    pub task: TaskId,
    /// Those that have not acknowledged the write.
    pub nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Log index of the write that took the task out of the rings.
    index: u64,
    until: Timestamp,
}

impl DrainLoop {
    /// Waits for all tasks that are leaving. Their times begin anew: the last leader's are not known.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let mut machine =
            Self { waiting: BTreeMap::new(), free: Vec::new(), given_up: Vec::new(), started: Some(now) };
        for task in state.tasks().iter() {
            machine.note(task, now);
        }
        machine
    }

    /// Takes in what was applied and which generation each node's data path has applied; returns what to write.
    pub fn handle(
        &mut self,
        state: &State,
        events: &[Event],
        acks: &BTreeMap<NodeId, Generation>,
        now: Timestamp,
    ) -> Vec<Change> {
        for event in events {
            match &event.kind {
                EventKind::Task(_, Some(task)) => self.note(task, now),
                EventKind::Task(Some(task), None) => {
                    self.waiting.remove(&task.id);
                }
                _ => {}
            }
        }
        self.tick(state, acks, now)
    }

    /// When [`Self::tick`] has something to do whatever nodes acknowledge.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.started.into_iter().chain(self.waiting.values().map(|waiting| waiting.until)).min()
    }

    /// Looks at the acknowledgements and the clock.
    pub fn tick(
        &mut self,
        state: &State,
        acks: &BTreeMap<NodeId, Generation>,
        now: Timestamp,
    ) -> Vec<Change> {
        self.started = None;
        let mut drained = std::mem::take(&mut self.free);
        if !self.waiting.is_empty() {
            let floor = acknowledgements(state, acks).map(|(_, applied)| applied).min();
            let epoch = state.cluster().map_or(0, |cluster| cluster.epoch);
            self.waiting.retain(|id, waiting| {
                let written = Generation { epoch, index: waiting.index };
                let is_acknowledged = floor.is_none_or(|floor| floor >= written);
                let is_out = is_acknowledged || waiting.until <= now;
                if is_out {
                    drained.push(*id);
                }
                if is_out && !is_acknowledged {
                    let late = acknowledgements(state, acks).filter(|(_, applied)| *applied < written);
                    self.given_up.push(GivenUp { task: *id, nodes: late.map(|(node, _)| node).collect() });
                }
                !is_out
            });
        }
        drained.into_iter().map(|id| Change::TaskDrained { id }).collect()
    }

    /// The waits that ended by [`DRAIN_TIMEOUT`] since this was last called.
    pub fn take_given_up(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.given_up)
    }

    fn note(&mut self, task: &Task, now: Timestamp) {
        let leaves = task.desired_state >= TaskState::Shutdown || task.status.is_unhealthy();
        if !leaves || task.drained || task.status.state.is_terminal() {
            self.waiting.remove(&task.id);
            return;
        }
        if task.attachments.is_empty() || task.status.state != TaskState::Running {
            if self.waiting.remove(&task.id).is_some() || task.status.state >= TaskState::Assigned {
                self.free.push(task.id);
            }
            return;
        }
        // Later writes to the task have higher indexes: the first one counts.
        let index = task.meta.version;
        self.waiting.entry(task.id).or_insert(Waiting { index, until: now.after(DRAIN_TIMEOUT) });
    }
}

/// The generation that each node which is up works with.
fn acknowledgements(
    state: &State,
    acks: &BTreeMap<NodeId, Generation>,
) -> impl Iterator<Item = (NodeId, Generation)> {
    let up = state.nodes().iter().filter(|node| node.status.state == NodeState::Ready);
    up.map(|node| (node.id, acks.get(&node.id).copied().unwrap_or_default()))
}
