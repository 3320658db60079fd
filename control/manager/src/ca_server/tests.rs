use control_ca::{Certificate, JoinToken, NodeKey};
use control_model::object::{CaState, ManagerStatus};
use control_model::spec::{NodeSpec, Role};
use control_model::{ClusterId, ObjectRef};
use control_store::{EventReceiver, LocalStore};
use tonic::Code;

use super::*;

/// A server over a store with a cluster, and the cluster's two tokens.
fn server() -> (Arc<LocalStore>, CaServer, String, String) {
    let store = Arc::new(LocalStore::new(clock::now));
    let root = RootCa::generate(clock::now()).expect("a root");
    let token = |secret| JoinToken::new(root.cert_pem(), secret).to_string();
    let (worker_token, manager_token) = (token(1), token(2));
    let cluster = Cluster {
        ca: CaState {
            root_cert: root.cert_pem().to_owned(),
            root_key: root.key_pem(),
            worker_token: worker_token.clone(),
            manager_token: manager_token.clone(),
        },
        ..Cluster::new(ClusterId::from_bits(1))
    };
    store.commit(vec![Change::Create(Object::Cluster(Box::new(cluster)))]).expect("an empty store");
    let server = CaServer::new(store.clone());
    (store, server, worker_token, manager_token)
}

fn csr() -> String {
    NodeKey::generate().expect("a key").csr_pem
}

#[tokio::test]
async fn a_token_makes_a_node_in_its_role() {
    let (store, server, worker, manager) = server();
    for (token, role) in [(worker, Role::Worker), (manager, Role::Manager)] {
        let issued = server.join(&csr(), &token, Availability::Drain, None).await.expect("joined");
        let certificate =
            Certificate::verify(&issued.certificate_pem, &issued.root_pem, clock::now()).expect("valid");
        assert_eq!(certificate.identity, issued.identity);
        assert_eq!(certificate.identity.role, role);
        let state = store.state();
        let node = state.nodes().get(&issued.identity.node_id).expect("a node was made");
        assert_eq!((node.spec.role, node.spec.availability), (role, Availability::Drain));
    }
}

#[tokio::test]
async fn a_node_whose_tunnels_would_be_of_another_family_is_refused() {
    let (store, server, worker, _) = server();
    let [v4, v6] = ["198.18.0.11", "fd00::11"].map(|text| Some(text.parse().expect("an address")));
    for (first, second) in [(v6, v4), (v4, v6)] {
        let mut node = Node::new(NodeId::from_bits(7), Role::Worker);
        node.description.data_path_addr = first;
        store.commit(vec![Change::Create(Object::Node(Box::new(node)))]).expect("a node");
        let error = server.join(&csr(), &worker, Availability::Active, second).await.expect_err("refused");
        assert_eq!(error.code(), Code::FailedPrecondition);
        let [family, other] = if first == v4 { ["an IPv4", "198.18.0.11"] } else { ["an IPv6", "fd00::11"] };
        assert!(error.message().contains(family) && error.message().contains(other), "{error}");
        let joined = server.join(&csr(), &worker, Availability::Active, first).await.expect("joined");
        for id in [joined.identity.node_id, NodeId::from_bits(7)] {
            store.commit(vec![Change::Delete(ObjectRef::Node(id))]).expect("the node was there");
        }
    }
}

#[tokio::test]
async fn a_wrong_token_or_request_makes_no_node() {
    let (store, server, worker, _) = server();
    let error = server.join(&csr(), "SWMTKN-1-x-y", Availability::Active, None).await.expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.message(), "A valid join token is necessary to join this cluster");
    let error = server.join("no request", &worker, Availability::Active, None).await.expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(store.state().nodes().is_empty());
}

#[tokio::test]
async fn a_renewal_follows_the_wanted_role_but_a_raft_member_stays_manager() {
    let (store, server, worker, _) = server();
    let me = server.join(&csr(), &worker, Availability::Active, None).await.expect("joined").identity;
    let want = |role, manager| {
        let node = store.state().nodes().get(&me.node_id).expect("joined").clone();
        let object = Node { spec: NodeSpec { role, ..node.spec.clone() }, manager, ..(*node).clone() };
        let change = Change::Update { object: Object::Node(Box::new(object)), expected: node.meta.version };
        store.commit(vec![change]).expect("current version");
    };
    want(Role::Manager, None);
    assert_eq!(server.renew(&csr(), me).await.expect("renewed").identity.role, Role::Manager);
    assert_eq!(store.state().nodes().get(&me.node_id).expect("there").certificate_role, Role::Manager);
    let member = ManagerStatus { raft_id: 7, addr: "127.0.0.1:2377".parse().expect("an address") };
    want(Role::Worker, Some(member));
    assert_eq!(server.renew(&csr(), me).await.expect("renewed").identity.role, Role::Manager);
    want(Role::Worker, None);
    assert_eq!(server.renew(&csr(), me).await.expect("renewed").identity.role, Role::Worker);
}

#[tokio::test]
async fn a_removed_node_gets_no_certificate() {
    let (store, server, worker, _) = server();
    let me = server.join(&csr(), &worker, Availability::Active, None).await.expect("joined").identity;
    store.commit(vec![Change::Delete(ObjectRef::Node(me.node_id))]).expect("deletes");
    assert_eq!(server.renew(&csr(), me).await.expect_err("refused").code(), Code::NotFound);
}

/// A replica that is one write behind until it is made to catch up.
struct Behind {
    inner: Arc<LocalStore>,
    missing: Change,
}

#[async_trait::async_trait]
impl ReplicatedStore for Behind {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        self.inner.propose(changes).await
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        self.inner.commit(vec![self.missing.clone()]).expect("current version");
        Ok(())
    }

    fn state(&self) -> Arc<State> {
        self.inner.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.inner.subscribe()
    }
}

#[tokio::test]
async fn a_token_that_was_rotated_away_makes_no_node_on_a_replica_that_is_behind() {
    let (store, _, worker, manager) = server();
    let cluster = store.state().cluster().expect("made").clone();
    let mut rotated = (*cluster).clone();
    rotated.ca.worker_token = manager;
    let missing =
        Change::Update { object: Object::Cluster(Box::new(rotated)), expected: cluster.meta.version };
    let server = CaServer::new(Arc::new(Behind { inner: store.clone(), missing }));
    let error = server.join(&csr(), &worker, Availability::Active, None).await.expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(store.state().nodes().is_empty());
}
