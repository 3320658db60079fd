//! Writes: through the leader, whoever it is, once.

use std::net::SocketAddr;
use std::pin::pin;

use control_model::change::Entry;
use control_rpc::pb::Payload;
use control_rpc::{decode, encode};
use control_store::{ApplyError, ProposeError};
use openraft::alias::CommittedLeaderIdOf;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::impls::ProgressResponder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

use crate::consensus::{Consensus, NO_LEADER};
use crate::gathering::{Done, Waiting};
use crate::limits::{LEADER_TIMEOUT, MAX_ENTRY_BYTES, PROPOSE_TIMEOUT, RETRY_PAUSE, SENDER_TURN};
use crate::network::raft_client;
use crate::types::{Batch, Proposal, TypeConfig};

/// What came of one try.
pub(crate) enum Attempt {
    /// Committed and applied by the leader, with the outcome of each write, in their order.
    Done(Vec<Result<u64, ApplyError>>),
    /// Perhaps not written: another manager leads, if one is known.
    NotLeader(Option<SocketAddr>),
    Stopped,
}

impl Consensus {
    /// Tries until the entry is applied here, over a change of the leader too. The request id makes a repeated try harmless.
    /// Without a quorum it gives up as soon as that is certain.
    pub(crate) async fn propose_entry(&self, entry: Entry) -> Result<u64, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let no_leader = |_| ProposeError::NoLeader(NO_LEADER.to_owned());
        let proposal = small_enough(entry)?;
        let write = async {
            let index = self.propose_anywhere(proposal).await?;
            // One that is no manager any more hears no more of the log: what the leader has written is written.
            self.stopped().run_until_cancelled(self.wait_applied(index)).await;
            Ok::<_, ProposeError>(index)
        };
        let outcome = tokio::select! {
            done = timeout_at(deadline, write) => done.map_err(no_leader).flatten(),
            lost = self.no_quorum() => Err(ProposeError::NoLeader(lost)),
        };
        match outcome {
            Err(ProposeError::NoLeader(_)) if self.is_let_go() => Err(ProposeError::NotManager),
            other => other,
        }
    }

    async fn propose_anywhere(&self, proposal: Proposal) -> Result<u64, ProposeError> {
        loop {
            let (done, outcome) = oneshot::channel();
            if self.writes().add(Waiting { proposal: proposal.clone(), done }) {
                self.start_sender();
            }
            match outcome.await {
                Ok(outcome) => return outcome,
                Err(_) if self.stopped().is_cancelled() => return Err(ProposeError::NotManager),
                Err(_) => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Sends what waits, beside whoever asked: who gives up takes nobody else's write along.
    fn start_sender(&self) {
        if let Some(this) = self.this() {
            tokio::spawn(async move { this.send_waiting().await });
        }
    }

    async fn send_waiting(&self) {
        let mut has_turn = true;
        while has_turn {
            let (proposals, waiting): (Vec<_>, Vec<_>) =
                self.writes().next().into_iter().map(|waiting| (waiting.proposal, waiting.done)).unzip();
            if proposals.is_empty() {
                return;
            }
            let mut trying = pin!(self.try_anywhere(proposals));
            let attempt = if let Ok(attempt) = timeout(SENDER_TURN, &mut trying).await {
                attempt
            } else {
                has_turn = false;
                if self.writes().give_turn_away() {
                    self.start_sender();
                }
                trying.await
            };
            answer(waiting, attempt);
        }
    }

    /// One try, here or at the leader.
    async fn try_anywhere(&self, writes: Vec<Proposal>) -> Attempt {
        match self.write_here(writes.clone(), None).await {
            Attempt::NotLeader(Some(leader)) => self.write_at(leader, &writes).await,
            attempt => attempt,
        }
    }

    /// One try, if this manager leads in `term`: what a leader decided is not for its successors to write, for they have
    /// decided too. An entry of which this returns an error may still be written, by whoever leads next.
    pub(crate) async fn propose_in_term(&self, term: u64, entry: Entry) -> Result<u64, ProposeError> {
        let no_leader = || ProposeError::NoLeader(NO_LEADER.to_owned());
        let leader = self.raft().as_leader().ok().map(|leader| leader.to_committed_leader_id());
        let leader = leader.filter(|leader| leader.term == term).ok_or_else(no_leader)?;
        let writes = vec![small_enough(entry)?];
        let attempt = tokio::select! {
            attempt = self.write_here(writes, Some(leader)) => attempt,
            lost = self.no_quorum() => return Err(ProposeError::NoLeader(lost)),
        };
        match attempt {
            Attempt::Done(mut outcomes) => Ok(outcomes.pop().ok_or_else(no_leader)??),
            Attempt::Stopped => Err(ProposeError::NotManager),
            Attempt::NotLeader(_) => Err(no_leader()),
        }
    }

    /// One try, if this manager leads.
    pub(crate) async fn write_here(
        &self,
        writes: Vec<Proposal>,
        leader: Option<CommittedLeaderIdOf<TypeConfig>>,
    ) -> Attempt {
        if self.raft().as_leader().is_ok() && self.leads_alone() {
            return Attempt::NotLeader(None);
        }
        // A leader that has just lost its quorum would wait for ever.
        let (responder, done) = ProgressResponder::complete_only();
        let batch = Batch { at: self.now(), writes };
        let mut write = self.raft().write(batch).responder(responder);
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

    async fn write_at(&self, leader: SocketAddr, writes: &[Proposal]) -> Attempt {
        let Ok(body) = encode(&writes) else { return Attempt::NotLeader(None) };
        let mut client = raft_client(self.channels(), leader);
        let Ok(answer) = timeout(LEADER_TIMEOUT, client.propose(Payload { body })).await else {
            return Attempt::NotLeader(None);
        };
        match answer {
            Ok(reply) => match decode(&reply.into_inner().body) {
                Ok(outcomes) => Attempt::Done(outcomes),
                Err(_) => Attempt::NotLeader(None),
            },
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

fn small_enough(entry: Entry) -> Result<Proposal, ProposeError> {
    let proposal = Proposal::new(entry).map_err(|_| ProposeError::TooLarge)?;
    if proposal.body().len() > MAX_ENTRY_BYTES { Err(ProposeError::TooLarge) } else { Ok(proposal) }
}

/// Tells everyone who waits for a part of a batch what came of it; without a word they try again. Some may have gone.
fn answer(waiting: Vec<Done>, attempt: Attempt) {
    match attempt {
        Attempt::Done(outcomes) => {
            for (done, outcome) in waiting.into_iter().zip(outcomes) {
                drop(done.send(outcome.map_err(ProposeError::from)));
            }
        }
        Attempt::Stopped => {
            for done in waiting {
                drop(done.send(Err(ProposeError::NotManager)));
            }
        }
        Attempt::NotLeader(_) => {}
    }
}
