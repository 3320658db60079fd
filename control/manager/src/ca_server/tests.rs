use std::collections::BTreeMap;
use std::time::Duration;

use control_ca::{Certificate, JoinToken, NodeKey, prove_former};
use control_model::object::{CaState, ManagerStatus};
use control_model::spec::{NodeSpec, Role};
use control_model::{ClusterId, ObjectRef, Timestamp};
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
            ..CaState::default()
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

#[tokio::test]
async fn a_member_whose_certificate_ran_out_comes_back_as_itself() {
    let (store, server, worker_token, manager_token) = server();
    let cluster = store.state().cluster().expect("made").clone();
    let root = RootCa::from_pem(&cluster.ca.root_cert, &cluster.ca.root_key).expect("a root");
    let long_ago = Timestamp(clock::now().0 - 100 * 24 * 3600 * 1_000_000_000);
    let expired = |me: PeerIdentity| {
        let key = NodeKey::generate().expect("a key");
        let certificate = root.issue(&key.csr_pem, me, long_ago, Duration::from_hours(1)).expect("signed");
        (key, certificate)
    };
    let ask = async |me, token: &str| {
        let (former, certificate) = expired(me);
        let csr = csr();
        let proof = prove_former(&former.key_pem, &csr).expect("signed");
        server.come_back(&csr, token, (&certificate, &proof)).await
    };
    let join = async |token: &str| {
        server.join(&csr(), token, Availability::Active, None).await.expect("joined").identity
    };

    let worker = join(&worker_token).await;
    for token in [&worker_token, &manager_token] {
        let issued = ask(worker, token).await.expect("back");
        let certificate =
            Certificate::verify(&issued.certificate_pem, &issued.root_pem, clock::now()).expect("valid");
        assert_eq!(certificate.identity, worker, "a token gives no other role to who is a member");
    }
    let manager = join(&manager_token).await;
    assert_eq!(ask(manager, &worker_token).await.expect_err("refused").code(), Code::PermissionDenied);
    assert_eq!(ask(manager, &manager_token).await.expect("back").identity, manager);
    assert_eq!(store.state().nodes().len(), 2, "no node was made");

    let refused = ask(worker, "SWMTKN-1-x-y").await.expect_err("refused");
    assert_eq!(refused.message(), "A valid join token is necessary to join this cluster");
    let (_, certificate) = expired(worker);
    let refused = server.come_back(&csr(), &worker_token, (&certificate, &csr())).await;
    assert_eq!(refused.expect_err("no proof").code(), Code::PermissionDenied);
    store.commit(vec![Change::Delete(ObjectRef::Node(worker.node_id))]).expect("deletes");
    assert_eq!(ask(worker, &worker_token).await.expect_err("refused").code(), Code::NotFound);
}

#[tokio::test]
async fn a_manager_gives_itself_a_certificate_while_it_is_one() {
    let (store, server, worker, manager) = server();
    let join = async |token: &str| {
        server.join(&csr(), token, Availability::Active, None).await.expect("joined").identity
    };
    let [worker, manager] = [join(&worker).await, join(&manager).await];
    assert_eq!(server.renew_own(&csr(), manager).expect("signed").identity, manager);
    assert_eq!(server.renew_own(&csr(), worker).expect_err("refused").code(), Code::PermissionDenied);
    store.commit(vec![Change::Delete(ObjectRef::Node(manager.node_id))]).expect("deletes");
    assert_eq!(server.renew_own(&csr(), manager).expect_err("refused").code(), Code::NotFound);
}

#[tokio::test]
async fn the_unlock_key_is_for_those_who_are_to_be_managers() {
    let (store, server, worker, manager) = server();
    let cluster = store.state().cluster().expect("made").clone();
    let mut locked = (*cluster).clone();
    locked.ca.unlock_key = Some(UnlockKey([7; 32]));
    let object = Object::Cluster(Box::new(locked));
    store.commit(vec![Change::Update { object, expected: cluster.meta.version }]).expect("current version");
    let version = store.state().cluster().expect("made").meta.version;

    let join =
        async |token: &str| server.join(&csr(), token, Availability::Active, None).await.expect("joined");
    let [worker, manager] = [join(&worker).await.identity.node_id, join(&manager).await.identity.node_id];
    assert_eq!(server.unlock_key(manager).await.expect("told"), (Some(UnlockKey([7; 32])), version));
    assert_eq!(server.unlock_key(worker).await.expect_err("refused").code(), Code::PermissionDenied);
    store.commit(vec![Change::Delete(ObjectRef::Node(manager))]).expect("deletes");
    assert_eq!(server.unlock_key(manager).await.expect_err("refused").code(), Code::NotFound);
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

/// A replica that can't ask anybody.
struct Alone(Arc<LocalStore>);

#[async_trait::async_trait]
impl ReplicatedStore for Alone {
    async fn propose(&self, _: Vec<Change>) -> Result<u64, ProposeError> {
        panic!("nothing is written")
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Err(ReadError::NoLeader("asked".to_owned()))
    }

    fn state(&self) -> Arc<State> {
        self.0.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn what_can_be_no_token_is_refused_before_anybody_is_asked_and_guesses_are_asked_of_at_a_rate() {
    let (store, _, worker, _) = server();
    let server = CaServer::new(Arc::new(Alone(store.clone())));
    let join = async |token: &str| {
        server.join(&csr(), token, Availability::Active, None).await.expect_err("refused")
    };
    let foreign = JoinToken::new(RootCa::generate(clock::now()).expect("a root").cert_pem(), 1).to_string();
    for token in ["", "SWMTKN-1-x-y", &foreign] {
        let error = join(token).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{token}");
        assert_eq!(error.message(), "A valid join token is necessary to join this cluster");
        let error =
            server.come_back(&csr(), token, ("no certificate", "no proof")).await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{token}");
    }
    assert_eq!(join(&worker).await.message(), "asked");
    let root = store.state().cluster().expect("made").ca.root_cert.clone();
    let mut codes = BTreeMap::<String, usize>::new();
    for secret in 100..200 {
        let error = join(&JoinToken::new(&root, secret).to_string()).await;
        *codes.entry(format!("{:?}", error.code())).or_default() += 1;
    }
    let asked = codes["Unavailable"];
    assert!((50..90).contains(&asked), "{codes:?}");
    assert_eq!(codes["ResourceExhausted"], 100 - asked);
    assert_eq!(join(&worker).await.message(), "asked", "who has a token is not kept out");
}

#[tokio::test]
async fn certificates_are_renewed_at_a_rate_of_each_node() {
    let (_, server, worker, _) = server();
    let join =
        async || server.join(&csr(), &worker, Availability::Active, None).await.expect("joined").identity;
    let (greedy, other) = (join().await, join().await);
    let renew = async |peer| {
        let mut request = Request::new(pb::IssueRequest { csr_pem: csr(), ..Default::default() });
        let remote = "127.0.0.1:1".parse().expect("an address");
        let info = control_rpc::ConnectInfo { remote, peer: Some(peer), issued: clock::now() };
        request.extensions_mut().insert(info);
        server.issue_node_certificate(request).await.map_err(|error| error.code())
    };
    for _ in 0..30 {
        renew(greedy).await.expect("renewed");
    }
    assert_eq!(renew(greedy).await.expect_err("too many"), Code::ResourceExhausted);
    assert_eq!(server.trust.n_refused()[2].1, 1);
    renew(other).await.expect("renewed");
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
