//! A manager: everything that runs beside consensus on a node that holds a manager certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::{Consensus, Leadership};
use control_model::NodeId;
use control_rpc::pb::ca_server::CaServer as CaService;
use control_rpc::pb::dispatcher_server::DispatcherServer;
use control_rpc::{Channels, MAX_CA_MESSAGE_BYTES, MAX_MESSAGE_BYTES};
use control_store::ReplicatedStore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::ca_server::CaServer;
use crate::dispatcher::{Dispatcher, Lie, Sessions, Trust};
use crate::inspector::Inspector;
use crate::leader::Leader;
use crate::leading::unending;
use crate::liveness::reporter::Reporter;
use crate::liveness::table::LivenessTable;
use crate::liveness::watcher::{LivenessWatcher, Senses};
use crate::{left_behind, loops, roles, root_rotation};

/// A manager that has known no leader for so long sends its agents away: another one may know better. So does the
/// agent of a manager that was demoted, which nobody else can tell. Longer than an election.
const LEADERLESS: Duration = Duration::from_secs(2);

/// What a manager is made of.
pub struct Options {
    pub consensus: Arc<Consensus>,
    /// Speaks as this node.
    pub channels: Arc<Channels>,
    pub me: NodeId,
    pub senses: Senses,
}

/// A running manager. Dropping it stops its tasks; consensus is the caller's to shut down.
pub struct Manager {
    routes: Routes,
    inspector: Inspector,
    table: Arc<LivenessTable>,
    trust: Arc<Trust>,
    sessions: Arc<Sessions>,
    /// Aborts its tasks when dropped.
    _tasks: JoinSet<()>,
}

impl Manager {
    /// Starts the leader's loops (which wait for leadership), the reports to the leader, and makes the services.
    /// Needs a tokio runtime.
    pub fn start(options: Options) -> Self {
        let Options { consensus, channels, me, senses } = options;
        let store: Arc<dyn ReplicatedStore> = consensus.clone();
        let leadership = consensus.leadership();
        let table = Arc::<LivenessTable>::default();
        let dispatcher = Dispatcher::new(store.clone(), table.clone(), leadership.clone());

        let mut tasks = JoinSet::new();
        let (sessions, known) = (dispatcher.sessions().clone(), leadership.clone());
        tasks.spawn(async move {
            unending("the watch over agents without a leader", || send_away(&sessions, known.clone())).await;
        });
        let leader = Leader {
            store: store.clone(),
            leadership: leadership.clone(),
            table: table.clone(),
            loops: loops::all(table.clone()),
        };
        tasks.spawn(leader.run());
        tasks.spawn(roles::run(consensus.clone(), leadership.clone()));
        tasks.spawn(left_behind::run(consensus.clone(), leadership.clone(), table.clone()));
        tasks.spawn(root_rotation::run(store.clone(), leadership.clone()));
        let watcher = LivenessWatcher {
            consensus: consensus.clone(),
            table: table.clone(),
            leadership: leadership.clone(),
            me,
            senses,
        };
        tasks.spawn(watcher.run_leader());
        let inspector = Inspector {
            store: store.clone(),
            sessions: dispatcher.sessions().clone(),
            channels: channels.clone(),
            me,
        };
        let reporter = Reporter { store: store.clone(), table: table.clone(), leadership, channels };
        tasks.spawn(async move { unending("the reports to the leader", || reporter.clone().run()).await });

        let (trust, sessions) = (dispatcher.trust().clone(), dispatcher.sessions().clone());
        let dispatcher = DispatcherServer::new(dispatcher)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let ca = CaService::new(CaServer::counting(store, trust.clone()))
            .max_decoding_message_size(MAX_CA_MESSAGE_BYTES);
        let routes = consensus.service().add_service(dispatcher).add_service(ca);
        Self { routes, inspector, table, trust, sessions, _tasks: tasks }
    }

    /// All services of a manager, Raft's included, for [`control_rpc::serve`].
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// How often nodes that lied or flooded were refused by this manager, by reason.
    pub fn n_refused(&self) -> [(Lie, u64); Lie::ALL.len()] {
        self.trust.n_refused()
    }

    /// Drains that this manager, as the leader, ended though nodes had not acknowledged them.
    pub fn n_drains_given_up(&self) -> u64 {
        self.table.n_drains_given_up()
    }

    /// Ends all sessions, and sends the agents to the manager of another cluster, which was forced out of this one.
    pub fn send_to(&self, node: NodeId, addr: SocketAddr) {
        self.sessions.send_elsewhere(node, addr);
    }

    /// Asks nodes about themselves.
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }
}

/// Closes all sessions when there has been no leader for [`LEADERLESS`].
async fn send_away(sessions: &Sessions, mut leadership: watch::Receiver<Leadership>) {
    loop {
        if leadership.wait_for(|l| l.leader.is_none()).await.is_err() {
            return;
        }
        let found = leadership.wait_for(|l| l.leader.is_some());
        if tokio::time::timeout(LEADERLESS, found).await.is_err() {
            tracing::warn!("no leader is known: agents are sent to other managers");
            sessions.close_all();
            if leadership.wait_for(|l| l.leader.is_some()).await.is_err() {
                return;
            }
        }
    }
}
