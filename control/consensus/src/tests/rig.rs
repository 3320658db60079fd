//! Clusters in one process: real TLS on loopback, real files.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_ca::{JoinToken, NodeKey, RootCa};
use control_model::change::{Change, Object};
use control_model::object::{CaState, Cluster, Node};
use control_model::spec::Role;
use control_model::{ClusterId, NodeId, PeerIdentity, Timestamp};
use control_rpc::{Channels, Identity, IdentityPem};
use control_store::{ReplicatedStore as _, State};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Consensus, Kek, OpenError, Options};

pub(super) const CLUSTER: ClusterId = ClusterId::from_bits(99);
/// More than any step takes on a machine that stalls.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

/// The certificate authority of a test.
pub(super) struct Authority(RootCa);

impl Authority {
    pub(super) fn new() -> Self {
        Self(RootCa::generate(now()).unwrap())
    }

    pub(super) fn root(&self) -> &str {
        self.0.cert_pem()
    }

    pub(super) fn identity(&self, peer: PeerIdentity) -> Arc<Identity> {
        self.identity_until(peer, now(), Duration::from_hours(24))
    }

    /// An identity that was given at `at` for `life`.
    pub(super) fn identity_until(&self, peer: PeerIdentity, at: Timestamp, life: Duration) -> Arc<Identity> {
        let key = NodeKey::generate().unwrap();
        let certificate = self.0.issue(&key.csr_pem, peer, at, life).unwrap();
        Identity::new(&IdentityPem { certificate, key: key.key_pem, roots: self.root().to_owned() }).unwrap()
    }
}

pub(super) fn peer(id: u64, role: Role) -> PeerIdentity {
    PeerIdentity { node_id: NodeId::from_bits(id.into()), role, cluster_id: CLUSTER }
}

pub(super) fn node(id: u64, role: Role) -> Node {
    Node::new(NodeId::from_bits(id.into()), role)
}

pub(super) fn create_node(id: u64, role: Role) -> Change {
    Change::Create(Object::Node(Box::new(node(id, role))))
}

/// A write that can be told from others.
pub(super) fn mark(number: u64) -> Change {
    create_node(1_000_000 + number, Role::Worker)
}

pub(super) fn has_mark(consensus: &Consensus, number: u64) -> bool {
    consensus.state().nodes().get(&NodeId::from_bits(u128::from(1_000_000 + number))).is_some()
}

fn cluster_object(authority: &Authority) -> Change {
    let ca = CaState {
        root_cert: authority.root().to_owned(),
        root_key: authority.0.key_pem(),
        worker_token: JoinToken::new(authority.root(), 1).to_string(),
        manager_token: JoinToken::new(authority.root(), 2).to_string(),
        ..CaState::default()
    };
    Change::Create(Object::Cluster(Box::new(Cluster { ca, epoch: 1, ..Cluster::new(CLUSTER) })))
}

/// One manager: consensus and its server.
pub(super) struct Manager {
    pub(super) id: u64,
    pub(super) addr: SocketAddr,
    pub(super) consensus: Arc<Consensus>,
    identity: Arc<Identity>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// How a manager begins.
#[derive(Clone, Copy)]
pub(super) enum Begin {
    Bootstrap,
    Create,
    Open,
    /// Alone, with this Raft id, out of what is on the disk.
    Recover(u64),
}

impl Manager {
    /// Manager `id` in `dir`; at `addr`, if it had one.
    pub(super) async fn start(
        authority: &Authority,
        dir: &Path,
        id: u64,
        begin: Begin,
        addr: Option<SocketAddr>,
    ) -> Self {
        let addr = addr.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let identity = authority.identity(peer(id, Role::Manager));
        let mut options = options(dir, id, addr, Channels::new(identity.clone()));
        let consensus = match begin {
            Begin::Bootstrap => {
                let changes = vec![cluster_object(authority), create_node(id, Role::Manager)];
                Consensus::bootstrap(options, changes).await.unwrap()
            }
            Begin::Create => Consensus::create(options).await.unwrap(),
            Begin::Open => Consensus::open(options).await.unwrap(),
            Begin::Recover(raft_id) => {
                options.raft_id = raft_id;
                Consensus::recover(options, super::recovery::raise_epoch).await.unwrap()
            }
        };
        let (stop, server) = serve(listener, &identity, &consensus);
        let id = consensus.raft_id();
        Self { id, addr, consensus, identity, stop, server }
    }

    /// Node `id` out of a backup, on a free port.
    pub(super) async fn restore(
        authority: &Authority,
        dir: &Path,
        (id, raft_id): (u64, u64),
        state: State,
    ) -> Result<Self, OpenError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let identity = authority.identity(peer(id, Role::Manager));
        let mut options = options(dir, id, addr, Channels::new(identity.clone()));
        options.raft_id = raft_id;
        let consensus = Consensus::restore(options, state, super::recovery::raise_epoch).await?;
        let (stop, server) = serve(listener, &identity, &consensus);
        Ok(Self { id: raft_id, addr, consensus, identity, stop, server })
    }

    /// Node `id` again, whose Raft id has become another.
    pub(super) async fn reopen(
        authority: &Authority,
        dir: &Path,
        (id, raft_id): (u64, u64),
        addr: SocketAddr,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let identity = authority.identity(peer(id, Role::Manager));
        let mut options = options(dir, id, addr, Channels::new(identity.clone()));
        options.raft_id = raft_id;
        let consensus = Consensus::open(options).await.unwrap();
        let (stop, server) = serve(listener, &identity, &consensus);
        Self { id: raft_id, addr, consensus, identity, stop, server }
    }

    /// An empty manager that listens at `listener`, and that others reach at `addr` alone.
    pub(super) async fn behind(
        authority: &Authority,
        dir: &Path,
        id: u64,
        (listener, addr): (TcpListener, SocketAddr),
    ) -> Self {
        let identity = authority.identity(peer(id, Role::Manager));
        let options = options(dir, id, addr, Channels::new(identity.clone()));
        let consensus = Consensus::create(options).await.unwrap();
        let (stop, server) = serve(listener, &identity, &consensus);
        Self { id, addr, consensus, identity, stop, server }
    }

    /// From now on nobody reaches it; it reaches the others.
    pub(super) async fn cut_off(&mut self) {
        self.server.abort();
        drop((&mut self.server).await);
    }

    /// Ends what [`Manager::cut_off`] began.
    pub(super) async fn serve_again(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        (self.stop, self.server) = serve(listener, &self.identity, &self.consensus);
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        self.identity.clone()
    }

    /// As by `kill -9`: nothing is handed over, connections break.
    pub(super) async fn crash(self) -> SocketAddr {
        self.server.abort();
        drop(self.server.await);
        self.consensus.stop().await;
        self.addr
    }

    /// As by SIGTERM.
    pub(super) async fn stop(self) -> SocketAddr {
        self.consensus.shutdown().await;
        drop(self.stop);
        self.server.await.unwrap();
        self.addr
    }
}

fn serve(
    listener: TcpListener,
    identity: &Arc<Identity>,
    consensus: &Arc<Consensus>,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move { drop(stopped.await) };
    let serving = control_rpc::serve(listener, identity.clone(), consensus.service(), shutdown);
    (stop, tokio::spawn(async move { serving.await.unwrap() }))
}

pub(super) fn options(dir: &Path, id: u64, addr: SocketAddr, channels: Arc<Channels>) -> Options {
    Options {
        dir: dir.join(format!("m{id}")),
        raft_id: id,
        node_id: NodeId::from_bits(id.into()),
        addr,
        kek: Kek::new([7; 32]),
        channels,
        clock: Arc::new(now),
    }
}

/// Managers with ids from 1, all voters.
pub(super) struct TestCluster {
    pub(super) authority: Authority,
    pub(super) dir: tempfile::TempDir,
    pub(super) managers: Vec<Manager>,
}

impl TestCluster {
    pub(super) async fn new(n_managers: u64) -> Self {
        let authority = Authority::new();
        let dir = tempfile::tempdir().unwrap();
        let first = Manager::start(&authority, dir.path(), 1, Begin::Bootstrap, None).await;
        let mut cluster = Self { authority, dir, managers: vec![first] };
        for id in 2..=n_managers {
            cluster.add(id).await;
        }
        cluster
    }

    pub(super) async fn add(&mut self, id: u64) {
        let first = &self.managers[0];
        first.consensus.propose(vec![create_node(id, Role::Manager)]).await.unwrap();
        let manager = Manager::start(&self.authority, self.dir.path(), id, Begin::Create, None).await;
        manager.consensus.join(first.addr).await.unwrap();
        self.managers.push(manager);
    }

    /// Takes the leader out of the list once there is one.
    pub(super) async fn take_leader(&mut self) -> Manager {
        let leader = self.leader().await;
        let at = self.managers.iter().position(|manager| manager.id == leader).unwrap();
        self.managers.remove(at)
    }

    /// The Raft id of the manager that says of itself that it leads.
    pub(super) async fn leader(&self) -> u64 {
        let waits = self.managers.iter().map(|manager| {
            Box::pin(async {
                let mut leadership = manager.consensus.leadership();
                leadership.wait_for(|leadership| leadership.is_me).await.unwrap();
                manager.id
            })
        });
        let first = futures::future::select_all(waits);
        tokio::time::timeout(PATIENCE, first).await.expect("no leader").0
    }

    pub(super) fn get(&self, id: u64) -> &Manager {
        self.managers.iter().find(|manager| manager.id == id).unwrap()
    }

    pub(super) fn follower(&self, leader: u64) -> &Manager {
        self.managers.iter().find(|manager| manager.id != leader).unwrap()
    }
}
