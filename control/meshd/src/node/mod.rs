//! The node: in a swarm, on the way into one, or in none. What the API asks of it is in `control_api::node`.

mod attach;
mod backup;
mod certificate;
mod facts;
mod genesis;
mod gossip;
mod inspect;
mod keeper;
mod lock;
mod manager;
mod metrics;
mod moving;
mod recovery;
mod returning;
mod swarm;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use control_agent::Inspect;
use control_api::engine::{Engine, LocalEngine};
use control_api::node::{
    BackupSecret, HostFacts, InitRequest, InspectError, JOIN_TIMEOUT, JoinRequest, LocalState, LongAnswer,
    RaftFacts, RestoreRequest, SwarmError, UnlockError,
};
use control_api::passage::Passage;
use control_manager::Senses;
use control_model::authority::UnlockKey;
use control_model::object::ManagerStatus;
use control_model::{Network, NodeId};
use control_rpc::{Channels, Identity, IdentityPem};
use control_store::ReplicatedStore;
use dataplane_model::inspect::{
    Assigned, DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowSamples, FlowsReport,
    GossipReport, LoadBalancerRow, NodeStatus, RingReport, TopReport, TraceReport, TraceRequest,
    TunnelledPacket, VerifyReport,
};
use tokio::sync::watch;

use crate::addresses::{Addresses, own_networks, resolve_remote};
use crate::data_plane::NodeDataPlane;
use crate::disk::{KnownManager, NodeFile, SwarmDir};
use crate::engine::NodeEngine;
use crate::host::Host;
use crate::teardown;
use genesis::Genesis;
use inspect::watch::Watching;
use lock::{LockError, Opened};
use manager::RunningManager;
use metrics::Scrapes;
use swarm::{Parts, Swarm, new_raft_id};

/// Default of `docker swarm init|join --listen-addr`.
const CLI_LISTEN_ADDR: &str = "0.0.0.0:2377";

/// An init, join or leave that is under way when the daemon stops may take this long to end; then it is cut, as by a
/// crash: what is on the disk tells how to go on.
const CHANGE_GRACE: Duration = Duration::from_secs(5);

/// A node and its standing towards a swarm.
pub struct MeshNode {
    /// Itself, for what goes on when its caller is gone.
    me: Weak<Self>,
    host: Arc<Host>,
    dir: SwarmDir,
    engine: NodeEngine,
    standing: watch::Sender<Standing>,
    scrapes: Scrapes,
    watching: Watching,
    /// Held while the standing changes: one init, join or leave at a time.
    changing: tokio::sync::Mutex<()>,
}

/// Where a node stands.
#[derive(Clone)]
enum Standing {
    /// Part of no swarm.
    Out,
    /// On its way in.
    Pending,
    In(Arc<Swarm>),
    /// A manager whose disk needs the user's key.
    Locked,
    /// Part of a swarm by what is on the disk, but that can't be used, or not left whole. Containers and data plane may
    /// be there.
    Broken(String),
}

impl MeshNode {
    /// A node that goes on with what is on the disk, in the background.
    pub fn open(host: Arc<Host>) -> Arc<Self> {
        let dir = SwarmDir::new(host.config.swarm_dir());
        let engine = NodeEngine::of(&host.containers);
        let node = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dir,
            engine,
            standing: watch::Sender::new(Standing::Out),
            scrapes: Scrapes::default(),
            watching: Watching::default(),
            changing: tokio::sync::Mutex::default(),
            host,
        });
        let resumed = node.resume().unwrap_or_else(|error| {
            tracing::error!(%error, "can't go on in the swarm");
            Standing::Broken(error.to_string())
        });
        node.stand(resumed);
        tokio::spawn(moving::watch(Arc::downgrade(&node)));
        node
    }

    /// Stops the daemon's part; tasks and data plane go on.
    pub async fn shut_down(&self) {
        if let Some(standalone) = self.host.containers.standalone() {
            standalone.shut_down();
        }
        let _changing = tokio::time::timeout(CHANGE_GRACE, self.changing.lock()).await;
        if let Some(swarm) = self.swarm() {
            swarm.shut_down().await;
        }
    }

    fn resume(&self) -> Result<Standing, SwarmError> {
        let Some(file) = self.dir.load().map_err(failed)? else { return Ok(Standing::Out) };
        match lock::open(&self.dir, None) {
            Ok(opened) => Ok(Standing::In(self.start(opened, file)?)),
            Err(LockError::Locked) => {
                tracing::warn!("this manager is locked: it waits for `docker swarm unlock`");
                Ok(Standing::Locked)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A membership whose manager half, if any, starts by itself.
    fn start(&self, opened: Opened, file: NodeFile) -> Result<Arc<Swarm>, SwarmError> {
        let data_plane = NodeDataPlane::start(&self.host.config).map_err(failed)?;
        self.start_on(data_plane, opened, file)
    }

    /// The same, over a data plane that runs.
    fn start_on(
        &self,
        data_plane: NodeDataPlane,
        Opened { pem, kek }: Opened,
        file: NodeFile,
    ) -> Result<Arc<Swarm>, SwarmError> {
        Ok(Swarm::start(Parts {
            kek,
            inspect: self.inspect(),
            host: self.host.clone(),
            dir: self.dir.clone(),
            channels: channels(&pem)?,
            data_plane,
            epoch: self.dir.load_epoch().map_err(failed)?,
            pem,
            file,
            opinion: watch::Sender::default(),
            manager: None,
        }))
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.host.addresses.read().all().any(|own| own == ip)
    }

    /// What managers may ask of this node, while there is one.
    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(inspect::cluster::Own(self.me.clone()))
    }

    fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    fn swarm(&self) -> Option<Arc<Swarm>> {
        match self.standing() {
            Standing::In(swarm) => Some(swarm),
            Standing::Out | Standing::Pending | Standing::Locked | Standing::Broken(_) => None,
        }
    }

    /// The three addresses of a request, the daemon's own settings where it says nothing.
    fn addresses(&self, listen: &str, advertise: &str, data_path: &str) -> Result<Addresses, SwarmError> {
        let config = &self.host.config;
        let or = |given: &str, own: &str| if given.is_empty() { own.to_owned() } else { given.to_owned() };
        // What the CLI sends when its user said nothing.
        let listen = if listen == CLI_LISTEN_ADDR { "" } else { listen };
        Addresses::resolve(
            &self.host.addresses.read(),
            &or(listen, &config.listen_addr),
            &or(advertise, &config.advertise_addr),
            &or(data_path, &config.data_path_addr),
        )
        .map_err(|error| SwarmError::Address(error.to_string()))
    }

    async fn do_init(&self, request: &InitRequest) -> Result<Arc<Swarm>, SwarmError> {
        let addresses =
            self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        let manager = ManagerStatus { raft_id: new_raft_id(), addr: addresses.advertise };
        let description = self.host.description(addresses.data_path);
        let own_networks = own_networks().map_err(failed)?;
        let genesis = Genesis::new(request, manager, description, &own_networks).map_err(failed)?;
        let file = NodeFile {
            node: genesis.identity.node_id,
            cluster: genesis.identity.cluster_id,
            listen: addresses.listen,
            advertise: addresses.advertise,
            advertise_is_own: self.is_own(addresses.advertise.ip()),
            data_path: addresses.data_path,
            data_path_port: genesis.data_path_port,
            raft_id: Some(manager.raft_id),
            managers: vec![KnownManager { node: genesis.identity.node_id, addr: addresses.advertise }],
        };
        let Genesis { pem, changes, unlock_key, .. } = genesis;
        let channels = channels(&pem)?;
        let data_plane = NodeDataPlane::start(&self.host.config).map_err(failed)?;
        let kek = lock::new_kek(&self.dir, unlock_key, 0).map_err(failed)?;
        let opinion = watch::Sender::default();
        let senses = Senses { own_data_path: data_plane.is_up.clone(), opinion: opinion.subscribe() };
        let running = RunningManager::bootstrap((&self.dir, kek.clone()), &channels, &file, senses, changes);
        let running = running.await.map_err(failed)?;
        if let Err(error) = running.wait_to_lead().await {
            running.stop().await;
            return Err(failed(error));
        }
        lock::store_identity(&self.dir, &pem, Some(&kek)).map_err(failed)?;
        self.dir.store(&file).map_err(failed)?;
        let (host, dir, inspect) = (self.host.clone(), self.dir.clone(), self.inspect());
        Ok(Swarm::start(Parts {
            host,
            dir,
            inspect,
            channels,
            pem,
            kek: Some(kek),
            file,
            data_plane,
            opinion,
            epoch: 0,
            manager: Some(running),
        }))
    }

    async fn do_join(&self, request: &JoinRequest) -> Result<Arc<Swarm>, SwarmError> {
        let addresses =
            self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        let by = (request.token.as_str(), request.availability);
        let mut last = SwarmError::Unreachable("no manager's address was given".into());
        for remote in &request.remote_addrs {
            let resolved = resolve_remote(remote).await.unwrap_or_default();
            if resolved.is_empty() {
                last = SwarmError::Unreachable(format!("can't resolve {remote}"));
            }
            for addr in resolved {
                match certificate::join(addr, by, addresses.data_path).await {
                    Ok(joined) => return self.enter(addresses, addr, joined),
                    // Another manager would say the same.
                    Err(error @ (SwarmError::Token(_) | SwarmError::Address(_))) => return Err(error),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    fn enter(
        &self,
        addresses: Addresses,
        via: SocketAddr,
        joined: certificate::Joined,
    ) -> Result<Arc<Swarm>, SwarmError> {
        let file = NodeFile {
            node: joined.identity.node_id,
            cluster: joined.identity.cluster_id,
            listen: addresses.listen,
            advertise: addresses.advertise,
            advertise_is_own: self.is_own(addresses.advertise.ip()),
            data_path: addresses.data_path,
            data_path_port: joined.data_path_port,
            raft_id: None,
            // Whose id it is the first session says.
            managers: vec![KnownManager { node: NodeId::from_bits(0), addr: via }],
        };
        self.dir.store_identity(&joined.pem, None).map_err(failed)?;
        self.dir.store(&file).map_err(failed)?;
        self.start(Opened { pem: joined.pem, kek: None }, file)
    }

    /// Enters a swarm by `attempt`; true if all of it was ready in time. A failure leaves the node where it was.
    async fn go_in(
        &self,
        attempt: impl Future<Output = Result<Arc<Swarm>, SwarmError>> + Send + 'static,
    ) -> Result<(NodeId, bool), SwarmError> {
        let _changing = self.changing.lock().await;
        if !matches!(self.standing(), Standing::Out) {
            return Err(SwarmError::AlreadyInSwarm);
        }
        // A crash on the way in or out may have left an older swarm's Raft data, which must not be opened again.
        self.dir.remove_all().map_err(failed)?;
        self.stand(Standing::Pending);
        match to_its_end(attempt).await {
            Ok(swarm) => {
                let in_time = swarm.wait_until_ready(JOIN_TIMEOUT).await;
                let id = swarm.node_id();
                self.stand(Standing::In(swarm));
                Ok((id, in_time))
            }
            Err(error) => {
                let removed = self.dir.remove_all();
                self.stand(Standing::Out);
                removed.map_err(failed)?;
                Err(error)
            }
        }
    }

    /// Leaves the swarm. A failure on the way leaves a broken membership, which can be left again.
    async fn go_out(self: Arc<Self>, force: bool) -> Result<(), SwarmError> {
        let _changing = self.changing.lock().await;
        let was = self.standing();
        match &was {
            Standing::Out => return Err(SwarmError::NotInSwarm),
            Standing::In(swarm) => swarm.prepare_to_leave(force).await?,
            Standing::Pending | Standing::Locked | Standing::Broken(_) => {}
        }
        self.stand(Standing::Pending);
        let left = to_its_end(self.clone().take_down(was)).await;
        self.stand(match &left {
            Ok(()) => Standing::Out,
            Err(error) => Standing::Broken(format!("this node has not left the swarm whole: {error}")),
        });
        left
    }

    /// Removes containers and data plane, then what is on the disk.
    async fn take_down(self: Arc<Self>, was: Standing) -> Result<(), SwarmError> {
        if let Standing::In(swarm) = was {
            swarm.leave().await?;
        } else {
            if let Some(standalone) = self.host.containers.standalone() {
                standalone.leave().await;
            }
            // Nothing here runs that would know of them: all that is found is removed.
            if let Err(error) = teardown::remove_containers(&self.host).await {
                tracing::warn!(error = format!("{error:#}"), "not all containers were removed");
            }
            let data_plane = NodeDataPlane::start(&self.host.config).map_err(failed)?;
            data_plane.tear_down().await.map_err(failed)?;
        }
        self.dir.remove_all().map_err(failed)
    }

    fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("who calls holds the node")
    }
}

/// Runs `work` to its end even if the caller goes away, as a client of the API may. A panic is an error.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, SwarmError>> + Send + 'static,
) -> Result<T, SwarmError> {
    tokio::spawn(work).await.map_err(failed)?
}

fn failed(error: impl std::error::Error) -> SwarmError {
    SwarmError::Failed(text_of(&error))
}

/// The error with its causes.
fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn channels(pem: &IdentityPem) -> Result<Arc<Channels>, SwarmError> {
    Identity::new(pem).map(Channels::new).map_err(failed)
}

#[async_trait]
impl control_api::Node for MeshNode {
    fn host(&self) -> HostFacts {
        facts::host(&self.host)
    }

    fn local(&self) -> LocalState {
        facts::local(&self.standing())
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, SwarmError> {
        // Where there is no cluster yet, it is a plain new one, as in Docker.
        if request.force_new_cluster && !matches!(self.standing(), Standing::Out) {
            let node = self.me();
            return to_its_end(async move { node.force_new_cluster(&request).await }).await;
        }
        let (node, me) = (self.me(), self.me());
        let attempt = Box::pin(async move { me.do_init(&request).await });
        let (id, _in_time) = to_its_end(async move { node.go_in(attempt).await }).await?;
        Ok(id)
    }

    async fn join(&self, request: JoinRequest) -> Result<(), SwarmError> {
        let (node, me) = (self.me(), self.me());
        if let Some(swarm) = self.swarm().filter(|swarm| swarm.is_expired()) {
            let in_time = to_its_end(async move { me.come_back(swarm, &request).await }).await?;
            return if in_time { Ok(()) } else { Err(SwarmError::JoinTimeout) };
        }
        let attempt = async move { me.do_join(&request).await };
        let (_id, in_time) = to_its_end(async move { node.go_in(attempt).await }).await?;
        if in_time { Ok(()) } else { Err(SwarmError::JoinTimeout) }
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        to_its_end(self.me().go_out(force)).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), UnlockError> {
        let me = self.me();
        let unlocking = tokio::spawn(async move { me.open_lock(key).await });
        unlocking.await.map_err(|error| UnlockError::Failed(error.to_string()))?
    }

    fn follow_lock(&self) {
        let Some(swarm) = self.swarm() else { return };
        swarm.follow_lock();
    }

    async fn backup(&self, secret: BackupSecret) -> Result<Vec<u8>, SwarmError> {
        self.take_backup(secret).await
    }

    async fn restore(&self, request: RestoreRequest) -> Result<NodeId, SwarmError> {
        let (node, me) = (self.me(), self.me());
        let attempt = Box::pin(async move { me.do_restore(request).await });
        let (id, _in_time) = to_its_end(async move { node.go_in(attempt).await }).await?;
        Ok(id)
    }

    fn store(&self) -> Option<Arc<dyn ReplicatedStore>> {
        let consensus = self.swarm()?.ready_consensus()?;
        Some(consensus)
    }

    async fn managed(&self) -> Arc<dyn ReplicatedStore> {
        let mut standing = self.standing.subscribe();
        loop {
            standing.mark_unchanged();
            let swarm = self.swarm();
            let begun = async {
                match &swarm {
                    Some(swarm) => swarm.managed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                consensus = begun => return consensus,
                // Its sender is this node.
                _ = standing.changed() => {}
            }
        }
    }

    fn raft(&self) -> RaftFacts {
        self.swarm().and_then(|swarm| swarm.consensus()).map(|c| facts::raft(&c)).unwrap_or_default()
    }

    fn assigned_networks(&self) -> Arc<Vec<Network>> {
        self.swarm().map(|swarm| swarm.networks.borrow().clone()).unwrap_or_default()
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.of_tasks()
    }

    fn local_engine(&self) -> Option<Arc<dyn LocalEngine>> {
        self.engine.own()
    }

    fn passage(&self) -> Option<Passage> {
        self.engine.passage()
    }

    async fn mesh_status(&self) -> Result<NodeStatus, InspectError> {
        Ok(inspect::status(&self.host, self.swarm().as_deref()))
    }

    async fn mesh_load_balancers(&self) -> Result<Vec<LoadBalancerRow>, InspectError> {
        inspect::load_balancers(&self.host, self.swarm().as_deref()).await
    }

    async fn mesh_rings(&self, of: &str) -> Result<Vec<RingReport>, InspectError> {
        inspect::rings(&self.host, self.swarm().as_deref(), of).await
    }

    async fn mesh_flows(&self, limit: usize) -> Result<FlowsReport, InspectError> {
        inspect::flows(&self.host, limit).await
    }

    async fn mesh_fdb(&self) -> Result<FdbReport, InspectError> {
        inspect::fdb(&self.host).await
    }

    async fn mesh_gossip(&self) -> Result<GossipReport, InspectError> {
        let swarm = self.swarm().ok_or_else(inspect::in_no_swarm)?;
        inspect::gossip::report(&swarm)
    }

    async fn mesh_verify(&self) -> Result<VerifyReport, InspectError> {
        let swarm = self.swarm().ok_or_else(inspect::in_no_swarm)?;
        inspect::verify(&self.host, &swarm).await
    }

    async fn mesh_assigned(&self) -> Result<Assigned, InspectError> {
        let swarm = self.swarm().ok_or_else(inspect::in_no_swarm)?;
        inspect::cluster::assigned(&swarm).await
    }

    async fn mesh_ask(&self, node: NodeId, question: &str) -> Result<Vec<u8>, InspectError> {
        let swarm = self.swarm().ok_or_else(inspect::in_no_swarm)?;
        inspect::cluster::ask(self.me(), &swarm, node, question).await
    }

    async fn mesh_open(&self, node: NodeId, question: &str) -> Result<LongAnswer, InspectError> {
        let swarm = self.swarm().ok_or_else(inspect::in_no_swarm)?;
        inspect::cluster::open(self.me(), &swarm, node, question).await
    }

    async fn mesh_endpoints(&self) -> Result<Vec<EndpointRow>, InspectError> {
        inspect::endpoints(&self.host, self.swarm().as_deref()).await
    }

    async fn mesh_dns_zone(
        &self,
        task: Option<&str>,
        network: Option<&str>,
    ) -> Result<DnsZoneReport, InspectError> {
        inspect::dns::zone(&self.host, self.swarm().as_deref(), task, network).await
    }

    async fn mesh_dns_query(
        &self,
        task: &str,
        name: &str,
        record_type: &str,
    ) -> Result<DnsQueryReport, InspectError> {
        inspect::dns::query(&self.host, self.swarm().as_deref(), task, (name, record_type)).await
    }

    async fn mesh_trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectError> {
        inspect::trace::from_here(&self.host, self.swarm().as_deref(), request).await
    }

    async fn mesh_trace_live(&self, request: &TraceRequest) -> Result<TraceReport, InspectError> {
        inspect::trace::live(&self.host, self.swarm().as_deref(), &self.watching, request).await
    }

    async fn mesh_trace_mark(&self, protocol: u8, port: u16) -> Result<(), InspectError> {
        self.watching.mark(&self.host, protocol, port).await
    }

    async fn mesh_trace_marked(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError> {
        inspect::trace::marked(&self.host, self.swarm().as_deref(), &self.watching, *packet).await
    }

    async fn mesh_trace_tunnelled(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError> {
        inspect::trace::arrival(&self.host, self.swarm().as_deref(), *packet).await
    }

    async fn mesh_top(&self) -> Result<TopReport, InspectError> {
        inspect::top::top(&self.host, self.swarm().as_deref()).await
    }

    async fn mesh_samples(&self, every: u32) -> Result<FlowSamples, InspectError> {
        self.watching.samples(&self.host, every).await
    }

    async fn metrics(&self) -> Result<String, InspectError> {
        self.scrapes.page(inspect::metrics(self.host.clone(), self.swarm())).await
    }

    async fn mesh_drops(&self) -> Result<DropsReport, InspectError> {
        inspect::drops(&self.host).await
    }
}
