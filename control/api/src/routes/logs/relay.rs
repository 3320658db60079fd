//! A manager's part: asks the nodes, checks what they say, and writes it as the client wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_model::{NodeId, OutputBatch, OutputPosition, Task, TaskId};
use control_store::{Event, EventKind, ReplicatedStore, State};
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::wish::Wish;
use super::{Pieces, SERVICE_LABEL, Whose, say};
use crate::node::{InspectError, Node};

/// Between attempts to go on with a node that is lost.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Relay {
    pub node: Arc<dyn Node>,
    pub store: Arc<dyn ReplicatedStore>,
    pub whose: Whose,
    pub wish: Wish,
    pub pieces: Pieces,
    /// Nodes that are read at a time.
    pub turns: Arc<Semaphore>,
}

impl Relay {
    /// Until all is said, or nobody listens any more; who follows a service is told until that is removed.
    pub async fn run(self) {
        let (state, mut events) = self.store.subscribe();
        let (mut asked, mut streams) = (BTreeSet::new(), JoinSet::new());
        let mut new = self.nodes(&state);
        let mut is_there = self.is_there(&state);
        drop(state);
        let mut missing = Vec::new();
        loop {
            for node in std::mem::take(&mut new) {
                if asked.insert(node) {
                    streams.spawn(self.clone().pass_on_from(node));
                }
            }
            if streams.is_empty() && !self.goes_on(is_there, &asked) {
                break;
            }
            let batch = tokio::select! {
                () = self.pieces.closed() => return,
                () = self.store.closed() => return,
                Some(ended) = streams.join_next() => {
                    missing.extend(ended.ok().flatten());
                    continue;
                }
                batch = events.next(), if self.wish.query.follow => batch,
            };
            if let Some(batch) = batch {
                new.extend(batch.events.iter().filter_map(|event| self.node_of(event)));
            } else {
                // Events came faster than they were looked at: the state has them all.
                let (state, anew) = self.store.subscribe();
                (new, events) = (self.nodes(&state), anew);
            }
            is_there = self.is_there(&self.store.state());
        }
        if !missing.is_empty() {
            let words = format!(
                "rpc error: code = Unknown desc = warning: incomplete log stream. some logs could not be retrieved for the \
                 following reasons: {}",
                missing.join(", ")
            );
            say(&self.pieces, self.wish.format, &words).await;
        }
    }

    /// More may come though no node has anything to say.
    fn goes_on(&self, is_there: bool, asked: &BTreeSet<NodeId>) -> bool {
        let may_come = match self.whose {
            Whose::Service(_) => true,
            // Its output ends with it.
            Whose::Task(_) => asked.is_empty(),
        };
        self.wish.query.follow && is_there && may_come
    }

    /// Something may still write: a service that was not removed, a task that has not ended.
    fn is_there(&self, state: &State) -> bool {
        match self.whose {
            Whose::Service(service) => state.services().get(&service).is_some(),
            Whose::Task(task) => {
                state.tasks().get(&task).is_some_and(|task| !task.status.state.is_terminal())
            }
        }
    }

    /// The nodes that have a task of it.
    fn nodes(&self, state: &State) -> BTreeSet<NodeId> {
        match self.whose {
            Whose::Service(service) => state.tasks_of_service(service).filter_map(|task| task.node).collect(),
            Whose::Task(task) => state.tasks().get(&task).and_then(|task| task.node).into_iter().collect(),
        }
    }

    /// The node of a task of it that has changed.
    fn node_of(&self, event: &Event) -> Option<NodeId> {
        let EventKind::Task(_, Some(task)) = &event.kind else { return None };
        task.node.filter(|_| self.is_of(task))
    }

    fn is_of(&self, task: &Task) -> bool {
        match self.whose {
            Whose::Service(service) => task.service == service,
            Whose::Task(id) => task.id == id,
        }
    }

    /// Passes on what `node` says, for as long as there is more, each line once however often it is lost; why there was not all
    /// of it.
    async fn pass_on_from(self, node: NodeId) -> Option<String> {
        let _turn = if self.wish.query.follow { None } else { self.turns.acquire().await.ok() };
        let mut passed = Passed::default();
        loop {
            let failure = self.pass_on_once(node, &mut passed).await.err();
            let words = failure.map(|error| format!("node {node} is not available: {}", error.0));
            let words = words.or_else(|| passed.troubles());
            let state = self.store.state();
            let may_come = self.is_there(&state) && state.nodes().get(&node).is_some();
            let is_whole = words.is_none() && matches!(self.whose, Whose::Task(_));
            if !self.wish.query.follow || !may_come || is_whole {
                return words;
            }
            drop(state);
            // The daemon there begins anew, or the node is gone: what it writes meanwhile is asked for when it is back.
            tokio::select! {
                () = self.pieces.closed() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn pass_on_once(&self, node: NodeId, passed: &mut Passed) -> Result<(), InspectError> {
        passed.forget_unknown(&self.store.state());
        let question = self.wish.question(self.whose, &passed.upto);
        let mut answer = self.node.mesh_open(node, &question).await?;
        loop {
            let piece = tokio::select! {
                piece = answer.next() => piece,
                () = self.pieces.closed() => return Ok(()),
            };
            let Some(piece) = piece else { return Ok(()) };
            let batch: OutputBatch = rmp_serde::from_slice(&piece?)
                .map_err(|error| InspectError(format!("it says something else than was asked: {error}")))?;
            // A node speaks for its own tasks, and of what was asked; history that is forgotten here has no name to be shown by.
            let Some(details) = self.details(node, batch.task, &mut passed.strange).await else { continue };
            let lines = self.wish.format.lines(&batch.lines, &details);
            if !lines.is_empty() && self.pieces.send(Ok(lines.into())).await.is_err() {
                return Ok(());
            }
            passed.note(batch);
        }
    }

    /// What `--details` shows of the task's lines; `None` if it is none of the node's, or was not asked for. A node may have
    /// heard of a task before this manager has: what is `strange` was looked for.
    async fn details(&self, node: NodeId, task: TaskId, strange: &mut BTreeSet<TaskId>) -> Option<String> {
        let known = self.details_now(node, task);
        if known.is_some() || !strange.insert(task) {
            return known;
        }
        if let Err(error) = self.store.linearize().await {
            tracing::debug!(%task, %error, "whose output it is, is not known");
        }
        self.details_now(node, task)
    }

    fn details_now(&self, node: NodeId, task: TaskId) -> Option<String> {
        let state = self.store.state();
        let task = state.tasks().get(&task).filter(|task| task.node == Some(node) && self.is_of(task))?;
        let (service, task) = (task.service, task.id);
        Some(format!(
            "com.docker.swarm.node.id={node},{SERVICE_LABEL}={service},com.docker.swarm.task.id={task}"
        ))
    }
}

/// What the client has of a node's lines.
#[derive(Debug, Default)]
struct Passed {
    upto: BTreeMap<TaskId, OutputPosition>,
    /// Why there is no more of some.
    errors: BTreeMap<TaskId, String>,
    /// Tasks that are not known here, or none of the node's.
    strange: BTreeSet<TaskId>,
}

impl Passed {
    /// Of tasks that the cluster has forgotten nothing is asked any more.
    fn forget_unknown(&mut self, state: &State) {
        self.upto.retain(|task, _| state.tasks().get(task).is_some());
        self.strange.retain(|task| state.tasks().get(task).is_some());
    }

    fn note(&mut self, batch: OutputBatch) {
        if let Some(upto) = batch.upto {
            self.upto.insert(batch.task, upto);
            self.errors.remove(&batch.task);
        }
        if let Some(error) = batch.error {
            self.errors.insert(batch.task, error);
        }
    }

    fn troubles(&self) -> Option<String> {
        let words = self.errors.iter().map(|(task, error)| format!("task {task}: {error}"));
        (!self.errors.is_empty()).then(|| words.collect::<Vec<_>>().join(", "))
    }
}
