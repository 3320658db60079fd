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

use crate::MAX_BATCH;

/// Statuses in one report: more than a node can run tasks.
pub const MAX_STATUSES: usize = 10_000;
/// Of each text in a status; the rest is cut off.
const MAX_TEXT_BYTES: usize = 4096;
/// Texts in one entry: with all the rest it stays far below what an entry may have.
const MAX_BATCH_BYTES: usize = 1 << 19;
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
        tokio::spawn(write_all(store.clone(), reports));
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

async fn write_all(store: Arc<dyn ReplicatedStore>, mut reports: mpsc::Receiver<Report>) {
    let mut batch = Vec::new();
    while reports.recv_many(&mut batch, QUEUE).await > 0 {
        let (changes, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let changes: Vec<_> = changes.into_iter().flatten().collect();
        let mut result = Ok(());
        for chunk in chunks(changes) {
            if let Err(error) = store.propose(chunk).await {
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

/// In their order, as many to an entry as it takes.
fn chunks(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut n_bytes) = (Vec::new(), 0);
    for change in changes {
        let more = text_bytes(&change);
        if chunk.len() == MAX_BATCH || n_bytes + more > MAX_BATCH_BYTES {
            chunks.push(std::mem::take(&mut chunk));
            n_bytes = 0;
        }
        n_bytes += more;
        chunk.push(change);
    }
    chunks.push(chunk);
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

fn text_bytes(change: &Change) -> usize {
    let Change::TaskStatus { status, .. } = change else { return 0 };
    let id = status.container.as_ref().map_or(0, |container| container.container_id.len());
    status.message.len() + status.error.len() + id
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let chunks = chunks(changes.clone());
        assert!(chunks.iter().all(|chunk| chunk.len() <= MAX_BATCH));
        let n_bytes = |chunk: &Vec<Change>| chunk.iter().map(text_bytes).sum::<usize>();
        assert!(chunks.iter().all(|chunk| n_bytes(chunk) <= MAX_BATCH_BYTES));
        assert!(chunks.len() >= 8, "{} chunks of 4 MB", chunks.len());
        assert_eq!(chunks.concat(), changes, "all of them, in their order");
        assert_eq!(super::chunks(Vec::new()), Vec::<Vec<Change>>::new());
    }
}
