//! The managers' network: openraft's calls over the model's ways.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_consensus::Member;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Raft};

use super::laws::Witness;
use super::machine::Machine;
use super::types::{Config, sleep};
use crate::host::HostId;
use crate::net::Net;

pub type Manager = Raft<Config, Machine>;

/// Between a call that leads nowhere and the word that nobody is there.
const UNREACHABLE: Duration = Duration::from_millis(200);
/// As `control-consensus` has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// All ways, and who is at their ends. Clones are the same one.
#[derive(Clone)]
pub struct Wire {
    inner: Arc<Mutex<Inner>>,
    pub witness: Witness,
}

pub struct Inner {
    pub net: Net,
    /// Managers that run, with the number of their life.
    pub running: BTreeMap<u64, (u64, Manager)>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lost(&'static str);

impl Wire {
    pub fn new(net: Net, witness: Witness) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { net, running: BTreeMap::new() })), witness }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manager, if it runs.
    pub fn manager(&self, id: u64) -> Option<Manager> {
        self.lock().running.get(&id).map(|(_, manager)| manager.clone())
    }
}

fn place(id: u64) -> HostId {
    HostId(usize::try_from(id).expect("few managers"))
}

/// Makes the clients of one life of a manager.
pub struct Factory {
    pub from: u64,
    pub life: u64,
    pub wire: Wire,
}

impl RaftNetworkFactory<Config> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, to: u64, _: &Member) -> Peer {
        Peer { from: self.from, life: self.life, to, wire: self.wire.clone() }
    }
}

/// One manager's way to another.
pub struct Peer {
    from: u64,
    life: u64,
    to: u64,
    wire: Wire,
}

impl Peer {
    /// The way there and back, with the answer that `ask` gets in between.
    async fn call<T, F>(&self, ask: impl FnOnce(Manager) -> F) -> Result<T, Lost>
    where
        F: Future<Output = Option<T>>,
    {
        let there = self.pass(self.from, self.to)?;
        let Some(there) = there else {
            sleep(UNREACHABLE).await;
            return Err(Lost("no way leads there"));
        };
        sleep(there).await;
        let Some(manager) = self.wire.manager(self.to) else { return Err(Lost("nobody listens")) };
        let answer = ask(manager).await.ok_or(Lost("no answer"))?;
        let Some(back) = self.pass(self.to, self.from)? else {
            sleep(CALL_TIMEOUT).await;
            return Err(Lost("no way leads back"));
        };
        sleep(back).await;
        self.pass(self.from, self.from)?;
        Ok(answer)
    }

    /// How long the way takes; `None` if it leads nowhere. An error if the caller is dead by now.
    fn pass(&self, from: u64, to: u64) -> Result<Option<Duration>, Lost> {
        let mut inner = self.wire.lock();
        if inner.running.get(&self.from).is_none_or(|(life, _)| *life != self.life) {
            return Err(Lost("the caller is dead"));
        }
        let leads = inner.net.leads(place(from), place(to));
        Ok(leads.then(|| inner.net.delay()))
    }
}

fn unreachable(error: &Lost) -> RPCError<Config> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn answered<T, E>(answer: Result<T, RaftError<Config, E>>) -> Option<T>
where
    RaftError<Config, E>: std::fmt::Debug,
{
    answer.ok()
}

impl RaftNetworkV2<Config> for Peer {
    type SnapshotData = Arc<Vec<u8>>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Config>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        if request.vote.is_committed() {
            let leader = request.vote.leader_id();
            self.wire.witness.leads(leader.term, leader.voted_for);
        }
        let ask = |manager: Manager| async move { answered(manager.append_entries(request).await) };
        self.call(ask).await.map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Config>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        let ask = |manager: Manager| async move { answered(manager.vote(request).await) };
        self.call(ask).await.map_err(|error| unreachable(&error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Config>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        let ask = |manager: Manager| async move { answered(manager.pre_vote(request).await) };
        self.call(ask).await.map_err(|error| unreachable(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Config>,
        snapshot: SnapshotOf<Config, Arc<Vec<u8>>>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let ask = |manager: Manager| async move { manager.install_full_snapshot(vote, snapshot).await.ok() };
        self.call(ask).await.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Config>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Config>, RPCError<Config>> {
        let ask = |manager: Manager| async move { manager.handle_transfer_leader(request).await.ok() };
        self.call(ask).await.map_err(|error| unreachable(&error))
    }
}
