//! What the tests of this crate share: a small cluster in a store without replication.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::object::{CaState, Cluster, Network, NodeDescription, NodeState, NodeStatus, Service};
use control_model::spec::{
    EndpointMode, EndpointSpec, PortConfig, Protocol, PublishMode, Role, ServiceMode, ServiceSpec,
};
use control_model::{Change, ClusterId, NetworkId, Node, NodeId, Object, ServiceId};
use control_store::{LocalStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::clock;

/// Longest time that anything in these tests may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn node_id(n: u8) -> NodeId {
    NodeId::from_bits(n.into())
}

/// A store with a cluster, its ingress network, and nodes 1…n that are ready.
pub fn store(n_nodes: u8) -> Arc<LocalStore> {
    let store = Arc::new(LocalStore::new(clock::now));
    let mut objects = vec![
        Object::Cluster(Box::new(cluster())),
        Object::Network(Box::new(Network::ingress(NetworkId::from_bits(1)))),
    ];
    objects.extend((1..=n_nodes).map(|n| Object::Node(Box::new(ready_node(n)))));
    store.commit(objects.into_iter().map(Change::Create).collect()).expect("distinct objects");
    store
}

fn cluster() -> Cluster {
    Cluster {
        ca: CaState { root_cert: "root".into(), ..CaState::default() },
        ..Cluster::new(ClusterId::from_bits(1))
    }
}

pub fn description(n: u8) -> NodeDescription {
    let addr = Ipv4Addr::new(198, 18, 0, n);
    NodeDescription {
        hostname: format!("node{n}"),
        data_path_addr: Some(addr.into()),
        addresses: vec![IpAddr::V4(addr)],
        ..NodeDescription::default()
    }
}

fn ready_node(n: u8) -> Node {
    let status = NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() };
    Node { status, description: description(n), ..Node::new(node_id(n), Role::Worker) }
}

/// A service published on port 8080 in the ingress network.
pub fn service(replicas: u64) -> Service {
    let port = PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Ingress);
    Service::new(
        ServiceId::from_bits(1),
        ServiceSpec {
            name: "web".into(),
            mode: ServiceMode::Replicated { replicas },
            endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: vec![port] },
            ..ServiceSpec::default()
        },
    )
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
