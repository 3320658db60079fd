//! One node's assignment set, computed from the state: whole at first, then by the objects that an event names.
//!
//! Pure. A row is a function of `(state, the node's networks, key)`, so an increment evaluates the keys that the
//! events touch and nothing else; only when the node's networks change is the whole set made anew and compared.

use std::collections::{BTreeMap, BTreeSet};

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::object::{NetworkAttachment, Slot};
use control_model::spec::PublishMode;
use control_model::{
    Assignment, AssignmentKey, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId, TaskState,
};
use control_store::{Event, EventKind, State};

/// What has been sent to one node.
#[derive(Debug, Clone)]
pub struct NodeAssignments {
    scope: Scope,
    rows: BTreeMap<AssignmentKey, Assignment>,
}

/// What decides which rows a node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    node: NodeId,
    /// Networks of the node's tasks, and the routing mesh's.
    networks: BTreeSet<NetworkId>,
    ingress: Option<NetworkId>,
}

/// Rows to put and to remove, on top of what was sent before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Increment {
    pub upserts: Vec<Assignment>,
    pub removals: Vec<AssignmentKey>,
}

impl Increment {
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

impl NodeAssignments {
    /// The complete set of `node` in `state`.
    pub fn new(node: NodeId, state: &State) -> Self {
        let scope = Scope::new(node, state);
        let rows = scope.all_rows(state);
        Self { scope, rows }
    }

    /// All rows, by key.
    pub fn complete(&self) -> Vec<Assignment> {
        self.rows.values().cloned().collect()
    }

    /// Goes on to `state`, which is the one before plus (at least) `events`.
    pub fn advance<'a>(&mut self, state: &State, events: impl IntoIterator<Item = &'a Event>) -> Increment {
        let mut dirty = Dirty::default();
        for event in events {
            dirty.note(self.scope.node, state, event);
        }
        if dirty.networks {
            let scope = Scope::new(self.scope.node, state);
            if scope != self.scope {
                self.scope = scope;
                return self.replace(self.scope.all_rows(state));
            }
        }
        let mut increment = Increment::default();
        for key in dirty.keys {
            self.set(key, self.scope.row(state, key), &mut increment);
        }
        increment
    }

    /// Makes the set equal to `rows`.
    fn replace(&mut self, rows: BTreeMap<AssignmentKey, Assignment>) -> Increment {
        let mut increment = Increment::default();
        let gone: Vec<_> = self.rows.keys().filter(|key| !rows.contains_key(key)).copied().collect();
        for key in gone {
            self.set(key, None, &mut increment);
        }
        for (key, new) in rows {
            self.set(key, Some(new), &mut increment);
        }
        increment
    }

    fn set(&mut self, key: AssignmentKey, new: Option<Assignment>, increment: &mut Increment) {
        match new {
            Some(new) if self.rows.get(&key).is_some_and(|old| same_for_agent(old, &new)) => {}
            Some(new) => {
                increment.upserts.push(new.clone());
                self.rows.insert(key, new);
            }
            None => {
                if self.rows.remove(&key).is_some() {
                    increment.removals.push(key);
                }
            }
        }
    }
}

/// Which keys the events may have changed.
#[derive(Default)]
struct Dirty {
    keys: BTreeSet<AssignmentKey>,
    /// The node's networks may have changed.
    networks: bool,
}

impl Dirty {
    fn note(&mut self, node: NodeId, state: &State, event: &Event) {
        match &event.kind {
            EventKind::Cluster(..) => {}
            EventKind::Node(before, after) => self.note_node(state, before.as_deref(), after.as_deref()),
            EventKind::Service(before, after) => {
                let id = before.iter().chain(after).map(|s| s.id).next();
                self.keys.extend(id.map(AssignmentKey::Service));
            }
            EventKind::Task(before, after) => {
                for task in before.iter().chain(after) {
                    self.keys.insert(AssignmentKey::Endpoint(task.id));
                    self.keys.insert(AssignmentKey::Service(task.service));
                    if task.node == Some(node) {
                        self.keys.insert(AssignmentKey::Task(task.id));
                        self.networks = true;
                    }
                }
            }
            EventKind::Network(before, after) => {
                let id = before.iter().chain(after).map(|n| n.id).next();
                self.keys.extend(id.map(AssignmentKey::Network));
                self.networks = true;
            }
        }
    }

    /// A node's data path decides whether its tasks are ready backends.
    fn note_node(&mut self, state: &State, before: Option<&Node>, after: Option<&Node>) {
        let Some(id) = before.or(after).map(|n| n.id) else { return };
        self.keys.insert(AssignmentKey::Peer(id));
        let alive = |n: Option<&Node>| n.is_some_and(|n| n.status.data_path_alive);
        if alive(before) != alive(after) {
            self.keys.extend(state.tasks_of_node(id).map(|t| AssignmentKey::Endpoint(t.id)));
        }
    }
}

/// A report of a task's status need not go back to the agent that made it.
fn same_for_agent(old: &Assignment, new: &Assignment) -> bool {
    match (old, new) {
        (Assignment::Task(old), Assignment::Task(new)) => {
            let mut echo = old.clone();
            echo.meta = new.meta;
            echo.status.clone_from(&new.status);
            echo == *new
        }
        (old, new) => old == new,
    }
}

impl Scope {
    /// The ingress network and those of the node's tasks.
    fn new(node: NodeId, state: &State) -> Self {
        let own = state.tasks_of_node(node).filter(|t| is_assigned(t));
        let joined = own.flat_map(|t| t.attachments.iter().map(|a| a.network));
        let ingress = state.ingress_network().map(|n| n.id);
        Self { node, networks: ingress.into_iter().chain(joined).collect(), ingress }
    }

    fn all_rows(&self, state: &State) -> BTreeMap<AssignmentKey, Assignment> {
        let keys = (state.tasks_of_node(self.node).map(|t| AssignmentKey::Task(t.id)))
            .chain(self.networks.iter().map(|n| AssignmentKey::Network(*n)))
            .chain(state.services().iter().map(|s| AssignmentKey::Service(s.id)))
            .chain(state.tasks().iter().map(|t| AssignmentKey::Endpoint(t.id)))
            .chain(state.nodes().iter().map(|n| AssignmentKey::Peer(n.id)));
        keys.filter_map(|key| Some((key, self.row(state, key)?))).collect()
    }

    /// The row of `key`; `None` if the node needs none.
    fn row(&self, state: &State, key: AssignmentKey) -> Option<Assignment> {
        match key {
            AssignmentKey::Task(id) => {
                let task = state.tasks().get(&id).filter(|t| t.node == Some(self.node) && is_assigned(t))?;
                Some(Assignment::Task(Box::new((**task).clone())))
            }
            AssignmentKey::Network(id) => {
                let network = state.networks().get(&id)?;
                (self.networks.contains(&id) && network.state.is_some())
                    .then(|| Assignment::Network(Box::new((**network).clone())))
            }
            AssignmentKey::Service(id) => self.service_row(state, id),
            AssignmentKey::Endpoint(id) => self.endpoint_row(state, id),
            AssignmentKey::Peer(id) => peer_row(state, id),
        }
    }

    fn service_row(&self, state: &State, id: ServiceId) -> Option<Assignment> {
        let service = state.services().get(&id)?;
        let endpoint = service.endpoint.clone()?;
        let published = endpoint.ports.iter().any(|p| p.mode == PublishMode::Ingress);
        if !published && !self.shares_network(state, service) {
            return None;
        }
        let aliases = service.spec.task.networks.iter().filter(|n| self.networks.contains(&n.target));
        Some(Assignment::Service(ServiceView {
            id,
            name: service.spec.name.clone(),
            endpoint,
            aliases: aliases.map(|n| (n.target, n.aliases.clone())).collect(),
        }))
    }

    /// The service, or a task from before its last update, is in a network of this node's tasks.
    fn shares_network(&self, state: &State, service: &Service) -> bool {
        let joined = |n: &NetworkId| self.networks.contains(n) && Some(*n) != self.ingress;
        let wanted = service.spec.task.networks.iter().map(|n| &n.target);
        let given = service.endpoint.iter().flat_map(|e| e.vips.iter().map(|(network, _)| network));
        let mut tasks = state.tasks_of_service(service.id).filter(|t| is_assigned(t));
        wanted.chain(given).any(joined) || tasks.any(|t| t.attachments.iter().any(|a| joined(&a.network)))
    }

    fn endpoint_row(&self, state: &State, id: TaskId) -> Option<Assignment> {
        let task = state.tasks().get(&id).filter(|t| is_assigned(t))?;
        let node = task.node?;
        let attachments: Vec<NetworkAttachment> =
            task.attachments.iter().filter(|a| self.networks.contains(&a.network)).cloned().collect();
        if attachments.is_empty() {
            return None;
        }
        let alive = state.nodes().get(&node).is_some_and(|n| n.status.data_path_alive);
        let runs = task.status.state == TaskState::Running && task.desired_state == TaskState::Running;
        Some(Assignment::Endpoint(EndpointView {
            task: id,
            service: task.service,
            name: task_name(task),
            node,
            attachments,
            ready: runs && alive,
        }))
    }
}

/// The agent has it from ASSIGNED until it has ended; a task that left the set is removed with its container.
fn is_assigned(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

/// `<service>.<slot>.<task id>`, with the node's id as slot for global services.
pub fn task_name(task: &Task) -> String {
    match task.slot {
        Slot::Replica(number) => format!("{}.{number}.{}", task.service_name, task.id),
        Slot::Node(node) => format!("{}.{node}.{}", task.service_name, task.id),
    }
}

fn peer_row(state: &State, id: NodeId) -> Option<Assignment> {
    let node = state.nodes().get(&id)?;
    let vtep = node.description.data_path_addr?;
    Some(Assignment::Peer(Peer {
        id,
        hostname: node.description.hostname.clone(),
        vtep,
        addresses: node.description.addresses.clone(),
    }))
}

#[cfg(test)]
mod tests;
