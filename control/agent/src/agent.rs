//! The agent as the daemon sees it.

use std::net::SocketAddr;
use std::sync::Arc;

use control_model::Network;
use control_model::executor::{Executor, ExecutorError, Found};
use control_model::gossip::{GossipKeys, Opinion, Said};
use control_rpc::Channels;
use dataplane_model::{DataPlane, NodeView, Sandbox, SandboxId, Table};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::holdings::Holdings;
use crate::session::{
    DescriptionProvider, Fence, Inspect, KeepEpoch, SessionClient, SessionState, SharedOutbox,
};
use crate::view::NodeContext;
use crate::worker::{LIST_RETRY, Worker};

/// Before a node leaves with its containers where they are.
const LIST_ATTEMPTS: usize = 15;
/// Updates between session and worker: each is answered before the next, so one is enough.
const DELIVERIES: usize = 1;

/// What an agent is made of.
pub struct AgentOptions {
    /// Who and where this node is.
    pub context: NodeContext,
    /// The node's certificate is in here.
    pub channels: Arc<Channels>,
    /// Asked at the start of every session.
    pub describe: DescriptionProvider,
    /// What managers may ask of this node.
    pub inspect: Arc<dyn Inspect>,
    /// Managers to begin with; every session brings the present list.
    pub known_managers: Vec<SocketAddr>,
    /// Where this daemon's own manager listens, while it is one: preferred.
    pub local_manager: watch::Receiver<Option<SocketAddr>>,
    /// The sandboxes that the node has beside those of its tasks: they are in its views from the first one on.
    pub local_sandboxes: watch::Receiver<Table<SandboxId, Sandbox>>,
    /// What this node's gossip thinks.
    pub opinion: watch::Receiver<Arc<Opinion>>,
    /// The highest fencing epoch that this node has seen, from its disk.
    pub epoch: u64,
    /// Keeps a higher one.
    pub keep_epoch: KeepEpoch,
}

/// The agent. Containers outlive it.
pub struct Agent;

/// A running agent. Dropping it stops the agent, not the containers.
pub struct AgentHandle {
    state: watch::Receiver<SessionState>,
    views: watch::Receiver<Option<Arc<NodeView>>>,
    networks: watch::Receiver<Arc<Vec<Network>>>,
    said: watch::Receiver<Arc<Said>>,
    keys: watch::Receiver<GossipKeys>,
    holdings: Holdings,
    executor: Arc<dyn Executor>,
    dataplane: Arc<dyn DataPlane>,
    stop: CancellationToken,
    session: JoinHandle<()>,
    worker: JoinHandle<()>,
}

impl Agent {
    /// Starts the agent. Must be called inside a tokio runtime.
    pub fn start(
        options: AgentOptions,
        executor: Arc<dyn Executor>,
        dataplane: Arc<dyn DataPlane>,
    ) -> AgentHandle {
        let outbox = Arc::new(SharedOutbox::default());
        let (deliveries, received) = mpsc::channel(DELIVERIES);
        let (state_sender, state) = watch::channel(SessionState::default());
        let (view_sender, views) = watch::channel(None);
        let (network_sender, networks) = watch::channel(Arc::default());
        let (said_sender, said) = watch::channel(Arc::default());
        let (key_sender, keys) = watch::channel(GossipKeys::default());
        let (holdings, asked) = Holdings::new();
        let stop = CancellationToken::new();
        let client = SessionClient {
            channels: options.channels,
            describe: options.describe,
            inspect: options.inspect,
            local_manager: options.local_manager,
            fence: Fence::new(options.epoch, options.keep_epoch),
            known_managers: options.known_managers,
            outbox: Arc::clone(&outbox),
            deliveries,
            reports: dataplane.watch(),
            state: state_sender,
            keys: key_sender,
        };
        let worker = Worker {
            executor: Arc::clone(&executor),
            dataplane: Arc::clone(&dataplane),
            context: options.context,
            epoch: options.epoch,
            outbox,
            deliveries: received,
            views: view_sender,
            networks: network_sender,
            asked,
            local_sandboxes: options.local_sandboxes,
            opinion: options.opinion,
            said: said_sender,
        };
        let session = tokio::spawn(client.run(stop.clone()));
        let worker = tokio::spawn(worker.run(stop.clone()));
        AgentHandle {
            state,
            views,
            networks,
            said,
            keys,
            holdings,
            executor,
            dataplane,
            stop,
            session,
            worker,
        }
    }
}

impl AgentHandle {
    /// The session: connected manager, wanted role, managers, root certificates.
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// The newest view that the data plane was given; `None` before the first complete assignment set.
    pub fn views(&self) -> watch::Receiver<Option<Arc<NodeView>>> {
        self.views.clone()
    }

    /// The overlay networks that a manager last assigned to this node, by id: the routing mesh's, and those of its tasks.
    pub fn networks(&self) -> watch::Receiver<Arc<Vec<Network>>> {
        self.networks.clone()
    }

    /// What this node's gossip is told.
    pub fn said(&self) -> watch::Receiver<Arc<Said>> {
        self.said.clone()
    }

    /// The keys of gossip, as a manager has last handed them out.
    pub fn gossip_keys(&self) -> watch::Receiver<GossipKeys> {
        self.keys.clone()
    }

    /// Asks what the managers have assigned to this node.
    pub fn holdings(&self) -> Holdings {
        self.holdings.clone()
    }

    /// Ends the session and the work. Containers and data path go on.
    pub async fn stop(mut self) {
        self.halt().await;
    }

    /// The node leaves the cluster: ends the session, removes all containers, takes everything out of the data plane.
    pub async fn leave(mut self) -> Result<(), ExecutorError> {
        self.halt().await;
        let mut result = Ok(());
        for found in self.found().await? {
            let killed = self.executor.terminate(found.task).await;
            let removed = self.executor.remove(found.task).await;
            result = result.and(killed).and(removed);
        }
        let last = self.views.borrow().clone();
        if let Some(view) = last {
            self.dataplane.set_view(emptied(&view));
        }
        result
    }

    /// What is there, also of an executor that does not answer for a while.
    async fn found(&self) -> Result<Vec<Found>, ExecutorError> {
        for _ in 1..LIST_ATTEMPTS {
            match self.executor.list_ours().await {
                Ok(found) => return Ok(found),
                Err(error) => tracing::warn!(%error, "the executor can't list its containers"),
            }
            tokio::time::sleep(LIST_RETRY).await;
        }
        self.executor.list_ours().await
    }

    async fn halt(&mut self) {
        self.stop.cancel();
        for task in [&mut self.session, &mut self.worker] {
            if let Err(error) = task.await {
                tracing::error!(%error, "the agent's task ended in a panic");
            }
        }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The next view of a node that has nothing to do with any cluster.
fn emptied(view: &NodeView) -> NodeView {
    NodeView {
        revision: view.revision + 1,
        generation: view.generation,
        vtep: view.vtep,
        vxlan_port: view.vxlan_port,
        ingress: None,
        networks: Table::new(),
        sandboxes: Table::new(),
        remote_endpoints: Table::new(),
        services: Table::new(),
        peers: Table::new(),
    }
}
