//! Agents that move their tasks on by one state a step, and fail as the image's name says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::object::TaskStatus;
use control_model::{Change, NodeId, Task, TaskId, TaskState, Timestamp};
use control_store::State;

/// How long a `crash` or `done` task runs.
const SHORT_LIFE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Agents {
    /// Nodes whose agent is dead.
    pub dead: BTreeSet<NodeId>,
    /// Tasks that fail at the next step, by a fault.
    pub doomed: BTreeSet<TaskId>,
    /// What clocks of nodes are ahead of the leader's, seconds.
    pub ahead_secs: BTreeMap<NodeId, i64>,
}

impl Agents {
    pub fn is_up(&self, node: NodeId) -> bool {
        !self.dead.contains(&node)
    }

    /// What all agents report after one step.
    pub fn act(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        let tasks: Vec<_> = state.nodes().iter().filter(|n| self.is_up(n.id)).collect();
        let tasks = tasks.into_iter().flat_map(|node| state.tasks_of_node(node.id));
        tasks
            .filter_map(|task| {
                let at = self.clock_of(task.node?, now);
                let (state, error) = self.next(task, at)?;
                let status = TaskStatus { state, at, error, ..TaskStatus::default() };
                Some(Change::TaskStatus { id: task.id, status })
            })
            .collect()
    }

    fn clock_of(&self, node: NodeId, now: Timestamp) -> Timestamp {
        Timestamp(now.0 + self.ahead_secs.get(&node).unwrap_or(&0) * 1_000_000_000)
    }

    fn next(&mut self, task: &Task, now: Timestamp) -> Option<(TaskState, String)> {
        let state = task.status.state;
        if state < TaskState::Assigned || state.is_terminal() {
            return None;
        }
        let plain = |state| Some((state, String::new()));
        if task.desired_state >= TaskState::Shutdown {
            return if state < TaskState::Running || task.drained {
                plain(TaskState::Shutdown)
            } else {
                None
            };
        }
        let image = &task.spec.container.image;
        match state {
            TaskState::Preparing if image.starts_with("bad") => {
                Some((TaskState::Rejected, format!("No such image: {image}")))
            }
            TaskState::Assigned => plain(TaskState::Accepted),
            TaskState::Accepted => plain(TaskState::Preparing),
            TaskState::Preparing => plain(TaskState::Ready),
            TaskState::Ready if task.is_to_run() => plain(TaskState::Starting),
            TaskState::Starting => plain(TaskState::Running),
            TaskState::Running if self.doomed.remove(&task.id) => failed(),
            TaskState::Running if now.since(task.status.at) >= SHORT_LIFE => match image.as_str() {
                image if image.starts_with("crash") => failed(),
                image if image.starts_with("done") => plain(TaskState::Complete),
                _ => None,
            },
            _ => None,
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "one arm of the function above")]
fn failed() -> Option<(TaskState, String)> {
    Some((TaskState::Failed, "task: non-zero exit (1)".into()))
}
