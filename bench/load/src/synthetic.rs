//! States of clusters that are larger than any that runs here: nodes, services and tasks as the store holds them.

use anyhow::Result;
use control_model::change::{Change, Entry, Object, RequestId};
use control_model::object::{Node, NodeDescription, NodeState, NodeStatus, Service, Slot, Task, TaskStatus};
use control_model::spec::{ContainerSpec, Resources, Role, ServiceMode, ServiceSpec, TaskSpec};
use control_model::{NodeId, ServiceId, TaskId, TaskState, Timestamp};
use control_store::{Event, State};

/// How much there is of each.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "`n_` marks counts")]
pub struct Extent {
    pub n_nodes: u64,
    pub n_services: u64,
    pub n_tasks_each: u64,
}

impl Extent {
    pub fn n_tasks(self) -> usize {
        usize::try_from(self.n_services * self.n_tasks_each).expect("they fit in memory")
    }
}

/// Applies one write, and says what happened.
pub fn apply(state: &mut State, changes: Vec<Change>) -> Result<Vec<Event>> {
    let index = state.index() + 1;
    let entry = Entry { request: RequestId(u128::from(index)), at: Timestamp(1), changes };
    Ok(state.apply(index, &entry)?)
}

/// Workers that are ready, with room for all.
pub fn nodes(extent: Extent) -> Vec<Change> {
    let node = |number| Node {
        description: NodeDescription {
            hostname: format!("node-{number}"),
            resources: Resources { nano_cpus: 64_000_000_000, memory_bytes: 1 << 38 },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        ..Node::new(node_id(number), Role::Worker)
    };
    (0..extent.n_nodes).map(|number| Change::Create(Object::Node(Box::new(node(number))))).collect()
}

/// What tasks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// They wait for a node.
    Wait,
    /// They run, on the nodes in turn.
    Run,
}

/// Writes services with all their tasks, which are up to date, and says what happened.
pub fn add_services(state: &mut State, extent: Extent, doing: Doing) -> Result<Vec<Event>> {
    let mut changes = Vec::new();
    // The version of a service is the place of its write in the log.
    let version = state.index() + 1;
    for number in 0..extent.n_services {
        let service = service(number, extent.n_tasks_each);
        for slot in 1..=extent.n_tasks_each {
            let place = number * extent.n_tasks_each + slot - 1;
            let node = (doing == Doing::Run).then(|| node_id(place % extent.n_nodes));
            let task = Task { spec_version: version, ..task(&service, slot, node) };
            changes.push(Change::Create(Object::Task(Box::new(task))));
        }
        changes.push(Change::Create(Object::Service(Box::new(service))));
    }
    apply(state, changes)
}

/// A service as a user makes it.
pub fn service(number: u64, n_replicas: u64) -> Service {
    let container = ContainerSpec { image: "registry.example/web:1.2.3".into(), ..ContainerSpec::default() };
    let spec = ServiceSpec {
        name: format!("service-{number}"),
        task: TaskSpec { container, ..TaskSpec::default() }.into(),
        mode: ServiceMode::Replicated { replicas: n_replicas },
        ..ServiceSpec::default()
    };
    Service::new(ServiceId::from_bits(u128::from(number) + 1), spec)
}

fn task(service: &Service, slot: u64, node: Option<NodeId>) -> Task {
    let id = TaskId::from_bits(service.id.bits() << 64 | u128::from(slot));
    let state = if node.is_some() { TaskState::Running } else { TaskState::Pending };
    Task {
        service_name: service.spec.name.clone(),
        node,
        spec: service.spec.task.clone(),
        status: TaskStatus { state, ..TaskStatus::default() },
        ..Task::new(id, service.id, Slot::Replica(slot))
    }
}

fn node_id(number: u64) -> NodeId {
    NodeId::from_bits(u128::from(number) + 1)
}
