//! Objects with defaults.

use control_model::change::{Change, Object};
use control_model::object::{
    CaState, Cluster, Meta, Network, Node, NodeDescription, NodeState, NodeStatus, Service,
};
use control_model::spec::{
    ClusterSpec, ContainerSpec, EndpointSpec, Labels, NetworkSpec, NodeSpec, Platform, Resources, Role,
    ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};
use control_model::{ClusterId, NetworkId, NodeId, ServiceId};

/// The cluster object and its ingress network.
pub fn first_objects() -> Vec<Change> {
    let cluster = Cluster {
        id: ClusterId::from_bits(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        ca: CaState {
            root_cert: String::new(),
            root_key: String::new(),
            worker_token: String::new(),
            manager_token: String::new(),
        },
        default_address_pool: vec!["10.0.0.0/8".parse().expect("a subnet")],
        subnet_size: 24,
        data_path_port: 4789,
        epoch: 0,
    };
    let ingress = Network {
        id: NetworkId::from_bits(1),
        meta: Meta::default(),
        spec: NetworkSpec { name: "ingress".into(), ingress: true, ..NetworkSpec::default() },
        state: None,
        pending_delete: false,
    };
    vec![
        Change::Create(Object::Cluster(Box::new(cluster))),
        Change::Create(Object::Network(Box::new(ingress))),
    ]
}

/// A ready, active worker with 4 CPUs and 8 GiB.
pub fn zero_node(id: NodeId, name: &str) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: name.into(),
            platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
            resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() },
        manager: None,
        certificate_role: Role::Worker,
    }
}

/// One replica, Docker's defaults.
pub fn new_service(id: ServiceId, name: &str) -> Service {
    let container = ContainerSpec { image: "v1".into(), ..ContainerSpec::default() };
    Service {
        id,
        meta: Meta::default(),
        spec: ServiceSpec {
            name: name.into(),
            labels: Labels::new(),
            task: TaskSpec { container, ..TaskSpec::default() },
            mode: ServiceMode::Replicated { replicas: 1 },
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            has_update: false,
            has_rollback: false,
            endpoint: EndpointSpec::default(),
        },
        previous_spec: None,
        previous_spec_version: 0,
        endpoint: None,
        update_status: None,
        pending_delete: false,
    }
}
