//! Writes: through the leader, whoever it is, once.

use std::net::SocketAddr;

use control_model::change::Entry;
use control_rpc::decode;
use control_rpc::pb::Payload;
use control_store::{ApplyError, ProposeError};
use openraft::alias::CommittedLeaderIdOf;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::impls::ProgressResponder;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

use crate::consensus::{Consensus, NO_LEADER};
use crate::limits::{LEADER_TIMEOUT, MAX_ENTRY_BYTES, PROPOSE_TIMEOUT, RETRY_PAUSE};
use crate::network::raft_client;
use crate::types::{Proposal, TypeConfig};

/// What came of one try.
pub(crate) enum Attempt {
    /// Committed and applied by the leader, with this outcome.
    Done(Result<u64, ApplyError>),
    /// Perhaps not written: another manager leads, if one is known.
    NotLeader(Option<SocketAddr>),
    TooLarge,
    Stopped,
}

impl Consensus {
    /// Tries until the entry is applied here, over a change of the leader too. The request id makes a repeated try harmless.
    /// Without a quorum it gives up as soon as that is certain.
    pub(crate) async fn propose_entry(&self, entry: Entry) -> Result<u64, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let no_leader = |_| ProposeError::NoLeader(NO_LEADER.to_owned());
        let proposal = Proposal::new(entry).map_err(|_| ProposeError::TooLarge)?;
        let write = async {
            let index = self.propose_anywhere(proposal).await?;
            self.wait_applied(index).await;
            Ok::<_, ProposeError>(index)
        };
        tokio::select! {
            done = timeout_at(deadline, write) => done.map_err(no_leader)?,
            lost = self.no_quorum() => Err(ProposeError::NoLeader(lost)),
        }
    }

    async fn propose_anywhere(&self, proposal: Proposal) -> Result<u64, ProposeError> {
        loop {
            let attempt = match self.propose_here(proposal.clone()).await {
                Attempt::NotLeader(Some(leader)) => self.propose_at(leader, &proposal).await,
                attempt => attempt,
            };
            match attempt {
                Attempt::Done(result) => return Ok(result?),
                Attempt::TooLarge => return Err(ProposeError::TooLarge),
                Attempt::Stopped => return Err(ProposeError::NotManager),
                Attempt::NotLeader(_) => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// One try, if this manager leads in `term`: what a leader decided is not for its successors to write, for they have
    /// decided too. An entry of which this returns an error may still be written, by whoever leads next.
    pub(crate) async fn propose_in_term(&self, term: u64, entry: Entry) -> Result<u64, ProposeError> {
        let leader = self.raft().as_leader().ok().map(|leader| leader.to_committed_leader_id());
        let Some(leader) = leader.filter(|leader| leader.term == term) else {
            return Err(ProposeError::NoLeader(NO_LEADER.to_owned()));
        };
        let proposal = Proposal::new(entry).map_err(|_| ProposeError::TooLarge)?;
        let attempt = tokio::select! {
            attempt = self.write_here(proposal, Some(leader)) => attempt,
            lost = self.no_quorum() => return Err(ProposeError::NoLeader(lost)),
        };
        match attempt {
            Attempt::Done(result) => Ok(result?),
            Attempt::TooLarge => Err(ProposeError::TooLarge),
            Attempt::Stopped => Err(ProposeError::NotManager),
            Attempt::NotLeader(_) => Err(ProposeError::NoLeader(NO_LEADER.to_owned())),
        }
    }

    /// One try, if this manager leads.
    pub(crate) async fn propose_here(&self, proposal: Proposal) -> Attempt {
        self.write_here(proposal, None).await
    }

    async fn write_here(
        &self,
        proposal: Proposal,
        leader: Option<CommittedLeaderIdOf<TypeConfig>>,
    ) -> Attempt {
        if proposal.body().len() > MAX_ENTRY_BYTES {
            return Attempt::TooLarge;
        }
        if self.raft().as_leader().is_ok() && self.leads_alone() {
            return Attempt::NotLeader(None);
        }
        // A leader that has just lost its quorum would wait for ever.
        let (responder, done) = ProgressResponder::complete_only();
        let mut write = self.raft().write(proposal).responder(responder);
        if let Some(leader) = leader {
            write = write.with_leader(leader);
        }
        if write.await.is_err() {
            return Attempt::Stopped;
        }
        match timeout(PROPOSE_TIMEOUT, done).await {
            Ok(Ok(Ok(written))) => Attempt::Done(written.data.0),
            // Raft has stopped.
            Ok(Err(_)) => Attempt::Stopped,
            Ok(Ok(Err(
                ClientWriteError::ForwardToLeader(forward) | ClientWriteError::LogEntryDiscarded(forward),
            ))) => Attempt::NotLeader(self.other_leader(&forward)),
            Err(_) | Ok(Ok(Err(_))) => Attempt::NotLeader(None),
        }
    }

    async fn propose_at(&self, leader: SocketAddr, proposal: &Proposal) -> Attempt {
        let body = proposal.body().to_vec();
        let mut client = raft_client(self.channels(), leader);
        let Ok(answer) = timeout(LEADER_TIMEOUT, client.propose(Payload { body })).await else {
            return Attempt::NotLeader(None);
        };
        match answer {
            Ok(reply) => match decode(&reply.into_inner().body) {
                Ok(result) => Attempt::Done(result),
                Err(_) => Attempt::NotLeader(None),
            },
            Err(status) if status.code() == Code::ResourceExhausted => Attempt::TooLarge,
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) => {
                Attempt::Stopped
            }
            Err(status) => {
                tracing::debug!(%leader, %status, "the leader did not take a write");
                Attempt::NotLeader(None)
            }
        }
    }

    /// The leader that openraft names, if it is not this manager.
    pub(crate) fn other_leader(&self, forward: &ForwardToLeader<TypeConfig>) -> Option<SocketAddr> {
        let leader = forward.leader_id.filter(|leader| *leader != self.raft_id())?;
        forward.leader_node.map(|member| member.addr).or_else(|| Some(self.members().get(&leader)?.addr))
    }

    /// Returns when the local state includes `index`.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut applied = self.view().applied();
        // The sender lives in the view that `self` holds.
        drop(applied.wait_for(|applied| *applied >= index).await);
        debug_assert!(*applied.borrow() >= index, "the view outlives the wait");
    }
}
