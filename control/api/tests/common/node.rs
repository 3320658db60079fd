//! A node in memory, in any state towards a swarm.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use control_api::engine::{Engine, LocalEngine};
use control_api::node::{
    BackupSecret, HostFacts, InitRequest, InspectError, JoinRequest, LOCKED, LocalState, LongAnswer,
    Membership, Node, RaftFacts, RemoteManager, RestoreRequest, SwarmError, UnlockError,
};
use control_api::passage::Passage;
use control_model::authority::UnlockKey;
use control_model::{Change, Network, NodeId};
use control_store::{EventReceiver, LocalStore, ProposeError, ReadError, ReplicatedStore, State};
use dataplane_model::inspect::{
    Assigned, DnsName, DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowSamples,
    FlowsReport, GossipReport, LoadBalancerRow, NodeStatus, ProgramCounters, RingReport, TopReport,
    TraceReport, TraceRequest, TunnelledPacket, VerifyReport,
};
use futures::StreamExt as _;

use super::engine::FakeEngine;
use super::world;

pub struct FakeNode {
    pub engine: Arc<FakeEngine>,
    pub state: Mutex<LocalState>,
    /// What `/swarm/init` and `/swarm/join` brought.
    pub inits: Mutex<Vec<InitRequest>>,
    pub joins: Mutex<Vec<JoinRequest>>,
    /// What a worker's agent was told of.
    pub networks: Mutex<Arc<Vec<Network>>>,
    /// Its manager hears no leader.
    pub leaderless: AtomicBool,
    /// Another daemon runs its containers.
    pub passage: Option<Passage>,
    store: Mutex<Option<Arc<LocalStore>>>,
    /// The store of a locked manager.
    asleep: Mutex<Option<Arc<LocalStore>>>,
    raft: RaftFacts,
}

impl FakeNode {
    pub fn manager(store: Arc<LocalStore>) -> Self {
        let state = LocalState {
            membership: Membership::Active,
            node: Some(world::MANAGER),
            cluster: Some(world::CLUSTER),
            is_manager: true,
            addr: Some([198, 18, 0, 11].into()),
            is_expired: false,
            error: String::new(),
            remote_managers: vec![RemoteManager { node: world::MANAGER, addr: "198.18.0.11:2377".into() }],
        };
        Self::new(state, Some(store))
    }

    pub fn worker() -> Self {
        let state = LocalState {
            membership: Membership::Active,
            node: Some(world::WORKER_1),
            addr: Some([198, 18, 0, 12].into()),
            remote_managers: vec![RemoteManager { node: world::MANAGER, addr: "198.18.0.11:2377".into() }],
            ..LocalState::default()
        };
        Self::new(state, None)
    }

    pub fn alone() -> Self {
        Self::new(LocalState::default(), None)
    }

    /// What a manager of a locked cluster is after its restart; true if the cluster is locked at all.
    pub fn restart(&self) -> bool {
        let store = self.store.lock().expect("no panic").take().expect("a manager");
        let is_locked = store.state().cluster().is_some_and(|cluster| cluster.ca.unlock_key.is_some());
        *self.asleep.lock().expect("no panic") = Some(store);
        let locked =
            LocalState { membership: Membership::Locked, error: LOCKED.into(), ..LocalState::default() };
        *self.state.lock().expect("no panic") = locked;
        is_locked
    }

    fn new(state: LocalState, store: Option<Arc<LocalStore>>) -> Self {
        Self {
            engine: Arc::default(),
            raft: RaftFacts { leader: Some(world::MANAGER), ..RaftFacts::default() },
            state: Mutex::new(state),
            inits: Mutex::default(),
            joins: Mutex::default(),
            networks: Mutex::default(),
            leaderless: AtomicBool::new(false),
            passage: None,
            store: Mutex::new(store),
            asleep: Mutex::default(),
        }
    }
}

/// What consensus says without a leader.
pub const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure \
     more than half of the managers are online. 1 of 3 managers answer, 2 are needed. Missing: m2, m3.";

struct Leaderless(Arc<LocalStore>);

#[async_trait]
impl ReplicatedStore for Leaderless {
    async fn propose(&self, _: Vec<Change>) -> Result<u64, ProposeError> {
        Err(ProposeError::NoLeader(NO_LEADER.into()))
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Err(ReadError::NoLeader(NO_LEADER.into()))
    }

    fn state(&self) -> Arc<State> {
        self.0.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.0.subscribe()
    }
}

#[async_trait]
impl Node for FakeNode {
    fn host(&self) -> HostFacts {
        HostFacts {
            hostname: "m1".into(),
            version: "0.1.0".into(),
            root_dir: "/var/lib/meshd".into(),
            runtime: "runc".into(),
            runtime_path: "/usr/sbin/runc".into(),
            insecure_registries: vec!["198.18.0.11:5000".into()],
            log_driver: "json-file".into(),
            ..HostFacts::default()
        }
    }

    fn local(&self) -> LocalState {
        self.state.lock().expect("no panic").clone()
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, SwarmError> {
        if request.advertise_addr == "nowhere" {
            return Err(SwarmError::Address(
                "must specify a listening address: no such interface nowhere".into(),
            ));
        }
        self.inits.lock().expect("no panic").push(request);
        let manager = Self::manager(world::store());
        *self.state.lock().expect("no panic") = manager.local();
        *self.store.lock().expect("no panic") = manager.store.into_inner().expect("no panic");
        Ok(world::MANAGER)
    }

    async fn join(&self, request: JoinRequest) -> Result<(), SwarmError> {
        if !request.token.starts_with("SWMTKN-1-") {
            return Err(SwarmError::Token("invalid join token".into()));
        }
        let state = Self::worker().local();
        self.joins.lock().expect("no panic").push(request);
        *self.state.lock().expect("no panic") = state;
        Ok(())
    }

    async fn leave(&self, _: bool) -> Result<(), SwarmError> {
        *self.state.lock().expect("no panic") = LocalState::default();
        *self.store.lock().expect("no panic") = None;
        Ok(())
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), UnlockError> {
        let mut asleep = self.asleep.lock().expect("no panic");
        let store = asleep.clone().ok_or(UnlockError::NotLocked)?;
        let wanted = store.state().cluster().and_then(|cluster| cluster.ca.unlock_key);
        if wanted != Some(key) {
            return Err(UnlockError::WrongKey);
        }
        *asleep = None;
        *self.state.lock().expect("no panic") = Self::manager(store.clone()).local();
        *self.store.lock().expect("no panic") = Some(store);
        Ok(())
    }

    fn follow_lock(&self) {}

    async fn backup(&self, secret: BackupSecret) -> Result<Vec<u8>, SwarmError> {
        match secret {
            BackupSecret::Passphrase(words) if words.len() < 12 => {
                Err(SwarmError::Backup("too short".into()))
            }
            BackupSecret::Passphrase(words) => Ok(words.into_bytes()),
            BackupSecret::KeyFile(bytes) => Ok(bytes),
        }
    }

    async fn restore(&self, request: RestoreRequest) -> Result<NodeId, SwarmError> {
        let known = BackupSecret::KeyFile(request.file.clone());
        if request.secret != known {
            return Err(SwarmError::Backup("another secret".into()));
        }
        self.init(InitRequest { advertise_addr: request.advertise_addr, ..InitRequest::default() }).await
    }

    fn store(&self) -> Option<Arc<dyn ReplicatedStore>> {
        let store = self.store.lock().expect("no panic").clone();
        let leaderless = self.leaderless.load(Ordering::Relaxed);
        let store = store?;
        if leaderless { Some(Arc::new(Leaderless(store))) } else { Some(store) }
    }

    async fn managed(&self) -> Arc<dyn ReplicatedStore> {
        match self.store() {
            Some(store) => store,
            None => std::future::pending().await,
        }
    }

    fn raft(&self) -> RaftFacts {
        self.raft.clone()
    }

    fn assigned_networks(&self) -> Arc<Vec<Network>> {
        self.networks.lock().expect("not poisoned").clone()
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    fn local_engine(&self) -> Option<Arc<dyn LocalEngine>> {
        Some(self.engine.clone())
    }

    fn passage(&self) -> Option<Passage> {
        self.passage.clone()
    }

    async fn mesh_status(&self) -> Result<NodeStatus, InspectError> {
        Err(InspectError("the data plane has not started".into()))
    }

    async fn mesh_load_balancers(&self) -> Result<Vec<LoadBalancerRow>, InspectError> {
        Ok(Vec::new())
    }

    async fn mesh_rings(&self, of: &str) -> Result<Vec<RingReport>, InspectError> {
        let frontends = vec![of.to_owned()];
        Ok(vec![RingReport { service: String::new(), vni: 4096, frontends, rings: Vec::new() }])
    }

    async fn mesh_flows(&self, limit: usize) -> Result<FlowsReport, InspectError> {
        Ok(FlowsReport { n_kept_left_off: limit as u64, ..FlowsReport::default() })
    }

    async fn mesh_verify(&self) -> Result<VerifyReport, InspectError> {
        Ok(VerifyReport::default())
    }

    async fn mesh_assigned(&self) -> Result<Assigned, InspectError> {
        Ok(Assigned { digest: "ab".into(), ..Assigned::default() })
    }

    /// The second worker is gone.
    async fn mesh_open(&self, node: NodeId, question: &str) -> Result<LongAnswer, InspectError> {
        if node == world::WORKER_2 {
            return Err(InspectError("no manager has a session with it".to_owned()));
        }
        let asked: Arc<dyn Node> =
            Arc::new(Self { engine: Arc::new(self.engine.of(node)), ..Self::worker() });
        let answer = control_api::open(asked, question).await.map_err(InspectError)?;
        let one_less = |n: usize| n.checked_sub(1);
        let breaks = self.engine.n_breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        Ok(if breaks.is_ok() { answer.take(1).boxed() } else { answer })
    }

    async fn mesh_ask(&self, node: NodeId, question: &str) -> Result<Vec<u8>, InspectError> {
        if node == world::MANAGER {
            let inner: Arc<dyn Node> = Arc::new(Self::alone());
            return control_api::inspect(inner, question).await.map_err(InspectError);
        }
        Err(InspectError(format!("{question}: no manager has a session with it")))
    }

    async fn mesh_fdb(&self) -> Result<FdbReport, InspectError> {
        Ok(FdbReport::default())
    }

    async fn mesh_gossip(&self) -> Result<GossipReport, InspectError> {
        Ok(GossipReport::default())
    }

    async fn mesh_endpoints(&self) -> Result<Vec<EndpointRow>, InspectError> {
        Ok(Vec::new())
    }

    async fn mesh_dns_zone(
        &self,
        task: Option<&str>,
        network: Option<&str>,
    ) -> Result<DnsZoneReport, InspectError> {
        let row = DnsName {
            network: network.unwrap_or_default().into(),
            name: task.unwrap_or_default().into(),
            record_type: "A".into(),
            values: Vec::new(),
            ttl_s: 5,
        };
        Ok(DnsZoneReport { names: vec![row], ..DnsZoneReport::default() })
    }

    async fn mesh_dns_query(
        &self,
        task: &str,
        name: &str,
        record_type: &str,
    ) -> Result<DnsQueryReport, InspectError> {
        Err(InspectError(format!("{task} asks for {name} {record_type}")))
    }

    async fn mesh_top(&self) -> Result<TopReport, InspectError> {
        Ok(TopReport { elapsed_ms: 1000, ..TopReport::default() })
    }

    async fn mesh_samples(&self, every: u32) -> Result<FlowSamples, InspectError> {
        Ok(FlowSamples { every, ..FlowSamples::default() })
    }

    async fn mesh_trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectError> {
        Err(InspectError(format!("{request:?}")))
    }

    async fn mesh_trace_live(&self, request: &TraceRequest) -> Result<TraceReport, InspectError> {
        Err(InspectError(format!("live {request:?}")))
    }

    async fn mesh_trace_mark(&self, _: u8, _: u16) -> Result<(), InspectError> {
        Ok(())
    }

    async fn mesh_trace_marked(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError> {
        Err(InspectError(format!("marked {packet:?}")))
    }

    async fn mesh_trace_tunnelled(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError> {
        Err(InspectError(format!("{packet:?}")))
    }

    async fn metrics(&self) -> Result<String, InspectError> {
        Ok("meshd_rings 3\n".into())
    }

    async fn mesh_drops(&self) -> Result<DropsReport, InspectError> {
        let counters = ProgramCounters {
            program: "ingress".into(),
            received: 3,
            forwarded: 1,
            passed: 2,
            drops: Vec::new(),
        };
        Ok(DropsReport { programs: vec![counters] })
    }
}
