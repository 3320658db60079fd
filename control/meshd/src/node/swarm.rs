//! A node's part in a swarm: its identity, its data plane, its agent, and, on a manager, the manager half.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_agent::{Agent, AgentHandle, AgentOptions, Holdings, Inspect, NodeContext, SessionState};
use control_api::node::SwarmError;
use control_ca::{Certificate, node_tls};
use control_consensus::{Beyond, Consensus, Kek};
use control_gossip::service::{Gossip, Inspector};
use control_manager::{Senses, clock};
use control_model::authority::NodeTls;
use control_model::gossip::Opinion;
use control_model::object::{NodeDescription, NodeState};
use control_model::spec::Role;
use control_model::{Cluster, Network, NodeId, PeerIdentity};
use control_rpc::{Channels, IdentityPem};
use control_runtime::{Ground, Standalone};
use control_store::ReplicatedStore as _;
use dataplane_model::{NodeView, Table};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::attach::Places;
use super::keeper::keep_in_step;
use super::lock::{self, LockError, Opened};
use super::manager::{ManagerError, RunningManager};
use super::{certificate, failed, gossip};
use crate::data_plane::NodeDataPlane;
use crate::disk::{DiskError, KnownManager, NodeFile, SwarmDir};
use crate::host::Host;

/// How often the end of a start is looked for.
const POLL: Duration = Duration::from_millis(20);
/// Other managers are asked this long to let a leaving one go.
const GIVE_UP_SEAT: Duration = Duration::from_secs(5);

/// A running membership.
pub struct Swarm {
    host: Arc<Host>,
    pub dir: SwarmDir,
    pub channels: Arc<Channels>,
    pem: Mutex<IdentityPem>,
    /// What this node says of its certificate.
    tls: Arc<Mutex<Option<NodeTls>>>,
    /// Opens the data key, on a manager. Held while what it opens is written.
    kek: Mutex<Option<Kek>>,
    file: Mutex<NodeFile>,
    manager: Mutex<Option<Arc<RunningManager>>>,
    /// Held while the manager half is started or stopped.
    starting: tokio::sync::Mutex<()>,
    /// Where the agent reaches the manager in this daemon.
    local_manager: watch::Sender<Option<SocketAddr>>,
    data_plane: NodeDataPlane,
    agent: Mutex<Option<AgentHandle>>,
    pub session: watch::Receiver<SessionState>,
    pub views: watch::Receiver<Option<Arc<NodeView>>>,
    /// The overlay networks that this node has part in.
    pub networks: watch::Receiver<Arc<Vec<Network>>>,
    /// What the managers have assigned to this node.
    pub holdings: Holdings,
    /// What this node's gossip thinks.
    pub opinion: watch::Receiver<Arc<Opinion>>,
    /// `None` of a node that takes no part.
    pub gossip_inspector: Option<Inspector>,
    gossip: Mutex<Option<Gossip>>,
    /// Why this node is not what it should be; empty when all is well.
    pub trouble: watch::Sender<String>,
    pub stop: CancellationToken,
    leaving: AtomicBool,
    /// The certificate's key was on the disk in the clear until now.
    renew_soon: AtomicBool,
    fenced: AtomicBool,
    taken_over_by: Mutex<Option<SocketAddr>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What a membership begins with.
pub struct Parts {
    pub host: Arc<Host>,
    pub dir: SwarmDir,
    /// What managers may ask of this node.
    pub inspect: Arc<dyn Inspect>,
    pub channels: Arc<Channels>,
    pub pem: IdentityPem,
    /// Opens the data key, if the disk has one.
    pub kek: Option<Kek>,
    pub file: NodeFile,
    pub data_plane: NodeDataPlane,
    /// Where gossip says what it thinks.
    pub opinion: watch::Sender<Arc<Opinion>>,
    /// The highest fencing epoch that this node has seen.
    pub epoch: u64,
    /// The manager half, where it runs already.
    pub manager: Option<RunningManager>,
}

impl Swarm {
    /// Starts the agent, and what keeps the node in step with the cluster.
    pub fn start(parts: Parts) -> Arc<Self> {
        let Parts { host, dir, inspect, channels, pem, kek, file, data_plane, opinion, epoch, manager } =
            parts;
        let local_manager = watch::Sender::new(manager.as_ref().map(|_| local_addr(&host, &file)));
        let tls = Arc::new(Mutex::new(node_tls(&pem.certificate, &pem.roots)));
        let thought = opinion.subscribe();
        let prepared = gossip::prepare(&file, host.config.gossip_port);
        let addr = prepared.as_ref().map(|prepared| prepared.addr);
        let with = AgentsWorld {
            host: &host,
            tls: tls.clone(),
            inspect,
            opinion: thought.clone(),
            gossip_addr: addr,
        };
        let options = agent_options(with, &channels, &file, (&dir, epoch), local_manager.subscribe());
        let agent = Agent::start(options, host.containers.executor(), data_plane.driver.clone());
        let gossip = gossip::start(prepared, file.node, &agent, opinion);
        let swarm = Arc::new(Self {
            session: agent.state(),
            views: agent.views(),
            networks: agent.networks(),
            holdings: agent.holdings(),
            opinion: thought,
            gossip_inspector: gossip.as_ref().map(|gossip| gossip.inspector().clone()),
            gossip: Mutex::new(gossip),
            agent: Mutex::new(Some(agent)),
            manager: Mutex::new(manager.map(Arc::new)),
            starting: tokio::sync::Mutex::default(),
            pem: Mutex::new(pem),
            tls,
            kek: Mutex::new(kek),
            renew_soon: AtomicBool::new(false),
            file: Mutex::new(file),
            trouble: watch::Sender::new(String::new()),
            stop: CancellationToken::new(),
            leaving: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            taken_over_by: Mutex::default(),
            keeper: Mutex::new(None),
            host,
            dir,
            channels,
            local_manager,
            data_plane,
        });
        if let Some(manager) = swarm.manager() {
            swarm.keep_locked(&manager);
        }
        if let Some(standalone) = swarm.host.containers.standalone() {
            standalone.enter(Ground {
                dataplane: swarm.data_plane.driver.clone(),
                views: swarm.views.clone(),
                attacher: Arc::new(Places(Arc::downgrade(&swarm))),
            });
        }
        *locked(&swarm.keeper) = Some(tokio::spawn(keep_in_step(swarm.clone())));
        swarm
    }

    pub fn me(&self) -> PeerIdentity {
        self.channels.identity().me()
    }

    pub fn node_id(&self) -> NodeId {
        self.me().node_id
    }

    pub fn file(&self) -> NodeFile {
        locked(&self.file).clone()
    }

    /// Changes `node.json`, if that changes anything.
    pub fn update_file(&self, change: impl FnOnce(&mut NodeFile)) -> Result<(), DiskError> {
        let mut file = locked(&self.file);
        let mut new = file.clone();
        change(&mut new);
        if new != *file {
            self.dir.store(&new)?;
            *file = new;
        }
        Ok(())
    }

    /// Certificate, key and roots.
    pub fn pem(&self) -> IdentityPem {
        locked(&self.pem).clone()
    }

    /// Goes on as `pem`, also after a restart.
    pub fn take_identity(&self, pem: IdentityPem) -> anyhow::Result<()> {
        let kek = locked(&self.kek);
        // The data key goes with the Raft data that was fenced off, and may not take another key with it.
        let is_to_go = self.is_fenced() && self.pem().key != pem.key;
        lock::store_identity(&self.dir, &pem, kek.as_ref().filter(|_| !is_to_go))?;
        self.channels.identity().replace(&pem)?;
        *locked(&self.tls) = node_tls(&pem.certificate, &pem.roots);
        let mut held = locked(&self.pem);
        if held.key != pem.key {
            self.renew_soon.store(false, Ordering::Relaxed);
        }
        *held = pem;
        Ok(())
    }

    /// Trusts `roots` from now on, if they are those of this node's certificate too.
    pub fn trust(&self, roots: &str) -> anyhow::Result<bool> {
        let pem = IdentityPem { roots: roots.to_owned(), ..self.pem() };
        let is_ours = Certificate::verify(&pem.certificate, roots, clock::now()).is_ok();
        if is_ours {
            self.take_identity(pem)?;
            tracing::info!("this node trusts another root");
        }
        Ok(is_ours)
    }

    /// This node's certificate has run out: nobody believes it any more.
    pub fn is_expired(&self) -> bool {
        Certificate::parse(&self.pem().certificate)
            .is_ok_and(|certificate| certificate.not_after < clock::now())
    }

    /// Did the key with this digest sign this node's certificate?
    pub fn is_issued_by(&self, issuer: &[u8]) -> bool {
        locked(&self.tls).is_some_and(|tls| tls.issuer == issuer)
    }

    /// The key of this node's certificate should be another one, though the certificate is good.
    pub fn renews_soon(&self) -> bool {
        self.renew_soon.load(Ordering::Relaxed)
    }

    /// Locks this manager's disk as `cluster` wants it.
    pub fn lock_as(&self, cluster: &Cluster) -> Result<(), LockError> {
        let mut kek = locked(&self.kek);
        let Some(now) = kek.as_ref() else { return Ok(()) };
        let Some(next) = lock::rewrap(&self.dir, &self.pem(), now, cluster)? else { return Ok(()) };
        let was_open = !now.wrapping().is_locked;
        tracing::info!(is_locked = next.wrapping().is_locked, "this manager's disk has another key");
        self.renew_soon.fetch_or(was_open, Ordering::Relaxed);
        *kek = Some(next);
        Ok(())
    }

    /// Locks this manager's disk as the state that it has says.
    pub fn follow_lock(&self) {
        let state = self.consensus().map(|consensus| consensus.state());
        let Some(cluster) = state.as_ref().and_then(|state| state.cluster()) else { return };
        if let Err(error) = self.lock_as(cluster) {
            tracing::error!(%error, "this manager's disk is not locked as the cluster wants it");
        }
    }

    fn keep_locked(self: &Arc<Self>, manager: &RunningManager) {
        tokio::spawn(lock::follow(self.clone(), manager.consensus.clone(), manager.stopped()));
    }

    /// The key that opens this manager's data key. A new manager's is the cluster's from the start, with autolock: the
    /// others say it.
    async fn data_key_opener(&self, is_new: bool) -> Result<Kek, ManagerError> {
        if !is_new && let Some(kek) = locked(&self.kek).clone() {
            return Ok(kek);
        }
        let mut last = ManagerError::Alone;
        for addr in self.other_managers() {
            match certificate::unlock_key(&self.channels, addr).await {
                Ok((key, version)) => return Ok(lock::new_kek(&self.dir, key, version)?),
                Err(status) => last = ManagerError::UnlockKey(status),
            }
        }
        Err(last)
    }

    pub fn data_plane(&self) -> &NodeDataPlane {
        &self.data_plane
    }

    /// [`Swarm::ready_consensus`], once there is one.
    pub async fn managed(&self) -> Arc<Consensus> {
        let mut local_manager = self.local_manager.subscribe();
        loop {
            local_manager.mark_unchanged();
            let manager = self.manager();
            let ready = async {
                let Some(manager) = manager else { return std::future::pending().await };
                let mut is_ready = manager.is_ready();
                if is_ready.wait_for(|is_ready| *is_ready).await.is_err() {
                    std::future::pending::<()>().await;
                }
                manager.consensus.clone()
            };
            tokio::select! {
                consensus = ready => return consensus,
                // Its sender is this membership.
                _ = local_manager.changed() => {}
            }
        }
    }

    /// Consensus, while this node is a manager.
    pub fn consensus(&self) -> Option<Arc<Consensus>> {
        self.manager().map(|manager| manager.consensus.clone())
    }

    /// Its store, once that has what the cluster had when this node became a manager.
    pub fn ready_consensus(&self) -> Option<Arc<Consensus>> {
        self.manager().filter(|manager| *manager.is_ready().borrow()).map(|manager| manager.consensus.clone())
    }

    /// What this node is itself by.
    pub fn opened(&self) -> Opened {
        Opened { pem: self.pem(), kek: locked(&self.kek).clone() }
    }

    pub fn manager(&self) -> Option<Arc<RunningManager>> {
        locked(&self.manager).clone()
    }

    /// Starts the manager half: opens what is on the disk, or makes a new replica. Goes on to its end if the caller goes away:
    /// files that are being opened would stay open.
    pub async fn start_manager(self: &Arc<Self>) -> Result<(), ManagerError> {
        let swarm = self.clone();
        let starting = tokio::spawn(async move {
            let _until_started = swarm.starting.lock().await;
            swarm.open_manager().await
        });
        starting.await.unwrap_or(Err(ManagerError::Stopping))
    }

    async fn open_manager(self: &Arc<Self>) -> Result<(), ManagerError> {
        let stored = Consensus::stored_raft_id(&self.dir.raft()).map_err(ManagerError::Raft)?;
        let kek = self.stop.run_until_cancelled(self.data_key_opener(stored.is_none())).await;
        let kek = kek.ok_or(ManagerError::Stopping)??;
        self.update_file(|file| file.raft_id = Some(stored.unwrap_or_else(new_raft_id)))?;
        let file = self.file();
        let senses = Senses { own_data_path: self.data_plane.is_up.clone(), opinion: self.opinion.clone() };
        let running = RunningManager::open((&self.dir, kek.clone()), &self.channels, &file, senses).await?;
        let (own, seen) = (running.consensus.generation().epoch, self.dir.load_epoch()?);
        if running.is_voter() && own < seen {
            running.stop().await;
            self.fenced.store(true, Ordering::Relaxed);
            return Err(ManagerError::Fenced { own, seen });
        }
        self.hold_key(kek)?;
        let running = Arc::new(running);
        *locked(&self.manager) = Some(running.clone());
        self.keep_locked(&running);
        self.local_manager.send_replace(Some(local_addr(&self.host, &file)));
        Ok(())
    }

    /// From now on `kek` opens the data key that is on the disk; the node's own key is sealed if it should be.
    fn hold_key(&self, kek: Kek) -> Result<(), LockError> {
        let mut held = locked(&self.kek);
        lock::store_identity(&self.dir, &self.pem(), Some(&kek))?;
        // A node's key that has lain open is to be replaced: a locked manager's was never readable.
        let was_open = held.as_ref().is_none_or(|was| !was.wrapping().is_locked);
        self.renew_soon.fetch_or(was_open && kek.wrapping().is_locked, Ordering::Relaxed);
        *held = Some(kek);
        Ok(())
    }

    /// Ends the manager half, also one that is just being started. What it has on disk stays.
    pub async fn stop_manager(&self) {
        let _none_starts = self.starting.lock().await;
        self.local_manager.send_replace(None);
        let manager = locked(&self.manager).take();
        if let Some(manager) = manager {
            manager.stop().await;
        }
    }

    /// Ends the manager half for good: the next one begins with another Raft id and an empty disk.
    pub async fn resign(&self) -> Result<(), DiskError> {
        self.stop_manager().await;
        let mut kek = locked(&self.kek);
        self.dir.remove_raft()?;
        *kek = None;
        drop(kek);
        self.fenced.store(false, Ordering::Relaxed);
        self.update_file(|file| file.raft_id = None)
    }

    /// Lays down this node's part in a cluster that was given up: a new one was forced out of it, with `epoch`. Not before
    /// the new one has given the node another certificate does it become a manager again. Until then the Raft data stays:
    /// its data key seals the node's own key.
    /// Where the new one's leader is, if it has called, is passed on to the agents of this manager.
    pub async fn lay_down(&self, Beyond { epoch, leader }: Beyond) -> Result<(), DiskError> {
        self.fenced.store(true, Ordering::Relaxed);
        if let Some((node, addr)) = leader {
            if let Some(manager) = self.manager() {
                manager.send_agents_to(node, addr);
            }
            if node == self.node_id() {
                *locked(&self.taken_over_by) = Some(addr);
            } else {
                self.update_file(|file| {
                    file.managers.retain(|known| known.node != node);
                    file.managers.insert(0, KnownManager { node, addr });
                })?;
            }
        }
        self.stop_manager().await;
        if self.dir.load_epoch()? < epoch {
            self.dir.store_epoch(epoch)?;
        }
        Ok(())
    }

    /// The leader of a cluster that was made in this node's name, elsewhere: there is no place in it for this machine as the node
    /// that it is.
    pub fn taken_over_by(&self) -> Option<SocketAddr> {
        *locked(&self.taken_over_by)
    }

    /// It has, and what it had there is still on the disk.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    /// Addresses of the managers on other nodes.
    pub fn other_managers(&self) -> Vec<SocketAddr> {
        let me = self.node_id();
        self.file().managers.iter().filter(|manager| manager.node != me).map(|manager| manager.addr).collect()
    }

    /// Waits until the agent has its session, and on a manager the replica is a voter; false after `limit`.
    pub async fn wait_until_ready(&self, limit: Duration) -> bool {
        let mut session = self.session.clone();
        let ready = async {
            let _ = session.wait_for(|state| state.connected.is_some()).await;
            while self.me().role == Role::Manager && !self.takes_part() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, ready).await.is_ok()
    }

    /// This manager votes, and its state shows this node as ready.
    fn takes_part(&self) -> bool {
        let Some(manager) = self.manager().filter(|manager| manager.is_voter()) else { return false };
        let state = manager.consensus.state();
        state.nodes().get(&self.node_id()).is_some_and(|node| node.status.state == NodeState::Ready)
    }

    /// Stops everything; tasks and data plane go on. A leader hands over first.
    pub async fn shut_down(&self) {
        self.stop_keeper().await;
        self.stop_gossip().await;
        let agent = locked(&self.agent).take();
        if let Some(agent) = agent {
            agent.stop().await;
        }
        self.stop_manager().await;
    }

    async fn stop_gossip(&self) {
        let gossip = locked(&self.gossip).take();
        if let Some(gossip) = gossip {
            gossip.stop().await;
        }
    }

    /// Gives up the seat in Raft. If that can't be, nothing has changed.
    pub async fn prepare_to_leave(&self, force: bool) -> Result<(), SwarmError> {
        let Some(manager) = self.manager() else { return Ok(()) };
        self.leaving.store(true, Ordering::Relaxed);
        let result = give_up_seat(&manager, force).await;
        self.leaving.store(result.is_ok(), Ordering::Relaxed);
        result
    }

    /// Stops the node's containers and the manager half, takes the data plane down.
    pub async fn leave(self: Arc<Self>) -> Result<(), SwarmError> {
        self.stop_keeper().await;
        self.stop_gossip().await;
        if let Some(standalone) = self.host.containers.standalone() {
            standalone.leave().await;
        }
        let agent = locked(&self.agent).take();
        if let Some(agent) = agent
            && let Err(error) = agent.leave().await
        {
            tracing::warn!(%error, "not all containers were removed");
        }
        self.stop_manager().await;
        let data_plane = self.data_plane.clone();
        drop(self);
        data_plane.tear_down().await.map_err(failed)
    }

    /// The node is on its way out: its seat in Raft is not to be taken again.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    async fn stop_keeper(&self) {
        self.stop.cancel();
        let keeper = locked(&self.keeper).take();
        if let Some(keeper) = keeper
            && let Err(error) = keeper.await
        {
            tracing::error!(%error, "what keeps the node in step has failed");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of the node the agent is told.
struct AgentsWorld<'a> {
    host: &'a Arc<Host>,
    tls: Arc<Mutex<Option<NodeTls>>>,
    inspect: Arc<dyn Inspect>,
    opinion: watch::Receiver<Arc<Opinion>>,
    gossip_addr: Option<SocketAddr>,
}

fn agent_options(
    AgentsWorld { host, tls, inspect, opinion, gossip_addr }: AgentsWorld<'_>,
    channels: &Arc<Channels>,
    file: &NodeFile,
    (dir, epoch): (&SwarmDir, u64),
    local_manager: watch::Receiver<Option<SocketAddr>>,
) -> AgentOptions {
    let (describer, vtep, dir) = (host.clone(), file.data_path, dir.clone());
    AgentOptions {
        context: NodeContext {
            node: file.node,
            hostname: host.config.hostname.clone(),
            vtep,
            vxlan_port: file.data_path_port,
        },
        channels: channels.clone(),
        describe: Arc::new(move || NodeDescription {
            tls: *locked(&tls),
            gossip_addr,
            ..describer.description(vtep)
        }),
        inspect,
        known_managers: file.managers.iter().map(|manager| manager.addr).collect(),
        local_manager,
        local_sandboxes: host
            .containers
            .standalone()
            .map_or_else(|| watch::channel(Table::new()).1, Standalone::sandboxes),
        opinion,
        epoch,
        keep_epoch: Arc::new(move |epoch| dir.store_epoch(epoch).map_err(|error| error.to_string())),
    }
}

/// Where this node's own manager is reached from this node: as the others do, unless it listens elsewhere.
fn local_addr(host: &Host, file: &NodeFile) -> SocketAddr {
    let (listen, advertise) = (file.listen, file.advertise);
    let own = host.addresses.read().all().any(|ip| ip == advertise.ip());
    match listen.ip() {
        ip if !ip.is_unspecified() => listen,
        _ if own && advertise.port() == listen.port() => advertise,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port()),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), listen.port()),
    }
}

/// Leaves Raft, unless this is the last manager. With `force` also if the others do not agree.
async fn give_up_seat(manager: &RunningManager, force: bool) -> Result<(), SwarmError> {
    let consensus = &manager.consensus;
    if consensus.voters().len() <= 1 {
        return Ok(());
    }
    let leaving = consensus.remove_voter(consensus.raft_id());
    match tokio::time::timeout(GIVE_UP_SEAT, leaving).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if !force => Err(failed(error)),
        Err(_) if !force => Err(SwarmError::Failed("the other managers do not answer".into())),
        Ok(Err(_)) | Err(_) => {
            tracing::warn!("left raft without the other managers' agreement");
            Ok(())
        }
    }
}

/// A Raft id that was never used: random, and not 0.
pub fn new_raft_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}
