//! The node: in a swarm, on the way into one, or in none. What the API asks of it is in `control_api::node`.

mod certificate;
mod facts;
mod genesis;
mod inspect;
mod keeper;
mod manager;
mod swarm;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use control_api::Engine;
use control_api::node::{
    HostFacts, InitRequest, InspectError, JOIN_TIMEOUT, JoinRequest, LocalState, RaftFacts, SwarmError,
};
use control_model::NodeId;
use control_model::object::ManagerStatus;
use control_rpc::{Channels, Identity, IdentityPem};
use control_store::ReplicatedStore;
use dataplane_model::inspect::{DropsReport, EndpointRow, LoadBalancerRow, NodeStatus};

use crate::addresses::{Addresses, SystemAddresses, resolve_remote};
use crate::data_plane::NodeDataPlane;
use crate::disk::{KnownManager, NodeFile, SwarmDir};
use crate::engine::OciEngine;
use crate::host::Host;
use genesis::Genesis;
use manager::RunningManager;
use swarm::{Parts, Swarm, new_raft_id};

/// Default of `docker swarm init|join --listen-addr`.
const CLI_LISTEN_ADDR: &str = "0.0.0.0:2377";

/// A node and its standing towards a swarm.
pub struct MeshNode {
    host: Arc<Host>,
    dir: SwarmDir,
    engine: Arc<dyn Engine>,
    standing: Mutex<Standing>,
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
    /// Part of a swarm by what is on the disk, but that can't be used.
    Broken(String),
}

impl MeshNode {
    /// A node that goes on with what is on the disk, in the background.
    pub fn open(host: Arc<Host>) -> Arc<Self> {
        let dir = SwarmDir::new(host.config.swarm_dir());
        let engine = Arc::new(OciEngine {
            oci: host.executor.clone(),
            insecure_registries: host.config.insecure_registries.iter().cloned().collect(),
        });
        let node = Self {
            dir,
            engine,
            standing: Mutex::new(Standing::Out),
            changing: tokio::sync::Mutex::default(),
            host,
        };
        let resumed = node.resume().unwrap_or_else(|error| {
            tracing::error!(%error, "can't go on in the swarm");
            Standing::Broken(error.to_string())
        });
        node.stand(resumed);
        Arc::new(node)
    }

    /// Stops the daemon's part; tasks and data plane go on.
    pub async fn shut_down(&self) {
        let _changing = self.changing.lock().await;
        if let Some(swarm) = self.swarm() {
            swarm.shut_down().await;
        }
    }

    fn resume(&self) -> Result<Standing, SwarmError> {
        let Some(file) = self.dir.load().map_err(failed)? else { return Ok(Standing::Out) };
        let pem = self.dir.load_identity().map_err(failed)?;
        Ok(Standing::In(self.start(pem, file)?))
    }

    /// A membership whose manager half, if any, starts by itself.
    fn start(&self, pem: IdentityPem, file: NodeFile) -> Result<Arc<Swarm>, SwarmError> {
        Ok(Swarm::start(Parts {
            host: self.host.clone(),
            dir: self.dir.clone(),
            channels: channels(&pem)?,
            data_plane: NodeDataPlane::start(&self.host.config).map_err(failed)?,
            pem,
            file,
            manager: None,
        }))
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stand(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn swarm(&self) -> Option<Arc<Swarm>> {
        match self.standing() {
            Standing::In(swarm) => Some(swarm),
            Standing::Out | Standing::Pending | Standing::Broken(_) => None,
        }
    }

    /// The three addresses of a request, the daemon's own settings where it says nothing.
    fn addresses(&self, listen: &str, advertise: &str, data_path: &str) -> Result<Addresses, SwarmError> {
        let config = &self.host.config;
        let or = |given: &str, own: &str| if given.is_empty() { own.to_owned() } else { given.to_owned() };
        // What the CLI sends when its user said nothing.
        let listen = if listen == CLI_LISTEN_ADDR { "" } else { listen };
        Addresses::resolve(
            &SystemAddresses::read(),
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
        let genesis =
            Genesis::new(request, manager, self.host.description(addresses.data_path)).map_err(failed)?;
        let file = NodeFile {
            node: genesis.identity.node_id,
            cluster: genesis.identity.cluster_id,
            listen: addresses.listen,
            advertise: addresses.advertise,
            data_path: addresses.data_path,
            data_path_port: genesis.data_path_port,
            raft_id: Some(manager.raft_id),
            managers: vec![KnownManager { node: genesis.identity.node_id, addr: addresses.advertise }],
        };
        let Genesis { pem, changes, .. } = genesis;
        let channels = channels(&pem)?;
        let data_plane = NodeDataPlane::start(&self.host.config).map_err(failed)?;
        self.dir.store_identity(&pem).map_err(failed)?;
        let is_up = data_plane.is_up.clone();
        let running = RunningManager::bootstrap(&self.dir, &channels, &file, is_up, changes);
        let running = running.await.map_err(failed)?;
        if let Err(error) = running.wait_to_lead().await {
            running.stop().await;
            return Err(failed(error));
        }
        self.dir.store(&file).map_err(failed)?;
        let (host, dir) = (self.host.clone(), self.dir.clone());
        Ok(Swarm::start(Parts { host, dir, channels, pem, file, data_plane, manager: Some(running) }))
    }

    async fn do_join(&self, request: &JoinRequest) -> Result<Arc<Swarm>, SwarmError> {
        let addresses =
            self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        let mut last = SwarmError::Unreachable("no manager's address was given".into());
        for remote in &request.remote_addrs {
            let resolved = resolve_remote(remote).await.unwrap_or_default();
            if resolved.is_empty() {
                last = SwarmError::Unreachable(format!("can't resolve {remote}"));
            }
            for addr in resolved {
                match certificate::join(addr, &request.token, request.availability).await {
                    Ok(joined) => return self.enter(addresses, addr, joined),
                    // Another manager would say the same.
                    Err(error @ SwarmError::Token(_)) => return Err(error),
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
            data_path: addresses.data_path,
            data_path_port: joined.data_path_port,
            raft_id: None,
            // Whose id it is the first session says.
            managers: vec![KnownManager { node: NodeId::from_bits(0), addr: via }],
        };
        self.dir.store_identity(&joined.pem).map_err(failed)?;
        self.dir.store(&file).map_err(failed)?;
        self.start(joined.pem, file)
    }

    async fn do_leave(&self, force: bool) -> Result<(), SwarmError> {
        if let Some(swarm) = self.swarm() {
            swarm.prepare_to_leave(force).await?;
            // The node's own hold on the data plane must be gone when it is taken down.
            self.stand(Standing::Pending);
            swarm.leave().await?;
        }
        self.dir.remove_all().map_err(failed)
    }
}

fn failed(error: impl std::error::Error) -> SwarmError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    SwarmError::Failed(text)
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
        let _changing = self.changing.lock().await;
        if request.force_new_cluster {
            return Err(SwarmError::Failed("--force-new-cluster is not supported".into()));
        }
        if !matches!(self.standing(), Standing::Out) {
            return Err(SwarmError::AlreadyInSwarm);
        }
        self.stand(Standing::Pending);
        match self.do_init(&request).await {
            Ok(swarm) => {
                let id = swarm.node_id();
                swarm.wait_until_ready(JOIN_TIMEOUT).await;
                self.stand(Standing::In(swarm));
                Ok(id)
            }
            Err(error) => {
                let removed = self.dir.remove_all();
                self.stand(Standing::Out);
                removed.map_err(failed)?;
                Err(error)
            }
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<(), SwarmError> {
        let _changing = self.changing.lock().await;
        if !matches!(self.standing(), Standing::Out) {
            return Err(SwarmError::AlreadyInSwarm);
        }
        self.stand(Standing::Pending);
        match self.do_join(&request).await {
            Ok(swarm) => {
                let in_time = swarm.wait_until_ready(JOIN_TIMEOUT).await;
                self.stand(Standing::In(swarm));
                if in_time { Ok(()) } else { Err(SwarmError::JoinTimeout) }
            }
            Err(error) => {
                let removed = self.dir.remove_all();
                self.stand(Standing::Out);
                removed.map_err(failed)?;
                Err(error)
            }
        }
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        let _changing = self.changing.lock().await;
        if matches!(self.standing(), Standing::Out) {
            return Err(SwarmError::NotInSwarm);
        }
        self.do_leave(force).await?;
        self.stand(Standing::Out);
        Ok(())
    }

    fn store(&self) -> Option<Arc<dyn ReplicatedStore>> {
        let consensus = self.swarm()?.consensus()?;
        Some(consensus)
    }

    fn raft(&self) -> RaftFacts {
        self.swarm().and_then(|swarm| swarm.consensus()).map(|c| facts::raft(&c)).unwrap_or_default()
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    async fn mesh_status(&self) -> Result<NodeStatus, InspectError> {
        Ok(inspect::status(&self.host, self.swarm().as_deref()))
    }

    async fn mesh_load_balancers(&self) -> Result<Vec<LoadBalancerRow>, InspectError> {
        inspect::load_balancers(&self.host, self.swarm().as_deref()).await
    }

    async fn mesh_endpoints(&self) -> Result<Vec<EndpointRow>, InspectError> {
        inspect::endpoints(&self.host).await
    }

    async fn mesh_drops(&self) -> Result<DropsReport, InspectError> {
        inspect::drops(&self.host).await
    }
}
