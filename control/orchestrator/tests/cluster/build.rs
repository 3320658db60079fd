//! Objects with defaults.

use control_model::change::{Change, Object};
use control_model::object::{Cluster, Network, Node, NodeDescription, NodeState, NodeStatus, Service};
use control_model::spec::{ContainerSpec, Platform, Resources, Role, ServiceSpec, TaskSpec};
use control_model::{ClusterId, NetworkId, NodeId, ServiceId};

/// The cluster object and its ingress network.
pub fn first_objects() -> Vec<Change> {
    let cluster = Cluster::new(ClusterId::from_bits(1));
    let ingress = Network::ingress(NetworkId::from_bits(1));
    vec![
        Change::Create(Object::Cluster(Box::new(cluster))),
        Change::Create(Object::Network(Box::new(ingress))),
    ]
}

/// A ready, active worker with 4 CPUs and 8 GiB.
pub fn zero_node(id: NodeId, name: &str) -> Node {
    Node {
        description: NodeDescription {
            hostname: name.into(),
            platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
            resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() },
        ..Node::new(id, Role::Worker)
    }
}

/// One replica, Docker's defaults.
pub fn new_service(id: ServiceId, name: &str) -> Service {
    let container = ContainerSpec { image: "v1".into(), ..ContainerSpec::default() };
    Service::new(
        id,
        ServiceSpec {
            name: name.into(),
            task: TaskSpec { container, ..TaskSpec::default() }.into(),
            ..ServiceSpec::default()
        },
    )
}
