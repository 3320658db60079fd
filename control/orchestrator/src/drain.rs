//! Leaving without a lost request: a task that is to stop is signalled only when no load balancer sends to it.

mod floor;
mod waiting;

use std::time::Duration;

use control_model::change::Change;
use control_model::object::NodeState;
use control_model::{Generation, Node, NodeId, Task, TaskId, TaskState, Timestamp};
use control_store::{Event, EventKind, State};

use floor::Floor;
use waiting::{Waiting, WaitingTasks};

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
    waiting: WaitingTasks,
    floor: Floor,
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

impl DrainLoop {
    /// Waits for all tasks that are leaving. Their times begin anew: the last leader's are not known.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let mut machine = Self {
            waiting: WaitingTasks::default(),
            floor: Floor::default(),
            free: Vec::new(),
            given_up: Vec::new(),
            started: Some(now),
        };
        for node in state.nodes().iter() {
            machine.floor.set_up(node.id, is_up(node));
        }
        for task in state.tasks().iter() {
            machine.note(task, now);
        }
        machine
    }

    /// Takes in what was applied, and which generations data paths have applied since the last call; returns what to write.
    pub fn handle(
        &mut self,
        state: &State,
        events: &[Event],
        acks: impl IntoIterator<Item = (NodeId, Generation)>,
        now: Timestamp,
    ) -> Vec<Change> {
        for event in events {
            match &event.kind {
                EventKind::Task(_, Some(task)) => self.note(task, now),
                EventKind::Task(Some(task), None) => drop(self.waiting.remove(task.id)),
                EventKind::Node(_, Some(node)) => self.floor.set_up(node.id, is_up(node)),
                EventKind::Node(Some(node), None) => self.floor.remove(node.id),
                _ => {}
            }
        }
        self.tick(state, acks, now)
    }

    /// When [`Self::tick`] has something to do whatever nodes acknowledge.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.started.into_iter().chain(self.waiting.deadline()).min()
    }

    /// Looks at new acknowledgements and the clock.
    pub fn tick(
        &mut self,
        state: &State,
        acks: impl IntoIterator<Item = (NodeId, Generation)>,
        now: Timestamp,
    ) -> Vec<Change> {
        self.started = None;
        for (node, applied) in acks {
            self.floor.acknowledged(node, applied);
        }
        let epoch = state.cluster().map_or(0, |cluster| cluster.epoch);
        let mut drained = std::mem::take(&mut self.free);
        let lowest = self.floor.lowest();
        let is_passed = |index| lowest.is_none_or(|lowest| lowest >= Generation { epoch, index });
        while let Some(task) = self.waiting.pop_passed(is_passed) {
            drained.push(task);
        }
        while let Some((task, waiting)) = self.waiting.pop_over(now) {
            let nodes = self.floor.behind(Generation { epoch, index: waiting.index });
            self.given_up.push(GivenUp { task, nodes });
            drained.push(task);
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
            self.waiting.remove(task.id);
            return;
        }
        if task.attachments.is_empty() || task.status.state != TaskState::Running {
            if self.waiting.remove(task.id).is_some() || task.status.state >= TaskState::Assigned {
                self.free.push(task.id);
            }
            return;
        }
        // Later writes to the task have higher indexes: the first one counts.
        let index = task.meta.version;
        self.waiting.add(task.id, Waiting { index, until: now.after(DRAIN_TIMEOUT) });
    }
}

/// Whether it sends traffic to tasks. One that has just come does so as soon as it is told of them, before it is known to be
/// ready.
fn is_up(node: &Node) -> bool {
    match node.status.state {
        NodeState::Ready => true,
        NodeState::Unknown => node.description.data_path_addr.is_some(),
        _ => false,
    }
}
