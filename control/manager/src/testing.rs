//! What the tests of this crate share: a small cluster in a store without replication.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::object::{
    CaState, Cluster, Meta, Network, NodeDescription, NodeState, NodeStatus, Service,
};
use control_model::spec::{
    Availability, ClusterSpec, EndpointMode, EndpointSpec, NetworkAttachmentSpec, NetworkSpec, PortConfig,
    Protocol, PublishMode, Role, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};
use control_model::{Change, ClusterId, NetworkId, Node, NodeId, Object, ServiceId};
use control_store::{LocalStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::ca_server::new_node;
use crate::clock;

/// Longest time that anything in these tests may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn node_id(n: u8) -> NodeId {
    NodeId::from_bits(n.into())
}

/// A store with a cluster, its ingress network, and nodes 1…n that are ready.
pub fn store(n_nodes: u8) -> Arc<LocalStore> {
    let store = Arc::new(LocalStore::new(clock::now));
    let mut objects = vec![Object::Cluster(Box::new(cluster())), Object::Network(Box::new(ingress()))];
    objects.extend((1..=n_nodes).map(|n| Object::Node(Box::new(ready_node(n)))));
    store.commit(objects.into_iter().map(Change::Create).collect()).expect("distinct objects");
    store
}

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::from_bits(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        ca: CaState {
            root_cert: "root".into(),
            root_key: String::new(),
            worker_token: String::new(),
            manager_token: String::new(),
        },
        default_address_pool: vec!["10.0.0.0/8".parse().expect("a network")],
        subnet_size: 24,
        data_path_port: 4789,
        epoch: 0,
    }
}

fn ingress() -> Network {
    Network {
        id: NetworkId::from_bits(1),
        meta: Meta::default(),
        spec: NetworkSpec { name: "ingress".into(), ingress: true, ..NetworkSpec::default() },
        state: None,
        pending_delete: false,
    }
}

pub fn description(n: u8) -> NodeDescription {
    let addr = Ipv4Addr::new(198, 18, 0, n);
    NodeDescription {
        hostname: format!("node{n}"),
        data_path_addr: Some(addr),
        addresses: vec![IpAddr::V4(addr)],
        ..NodeDescription::default()
    }
}

fn ready_node(n: u8) -> Node {
    let status = NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() };
    let node = new_node(node_id(n), Role::Worker, Availability::Active);
    Node { status, description: description(n), ..node }
}

/// A service published on port 8080 in the ingress network.
pub fn service(replicas: u64) -> Service {
    let port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: 8080,
        mode: PublishMode::Ingress,
    };
    Service {
        id: ServiceId::from_bits(1),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: "web".into(),
            labels: control_model::spec::Labels::new(),
            task: TaskSpec { networks: Vec::<NetworkAttachmentSpec>::new(), ..TaskSpec::default() },
            mode: ServiceMode::Replicated { replicas },
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            has_update: false,
            has_rollback: false,
            endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: vec![port] },
        },
        previous_spec: None,
        previous_spec_version: 0,
        endpoint: None,
        update_status: None,
        pending_delete: false,
    }
}

/// A leadership that this manager always has.
pub fn leading() -> watch::Receiver<Leadership> {
    let (sender, receiver) = watch::channel(Leadership { leader: Some(1), term: 1, is_me: true });
    // Kept for the life of the process: dropping it would say that consensus has ended.
    std::mem::forget(sender);
    receiver
}

/// Returns the first state for which `holds`.
pub async fn wait_for(store: &LocalStore, what: &str, holds: impl Fn(&State) -> bool) -> Arc<State> {
    use control_store::ReplicatedStore;
    let (mut state, mut events) = store.subscribe();
    let waiting = async {
        while !holds(&state) {
            events.next().await.expect("the store lives");
            state = store.state();
        }
        state.clone()
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("timeout: {what}"))
}
