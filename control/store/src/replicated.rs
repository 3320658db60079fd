//! The seam between those who write state and what replicates it. Production: `control-consensus` (Raft).
//! Tests and the simulation: [`LocalStore`].

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use control_model::change::{Change, Entry, RequestId};
use control_model::{Generation, Timestamp};

use crate::event::EventBatch;
use crate::state::{ApplyError, State};
use crate::watch::{EventReceiver, Watchers};

/// Why a write did not happen, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Refused by the state itself; nothing changed.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// No leader within the time allowed.
    #[error("{0}")]
    NoLeader(String),
    /// This node is no manager (any more), or is shutting down.
    #[error("this node is not a swarm manager")]
    NotManager,
    /// The entry is larger than what the log takes.
    #[error("raft: raft message is too large and can't be sent")]
    TooLarge,
}

/// Why a read can't be answered with current state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader: the local state may be read, marked stale.
    #[error("{0}")]
    NoLeader(String),
    #[error("this node is not a swarm manager")]
    NotManager,
}

/// State that is replicated over managers: read here, written through the leader from any manager.
#[async_trait]
pub trait ReplicatedStore: Send + Sync + 'static {
    /// Writes `changes` as one entry and returns its log index: they are applied *here* too, unless this node is no manager any
    /// more.
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError>;
    /// [`ReplicatedStore::propose`] of what this node has decided as the leader of `term`: if it leads no more, nobody else
    /// is asked to write it. A store without leaders writes it.
    async fn propose_as_leader(&self, _term: u64, changes: Vec<Change>) -> Result<u64, ProposeError> {
        self.propose(changes).await
    }
    /// Returns when the local state is at least as new as every write acknowledged before the call.
    async fn linearize(&self) -> Result<(), ReadError>;
    /// The local state now.
    fn state(&self) -> Arc<State>;
    /// The fencing epoch and index of the local state.
    fn generation(&self) -> Generation {
        let state = self.state();
        Generation { epoch: state.cluster().map_or(0, |c| c.epoch), index: state.index() }
    }
    /// Every batch applied after `state` was taken, in order, up to the limit of [`EventReceiver`]. The pair is taken
    /// atomically.
    fn subscribe(&self) -> (Arc<State>, EventReceiver);
    /// Returns when nothing more is applied here, as this node is no manager any more.
    async fn closed(&self) {
        std::future::pending::<()>().await;
    }
}

/// A store of one node without replication or disk, for tests and the simulation.
pub struct LocalStore {
    inner: Mutex<Inner>,
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

struct Inner {
    state: Arc<State>,
    next_request: u128,
    watchers: Watchers,
}

impl LocalStore {
    /// An empty store that stamps writes with `clock`.
    pub fn new(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let inner = Inner { state: Arc::default(), next_request: 1, watchers: Watchers::default() };
        Self { inner: Mutex::new(inner), clock: Box::new(clock) }
    }

    /// [`ReplicatedStore::propose`] without waiting: there is nothing to wait for.
    pub fn commit(&self, changes: Vec<Change>) -> Result<u64, ApplyError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let request = RequestId(inner.next_request);
        inner.next_request += 1;
        let index = inner.state.index() + 1;
        let mut state = (*inner.state).clone();
        let at = (self.clock)();
        state.pass_time(at);
        let events = state.apply(index, &Entry { request, at, changes })?;
        inner.state = Arc::new(state);
        let state = inner.state.clone();
        inner.watchers.publish(EventBatch { index, events, state });
        Ok(index)
    }
}

#[async_trait]
impl ReplicatedStore for LocalStore {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        Ok(self.commit(changes)?)
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Ok(())
    }

    fn state(&self) -> Arc<State> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).state.clone()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = inner.watchers.add();
        (inner.state.clone(), receiver)
    }
}
