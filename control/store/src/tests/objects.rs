//! Small objects, told apart by a number.

use std::collections::BTreeMap;

use control_model::change::{Change, Entry, Object, RequestId};
use control_model::object::{
    CaState, Cluster, Meta, Network, Node, NodeDescription, NodeStatus, Service, Slot, Task, TaskStatus,
};
use control_model::spec::{
    ClusterSpec, EndpointMode, EndpointSpec, NetworkSpec, NodeSpec, Role, ServiceMode, ServiceSpec, TaskSpec,
    UpdateConfig,
};
use control_model::{ClusterId, NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};

pub(super) fn entry(request: u128, at: i64, changes: Vec<Change>) -> Entry {
    Entry { request: RequestId(request), at: Timestamp(at), changes }
}

pub(super) fn cluster(id: u128) -> Object {
    Object::Cluster(Box::new(Cluster {
        id: ClusterId::from_bits(id),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        ca: CaState {
            root_cert: String::new(),
            root_key: String::new(),
            worker_token: String::new(),
            manager_token: String::new(),
        },
        default_address_pool: Vec::new(),
        subnet_size: 24,
        data_path_port: 4789,
        epoch: 1,
    }))
}

pub(super) fn node(id: u128, name: &str) -> Object {
    Object::Node(Box::new(Node {
        id: NodeId::from_bits(id),
        meta: Meta::default(),
        spec: NodeSpec { name: name.to_owned(), ..NodeSpec::default() },
        description: NodeDescription::default(),
        status: NodeStatus::default(),
        manager: None,
        certificate_role: Role::Worker,
    }))
}

pub(super) fn service(id: u128, name: &str, replicas: u64) -> Object {
    let spec = ServiceSpec {
        name: name.to_owned(),
        labels: BTreeMap::default(),
        task: TaskSpec::default(),
        mode: ServiceMode::Replicated { replicas },
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        has_update: false,
        has_rollback: false,
        endpoint: EndpointSpec::default(),
    };
    Object::Service(Box::new(Service {
        id: ServiceId::from_bits(id),
        meta: Meta::default(),
        spec,
        previous_spec: None,
        previous_spec_version: 0,
        endpoint: None,
        update_status: None,
        pending_delete: false,
    }))
}

pub(super) fn network(id: u128, name: &str, ingress: bool) -> Object {
    Object::Network(Box::new(Network {
        id: NetworkId::from_bits(id),
        meta: Meta::default(),
        spec: NetworkSpec { name: name.to_owned(), ingress, ..NetworkSpec::default() },
        state: None,
        pending_delete: false,
    }))
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
        id: TaskId::from_bits(id),
        meta: Meta::default(),
        service: ServiceId::from_bits(place.service),
        service_name: String::new(),
        slot: Slot::Replica(place.slot),
        node: place.node.map(NodeId::from_bits),
        spec: TaskSpec::default(),
        spec_version: 0,
        endpoint_mode: EndpointMode::default(),
        ports: Vec::new(),
        attachments: Vec::new(),
        status: status(place.state, 0),
        desired_state: place.desired,
        drained: false,
    }))
}

pub(super) fn status(state: TaskState, at: i64) -> TaskStatus {
    TaskStatus { state, at: Timestamp(at), ..TaskStatus::default() }
}
