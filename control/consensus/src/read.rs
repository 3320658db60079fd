//! Reads that see every acknowledged write.

use std::net::SocketAddr;

use control_rpc::pb::{self, Empty};
use control_store::ReadError;
use openraft::LinearizerOption;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::time::{sleep, timeout};

use crate::consensus::{Consensus, NO_LEADER};
use crate::limits::{
    LEADER_TIMEOUT, READ_INDEX_TIMEOUT, READ_LEASE, READ_SHARED_FOR, READ_TIMEOUT, RETRY_PAUSE,
};
use crate::network::raft_client;

/// Why this manager can't tell the read index.
pub(crate) enum NoIndex {
    /// Another one leads, if one is known.
    NotLeader(Option<SocketAddr>),
    Stopped,
}

impl Consensus {
    /// Returns when the local state holds what was acknowledged before the call.
    pub(crate) async fn linearize_here(&self) -> Result<(), ReadError> {
        let read = timeout(READ_TIMEOUT, async {
            let index = self.read_index_anywhere().await?;
            self.wait_applied(index).await;
            Ok(())
        });
        let outcome = tokio::select! {
            done = read => done.unwrap_or_else(|_| Err(ReadError::NoLeader(NO_LEADER.to_owned()))),
            () = self.stopped().cancelled() => Err(ReadError::NotManager),
            lost = self.no_quorum() => Err(ReadError::NoLeader(lost)),
        };
        match outcome {
            Err(ReadError::NoLeader(_)) if self.is_let_go() => Err(ReadError::NotManager),
            other => other,
        }
    }

    async fn read_index_anywhere(&self) -> Result<u64, ReadError> {
        loop {
            if let Some(index) = self.reads().run(READ_SHARED_FOR, self.try_read_index()).await? {
                return Ok(index);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// One try, at this manager or at the leader.
    async fn try_read_index(&self) -> Result<Option<u64>, ReadError> {
        let leader = match self.read_index().await {
            Ok(index) => return Ok(Some(index)),
            Err(NoIndex::Stopped) => return Err(ReadError::NotManager),
            Err(NoIndex::NotLeader(None)) => return Ok(None),
            Err(NoIndex::NotLeader(Some(leader))) => leader,
        };
        let mut client = raft_client(self.channels(), leader);
        match timeout(LEADER_TIMEOUT, client.read_index(Empty {})).await {
            Ok(Ok(reply)) => {
                let pb::ReadIndexReply { index, silent } = reply.into_inner();
                self.silence().note(silent.into_iter().collect());
                return Ok(Some(index));
            }
            Ok(Err(status)) => tracing::debug!(%leader, %status, "the leader gave no read index"),
            Err(_) => tracing::debug!(%leader, "the leader is silent"),
        }
        Ok(None)
    }

    /// On the leader: the index that a replica must have applied. By lease: mostly no round trip while heartbeats are
    /// answered; clocks need only run at about the same speed for the length of a lease. openraft's own is too long where
    /// a leader is replaced before its silence alone says so ([`crate::ended`]).
    pub(crate) async fn read_index(&self) -> Result<u64, NoIndex> {
        let policy = LinearizerOption::new(Some(READ_LEASE), true).with_wait_timeout(READ_INDEX_TIMEOUT);
        match self.raft().get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(_)) => Err(NoIndex::Stopped),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(NoIndex::NotLeader(self.other_leader(&forward)))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(NoIndex::NotLeader(None))
            }
        }
    }
}
