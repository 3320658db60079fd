//! Task statuses on their way from agents into the state: checked against the task's node, then written in batches.
//!
//! While one batch is being written the next one gathers: nobody waits for a timer, and a burst of reports costs
//! few writes.

use std::sync::Arc;

use control_model::object::TaskStatus;
use control_model::{Change, NodeId, TaskId, TaskState};
use control_store::{ProposeError, ReplicatedStore, State};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::entries::in_entries;
use crate::leading::unending;

/// Statuses in one report: more than a node can run tasks.
pub const MAX_STATUSES: usize = 10_000;
/// Of each text in a status; the rest is cut off.
const MAX_TEXT_BYTES: usize = 4096;
/// Reports that wait for the writer; beyond it, callers wait.
const QUEUE: usize = 256;

type Report = (Vec<Change>, oneshot::Sender<Result<(), ProposeError>>);

/// Takes reports.
#[derive(Clone)]
pub struct StatusWriter {
    store: Arc<dyn ReplicatedStore>,
    queue: mpsc::Sender<Report>,
}

impl StatusWriter {
    /// Starts the writer; it ends with its last handle.
    pub fn start(store: Arc<dyn ReplicatedStore>) -> Self {
        let (queue, reports) = mpsc::channel(QUEUE);
        let (writes, reports) = (store.clone(), Arc::new(tokio::sync::Mutex::new(reports)));
        tokio::spawn(async move {
            unending("the writer of statuses", || async {
                write_all(&*writes, &mut *reports.lock().await).await;
            })
            .await;
        });
        Self { store, queue }
    }

    /// Writes what `node` says of its tasks; returns when it is applied.
    pub async fn report(&self, node: NodeId, statuses: Vec<(TaskId, TaskStatus)>) -> Result<(), Status> {
        let mut state = self.store.state();
        if statuses.iter().any(|(id, _)| state.tasks().get(id).is_none()) {
            // Deleted, or this replica is behind the one that assigned the task.
            self.store.linearize().await.map_err(|error| Status::unavailable(error.to_string()))?;
            state = self.store.state();
        }
        let changes = checked_report(node, &state, statuses)?;
        if changes.is_empty() {
            return Ok(());
        }
        let (sender, done) = oneshot::channel();
        let gone = || Status::unavailable("this manager is stopping");
        self.queue.send((changes, sender)).await.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// States that belong to a task's agent.
fn may_report(state: TaskState) -> bool {
    (TaskState::Accepted..=TaskState::Rejected).contains(&state)
}

/// What of `node`'s report is to be written. A task that is gone needs no status; one of another node is refused.
pub fn checked_report(
    node: NodeId,
    state: &State,
    statuses: Vec<(TaskId, TaskStatus)>,
) -> Result<Vec<Change>, Status> {
    if statuses.len() > MAX_STATUSES {
        return Err(Status::invalid_argument(format!("more than {MAX_STATUSES} statuses in one report")));
    }
    if let Some((id, _)) = statuses.iter().find(|(_, status)| !may_report(status.state)) {
        return Err(Status::invalid_argument(format!("an agent may not set this state of task {id}")));
    }
    let mut changes = Vec::with_capacity(statuses.len());
    for (id, status) in statuses {
        match state.tasks().get(&id) {
            Some(task) if task.node == Some(node) => {
                changes.push(Change::TaskStatus { id, status: within_bounds(status) });
            }
            Some(_) => {
                return Err(Status::permission_denied(format!("task {id} is not assigned to this node")));
            }
            None => {}
        }
    }
    Ok(changes)
}

/// What a runtime says of a failure may be long; every manager keeps it.
fn within_bounds(mut status: TaskStatus) -> TaskStatus {
    let id = status.container.as_mut().map(|container| &mut container.container_id);
    for text in [&mut status.message, &mut status.error].into_iter().chain(id) {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
    status
}

async fn write_all(store: &dyn ReplicatedStore, reports: &mut mpsc::Receiver<Report>) {
    let mut batch = Vec::new();
    while reports.recv_many(&mut batch, QUEUE).await > 0 {
        let (changes, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let changes: Vec<_> = changes.into_iter().flatten().collect();
        let mut result = Ok(());
        for entry in in_entries(changes) {
            if let Err(error) = store.propose(entry).await {
                result = Err(error);
                break;
            }
        }
        for sender in waiting {
            // A caller that has gone away repeats its report.
            let _ = sender.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use control_rpc::encoded_len;

    use super::*;
    use crate::entries::MAX_OBJECTS;

    #[test]
    fn long_texts_make_more_entries_and_none_too_large() {
        let change = |n: usize| Change::TaskStatus {
            id: TaskId::from_bits(n as u128),
            status: TaskStatus {
                message: "m".repeat(MAX_TEXT_BYTES * (n % 2)),
                error: "e".repeat(MAX_TEXT_BYTES * (n % 2)),
                ..TaskStatus::default()
            },
        };
        let changes: Vec<Change> = (0..1000).map(change).collect();
        let entries = Vec::from(in_entries(changes.clone()));
        assert!(entries.iter().all(|entry| entry.len() <= MAX_OBJECTS));
        assert!(entries.iter().all(|entry| encoded_len(entry) < 1 << 20));
        assert!(entries.len() >= 8, "{} entries of 4 MB", entries.len());
        assert_eq!(entries.concat(), changes, "all of them, in their order");
        assert_eq!(in_entries(Vec::new()), Vec::<Vec<Change>>::new());
    }
}
