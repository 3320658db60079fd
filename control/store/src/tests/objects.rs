//! Small objects, told apart by a number.

use control_model::change::{Change, Entry, Object, RequestId};
use control_model::dependency::{DependencySpec, Payload};
use control_model::object::{Cluster, Network, Node, Service, Slot, Task, TaskStatus};
use control_model::slow_start::FIRST_WEIGHT;
use control_model::spec::{NetworkSpec, NodeSpec, Role, ServiceMode, ServiceSpec};
use control_model::{
    ClusterId, Dependency, DependencyId, DependencyKind, NetworkId, NodeId, ServiceId, TaskId, TaskState,
    Timestamp,
};

pub(super) fn entry(request: u128, at: i64, changes: Vec<Change>) -> Entry {
    Entry { request: RequestId(request), at: Timestamp(at), changes }
}

pub(super) fn cluster(id: u128) -> Object {
    Object::Cluster(Box::new(Cluster { epoch: 1, ..Cluster::new(ClusterId::from_bits(id)) }))
}

pub(super) fn node(id: u128, name: &str) -> Object {
    Object::Node(Box::new(Node {
        spec: NodeSpec { name: name.to_owned(), ..NodeSpec::default() },
        ..Node::new(NodeId::from_bits(id), Role::Worker)
    }))
}

pub(super) fn service(id: u128, name: &str, replicas: u64) -> Object {
    let spec = ServiceSpec {
        name: name.to_owned(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    Object::Service(Box::new(Service::new(ServiceId::from_bits(id), spec)))
}

pub(super) fn network(id: u128, name: &str, ingress: bool) -> Object {
    Object::Network(Box::new(Network::new(
        NetworkId::from_bits(id),
        NetworkSpec { name: name.to_owned(), ingress, ..NetworkSpec::default() },
    )))
}

/// A secret if `id` is even, else a config.
pub(super) fn dependency(id: u128, name: &str, data: u8) -> Object {
    let kind = DependencyKind::ALL[usize::from(!id.is_multiple_of(2))];
    let spec =
        DependencySpec { name: name.to_owned(), data: Payload(vec![data]), ..DependencySpec::default() };
    Object::Dependency(Box::new(Dependency::new(DependencyId::from_bits(id), kind, spec)))
}

/// Where a task is, and how far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) service: u128,
    pub(super) slot: u64,
    pub(super) node: Option<u128>,
    pub(super) state: TaskState,
    pub(super) desired: TaskState,
}

pub(super) fn task(id: u128, place: Place) -> Object {
    Object::Task(Box::new(Task {
        node: place.node.map(NodeId::from_bits),
        status: status(place.state, 0),
        desired_state: place.desired,
        weight: FIRST_WEIGHT,
        ..Task::new(TaskId::from_bits(id), ServiceId::from_bits(place.service), Slot::Replica(place.slot))
    }))
}

pub(super) fn status(state: TaskState, at: i64) -> TaskStatus {
    TaskStatus { state, at: Timestamp(at), ..TaskStatus::default() }
}
