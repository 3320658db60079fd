//! Who may call what: every method of every service, by every kind of caller, over real TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_ca::{NodeKey, RootCa};
use control_consensus::{Consensus, Kek, Options};
use control_manager::{Manager, Senses, clock};
use control_model::object::{CaState, Cluster};
use control_model::spec::Role;
use control_model::{Change, ClusterId, Node, NodeId, Object, PeerIdentity, Timestamp};
use control_rpc::{Channels, Identity, IdentityPem, anonymous_channel, pb, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};

const CLUSTER: ClusterId = ClusterId::from_bits(99);
const PROTO: &str = include_str!("../../rpc/proto/mesh.proto");
/// Longest time for the first message of a stream that has nothing to say.
const LIMIT: Duration = Duration::from_millis(300);

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Anyone,
    Nodes,
    Managers,
}

/// Every method there is. One that is missing here fails the test.
const METHODS: &[(&str, Who)] = &[
    ("Raft/AppendEntries", Who::Managers),
    ("Raft/Vote", Who::Managers),
    ("Raft/PreVote", Who::Managers),
    ("Raft/InstallSnapshot", Who::Managers),
    ("Raft/TransferLeader", Who::Managers),
    ("Raft/Propose", Who::Managers),
    ("Raft/ReadIndex", Who::Managers),
    ("Raft/Misses", Who::Managers),
    ("Raft/Join", Who::Managers),
    ("Raft/Remove", Who::Managers),
    ("Raft/Forced", Who::Managers),
    ("Ca/GetRootCertificate", Who::Anyone),
    // Without a token it is a renewal, as this test calls it.
    ("Ca/IssueNodeCertificate", Who::Nodes),
    ("Ca/GetUnlockKey", Who::Managers),
    ("Dispatcher/Session", Who::Nodes),
    ("Dispatcher/Heartbeat", Who::Nodes),
    ("Dispatcher/Assignments", Who::Nodes),
    ("Dispatcher/UpdateTaskStatus", Who::Nodes),
    ("Dispatcher/Attach", Who::Nodes),
    ("Dispatcher/Detach", Who::Nodes),
    ("Dispatcher/ReportLiveness", Who::Managers),
    ("Dispatcher/Inspections", Who::Nodes),
    ("Dispatcher/Inspect", Who::Managers),
    ("Dispatcher/StreamAnswer", Who::Nodes),
    ("Dispatcher/InspectStream", Who::Managers),
];

/// The methods that `mesh.proto` names.
fn methods_of_proto() -> Vec<String> {
    let mut service = "";
    let mut found = Vec::new();
    for line in PROTO.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.trim_end_matches(" {");
        } else if let Some(rest) = line.strip_prefix("rpc ") {
            found.push(format!("{service}/{}", rest.split('(').next().unwrap_or_default()));
        }
    }
    found
}

/// One manager, node 1, of a cluster whose node 2 is a worker.
struct Rig {
    root: RootCa,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
    _manager: Manager,
}

impl Rig {
    async fn start() -> Self {
        let root = RootCa::generate(clock::now()).expect("made");
        let dir = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        let me = identity(&root, 1, Role::Manager, CLUSTER, Duration::from_hours(24));
        let channels = Channels::new(me.clone());
        let options = Options {
            dir: dir.path().join("raft"),
            raft_id: 1,
            node_id: NodeId::from_bits(1),
            addr,
            kek: Kek::new([7; 32]),
            channels: channels.clone(),
            clock: Arc::new(clock::now),
        };
        let ca = CaState {
            root_cert: root.cert_pem().to_owned(),
            root_key: root.key_pem(),
            worker_token: "w".into(),
            manager_token: "m".into(),
            ..CaState::default()
        };
        let objects = [
            Object::Cluster(Box::new(Cluster { ca, ..Cluster::new(CLUSTER) })),
            Object::Node(Box::new(Node::new(NodeId::from_bits(1), Role::Manager))),
            Object::Node(Box::new(Node::new(NodeId::from_bits(2), Role::Worker))),
        ];
        let consensus = Consensus::bootstrap(options, objects.into_iter().map(Change::Create).collect())
            .await
            .expect("a cluster");
        consensus.leadership().wait_for(|l| l.is_me).await.expect("it leads");
        let (_up, own_data_path) = watch::channel(true);
        let node = NodeId::from_bits(1);
        let senses = Senses { own_data_path, opinion: watch::channel(Arc::default()).1 };
        let manager = Manager::start(control_manager::Options { consensus, channels, me: node, senses });
        tokio::spawn(serve(listener, me, manager.routes(), std::future::pending()));
        Self { root, addr, _dir: dir, _manager: manager }
    }

    fn as_node(&self, id: u128, role: Role) -> Channel {
        let identity = identity(&self.root, id, role, CLUSTER, Duration::from_hours(24));
        Channels::new(identity).get(self.addr)
    }
}

/// A node's identity; one with no `life` left ran out an hour ago.
fn identity(root: &RootCa, id: u128, role: Role, cluster_id: ClusterId, life: Duration) -> Arc<Identity> {
    let key = NodeKey::generate().expect("made");
    let me = PeerIdentity { node_id: NodeId::from_bits(id), role, cluster_id };
    let now = clock::now();
    let (at, life) = if life.is_zero() {
        (Timestamp(now.0 - 2 * 3600 * 1_000_000_000), Duration::from_hours(1))
    } else {
        (now, life)
    };
    let certificate = root.issue(&key.csr_pem, me, at, life).expect("signed");
    let pem = IdentityPem { certificate, key: key.key_pem, roots: root.cert_pem().to_owned() };
    Identity::new(&pem).expect("an identity")
}

/// Calls with an empty message, and says how that was taken.
async fn call(channel: &Channel, method: &str) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if client.ready().await.is_err() {
        return Code::Unavailable;
    }
    let path = PathAndQuery::try_from(format!("/mesh.v1.{method}")).expect("a path");
    let codec = tonic_prost::ProstCodec::<pb::Empty, pb::Empty>::default();
    let request = Request::new(tokio_stream::iter([pb::Empty {}]));
    let answer = match client.streaming(request, path, codec).await {
        Ok(reply) => tokio::time::timeout(LIMIT, reply.into_inner().message()).await,
        Err(status) => Ok(Err(status)),
    };
    match answer {
        Ok(Err(status)) => status.code(),
        Ok(Ok(_)) | Err(_) => Code::Ok,
    }
}

async fn codes(channel: &Channel) -> BTreeMap<&'static str, Code> {
    let mut codes = BTreeMap::new();
    for (method, _) in METHODS {
        codes.insert(*method, call(channel, method).await);
    }
    codes
}

#[test]
fn the_table_names_every_method() {
    let named: Vec<String> = METHODS.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert_eq!(named, methods_of_proto());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_lets_in_whom_it_is_for() {
    let rig = Rig::start().await;
    let nobody = codes(&anonymous_channel(rig.addr, rig.root.cert_pem()).expect("a channel")).await;
    let worker = codes(&rig.as_node(2, Role::Worker)).await;
    let manager = codes(&rig.as_node(1, Role::Manager)).await;
    let refusals = [Code::Unauthenticated, Code::PermissionDenied];
    for (method, who) in METHODS {
        let expected = match who {
            Who::Anyone => [None, None, None],
            Who::Nodes => [Some(Code::Unauthenticated), None, None],
            Who::Managers => [Some(Code::Unauthenticated), Some(Code::PermissionDenied), None],
        };
        let got = [nobody[method], worker[method], manager[method]];
        let got = got.map(|code| refusals.contains(&code).then_some(code));
        assert_eq!(got, expected, "{method}: nobody, worker, manager");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_outlived_its_node_opens_nothing_of_a_managers() {
    let rig = Rig::start().await;
    // Node 2 was a manager once; node 3 was removed.
    for (id, refused) in [(2, Code::PermissionDenied), (3, Code::PermissionDenied)] {
        let codes = codes(&rig.as_node(id, Role::Manager)).await;
        for (method, _) in METHODS.iter().filter(|(_, who)| *who == Who::Managers) {
            // What needs nothing of the cluster looks at the message first.
            let looked_first = [Code::InvalidArgument, Code::NotFound];
            let code = codes[method];
            assert!(code == refused || looked_first.contains(&code), "{method} by node {id}: {code:?}");
        }
        assert_eq!(codes["Ca/GetUnlockKey"], if id == 2 { Code::PermissionDenied } else { Code::NotFound });
        assert_eq!(codes["Raft/ReadIndex"], Code::PermissionDenied);
        assert_eq!(codes["Raft/Propose"], Code::PermissionDenied);
        assert_eq!(codes["Dispatcher/ReportLiveness"], Code::PermissionDenied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_no_connection() {
    let rig = Rig::start().await;
    let foreign = RootCa::generate(clock::now()).expect("made");
    let day = Duration::from_hours(24);
    let other_cluster = identity(&rig.root, 1, Role::Manager, ClusterId::from_bits(98), day);
    let expired = identity(&rig.root, 1, Role::Manager, CLUSTER, Duration::ZERO);
    let foreign = identity(&foreign, 1, Role::Manager, CLUSTER, day);
    let strangers =
        [("another cluster's", other_cluster), ("an expired", expired), ("a foreign root's", foreign)];
    for (whose, identity) in strangers {
        let channel = Channels::new(identity).get(rig.addr);
        for (method, _) in METHODS {
            let code = call(&channel, method).await;
            assert!(
                matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled),
                "{whose} certificate: {method} {code:?}"
            );
        }
    }
}
