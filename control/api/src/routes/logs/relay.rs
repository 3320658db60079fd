//! A manager's part: asks the nodes, checks what they say, and writes it as the client wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_model::{NodeId, OutputBatch, OutputLine, Task, TaskId, Timestamp};
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

    /// Passes on what `node` says, for as long as there is more; why there was not all of it.
    async fn pass_on_from(self, node: NodeId) -> Option<String> {
        let _turn = if self.wish.query.follow { None } else { self.turns.acquire().await.ok() };
        let mut passed = Passed::default();
        loop {
            let failure = self.pass_on_once(node, &mut passed).await.err();
            let words = failure.map(|error| format!("node {node} is not available: {}", error.0));
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
        let mut wish = self.wish.clone();
        passed.resume(&mut wish);
        let mut answer = self.node.mesh_open(node, &wish.question(self.whose)).await?;
        loop {
            let piece = tokio::select! {
                piece = answer.next() => piece,
                () = self.pieces.closed() => return Ok(()),
            };
            let Some(piece) = piece else { return Ok(()) };
            let batch: OutputBatch = rmp_serde::from_slice(&piece?)
                .map_err(|error| InspectError(format!("it says something else than was asked: {error}")))?;
            let details = self.details(node, batch.task);
            // A node speaks for its own tasks, and of what was asked; history that is forgotten here has no name to be shown by.
            let Some(details) = details else { continue };
            let lines = passed.news(batch);
            if lines.is_empty() {
                continue;
            }
            if self.pieces.send(Ok(self.wish.format.lines(&lines, &details).into())).await.is_err() {
                return Ok(());
            }
        }
    }

    /// What `--details` shows of the task's lines; `None` if it is none of the node's, or was not asked for.
    fn details(&self, node: NodeId, task: TaskId) -> Option<String> {
        let state = self.store.state();
        let task = state.tasks().get(&task).filter(|task| task.node == Some(node) && self.is_of(task))?;
        let (service, task) = (task.service, task.id);
        Some(format!(
            "com.docker.swarm.node.id={node},{SERVICE_LABEL}={service},com.docker.swarm.task.id={task}"
        ))
    }
}

/// What of a node's lines the client has, so that each comes once however often the node is lost.
#[derive(Debug, Default)]
struct Passed {
    /// By task the last line's moment, and how many lines of that moment there were: a write of many lines has one.
    last: BTreeMap<TaskId, (Timestamp, usize)>,
    /// Of what is asked for again: what is left out.
    again: BTreeMap<TaskId, (Timestamp, usize)>,
}

impl Passed {
    /// Asks for what is new, in the node's own time.
    fn resume(&mut self, wish: &mut Wish) {
        self.again.clone_from(&self.last);
        if let Some(first) = self.last.values().map(|(at, _)| *at).min() {
            wish.query.since = wish.query.since.max(Some(first));
            wish.query.tail = None;
        }
    }

    /// The lines that the client does not have.
    fn news(&mut self, batch: OutputBatch) -> Vec<OutputLine> {
        let OutputBatch { task, lines } = batch;
        let is_new = |line: &OutputLine, again: &mut (Timestamp, usize)| {
            if line.at == again.0 && again.1 > 0 {
                again.1 -= 1;
                return false;
            }
            line.at >= again.0
        };
        let mut news = Vec::with_capacity(lines.len());
        for line in lines {
            if self.again.get_mut(&task).is_some_and(|again| !is_new(&line, again)) {
                continue;
            }
            let last = self.last.entry(task).or_insert((line.at, 0));
            if line.at > last.0 {
                *last = (line.at, 0);
            }
            last.1 += usize::from(line.at == last.0);
            news.push(line);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use control_model::OutputStream;

    use super::*;
    use crate::query::Query;
    use crate::routes::logs::wish::Asked;

    fn task(id: u128) -> TaskId {
        TaskId::from_bits(id)
    }

    /// Lines of a task at these moments, numbered.
    fn written(id: u128, moments: &[i64]) -> OutputBatch {
        let line = |(number, at): (usize, &i64)| OutputLine {
            at: Timestamp(*at),
            stream: OutputStream::Stdout,
            text: format!("{number}\n").into_bytes(),
        };
        OutputBatch { task: task(id), lines: moments.iter().enumerate().map(line).collect() }
    }

    fn texts(lines: &[OutputLine]) -> String {
        lines.iter().map(|line| String::from_utf8_lossy(&line.text).trim_end().to_owned()).collect()
    }

    #[test]
    fn each_line_comes_once_however_often_a_node_is_lost() {
        let query = Query::try_from_uri(&"/logs?stdout=1&tail=9&follow=1".parse().unwrap()).unwrap();
        let asked = Wish::of(&query, Asked::OfSwarm, false).unwrap();
        let mut passed = Passed::default();
        let mut wish = asked.clone();
        passed.resume(&mut wish);
        assert_eq!(wish, asked, "nothing has come yet: all is asked for");
        // The last two of one write, of which there are four.
        assert_eq!(texts(&passed.news(written(1, &[5, 7, 7]))), "012");
        assert_eq!(texts(&passed.news(written(2, &[20]))), "0");
        passed.resume(&mut wish);
        assert_eq!((wish.query.since, wish.query.tail), (Some(Timestamp(7)), None));
        assert_eq!(texts(&passed.news(written(1, &[7, 7, 7, 7, 8]))), "234");
        assert_eq!(texts(&passed.news(written(2, &[20, 21]))), "1");
        assert_eq!(texts(&passed.news(written(3, &[6, 30]))), "01", "one that came meanwhile");
        passed.resume(&mut wish);
        assert_eq!(texts(&passed.news(written(1, &[8]))), "");
    }
}
