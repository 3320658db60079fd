//! All nodes' agents: every task does at once what is wanted of it, and every data plane has applied everything.

use std::sync::Arc;

use control_manager::clock;
use control_manager::liveness::table::LivenessTable;
use control_model::object::{ContainerStatus, TaskStatus};
use control_model::{Change, Task, TaskState};
use control_store::{LocalStore, ReplicatedStore};
use futures::StreamExt;

/// An image of this name can't be got.
pub const MISSING_IMAGE: &str = "missing";

/// A container of such an image never ends by itself; those of jobs do at once.
pub const ENDLESS_IMAGE: &str = "endless";

/// Obeys until the store is gone.
pub async fn obey(store: Arc<LocalStore>, table: Arc<LivenessTable>) {
    let (mut state, mut events) = store.subscribe();
    loop {
        let changes: Vec<_> = state.tasks().iter().filter_map(|task| answer(task)).collect();
        if !changes.is_empty() {
            store.propose(changes).await.expect("reports are always taken");
        }
        for node in store.state().nodes().iter() {
            table.heard(node.id, None, clock::now());
            table.acknowledged(node.id, store.generation());
        }
        if events.next().await.is_none() {
            return;
        }
        while events.try_recv().is_ok() {}
        state = store.state();
    }
}

/// The next report of the task's agent.
fn answer(task: &Task) -> Option<Change> {
    let now = task.status.state;
    if task.node.is_none() || now.is_terminal() || now < TaskState::Assigned {
        return None;
    }
    let missing = task.spec.container.image.starts_with(MISSING_IMAGE);
    let next = match task.desired_state {
        desired if desired >= TaskState::Shutdown => {
            let may_stop = task.drained || now < TaskState::Running;
            if may_stop { TaskState::Shutdown } else { return None }
        }
        _ if missing => TaskState::Rejected,
        TaskState::Ready => TaskState::Ready,
        TaskState::Complete if now == TaskState::Running => {
            let is_endless = task.spec.container.image.starts_with(ENDLESS_IMAGE);
            if is_endless { TaskState::Running } else { TaskState::Complete }
        }
        _ => TaskState::Running,
    };
    (next > now).then(|| Change::TaskStatus { id: task.id, status: status(task, next) })
}

fn status(task: &Task, state: TaskState) -> TaskStatus {
    let rejected = state == TaskState::Rejected;
    TaskStatus {
        state,
        at: clock::now(),
        message: match state {
            TaskState::Running => "started",
            TaskState::Rejected => "preparing",
            _ => "",
        }
        .into(),
        error: if rejected { format!("No such image: {}", task.spec.container.image) } else { String::new() },
        container: (state == TaskState::Running).then(|| ContainerStatus {
            container_id: format!("{:064x}", task.id.bits()),
            pid: 4242,
            exit_code: 0,
            health: None,
        }),
    }
}
