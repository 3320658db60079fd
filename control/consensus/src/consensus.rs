//! The replicated store over Raft.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use control_model::change::Change;
use control_model::{NodeId, Timestamp};
use control_rpc::Channels;
use control_rpc::pb::raft_server::RaftServer;
use control_store::{EventReceiver, ProposeError, ReadError, ReplicatedStore, State};
use tokio::sync::watch;

use crate::crypt::Kek;
use crate::error::{JoinError, MembershipError, OpenError};
use crate::service::RaftService;
use crate::types::Member;

/// What a manager's Raft is opened with.
#[derive(Clone)]
pub struct Options {
    /// Directory of its own: data key, log, snapshots.
    pub dir: PathBuf,
    /// Never used by another data directory before: random, chosen when a node becomes a manager.
    pub raft_id: u64,
    pub node_id: NodeId,
    /// Where other managers reach this one's RPC.
    pub addr: SocketAddr,
    pub kek: Kek,
    pub channels: Arc<Channels>,
    /// Stamps writes.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// Who leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft id of the leader, if this manager knows one.
    pub leader: Option<u64>,
    pub term: u64,
    /// This manager leads, and its state holds every write that was ever acknowledged.
    pub is_me: bool,
}

/// A manager's replica of the cluster's state.
pub struct Consensus {}

impl Consensus {
    /// Does `dir` hold a manager's Raft?
    pub fn exists(dir: &Path) -> bool {
        unimplemented!("{}", dir.display())
    }

    /// Makes a new cluster with this manager alone, whose first entry is `changes`. Refuses a used directory.
    pub async fn bootstrap(options: Options, changes: Vec<Change>) -> Result<Arc<Self>, OpenError> {
        unimplemented!("{:?} {changes:?}", options.dir)
    }

    /// Opens what an earlier run left.
    pub async fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        unimplemented!("{:?}", options.dir)
    }

    /// Makes an empty replica that waits for [`Consensus::join`]. Refuses a used directory.
    pub async fn create(options: Options) -> Result<Arc<Self>, OpenError> {
        unimplemented!("{:?}", options.dir)
    }

    /// The Raft RPC service, to be mounted before [`Consensus::join`].
    pub fn service(self: &Arc<Self>) -> RaftServer<RaftService> {
        unimplemented!()
    }

    /// Asks the manager at `via` (or the leader that it names) to make this node a voter; returns when it is one.
    /// Needs the node's object in the state, wanted as manager.
    pub async fn join(&self, via: SocketAddr) -> Result<(), JoinError> {
        unimplemented!("{via}")
    }

    /// This manager's Raft id.
    pub fn raft_id(&self) -> u64 {
        unimplemented!()
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        unimplemented!()
    }

    /// The voters and learners as this manager knows them, by Raft id.
    pub fn members(&self) -> BTreeMap<u64, Member> {
        unimplemented!()
    }

    /// On the leader: makes `member` a voter. Returns when it has all of the log.
    pub async fn add_voter(&self, raft_id: u64, member: Member) -> Result<(), MembershipError> {
        unimplemented!("{raft_id} {member}")
    }

    /// On any manager: removes a voter, through the leader. Success if it is none. A leader hands over first.
    pub async fn remove_voter(&self, raft_id: u64) -> Result<(), MembershipError> {
        unimplemented!("{raft_id}")
    }

    /// On the leader: hands leadership to the follower that is furthest. No-op on a follower.
    pub async fn transfer_leadership(&self) -> Result<(), MembershipError> {
        unimplemented!()
    }

    /// Hands leadership over if it is ours, stops Raft and closes the files.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}

#[async_trait]
impl ReplicatedStore for Consensus {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        unimplemented!("{changes:?}")
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        unimplemented!()
    }

    fn state(&self) -> Arc<State> {
        unimplemented!()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        unimplemented!()
    }
}
