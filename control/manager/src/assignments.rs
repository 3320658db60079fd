//! One node's assignment set, computed from the state: whole at first, then by the objects that an event names.
//!
//! Pure. A row is a function of `(state, the node's networks, key)`, so nothing is kept of it but these, and an
//! increment evaluates the keys that the events touch, before and after them, and nothing else: a task is evaluated for the nodes that share a network with it, a service when its
//! reach changes. Only when the node's networks change is the whole set made anew and compared.

use std::collections::BTreeSet;
use std::sync::Arc;

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::object::{Endpoint, NetworkAttachment, NodeState};
use control_model::spec::{NetworkAttachmentSpec, PublishMode};
use control_model::template::TemplateContext;
use control_model::{
    Assignment, AssignmentKey, Dependency, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId,
    TaskState,
};
use control_store::{Event, EventKind, State};

/// What has been sent to one node: the state that the rows were made of, which the sessions share, and not the rows,
/// of which a manager would hold all once per session.
#[derive(Debug, Clone)]
pub struct NodeAssignments {
    scope: Scope,
    state: Arc<State>,
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

    /// A row that was `before` and is `after`.
    fn note(&mut self, key: AssignmentKey, before: Option<Assignment>, after: Option<Assignment>) {
        match (before, after) {
            (Some(before), Some(after)) if same_for_agent(&before, &after) => {}
            (_, Some(after)) => self.upserts.push(after),
            (Some(_), None) => self.removals.push(key),
            (None, None) => {}
        }
    }
}

impl NodeAssignments {
    /// The complete set of `node` in `state`.
    pub fn new(node: NodeId, state: Arc<State>) -> Self {
        Self { scope: Scope::new(node, &state), state }
    }

    /// All rows, by key.
    pub fn complete(&self) -> Vec<Assignment> {
        let keys: BTreeSet<_> = self.scope.keys(&self.state).collect();
        keys.into_iter().filter_map(|key| self.scope.row(&self.state, key)).collect()
    }

    /// Goes on to `state`, which is the one before plus `events`.
    pub fn advance<'a>(
        &mut self,
        state: Arc<State>,
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Increment {
        let dirty = self.dirty(&state, events);
        let moved = dirty.networks.then(|| Scope::new(self.scope.node, &state));
        let moved = moved.filter(|scope| *scope != self.scope);
        let mut keys = dirty.keys;
        if let Some(scope) = &moved {
            let changed = self.scope.differs_in(scope);
            keys.extend(keys_of(&changed, &self.state).chain(keys_of(&changed, &state)));
        }
        let scope = moved.as_ref().unwrap_or(&self.scope);
        let mut increment = Increment::default();
        for key in keys {
            increment.note(key, self.scope.row(&self.state, key), scope.row(&state, key));
        }
        self.state = state;
        if let Some(scope) = moved {
            self.scope = scope;
        }
        increment
    }

    /// What has to be evaluated after `events`.
    fn dirty<'a>(&self, state: &State, events: impl IntoIterator<Item = &'a Event>) -> Dirty {
        let mut dirty = Dirty::default();
        for event in events {
            dirty.note(&self.scope, state, event);
        }
        dirty
    }
}

/// Which keys the events may have changed.
#[derive(Debug, Default)]
struct Dirty {
    keys: BTreeSet<AssignmentKey>,
    /// The node's networks may have changed.
    networks: bool,
}

impl Dirty {
    fn note(&mut self, scope: &Scope, state: &State, event: &Event) {
        match &event.kind {
            EventKind::Cluster(..) => {}
            EventKind::Node(before, after) => {
                self.note_node(scope, state, before.as_deref(), after.as_deref());
            }
            EventKind::Service(before, after) => {
                self.note_service(scope, before.as_deref(), after.as_deref());
            }
            EventKind::Task(before, after) => self.note_task(scope, before.as_deref(), after.as_deref()),
            EventKind::Network(before, after) => {
                for network in before.iter().chain(after) {
                    self.networks |= network.spec.ingress;
                    if scope.networks.contains(&network.id) {
                        self.keys.insert(AssignmentKey::Network(network.id));
                    }
                }
            }
            // Nothing refers to one that is new.
            EventKind::Dependency(before, _) => {
                self.keys.extend(before.iter().map(|one| AssignmentKey::Dependency(one.id)));
            }
        }
    }

    fn note_task(&mut self, scope: &Scope, before: Option<&Task>, after: Option<&Task>) {
        let Some(task) = after.or(before) else { return };
        let both = || before.into_iter().chain(after);
        if both().any(|t| t.attachments.iter().any(|a| scope.networks.contains(&a.network))) {
            self.keys.insert(AssignmentKey::Endpoint(task.id));
        }
        let shares = |t: Option<&Task>| t.is_some_and(|t| scope.task_shares_network(t));
        if shares(before) != shares(after) {
            self.keys.insert(AssignmentKey::Service(task.service));
        }
        if both().any(|t| t.node == Some(scope.node)) {
            self.keys.insert(AssignmentKey::Task(task.id));
            self.networks |= joined_networks(scope.node, before) != joined_networks(scope.node, after);
            if before.is_some_and(|t| scope.is_own(t)) != after.is_some_and(|t| scope.is_own(t)) {
                self.keys.extend(both().flat_map(dependencies_of));
            }
        }
    }

    /// A service that reaches this node. Tasks that share a network with it bring the row of any other all the same:
    /// that changes only when what the row shows does.
    fn note_service(&mut self, scope: &Scope, before: Option<&Service>, after: Option<&Service>) {
        let Some(id) = after.or(before).map(|s| s.id) else { return };
        let mut both = before.into_iter().chain(after);
        if before.map(shown) != after.map(shown) || both.any(|s| scope.is_reached_by(s)) {
            self.keys.insert(AssignmentKey::Service(id));
        }
    }

    /// A node's data path decides whether its tasks are ready backends.
    fn note_node(&mut self, scope: &Scope, state: &State, before: Option<&Node>, after: Option<&Node>) {
        let Some(id) = before.or(after).map(|n| n.id) else { return };
        let peer = |n: Option<&Node>| n.and_then(peer_of);
        if peer(before) != peer(after) {
            self.keys.insert(AssignmentKey::Peer(id));
        }
        let life = |n: Option<&Node>| n.map(|n| (n.status.data_path_alive, is_lost(n)));
        if life(before) != life(after) {
            let near = |t: &&Arc<Task>| t.attachments.iter().any(|a| scope.networks.contains(&a.network));
            self.keys.extend(state.tasks_of_node(id).filter(near).map(|t| AssignmentKey::Endpoint(t.id)));
        }
    }
}

/// What of a service its row is made of.
fn shown(service: &Service) -> (&str, Option<&Endpoint>, Option<bool>, &[NetworkAttachmentSpec]) {
    let Service { spec, endpoint, .. } = service;
    (&spec.name, endpoint.as_ref(), spec.dsr(), &spec.task.networks)
}

/// The secrets and configs that a task needs.
fn dependencies_of(task: &Task) -> impl Iterator<Item = AssignmentKey> + '_ {
    task.spec.container.dependencies.iter().map(|file| AssignmentKey::Dependency(file.id))
}

/// The networks that `task` brings to `node`.
fn joined_networks(node: NodeId, task: Option<&Task>) -> BTreeSet<NetworkId> {
    let own = task.filter(|t| t.node == Some(node) && is_assigned(t));
    own.into_iter().flat_map(|t| t.attachments.iter().map(|a| a.network)).collect()
}

/// A report of a task's status need not go back to the agent that made it.
fn same_for_agent(old: &Assignment, new: &Assignment) -> bool {
    match (old, new) {
        (Assignment::Task(old), Assignment::Task(new)) => {
            let mut echo = old.clone();
            (echo.meta, echo.life) = (new.meta, new.life);
            echo.status.clone_from(&new.status);
            echo == *new
        }
        // All but its labels, of which its files have nothing.
        (Assignment::Dependency(old), Assignment::Dependency(new)) => {
            let (old, new) = (&old.spec, &new.spec);
            (&old.name, old.is_template, &old.data) == (&new.name, new.is_template, &new.data)
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

    /// The networks that mean something else to the node in the other scope: it is in one of the two alone, or the routing
    /// mesh's is another.
    fn differs_in(&self, other: &Self) -> BTreeSet<NetworkId> {
        let meshes = (self.ingress != other.ingress).then_some([self.ingress, other.ingress]);
        let joined = self.networks.symmetric_difference(&other.networks).copied();
        joined.chain(meshes.into_iter().flatten().flatten()).collect()
    }

    /// The node has been given it.
    fn is_own(&self, task: &Task) -> bool {
        task.node == Some(self.node) && is_assigned(task)
    }

    /// The keys of all rows that the node may need in `state`.
    fn keys<'a>(&'a self, state: &'a State) -> impl Iterator<Item = AssignmentKey> + 'a {
        let reached = state.services().iter().filter(|s| self.is_reached_by(s));
        (state.tasks_of_node(self.node).map(|t| AssignmentKey::Task(t.id)))
            .chain(keys_of(&self.networks, state))
            .chain(reached.map(|s| AssignmentKey::Service(s.id)))
            .chain(state.nodes().iter().map(|n| AssignmentKey::Peer(n.id)))
            .chain(state.tasks_of_node(self.node).flat_map(|t| dependencies_of(t)))
    }

    /// The row of `key`; `None` if the node needs none.
    fn row(&self, state: &State, key: AssignmentKey) -> Option<Assignment> {
        match key {
            AssignmentKey::Task(id) => {
                let task = state.tasks().get(&id).filter(|t| self.is_own(t))?;
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
            AssignmentKey::Dependency(id) => {
                let found = state.dependencies().get(&id)?;
                let mut own = state.tasks_of_node(self.node).filter(|t| is_assigned(t));
                let is_used = own.any(|t| dependencies_of(t).any(|key| key == AssignmentKey::Dependency(id)));
                is_used.then(|| Assignment::Dependency(Box::new(Dependency::clone(found))))
            }
        }
    }

    fn service_row(&self, state: &State, id: ServiceId) -> Option<Assignment> {
        let service = state.services().get(&id)?;
        let endpoint = service.endpoint.clone()?;
        let mut tasks = state.tasks_of_service(id);
        if !self.is_reached_by(service) && !tasks.any(|t| self.task_shares_network(t)) {
            return None;
        }
        let aliases = service.spec.task.networks.iter().filter(|n| self.networks.contains(&n.target));
        Some(Assignment::Service(ServiceView {
            id,
            name: service.spec.name.clone(),
            endpoint,
            dsr: service.spec.dsr().unwrap_or(false),
            aliases: aliases.map(|n| (n.target, n.aliases.clone())).collect(),
        }))
    }

    /// The service is published on every node, or in a network of this node's tasks.
    fn is_reached_by(&self, service: &Service) -> bool {
        let mut ports = service.endpoint.iter().flat_map(|e| &e.ports);
        ports.any(|p| p.mode == PublishMode::Ingress) || networks_of(service).any(|n| self.is_joined(n))
    }

    /// A task, maybe from before its service's last update, is in a network of this node's tasks.
    fn task_shares_network(&self, task: &Task) -> bool {
        is_assigned(task) && task.attachments.iter().any(|a| self.is_joined(&a.network))
    }

    /// Of this node's tasks, and not the routing mesh's.
    fn is_joined(&self, network: &NetworkId) -> bool {
        self.networks.contains(network) && Some(*network) != self.ingress
    }

    fn endpoint_row(&self, state: &State, id: TaskId) -> Option<Assignment> {
        let task = state.tasks().get(&id).filter(|t| is_assigned(t))?;
        let node = task.node?;
        let known = state.nodes().get(&node);
        if node != self.node && known.is_some_and(|known| is_lost(known)) {
            return None;
        }
        let mut attachments: Vec<NetworkAttachment> =
            task.attachments.iter().filter(|a| self.networks.contains(&a.network)).cloned().collect();
        if attachments.is_empty() {
            return None;
        }
        if let Some(hostname) = own_hostname(state, task) {
            for attachment in &mut attachments {
                attachment.aliases.push(hostname.clone());
            }
        }
        let runs = task.status.state == TaskState::Running && task.is_to_run() && !task.status.is_unhealthy();
        Some(Assignment::Endpoint(EndpointView {
            task: id,
            service: task.service,
            name: task_name(task),
            node,
            attachments,
            ready: runs && known.is_some_and(|known| known.status.data_path_alive),
            weight: task.weight,
        }))
    }
}

/// The networks that a service is to be in, and is.
fn networks_of(service: &Service) -> impl Iterator<Item = &NetworkId> {
    let wanted = service.spec.task.networks.iter().map(|n| &n.target);
    wanted.chain(service.endpoint.iter().flat_map(|e| e.vips.iter().map(|(network, _)| network)))
}

/// The keys of the rows that a node needs because it is in `networks`: as many as there are tasks in them, for a look at each
/// service.
fn keys_of<'a>(
    networks: &'a BTreeSet<NetworkId>,
    state: &'a State,
) -> impl Iterator<Item = AssignmentKey> + 'a {
    let is_in = |s: &&Arc<Service>| networks_of(s).any(|n| networks.contains(n));
    let tasks = networks.iter().flat_map(|n| state.tasks_of_network(*n));
    (networks.iter().map(|n| AssignmentKey::Network(*n)))
        .chain(state.services().iter().filter(is_in).map(|s| AssignmentKey::Service(s.id)))
        .chain(tasks.flat_map(|t| [AssignmentKey::Endpoint(t.id), AssignmentKey::Service(t.service)]))
}

/// The host name that the user gave the task, which is a name of it in DNS. Without one it is the container's short id,
/// which agents know.
fn own_hostname(state: &State, task: &Task) -> Option<String> {
    let wanted = Some(&task.spec.container.hostname).filter(|wanted| !wanted.is_empty())?;
    let node = state.nodes().get(&task.node?)?;
    let context = TemplateContext {
        task,
        node_hostname: &node.description.hostname,
        node_os: &node.description.platform.os,
        node_architecture: &node.description.platform.architecture,
    };
    // A placeholder that can't be expanded makes the task fail on its node.
    context.expand(wanted).ok()
}

/// The agent has it from ASSIGNED until it has ended; a task that left the set is removed with its container.
fn is_assigned(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

/// `<service>.<slot>.<task id>`, with the node's id as slot for global services.
pub fn task_name(task: &Task) -> String {
    task.name()
}

fn peer_row(state: &State, id: NodeId) -> Option<Assignment> {
    peer_of(state.nodes().get(&id)?).map(Assignment::Peer)
}

/// Neither its agent nor its data path answers: its tasks have been given up, and connections to them are to be reset rather
/// than left silent.
fn is_lost(node: &Node) -> bool {
    node.status.state == NodeState::Down && !node.status.data_path_alive
}

/// What other nodes must know of `node`; nothing until it has said where its tunnels end.
fn peer_of(node: &Node) -> Option<Peer> {
    Some(Peer {
        id: node.id,
        hostname: node.description.hostname.clone(),
        vtep: node.description.data_path_addr?,
        addresses: node.description.addresses.clone(),
        addresses_since: node.addresses_since,
        underlay_mtu_bytes: node.description.underlay_mtu_bytes,
        gossip: node.description.gossip_addr,
        alive: node.status.data_path_alive,
    })
}

#[cfg(test)]
mod tests;
