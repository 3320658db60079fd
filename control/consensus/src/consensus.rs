//! The replicated store over Raft: how it is opened, and closed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use control_model::change::{Change, Entry, RequestId};
use control_model::{NodeId, Timestamp};
use control_rpc::pb::raft_server::RaftServer;
use control_rpc::{Channels, MAX_MESSAGE_BYTES};
use control_store::{EventReceiver, ProposeError, ReadError, ReplicatedStore, State};
use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::Fatal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::crypt::{Kek, Key};
use crate::ended;
use crate::error::OpenError;
use crate::fence::{Beyond, Fence};
use crate::gathering::Gathering;
use crate::housekeeping;
use crate::key_file;
use crate::leadership::{self, Leadership};
use crate::limits::{LOG_MEMORY_BYTES, raft_config};
use crate::log::LogStore;
use crate::machine::{Machine, View};
use crate::network::{AddressBook, Network};
use crate::quorum::Silence;
use crate::service::RaftService;
use crate::shared_call::SharedCall;
use crate::snapshot::SnapshotFile;
use crate::types::{Member, TypeConfig};

/// What dockerd says without a leader.
pub(crate) const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.";

/// The log's file in the directory.
pub(crate) const LOG_FILE: &str = "log.redb";

/// A restart applies what it knows to be committed before it is opened; a second for some 10,000 entries.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a manager's Raft is opened with.
#[derive(Clone)]
pub struct Options {
    /// Directory of its own: data key, log, snapshot.
    pub dir: PathBuf,
    /// Never used with another data directory before: random, chosen when a node becomes a manager.
    pub raft_id: u64,
    pub node_id: NodeId,
    /// Where other managers reach this one's RPC.
    pub addr: SocketAddr,
    pub kek: Kek,
    pub channels: Arc<Channels>,
    /// Stamps writes.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// How the log comes to be: [`LogStore::create`] or [`LogStore::open`].
type OpenLog = fn(&Path, Key, usize) -> Result<LogStore, OpenError>;

/// A manager's replica of the cluster's state.
pub struct Consensus {
    raft: Raft<TypeConfig, Machine>,
    raft_id: u64,
    me: Member,
    channels: Arc<Channels>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    view: Arc<View>,
    fence: Arc<Fence>,
    addresses: Arc<AddressBook>,
    log: LogStore,
    leadership: watch::Receiver<Leadership>,
    /// Ended with this value, or by [`Consensus::stop`].
    tasks: Mutex<JoinSet<()>>,
    changing_members: tokio::sync::Mutex<()>,
    silence: Silence,
    reads: SharedCall<Result<Option<u64>, ReadError>>,
    writes: Gathering,
    stopped: CancellationToken,
    this: Weak<Self>,
}

impl Consensus {
    /// The Raft id whose data `dir` holds: what to [`Consensus::open`] it with. `None` if it holds none.
    pub fn stored_raft_id(dir: &Path) -> io::Result<Option<u64>> {
        key_file::stored_raft_id(dir)
    }

    /// Makes a new cluster with this manager alone, whose first entry is `changes`. Refuses a used directory.
    pub async fn bootstrap(options: Options, changes: Vec<Change>) -> Result<Arc<Self>, OpenError> {
        let key = prepare(&options)?;
        let (dir, raft_id, kek) = (options.dir.clone(), options.raft_id, options.kek.clone());
        let member = Member { node_id: options.node_id, addr: options.addr };
        let consensus = Self::start(options, key.clone(), LogStore::create).await?;
        let members = BTreeMap::from([(raft_id, member)]);
        consensus.raft.initialize(members).await.map_err(|error| OpenError::Raft(error.to_string()))?;
        consensus.propose(changes).await.map_err(|error| OpenError::Raft(error.to_string()))?;
        // Only now is the directory in use: whatever a crash left before is made anew.
        key_file::write(&dir, raft_id, &kek, &key)?;
        Ok(consensus)
    }

    /// Opens what an earlier run left. If that run ended before it was a voter (see [`Consensus::voters`]),
    /// [`Consensus::join`] again.
    pub async fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        let key = key_file::read(&options.dir, options.raft_id, &options.kek)?;
        let consensus = Self::start(options, key, LogStore::open).await?;
        if let Some(committed) = consensus.log.committed() {
            let recovered = timeout(RECOVERY_TIMEOUT, consensus.wait_applied(committed)).await;
            if recovered.is_err() {
                consensus.stop().await;
                return Err(OpenError::Raft("committed entries could not be applied".to_owned()));
            }
        }
        if consensus.voters().iter().eq([&consensus.raft_id]) {
            // Nobody else can lead: no need to wait for an election.
            consensus
                .raft
                .trigger()
                .elect(false)
                .await
                .map_err(|error| OpenError::Raft(error.to_string()))?;
        }
        Ok(consensus)
    }

    /// Makes an empty replica that waits for [`Consensus::join`]. Refuses a used directory.
    pub async fn create(options: Options) -> Result<Arc<Self>, OpenError> {
        let key = prepare(&options)?;
        let (dir, raft_id, kek) = (options.dir.clone(), options.raft_id, options.kek.clone());
        let consensus = Self::start(options, key.clone(), LogStore::create).await?;
        key_file::write(&dir, raft_id, &kek, &key)?;
        Ok(consensus)
    }

    async fn start(options: Options, key: Key, open_log: OpenLog) -> Result<Arc<Self>, OpenError> {
        let Options { dir, raft_id, node_id, addr, kek: _, channels, clock } = options;
        let files = tokio::task::spawn_blocking(move || {
            let machine = Machine::open(SnapshotFile::new(&dir, key.clone()))?;
            let log = open_log(&dir.join(LOG_FILE), key, LOG_MEMORY_BYTES)?;
            Ok::<_, OpenError>((log, machine))
        });
        let (log, machine) = files.await.map_err(io::Error::other)??;
        let view = machine.view();
        let fence = Arc::new(Fence::new(view.clone()));
        let addresses = Arc::<AddressBook>::default();
        let network =
            Network { channels: channels.clone(), fence: fence.clone(), addresses: addresses.clone() };
        let started = Raft::new(raft_id, Arc::new(raft_config()), network, log.clone(), machine).await;
        let raft = match started {
            Ok(raft) => raft,
            Err(error) => {
                log.close().await;
                return Err(OpenError::Raft(error.to_string()));
            }
        };
        let (sender, leadership) = watch::channel(Leadership::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(leadership::watch(raft.clone(), sender));
        tasks.spawn(ended::watch(raft.clone(), raft_id, channels.clone()));
        tasks.spawn(housekeeping::run(raft.clone(), log.clone(), view.clone()));
        Ok(Arc::new_cyclic(|this| Self {
            raft,
            raft_id,
            me: Member { node_id, addr },
            channels,
            clock,
            view,
            fence,
            addresses,
            log,
            leadership,
            tasks: Mutex::new(tasks),
            changing_members: tokio::sync::Mutex::default(),
            silence: Silence::default(),
            reads: SharedCall::default(),
            writes: Gathering::default(),
            stopped: CancellationToken::new(),
            this: this.clone(),
        }))
    }

    /// The Raft RPC service, to be mounted before [`Consensus::join`].
    pub fn service(self: &Arc<Self>) -> Routes {
        let service =
            RaftServer::new(RaftService::new(self.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Routes::new(service)
    }

    /// This manager's Raft id.
    pub fn raft_id(&self) -> u64 {
        self.raft_id
    }

    /// Who leads, now and from now on. Closes when Raft has stopped, by [`Consensus::shutdown`] or because its
    /// disk failed.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Why Raft has ended by itself: its disk failed, or is full. Nothing more is written or acknowledged then; what was, is
    /// on the disk.
    pub fn failure(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let state = metrics.borrow_watched().running_state.clone();
        state.err().filter(|fatal| !matches!(fatal, Fatal::Stopped)).map(|fatal| fatal.to_string())
    }

    /// The latest cluster that other managers have told of beyond this replica's own: it was forced without this manager, which
    /// must give up its part in the old one.
    pub fn fenced(&self) -> watch::Receiver<Option<Beyond>> {
        self.fence.watch()
    }

    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Hands leadership over if it is ours, stops Raft and closes the files.
    pub async fn shutdown(&self) {
        if let Err(error) = self.transfer_leadership(&BTreeSet::new()).await {
            tracing::info!(%error, "leadership was not handed over");
        }
        self.stop().await;
    }

    /// Stops as if by a crash, but for the files, which are closed.
    pub(crate) async fn stop(&self) {
        self.stopped.cancel();
        if self.raft.shutdown().await.is_err() {
            tracing::error!("raft panicked");
        }
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.log.close().await;
    }

    /// Nothing more is applied here.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, Machine> {
        &self.raft
    }

    #[cfg(test)]
    pub(crate) fn log_len_bytes(&self) -> usize {
        self.log.len_bytes()
    }

    pub(crate) fn me(&self) -> Member {
        self.me
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.channels
    }

    pub(crate) fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// Looks for the read index that are under way.
    pub(crate) fn reads(&self) -> &SharedCall<Result<Option<u64>, ReadError>> {
        &self.reads
    }

    /// By this manager's clock.
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Writes that have not gone yet.
    pub(crate) fn writes(&self) -> &Gathering {
        &self.writes
    }

    /// For what goes on beside who asked for it.
    pub(crate) fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    pub(crate) fn silence(&self) -> &Silence {
        &self.silence
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) async fn changing_members(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing_members.lock().await
    }
}

/// An empty directory for a new replica, and its data key.
fn prepare(options: &Options) -> Result<Key, OpenError> {
    if key_file::stored_raft_id(&options.dir)?.is_some() {
        return Err(OpenError::Exists(options.dir.clone()));
    }
    match fs::remove_dir_all(&options.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::DirBuilder::new().recursive(true).mode(0o700).create(&options.dir)?,
    }
    Ok(Key::random())
}

#[async_trait]
impl ReplicatedStore for Consensus {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        let request = RequestId(rand::random());
        self.propose_entry(Entry { request, at: self.now(), changes }).await
    }

    async fn propose_as_leader(&self, term: u64, changes: Vec<Change>) -> Result<u64, ProposeError> {
        let request = RequestId(rand::random());
        self.propose_in_term(term, Entry { request, at: self.now(), changes }).await
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        self.linearize_here().await
    }

    fn state(&self) -> Arc<State> {
        self.view.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.view.subscribe()
    }

    async fn closed(&self) {
        self.stopped.cancelled().await;
    }
}
