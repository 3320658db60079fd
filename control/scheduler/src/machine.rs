//! The machine: which tasks wait, when they are tried again, and where they go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Object};
use control_model::object::{Node, Slot, TaskStatus};
use control_model::{NodeId, Task, TaskId, TaskState, Timestamp};
use control_store::{Event, EventKind, State};

use crate::filter::{Filters, Refusals};
use crate::node_info::{GroupKey, MAX_FAILURES, NodeInfo};
use crate::nodes::Nodes;
use crate::spread::Branch;

/// swarmkit's words for what the scheduler did.
const ASSIGNED_MESSAGE: &str = "scheduler assigned task to node";
const CONFIRMED_MESSAGE: &str = "scheduler confirmed task can run on preassigned node";
/// Of a task that was asked to stop while it waited.
const STOPPED_MESSAGE: &str = "stopped before it was assigned to a node";

/// How long changes are gathered before all refused tasks are tried again (swarmkit's debounce).
const RETRY_DEBOUNCE: Duration = Duration::from_millis(50);

/// Owns tasks in PENDING.
#[derive(Debug)]
pub struct Scheduler {
    nodes: Nodes,
    /// On which node a task is counted.
    counted: BTreeMap<TaskId, NodeId>,
    /// To be placed now; tasks that the orchestrator bound to a node are groups of their own.
    queue: BTreeMap<GroupKey, BTreeSet<TaskId>>,
    /// No node would take them.
    refused: BTreeMap<GroupKey, BTreeSet<TaskId>>,
    /// Pending tasks that are not wanted any more.
    stopping: BTreeSet<TaskId>,
    /// When [`Self::tick`] looks at `queue`, or brings `refused` back into it.
    wake_at: Option<Timestamp>,
}

impl Scheduler {
    /// Counts what runs in `state`; every pending task is to be placed.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let mut machine = Self {
            nodes: Nodes::default(),
            counted: BTreeMap::new(),
            queue: BTreeMap::new(),
            refused: BTreeMap::new(),
            stopping: BTreeSet::new(),
            wake_at: Some(now),
        };
        // Node by node, not task by task: of a million tasks each would be looked up among all, and its node moved in its order.
        let mut of_nodes: BTreeMap<NodeId, Vec<&Task>> = BTreeMap::new();
        for task in state.tasks().iter() {
            match task.node {
                Some(id) if holds_node(task) => of_nodes.entry(id).or_default().push(task),
                _ if task.status.state.is_terminal() => {}
                _ => machine.note_task(None, task, now),
            }
        }
        let mut counted = Vec::new();
        for node in state.nodes().iter() {
            let mut info = NodeInfo::new(node.clone());
            for task in of_nodes.remove(&node.id).unwrap_or_default() {
                info.add(task);
                counted.push((task.id, node.id));
            }
            machine.nodes.insert(info);
        }
        machine.counted = counted.into_iter().collect();
        machine
    }

    /// Takes in what was applied and returns what to write.
    pub fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        for event in events {
            self.note(state, event, now);
        }
        self.place_queue(state, now)
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// Tries refused tasks again when it is time, and places what waits.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            for (group, tasks) in std::mem::take(&mut self.refused) {
                self.queue.entry(group).or_default().extend(tasks);
            }
        }
        self.place_queue(state, now)
    }

    fn note(&mut self, state: &State, event: &Event, now: Timestamp) {
        match &event.kind {
            EventKind::Node(before, Some(node)) => self.note_node(state, before.as_deref(), node, now),
            EventKind::Node(Some(node), None) => {
                self.nodes.remove(&node.id);
                self.counted.retain(|_, at| *at != node.id);
                // The count in the reason changes.
                self.retry_soon(now);
            }
            EventKind::Task(before, Some(task)) => self.note_task(before.as_deref(), task, now),
            EventKind::Task(Some(task), None) => self.forget_task(task, now),
            _ => {}
        }
    }

    fn note_node(&mut self, state: &State, before: Option<&Node>, node: &Arc<Node>, now: Timestamp) {
        let known = self.nodes.change(&node.id, |info| info.node = node.clone());
        if known.is_none() {
            let mut info = NodeInfo::new(node.clone());
            for task in state.tasks_of_node(node.id).filter(|task| holds_node(task)) {
                info.put(task);
                self.counted.insert(task.id, node.id);
            }
            self.nodes.insert(info);
        }
        let matters = before.is_none_or(|before| {
            before.status.state != node.status.state
                || before.status.data_path_alive != node.status.data_path_alive
                || before.status.addr != node.status.addr
                || before.spec != node.spec
                || before.description != node.description
                || before.certificate_role != node.certificate_role
        });
        if matters {
            self.retry_soon(now);
        }
    }

    fn note_task(&mut self, before: Option<&Task>, task: &Task, now: Timestamp) {
        match task.status.state {
            TaskState::New => {}
            TaskState::Pending if task.desired_state >= TaskState::Shutdown => {
                self.stopping.insert(task.id);
            }
            TaskState::Pending => {
                let group = group_of(task);
                let waits = self.refused.get(&group).is_some_and(|tasks| tasks.contains(&task.id));
                if !waits {
                    self.queue.entry(group).or_default().insert(task.id);
                }
            }
            state if state.is_terminal() => self.note_end(before, task, now),
            _ => self.count(before, task, now),
        }
    }

    fn count(&mut self, before: Option<&Task>, task: &Task, now: Timestamp) {
        let Some(id) = task.node else { return };
        if self.nodes.change(&id, |info| info.put(task)).is_none() {
            return;
        }
        self.counted.insert(task.id, id);
        // A task that is to stop makes room under the limit of replicas per node.
        if before.is_some_and(|before| before.desired_state < task.desired_state) {
            self.retry_soon(now);
        }
    }

    fn note_end(&mut self, before: Option<&Task>, task: &Task, now: Timestamp) {
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
            && before.is_some_and(|before| !before.status.state.is_terminal());
        // The scheduler doesn't choose the node of a global service's task: no point in counting.
        if failed && matches!(task.slot, Slot::Replica(_)) {
            let group = group_of(task);
            task.node.and_then(|id| self.nodes.change(&id, |info| info.note_failure(group, now)));
        }
        self.forget_task(task, now);
    }

    fn forget_task(&mut self, task: &Task, now: Timestamp) {
        self.stopping.remove(&task.id);
        remove_from(&mut self.queue, task);
        remove_from(&mut self.refused, task);
        if let Some(id) = self.counted.remove(&task.id)
            && self.nodes.change(&id, |info| info.remove(task.id)).unwrap_or(false)
        {
            self.retry_soon(now);
        }
    }

    fn retry_soon(&mut self, now: Timestamp) {
        if !self.refused.is_empty() {
            self.wake_at.get_or_insert(now.after(RETRY_DEBOUNCE));
        }
    }

    fn place_queue(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(id) = self.stopping.pop_first() {
            changes.extend(state.tasks().get(&id).and_then(|task| stop(task, now)));
        }
        while let Some((group, ids)) = self.queue.pop_first() {
            let waits = |task: &&Arc<Task>| {
                task.status.state == TaskState::Pending && task.desired_state < TaskState::Shutdown
            };
            let tasks = ids.iter().filter_map(|id| state.tasks().get(id)).filter(waits);
            let (bound, mut free): (Vec<_>, Vec<_>) = tasks.partition(|task| task.node.is_some());
            for task in bound {
                changes.extend(self.confirm(task, now));
            }
            free.sort_by_key(|task| (task.slot, task.id));
            if !free.is_empty() {
                self.place_group(group, &free, now, &mut changes);
            }
        }
        changes
    }

    /// A task of a global service: its node is given, only the filters are asked.
    fn confirm(&mut self, task: &Task, now: Timestamp) -> Option<Change> {
        let id = task.node?;
        let mut refusals = Refusals::default();
        let fits = self.nodes.get(&id).is_some_and(|info| Filters::new(task).check(info, &mut refusals));
        if fits {
            Some(self.assign(task, id, CONFIRMED_MESSAGE, now))
        } else {
            self.refuse(task, refusals.reasons(), now)
        }
    }

    fn place_group(
        &mut self,
        group: GroupKey,
        tasks: &[&Arc<Task>],
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) {
        let Some(first) = tasks.first() else { return };
        let filters = Filters::new(first);
        let preferences = &first.spec.placement.spread_preferences;
        let placed = if preferences.is_empty() {
            self.place_one_each(group, &filters, tasks, now)
        } else {
            Vec::new()
        };
        let tasks = &tasks[placed.len()..];
        changes.extend(placed);
        if tasks.is_empty() {
            return;
        }
        let mut tree = {
            let check = |info| filters.check(info, &mut Refusals::default());
            let checked: Vec<(&NodeInfo, bool)> =
                self.nodes.values().map(|info| (info, check(info))).collect();
            Branch::build(&checked, preferences, &|info| info.n_active_of(group.0))
        };
        let mut waiting = tasks.iter();
        tree.fill(tasks.len(), &mut |nodes, n| {
            let mut order: BinaryHeap<_> =
                nodes.iter().filter_map(|id| Some(Reverse(rank(self.nodes.get(id)?, group, now)))).collect();
            let mut placed = 0;
            while placed < n
                && let Some(Reverse((.., id))) = order.pop()
            {
                // An earlier round may have used up what the node had.
                let info = self.nodes.get(&id);
                if !info.is_some_and(|info| filters.check(info, &mut Refusals::default())) {
                    continue;
                }
                let Some(task) = waiting.next() else { break };
                changes.push(self.assign(task, id, ASSIGNED_MESSAGE, now));
                order.extend(self.nodes.get(&id).map(|info| Reverse(rank(info, group, now))));
                placed += 1;
            }
            placed
        });
        if waiting.len() > 0 {
            let mut refusals = Refusals::default();
            for info in self.nodes.values() {
                filters.check(info, &mut refusals);
            }
            let error = refusals.explain();
            for task in waiting {
                changes.extend(self.refuse(task, error.clone(), now));
            }
        }
    }

    /// Nodes that have none of the service, and did not fail it, come before all others, in the order of what they have:
    /// each takes one task, and only those in front are looked at. The first of the tasks are placed, as many as there are changes.
    fn place_one_each(
        &mut self,
        group: GroupKey,
        filters: &Filters<'_>,
        tasks: &[&Arc<Task>],
        now: Timestamp,
    ) -> Vec<Change> {
        let (mut placed, mut at) = (Vec::new(), None);
        while let Some(task) = tasks.get(placed.len())
            && let Some(next) = self.nodes.next_by_load(at)
        {
            at = Some(next);
            let takes = |info: &NodeInfo| {
                let (penalty, n_active_of, ..) = rank(info, group, now);
                penalty == 0 && n_active_of == 0 && filters.check(info, &mut Refusals::default())
            };
            if self.nodes.get(&next.1).is_some_and(takes) {
                placed.push(self.assign(task, next.1, ASSIGNED_MESSAGE, now));
            }
        }
        placed
    }

    fn assign(&mut self, task: &Task, node: NodeId, message: &str, now: Timestamp) -> Change {
        let status = TaskStatus {
            state: TaskState::Assigned,
            at: now,
            message: message.into(),
            ..TaskStatus::default()
        };
        let mut assigned = Task { node: Some(node), status, ..task.clone() };
        let put = |info: &mut NodeInfo| {
            assigned.generic = info.claim(&task.spec.resources.generic).unwrap_or_default();
            info.put(&assigned);
        };
        if self.nodes.change(&node, put).is_some() {
            self.counted.insert(task.id, node);
        }
        Change::Update { object: Object::Task(Box::new(assigned)), expected: task.meta.version }
    }

    fn refuse(&mut self, task: &Task, error: String, now: Timestamp) -> Option<Change> {
        self.refused.entry(group_of(task)).or_default().insert(task.id);
        (task.status.error != error).then(|| Change::TaskStatus {
            id: task.id,
            status: TaskStatus { error, at: now.max(task.status.at), ..task.status.clone() },
        })
    }
}

/// Lower is better: recent failures once there are many, tasks of the service, all tasks, and the id for ties.
fn rank(info: &NodeInfo, group: GroupKey, now: Timestamp) -> (usize, usize, usize, NodeId) {
    let n_failures = info.n_recent_failures(group, now);
    let penalty = if n_failures >= MAX_FAILURES { n_failures } else { 0 };
    (penalty, info.n_active_of(group.0), info.n_active(), info.node.id)
}

fn group_of(task: &Task) -> GroupKey {
    (task.service, task.spec_version)
}

/// It uses its node's resources: assigned, and not ended.
fn holds_node(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

fn stop(task: &Task, now: Timestamp) -> Option<Change> {
    let status = TaskStatus {
        state: TaskState::Shutdown,
        at: now,
        message: STOPPED_MESSAGE.into(),
        ..TaskStatus::default()
    };
    (task.status.state == TaskState::Pending).then_some(Change::TaskStatus { id: task.id, status })
}

fn remove_from(groups: &mut BTreeMap<GroupKey, BTreeSet<TaskId>>, task: &Task) {
    let group = group_of(task);
    if let Some(tasks) = groups.get_mut(&group) {
        tasks.remove(&task.id);
        if tasks.is_empty() {
            groups.remove(&group);
        }
    }
}
