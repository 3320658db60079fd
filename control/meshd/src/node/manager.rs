//! The manager half of a node: consensus, the manager's work, and its RPC listener.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_consensus::{Beyond, Consensus, JoinError, Kek, OpenError, Options};
use control_manager::{Inspector, Manager, Senses, clock};
use control_model::{Change, NodeId};
use control_rpc::{Channels, serve};
use control_store::{ReplicatedStore as _, State};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::lock::LockError;
use crate::disk::{DiskError, NodeFile, SwarmDir};

/// One manager is asked this long to make a voter's new address known; then it is the next one's turn. It takes one write,
/// and an election before it where the leader has moved.
const MOVE_LIMIT: Duration = Duration::from_secs(4);

/// Why the manager half does not run.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("can't listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("can't read the raft directory")]
    Raft(#[source] io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("no manager says how this node's disk is to be locked: {0}")]
    UnlockKey(tonic::Status),
    #[error("can't become a manager: {0}")]
    Join(#[from] JoinError),
    #[error("the manager at {0} does not say in time that it knows this one's address")]
    Unheard(SocketAddr),
    #[error("can't become a manager: no other manager is known")]
    Alone,
    #[error("can't become a manager: its store is behind: {0}")]
    Behind(#[from] control_store::ReadError),
    #[error("the node is stopping")]
    Stopping,
    #[error("node.json names no raft id")]
    NoRaftId,
    #[error(
        "this node has seen fencing epoch {seen}, its raft data is of epoch {own}: a new cluster was forced without it"
    )]
    Fenced { own: u64, seen: u64 },
}

/// A manager that runs and is served.
pub struct RunningManager {
    pub consensus: Arc<Consensus>,
    pub inspector: Inspector,
    parts: Mutex<Option<Parts>>,
    /// Its store has what the cluster had when it came.
    is_ready: watch::Sender<bool>,
    stop: CancellationToken,
}

struct Parts {
    manager: Manager,
    server: JoinHandle<()>,
}

/// How a replica begins.
enum Begin {
    /// A new cluster, with its first entry.
    Bootstrap(Vec<Change>),
    /// From the disk, or empty if there is nothing.
    Resume,
    /// From the disk, alone.
    Recover(Changes),
    /// From a backup, alone.
    Restore(Box<State>, Changes),
}

/// Makes the first entry of a new cluster of an old one's state.
pub type Changes = Box<dyn FnOnce(&State) -> Vec<Change> + Send>;

impl RunningManager {
    /// The first manager of a new cluster, whose data key `kek` opens.
    pub async fn bootstrap(
        (dir, kek): (&SwarmDir, Kek),
        channels: &Arc<Channels>,
        file: &NodeFile,
        senses: Senses,
        changes: Vec<Change>,
    ) -> Result<Self, ManagerError> {
        Self::begin((dir, kek), channels, file, senses, Begin::Bootstrap(changes)).await
    }

    /// Goes on from the disk, or makes an empty replica that has yet to [`RunningManager::join`]. `kek` opens the data
    /// key.
    pub async fn open(
        (dir, kek): (&SwarmDir, Kek),
        channels: &Arc<Channels>,
        file: &NodeFile,
        senses: Senses,
    ) -> Result<Self, ManagerError> {
        Self::begin((dir, kek), channels, file, senses, Begin::Resume).await
    }

    /// A new cluster of this manager alone, out of what it has on disk.
    pub async fn recover(
        (dir, kek): (&SwarmDir, Kek),
        channels: &Arc<Channels>,
        file: &NodeFile,
        senses: Senses,
        changes: Changes,
    ) -> Result<Self, ManagerError> {
        Self::begin((dir, kek), channels, file, senses, Begin::Recover(changes)).await
    }

    /// A cluster of this manager alone, out of a backup's state.
    pub async fn restore(
        (dir, kek): (&SwarmDir, Kek),
        channels: &Arc<Channels>,
        file: &NodeFile,
        senses: Senses,
        (state, changes): (State, Changes),
    ) -> Result<Self, ManagerError> {
        Self::begin((dir, kek), channels, file, senses, Begin::Restore(Box::new(state), changes)).await
    }

    async fn begin(
        (dir, kek): (&SwarmDir, Kek),
        channels: &Arc<Channels>,
        file: &NodeFile,
        senses: Senses,
        begin: Begin,
    ) -> Result<Self, ManagerError> {
        // First, so that a port that is taken leaves nothing behind.
        let listener =
            TcpListener::bind(file.listen).await.map_err(|error| ManagerError::Listen(file.listen, error))?;
        let options = Options {
            dir: dir.raft(),
            raft_id: file.raft_id.ok_or(ManagerError::NoRaftId)?,
            node_id: file.node,
            addr: file.advertise,
            kek,
            channels: channels.clone(),
            clock: Arc::new(clock::even),
        };
        let consensus = match begin {
            Begin::Bootstrap(changes) => Consensus::bootstrap(options, changes).await?,
            Begin::Resume
                if Consensus::stored_raft_id(&dir.raft()).map_err(ManagerError::Raft)?.is_some() =>
            {
                Consensus::open(options).await?
            }
            Begin::Resume => Consensus::create(options).await?,
            Begin::Recover(changes) => Consensus::recover(options, changes).await?,
            Begin::Restore(state, changes) => Consensus::restore(options, *state, changes).await?,
        };
        let is_ready = consensus.is_voter_by_log().await;
        Ok(Self::start(consensus, listener, channels, (file.node, is_ready), senses))
    }

    fn start(
        consensus: Arc<Consensus>,
        listener: TcpListener,
        channels: &Arc<Channels>,
        (me, is_ready): (NodeId, bool),
        senses: Senses,
    ) -> Self {
        let options =
            control_manager::Options { consensus: consensus.clone(), channels: channels.clone(), me, senses };
        let manager = Manager::start(options);
        let inspector = manager.inspector();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = serve(listener, channels.identity().clone(), manager.routes(), stopped);
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the managers' RPC server ended");
            }
        });
        let parts = Mutex::new(Some(Parts { manager, server }));
        Self { consensus, inspector, parts, is_ready: watch::Sender::new(is_ready), stop }
    }

    /// Ends with this value's [`RunningManager::stop`].
    pub fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// This replica takes part in votes.
    pub fn is_voter(&self) -> bool {
        self.consensus.voters().contains(&self.consensus.raft_id())
    }

    /// A new cluster was forced without this manager: heard from one of its managers.
    pub fn fenced(&self) -> watch::Receiver<Option<Beyond>> {
        self.consensus.fenced()
    }

    /// Ends all sessions, and sends the agents to the manager of another cluster.
    pub fn send_agents_to(&self, node: NodeId, addr: SocketAddr) {
        if let Some(parts) = &*self.parts.lock().unwrap_or_else(PoisonError::into_inner) {
            parts.manager.send_to(node, addr);
        }
    }

    /// See [`Manager::n_drains_given_up`]; 0 when it has stopped.
    pub fn n_drains_given_up(&self) -> u64 {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.as_ref().map_or(0, |parts| parts.manager.n_drains_given_up())
    }

    /// See [`Manager::n_refused`]; nothing when it has stopped.
    pub fn n_refused(&self) -> Vec<(&'static str, u64)> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = parts.as_ref().map(|parts| parts.manager.n_refused());
        counts.into_iter().flatten().map(|(lie, n)| (lie.word(), n)).collect()
    }

    /// This replica takes part in votes, the others know where it is, and its store can be read.
    pub fn is_settled(&self) -> bool {
        self.is_voter() && self.consensus.is_listed() && *self.is_ready.borrow()
    }

    /// Whether its store has what the cluster had when it came: until then it has nothing to say.
    pub fn is_ready(&self) -> watch::Receiver<bool> {
        self.is_ready.subscribe()
    }

    /// Becomes a voter, or known by its present address, through the first of `managers` that lets it, or as the leader.
    pub async fn join(&self, managers: &[SocketAddr]) -> Result<(), ManagerError> {
        let mut last = ManagerError::Alone;
        // As the others see it: by its own vote, a leader that has just been restarted leads still.
        let own = self.consensus.leadership().borrow().is_me.then(|| self.consensus.addr());
        let limit = if self.is_voter() { MOVE_LIMIT } else { Duration::MAX };
        for addr in own.into_iter().chain(managers.iter().copied()) {
            match tokio::time::timeout(limit, self.consensus.join(addr)).await {
                Ok(Ok(())) => return self.become_ready().await,
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = ManagerError::Unheard(addr),
            }
        }
        Err(last)
    }

    async fn become_ready(&self) -> Result<(), ManagerError> {
        self.consensus.linearize().await?;
        self.is_ready.send_replace(true);
        Ok(())
    }

    /// Hands leadership over, stops serving, closes the files.
    pub async fn stop(&self) {
        self.consensus.shutdown().await;
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Parts { manager, server }) = parts else { return };
        drop(manager);
        self.stop.cancel();
        if let Err(error) = server.await {
            tracing::error!(%error, "the managers' RPC server failed");
        }
    }

    /// Waits until this manager leads and its state takes writes.
    pub async fn wait_to_lead(&self) -> Result<(), control_store::ReadError> {
        let ended = || control_store::ReadError::NotManager;
        self.consensus.leadership().wait_for(|l| l.is_me).await.map_err(|_| ended())?;
        self.consensus.linearize().await
    }
}
