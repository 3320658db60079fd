//! What the scheduler knows of a node: its tasks, what they hold, and how often services failed there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_model::generic::{GenericRequests, GenericResources, claim};
use control_model::object::Node;
use control_model::spec::{Protocol, PublishMode, Resources};
use control_model::{ServiceId, Task, TaskId, TaskState, Timestamp};

/// So many failures within [`FAILURE_WINDOW`] put a node last for the service (swarmkit `scheduler.go`).
pub(crate) const MAX_FAILURES: usize = 5;
/// How long a failure counts.
const FAILURE_WINDOW: Duration = Duration::from_mins(5);

/// A service at one spec version: its tasks are alike.
pub(crate) type GroupKey = (ServiceId, u64);

/// A node and what is on it.
#[derive(Debug, Clone)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    tasks: BTreeMap<TaskId, Held>,
    reserved: Resources,
    n_active: usize,
    n_active_of: BTreeMap<ServiceId, usize>,
    host_ports: BTreeMap<(Protocol, u16), usize>,
    failures: BTreeMap<GroupKey, Vec<Timestamp>>,
}

/// What a task holds on its node until it has ended.
#[derive(Debug, Clone)]
struct Held {
    service: ServiceId,
    reserved: Resources,
    generic: GenericResources,
    host_ports: Vec<(Protocol, u16)>,
    /// It is wanted: it counts for spreading.
    active: bool,
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            tasks: BTreeMap::new(),
            reserved: Resources::default(),
            n_active: 0,
            n_active_of: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Adds a task or takes in its new desired state.
    pub(crate) fn put(&mut self, task: &Task) {
        self.remove(task.id);
        self.add(task);
    }

    /// Adds a task that is not here.
    pub(crate) fn add(&mut self, task: &Task) {
        let held = Held {
            service: task.service,
            reserved: task.spec.resources.reservations,
            generic: task.generic.clone(),
            host_ports: host_ports(task).collect(),
            active: task.desired_state <= TaskState::Complete,
        };
        self.reserved.nano_cpus = self.reserved.nano_cpus.saturating_add(held.reserved.nano_cpus);
        self.reserved.memory_bytes = self.reserved.memory_bytes.saturating_add(held.reserved.memory_bytes);
        for port in &held.host_ports {
            *self.host_ports.entry(*port).or_default() += 1;
        }
        if held.active {
            self.n_active += 1;
            *self.n_active_of.entry(held.service).or_default() += 1;
        }
        self.tasks.insert(task.id, held);
    }

    /// Removes a task; whether it was here.
    pub(crate) fn remove(&mut self, task: TaskId) -> bool {
        let Some(held) = self.tasks.remove(&task) else { return false };
        self.reserved.nano_cpus = self.reserved.nano_cpus.saturating_sub(held.reserved.nano_cpus);
        self.reserved.memory_bytes = self.reserved.memory_bytes.saturating_sub(held.reserved.memory_bytes);
        for port in &held.host_ports {
            decrement(&mut self.host_ports, port);
        }
        if held.active {
            self.n_active -= 1;
            decrement(&mut self.n_active_of, &held.service);
        }
        true
    }

    pub(crate) fn n_active(&self) -> usize {
        self.n_active
    }

    pub(crate) fn n_active_of(&self, service: ServiceId) -> usize {
        self.n_active_of.get(&service).copied().unwrap_or(0)
    }

    /// What no task has reserved; negative where more was promised than the node has now.
    pub(crate) fn available(&self) -> Resources {
        let total = self.node.description.resources;
        Resources {
            nano_cpus: total.nano_cpus.saturating_sub(self.reserved.nano_cpus),
            memory_bytes: total.memory_bytes.saturating_sub(self.reserved.memory_bytes),
        }
    }

    /// What a task with these requests would get here; `None` if there is not enough.
    pub(crate) fn claim(&self, asked: &GenericRequests) -> Option<GenericResources> {
        // Most tasks ask for nothing: nobody's is counted for them.
        if asked.is_empty() {
            return Some(GenericResources::new());
        }
        let held: Vec<_> = self.tasks.values().map(|held| &held.generic).collect();
        claim(asked, &self.node.description.generic, &held)
    }

    pub(crate) fn has_host_port(&self, port: (Protocol, u16)) -> bool {
        self.host_ports.contains_key(&port)
    }

    /// Notes that a task of `group` failed here.
    pub(crate) fn note_failure(&mut self, group: GroupKey, now: Timestamp) {
        self.failures.retain(|_, times| times.iter().any(|at| now.since(*at) < FAILURE_WINDOW));
        let times = self.failures.entry(group).or_default();
        times.retain(|at| now.since(*at) < FAILURE_WINDOW);
        times.push(now);
    }

    pub(crate) fn n_recent_failures(&self, group: GroupKey, now: Timestamp) -> usize {
        self.failures
            .get(&group)
            .map_or(0, |times| times.iter().filter(|at| now.since(**at) < FAILURE_WINDOW).count())
    }
}

/// The ports that the task publishes on its own node.
pub(crate) fn host_ports(task: &Task) -> impl Iterator<Item = (Protocol, u16)> {
    let ports = task.ports.iter().filter(|port| port.mode == PublishMode::Host && port.published != 0);
    ports.map(|port| (port.protocol, port.published))
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
