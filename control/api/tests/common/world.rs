//! The cluster that tests start from, and its leader.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use control_ca::{node_tls, root_digest};
use control_consensus::Leadership;
use control_manager::leader::Leader;
use control_manager::liveness::table::LivenessTable;
use control_manager::{clock, loops, root_rotation};
use control_model::authority::NodeTls;
use control_model::object::{
    CaState, Cluster, ManagerStatus, Network, Node, NodeDescription, NodeState, NodeStatus,
};
use control_model::spec::{Platform, Resources, Role};
use control_model::{Change, ClusterId, NetworkId, NodeId, Object};
use control_store::{LocalStore, ReplicatedStore as _};
use futures::StreamExt as _;

pub const MANAGER: NodeId = NodeId::from_bits(0x1111_1111_1111_1111_1111_1111_1111_1111);
pub const WORKER_1: NodeId = NodeId::from_bits(0x2222_2222_2222_2222_2222_2222_2222_2222);
pub const WORKER_2: NodeId = NodeId::from_bits(0x3333_3333_3333_3333_3333_3333_3333_3333);
pub const CLUSTER: ClusterId = ClusterId::from_bits(0x4444_4444_4444_4444_4444_4444_4444_4444);

/// A self-signed root (P-256, subject `CN=swarm-ca`), so that what is shown of it is real.
const ROOT: &str = include_str!("root.pem");

/// One manager and two workers, all ready, and the routing mesh's network.
pub fn store() -> Arc<LocalStore> {
    let store = Arc::new(LocalStore::new(clock::now));
    let objects = [
        Object::Cluster(Box::new(cluster())),
        Object::Network(Box::new(Network::ingress(NetworkId::from_bits(
            0x5555_5555_5555_5555_5555_5555_5555_5555,
        )))),
        Object::Node(Box::new(node(MANAGER, "m1", 11, Role::Manager))),
        Object::Node(Box::new(node(WORKER_1, "w1", 12, Role::Worker))),
        Object::Node(Box::new(node(WORKER_2, "w2", 13, Role::Worker))),
    ];
    store.commit(objects.into_iter().map(Change::Create).collect()).expect("distinct objects");
    store
}

fn cluster() -> Cluster {
    Cluster {
        ca: CaState {
            root_cert: ROOT.into(),
            worker_token: format!("SWMTKN-1-{}-{}", "a".repeat(50), "w".repeat(25)),
            manager_token: format!("SWMTKN-1-{}-{}", "a".repeat(50), "m".repeat(25)),
            ..CaState::default()
        },
        ..Cluster::new(CLUSTER)
    }
}

fn node(id: NodeId, hostname: &str, host: u8, role: Role) -> Node {
    let addr = Ipv4Addr::new(198, 18, 0, host);
    let manager = ManagerStatus { raft_id: host.into(), addr: (addr, 2377).into() };
    Node {
        description: NodeDescription {
            hostname: hostname.into(),
            platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
            resources: Resources { nano_cpus: 2_000_000_000, memory_bytes: 2 << 30 },
            engine_version: "0.1.0".into(),
            data_path_addr: Some(addr.into()),
            addresses: vec![IpAddr::V4(addr)],
            tls: node_tls("", ROOT),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            addr: Some(addr.into()),
            data_path_alive: true,
            ..NodeStatus::default()
        },
        manager: (role == Role::Manager).then_some(manager),
        ..Node::new(id, role)
    }
}

/// Runs the leader's loops over `store`.
pub async fn lead(store: Arc<LocalStore>, table: Arc<LivenessTable>) {
    let (_alive, leadership) =
        tokio::sync::watch::channel(Leadership { leader: Some(1), term: 1, is_me: true });
    let rotation = root_rotation::run(store.clone(), leadership.clone());
    let leader = Leader { store, leadership, table: table.clone(), loops: loops::all(table) }.run();
    tokio::join!(leader, rotation);
}

/// What nodes do about their certificates: each says, a little after the other, that it has what the cluster wants.
pub async fn renew(store: Arc<LocalStore>) {
    let (mut state, mut events) = store.subscribe();
    loop {
        if let Some(cluster) = state.cluster() {
            let trust_root = root_digest(&cluster.ca.root_cert);
            let tls = cluster.ca.issuer.map(|issuer| NodeTls { trust_root, issuer });
            let behind = |node: &&Arc<Node>| tls.is_some() && node.description.tls != tls;
            if let Some(node) = state.nodes().iter().find(behind) {
                let description = NodeDescription { tls, ..node.description.clone() };
                store
                    .commit(vec![Change::NodeDescription { id: node.id, description: Box::new(description) }])
                    .expect("a known node");
            }
        }
        (state, events) = match events.next().await {
            Some(_) => (store.state(), events),
            None => store.subscribe(),
        };
    }
}
