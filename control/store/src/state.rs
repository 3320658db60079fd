//! The tables, their indexes, and how an entry changes them.

use std::sync::Arc;

use control_model::change::{Change, Entry, Object, ObjectRef};
use control_model::object::{Cluster, Meta, Network, Node, Service, Slot, Task};
use control_model::{
    ClusterId, Dependency, DependencyId, DependencyKind, NetworkId, NodeId, ServiceId, TaskId, TaskState,
    Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventKind};
use crate::former::FormerManagers;
use crate::names::Names;
use crate::payloads::{self, Payloads};
use crate::requests::Requests;
use crate::table::Table;
use crate::task_index::TaskIndex;

/// Why an entry changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ApplyError {
    #[error("update out of sequence")]
    Conflict(ObjectRef),
    #[error("name conflicts with an existing object: {1}")]
    NameConflict(ObjectRef, String),
    #[error("object already exists")]
    Exists(ObjectRef),
    #[error("object not found")]
    NotFound(ObjectRef),
    #[error("object is in use")]
    InUse(ObjectRef),
    /// All secrets and configs together would have more than [`crate::MAX_PAYLOAD_BYTES`].
    #[error("no room for more secrets and configs")]
    NoRoom(ObjectRef),
}

/// The whole state of the cluster at one log index. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) index: u64,
    clusters: Table<ClusterId, Cluster>,
    nodes: Table<NodeId, Node>,
    services: Table<ServiceId, Service>,
    tasks: Table<TaskId, Task>,
    networks: Table<NetworkId, Network>,
    dependencies: Table<DependencyId, Dependency>,
    service_names: Names<ServiceId>,
    network_names: Names<NetworkId>,
    secret_names: Names<DependencyId>,
    config_names: Names<DependencyId>,
    payloads: Payloads,
    task_index: TaskIndex,
    pub(crate) former_managers: FormerManagers,
    pub(crate) requests: Requests,
}

impl State {
    /// Applies `entry`, which stands at `index` of the log: whole, or not at all.
    /// A request that was applied before does nothing and returns no events.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Result<Vec<Event>, ApplyError> {
        if self.requests.contains(entry.request) {
            self.index = index;
            return Ok(Vec::new());
        }
        self.index = index;
        // A write of one object fails before it changes anything. What is shared with a copy is copied when it is written.
        let n_objects: usize = entry.changes.iter().map(Change::n_objects).sum();
        let before = (n_objects > 1).then(|| self.clone());
        let mut events = Vec::with_capacity(n_objects);
        for change in &entry.changes {
            if let Err(error) = self.apply_change(index, entry.at, change, &mut events) {
                if let Some(before) = before {
                    *self = before;
                }
                return Err(error);
            }
        }
        self.requests.note(entry.request);
        Ok(events)
    }

    /// Notes what the leader's clock said when it wrote the entries that are applied next.
    pub fn pass_time(&mut self, clock: Timestamp) {
        self.requests.pass_time(clock);
    }

    /// Notes an entry of the log that carries no changes (a blank or a membership entry).
    pub fn advance(&mut self, index: u64) {
        self.index = index;
    }

    /// Log index of the last applied entry.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The cluster object, once it exists.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.clusters.iter().next()
    }

    pub fn nodes(&self) -> &Table<NodeId, Node> {
        &self.nodes
    }

    /// The nodes that were managers, also such as are members no more.
    pub fn former_managers(&self) -> &FormerManagers {
        &self.former_managers
    }

    pub fn services(&self) -> &Table<ServiceId, Service> {
        &self.services
    }

    pub fn tasks(&self) -> &Table<TaskId, Task> {
        &self.tasks
    }

    pub fn networks(&self) -> &Table<NetworkId, Network> {
        &self.networks
    }

    /// Secrets and configs.
    pub fn dependencies(&self) -> &Table<DependencyId, Dependency> {
        &self.dependencies
    }

    /// All cluster objects, of which there is one at most.
    pub(crate) fn clusters(&self) -> &Table<ClusterId, Cluster> {
        &self.clusters
    }

    /// A new secret or config as long as this one would not be too much.
    pub fn has_room_for(&self, new: &Dependency) -> bool {
        self.payloads.has_room_for(new)
    }

    /// A service refers to this secret or config.
    pub fn is_used(&self, id: DependencyId) -> bool {
        self.payloads.is_used(id)
    }

    pub fn dependency_by_name(&self, kind: DependencyKind, name: &str) -> Option<&Arc<Dependency>> {
        self.dependencies.get(self.dependency_names(kind).get(name)?)
    }

    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.service_names.get(name)?)
    }

    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(self.network_names.get(name)?)
    }

    /// The routing mesh's network.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks.iter().find(|n| n.spec.ingress)
    }

    /// The service's tasks, by task id.
    pub fn tasks_of_service(&self, id: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.task_index.of_service(id).filter_map(|task| self.tasks.get(&task))
    }

    /// The tasks bound to the node, by task id.
    pub fn tasks_of_node(&self, id: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.task_index.of_node(id).filter_map(|task| self.tasks.get(&task))
    }

    /// The tasks with an attachment to the network, by task id.
    pub fn tasks_of_network(&self, id: NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        self.task_index.of_network(id).filter_map(|task| self.tasks.get(&task))
    }

    /// The service's tasks in `slot`, by task id.
    pub fn tasks_of_slot(&self, id: ServiceId, slot: Slot) -> impl Iterator<Item = &Arc<Task>> {
        self.task_index.of_slot(id, slot).filter_map(|task| self.tasks.get(&task))
    }

    fn apply_change(
        &mut self,
        index: u64,
        at: Timestamp,
        change: &Change,
        events: &mut Vec<Event>,
    ) -> Result<(), ApplyError> {
        match change {
            Change::Create(object) => events.push(self.create(index, at, object.clone())?),
            Change::CreateTasks(alike) => {
                for task in alike.tasks() {
                    events.push(self.create(index, at, Object::Task(Box::new(task)))?);
                }
            }
            Change::Update { object, expected } => {
                events.push(self.update(index, at, object.clone(), *expected)?);
            }
            Change::TaskEdit { id, expected, edit } => {
                let old = self.tasks.get(id).ok_or(ApplyError::NotFound(ObjectRef::Task(*id)))?;
                let new = Object::Task(Box::new(edit.applied(old)));
                events.push(self.update(index, at, new, *expected)?);
            }
            Change::Delete(ObjectRef::Dependency(id)) if self.is_used(*id) => {
                return Err(ApplyError::InUse(ObjectRef::Dependency(*id)));
            }
            Change::Delete(name) => events.extend(self.delete(at, *name)),
            other => events.extend(self.apply_narrow(index, at, other)),
        }
        Ok(())
    }

    /// A change of what one owner writes, which can't be refused. Nothing for the others.
    fn apply_narrow(&mut self, index: u64, at: Timestamp, change: &Change) -> Option<Event> {
        match change {
            Change::NodeStatus { id, status } => self.edit_node(index, at, *id, |n| {
                let changed = n.status != *status;
                n.status.clone_from(status);
                changed
            }),
            Change::NodeDescription { id, description } => self.edit_node(index, at, *id, |n| {
                let changed = n.description != **description;
                if n.description.addresses != description.addresses {
                    n.addresses_since = index;
                }
                n.description.clone_from(&**description);
                changed
            }),
            Change::NodeManager { id, manager } => self.edit_node(index, at, *id, |n| {
                let changed = n.manager != *manager;
                n.manager = *manager;
                changed
            }),
            Change::TaskStatus { id, status } => self.edit_task(index, at, *id, |t| {
                // A task ends once: what an earlier life of its agent said of it may come late.
                let has_ended = t.status.state.is_terminal() && status.state != TaskState::Orphaned;
                let grows = (status.state > t.status.state && !has_ended)
                    || (status.state == t.status.state && *status != t.status && status.at >= t.status.at);
                if grows {
                    if t.status.state == TaskState::Running {
                        // Of a log that is older than what is noted here.
                        t.life.note(&t.status, t.meta.updated_at);
                    }
                    t.life.note(status, at);
                    t.status.clone_from(status);
                }
                grows
            }),
            Change::TaskDesired { id, state } => self.edit_task(index, at, *id, |t| {
                let grows = *state > t.desired_state;
                t.desired_state = t.desired_state.max(*state);
                grows
            }),
            Change::TaskDrained { id } => {
                self.edit_task(index, at, *id, |t| !std::mem::replace(&mut t.drained, true))
            }
            Change::TaskWeight { id, weight } => self.edit_task(index, at, *id, |t| {
                let grows = *weight > t.weight;
                t.weight = t.weight.max(*weight);
                grows
            }),
            Change::UpdateStatus { id, status, of } => self.edit_service(index, at, *id, |s| {
                let is_current = of.as_ref().is_none_or(|of| of.is_of(s));
                let changes = is_current && s.update_status != *status;
                if changes {
                    s.update_status.clone_from(status);
                }
                changes
            }),
            Change::Create(_)
            | Change::CreateTasks(_)
            | Change::Update { .. }
            | Change::TaskEdit { .. }
            | Change::Delete(_) => None,
        }
    }

    fn create(&mut self, index: u64, at: Timestamp, mut object: Object) -> Result<Event, ApplyError> {
        let name = object.to_ref();
        let second_cluster = matches!(object, Object::Cluster(_)) && self.cluster().is_some();
        if second_cluster || self.meta(name).is_some() {
            return Err(ApplyError::Exists(name));
        }
        self.check_unique_name(&object)?;
        self.check_payloads(&object)?;
        *meta_mut(&mut object) = Meta { version: index, spec_version: index, created_at: at, updated_at: at };
        Ok(self.put(object))
    }

    fn update(
        &mut self,
        index: u64,
        at: Timestamp,
        mut object: Object,
        expected: u64,
    ) -> Result<Event, ApplyError> {
        let name = object.to_ref();
        let old = self.meta(name).ok_or(ApplyError::NotFound(name))?;
        if old.version != expected {
            return Err(ApplyError::Conflict(name));
        }
        self.check_unique_name(&object)?;
        self.check_payloads(&object)?;
        self.check_task_law(&object)?;
        let spec_version = if self.same_spec(&object) { old.spec_version } else { index };
        *meta_mut(&mut object) = Meta { version: index, spec_version, updated_at: at, ..old };
        Ok(self.put(object))
    }

    fn delete(&mut self, at: Timestamp, name: ObjectRef) -> Option<Event> {
        let kind = match name {
            ObjectRef::Cluster(id) => EventKind::Cluster(Some(self.clusters.remove(&id)?), None),
            ObjectRef::Node(id) => {
                let old = self.nodes.remove(&id)?;
                self.former_managers.note(&old, None, at);
                EventKind::Node(Some(old), None)
            }
            ObjectRef::Service(id) => {
                let old = self.services.remove(&id)?;
                self.service_names.remove(&old.spec.name);
                self.payloads.replace_user(Some(&old), None);
                EventKind::Service(Some(old), None)
            }
            ObjectRef::Task(id) => {
                let old = self.tasks.remove(&id)?;
                self.task_index.remove(&old);
                EventKind::Task(Some(old), None)
            }
            ObjectRef::Network(id) => {
                let old = self.networks.remove(&id)?;
                self.network_names.remove(&old.spec.name);
                EventKind::Network(Some(old), None)
            }
            ObjectRef::Dependency(id) => {
                let old = self.dependencies.remove(&id)?;
                self.dependency_names_mut(old.kind).remove(&old.spec.name);
                self.payloads.replace(Some(&old), None);
                EventKind::Dependency(Some(old), None)
            }
        };
        Some(Event { object: name, kind })
    }

    fn edit_node(
        &mut self,
        index: u64,
        at: Timestamp,
        id: NodeId,
        edit: impl FnOnce(&mut Node) -> bool,
    ) -> Option<Event> {
        let mut node = (**self.nodes.get(&id)?).clone();
        edit(&mut node).then(|| {
            node.meta.version = index;
            node.meta.updated_at = at;
            self.put(Object::Node(Box::new(node)))
        })
    }

    fn edit_task(
        &mut self,
        index: u64,
        at: Timestamp,
        id: TaskId,
        edit: impl FnOnce(&mut Task) -> bool,
    ) -> Option<Event> {
        let mut task = (**self.tasks.get(&id)?).clone();
        edit(&mut task).then(|| {
            task.meta.version = index;
            task.meta.updated_at = at;
            self.put(Object::Task(Box::new(task)))
        })
    }

    fn edit_service(
        &mut self,
        index: u64,
        at: Timestamp,
        id: ServiceId,
        edit: impl FnOnce(&mut Service) -> bool,
    ) -> Option<Event> {
        let mut service = (**self.services.get(&id)?).clone();
        edit(&mut service).then(|| {
            service.meta.version = index;
            service.meta.updated_at = at;
            self.put(Object::Service(Box::new(service)))
        })
    }

    pub(crate) fn put(&mut self, object: Object) -> Event {
        let name = object.to_ref();
        let kind = match object {
            Object::Cluster(o) => {
                let id = o.id;
                let old = self.clusters.put(id, *o);
                EventKind::Cluster(old, self.clusters.get(&id).cloned())
            }
            Object::Node(o) => {
                let id = o.id;
                if let Some(old) = self.nodes.get(&id) {
                    self.former_managers.note(old, Some(&o), o.meta.updated_at);
                }
                let old = self.nodes.put(id, *o);
                EventKind::Node(old, self.nodes.get(&id).cloned())
            }
            Object::Service(mut o) => {
                let id = o.id;
                self.share_specs(&mut o);
                let former = self.services.get(&id).map(|old| old.spec.name.as_str());
                self.service_names.put(former, &o.spec.name, id);
                self.payloads.replace_user(self.services.get(&id).map(|old| &**old), Some(&o));
                let old = self.services.put(id, *o);
                EventKind::Service(old, self.services.get(&id).cloned())
            }
            Object::Task(mut o) => {
                let id = o.id;
                self.share_spec(&mut o);
                match self.tasks.get(&id) {
                    Some(old) => self.task_index.replace(old, &o),
                    None => self.task_index.insert(&o),
                }
                let old = self.tasks.put(id, *o);
                EventKind::Task(old, self.tasks.get(&id).cloned())
            }
            Object::Network(o) => {
                let id = o.id;
                let former = self.networks.get(&id).map(|old| old.spec.name.as_str());
                self.network_names.put(former, &o.spec.name, id);
                let old = self.networks.put(id, *o);
                EventKind::Network(old, self.networks.get(&id).cloned())
            }
            Object::Dependency(o) => {
                let (id, kind) = (o.id, o.kind);
                let former = self.dependencies.get(&id).map(|old| old.spec.name.clone());
                self.dependency_names_mut(kind).put(former.as_deref(), &o.spec.name, id);
                self.payloads.replace(self.dependencies.get(&id).map(|old| &**old), Some(&o));
                let old = self.dependencies.put(id, *o);
                EventKind::Dependency(old, self.dependencies.get(&id).cloned())
            }
        };
        Event { object: name, kind }
    }

    fn dependency_names(&self, kind: DependencyKind) -> &Names<DependencyId> {
        match kind {
            DependencyKind::Secret => &self.secret_names,
            DependencyKind::Config => &self.config_names,
        }
    }

    fn dependency_names_mut(&mut self, kind: DependencyKind) -> &mut Names<DependencyId> {
        match kind {
            DependencyKind::Secret => &mut self.secret_names,
            DependencyKind::Config => &mut self.config_names,
        }
    }

    /// A service's tasks have its spec, or one of the few that it had: each is held once, however the task came here.
    fn share_spec(&self, task: &mut Task) {
        let before = self.tasks.get(&task.id).map(|old| &old.spec);
        let service = self.services.get(&task.service);
        let now = service.map(|service| &service.spec.task);
        let previous = service.and_then(|service| service.previous_spec.as_ref()).map(|spec| &spec.task);
        let version = task.spec_version;
        if before.into_iter().chain(now).chain(previous).any(|spec| task.spec.share(spec)) {
            return;
        }
        if let Some(alike) = self.tasks_of_service(task.service).find(|other| other.spec_version == version) {
            task.spec.share(&alike.spec);
        }
    }

    /// The same for a service that is written again.
    fn share_specs(&self, service: &mut Service) {
        let Some(old) = self.services.get(&service.id) else { return };
        service.spec.task.share(&old.spec.task);
        if let Some(previous) = &mut service.previous_spec
            && !previous.task.share(&old.spec.task)
            && let Some(before) = &old.previous_spec
        {
            previous.task.share(&before.task);
        }
    }

    fn meta(&self, name: ObjectRef) -> Option<Meta> {
        Some(match name {
            ObjectRef::Cluster(id) => self.clusters.get(&id)?.meta,
            ObjectRef::Node(id) => self.nodes.get(&id)?.meta,
            ObjectRef::Service(id) => self.services.get(&id)?.meta,
            ObjectRef::Task(id) => self.tasks.get(&id)?.meta,
            ObjectRef::Network(id) => self.networks.get(&id)?.meta,
            ObjectRef::Dependency(id) => self.dependencies.get(&id)?.meta,
        })
    }

    fn same_spec(&self, object: &Object) -> bool {
        match object {
            Object::Cluster(o) => self.clusters.get(&o.id).is_some_and(|old| old.spec == o.spec),
            Object::Node(o) => self.nodes.get(&o.id).is_some_and(|old| old.spec == o.spec),
            Object::Service(o) => self.services.get(&o.id).is_some_and(|old| old.spec == o.spec),
            Object::Task(o) => self.tasks.get(&o.id).is_some_and(|old| old.spec == o.spec),
            Object::Network(o) => self.networks.get(&o.id).is_some_and(|old| old.spec == o.spec),
            Object::Dependency(o) => self.dependencies.get(&o.id).is_some_and(|old| old.spec == o.spec),
        }
    }

    /// A task keeps its service, slot and node, and its states only grow: a writer who says otherwise looked at
    /// another task.
    fn check_task_law(&self, object: &Object) -> Result<(), ApplyError> {
        let Object::Task(new) = object else { return Ok(()) };
        let lawful = self.tasks.get(&new.id).is_none_or(|old| {
            new.status.state >= old.status.state
                && new.desired_state >= old.desired_state
                && new.drained >= old.drained
                && new.weight >= old.weight
                && (new.service, new.slot) == (old.service, old.slot)
                && (old.node.is_none() || new.node == old.node)
        });
        if lawful { Ok(()) } else { Err(ApplyError::Conflict(object.to_ref())) }
    }

    /// A service refers to what is there, and all that is there has its limit. What it referred to before is not asked for again.
    fn check_payloads(&self, object: &Object) -> Result<(), ApplyError> {
        match object {
            Object::Service(new) => {
                let old = self.services.get(&new.id);
                // A rollback is not refused: its tasks say what is missing.
                let specs =
                    || old.into_iter().flat_map(|old| [Some(&old.spec), old.previous_spec.as_deref()]);
                let had = |id| specs().flatten().flat_map(payloads::of).any(|known| known == id);
                let missing =
                    payloads::of(&new.spec).find(|id| self.dependencies.get(id).is_none() && !had(*id));
                missing.map_or(Ok(()), |id| Err(ApplyError::NotFound(ObjectRef::Dependency(id))))
            }
            Object::Dependency(new) if !self.has_room_for(new) => {
                // Labels of what is there can be changed all the same.
                let is_there = self.dependencies.get(&new.id).is_some();
                if is_there { Ok(()) } else { Err(ApplyError::NoRoom(object.to_ref())) }
            }
            _ => Ok(()),
        }
    }

    fn check_unique_name(&self, object: &Object) -> Result<(), ApplyError> {
        let (is_taken, name) = match object {
            Object::Service(o) => (self.service_names.is_taken(&o.spec.name, &o.id), &o.spec.name),
            Object::Network(o) => (self.network_names.is_taken(&o.spec.name, &o.id), &o.spec.name),
            Object::Dependency(o) => {
                (self.dependency_names(o.kind).is_taken(&o.spec.name, &o.id), &o.spec.name)
            }
            Object::Cluster(_) | Object::Node(_) | Object::Task(_) => return Ok(()),
        };
        if is_taken { Err(ApplyError::NameConflict(object.to_ref(), name.clone())) } else { Ok(()) }
    }
}

fn meta_mut(object: &mut Object) -> &mut Meta {
    match object {
        Object::Cluster(o) => &mut o.meta,
        Object::Node(o) => &mut o.meta,
        Object::Service(o) => &mut o.meta,
        Object::Task(o) => &mut o.meta,
        Object::Network(o) => &mut o.meta,
        Object::Dependency(o) => &mut o.meta,
    }
}
