//! Changes of the members, made by the leader, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use control_model::NodeId;
use control_model::spec::Role;
use control_rpc::pb;
use control_store::ReplicatedStore as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _, LogIdOptionExt as _, RaftMetrics};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use crate::consensus::{Consensus, NO_LEADER};
use crate::error::{JoinError, MembershipError};
use crate::limits::{
    APPEND_TIMEOUT, CATCH_UP_ROUND, MEMBERSHIP_TIMEOUT, REACHABLE_WITHIN, RETRY_PAUSE, TRANSFER_TIMEOUT,
};
use crate::network::raft_client;
use crate::service::LEADER_ADDR;
use crate::types::{Member, TypeConfig};

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Consensus {
    /// The voters and learners as this manager knows them, by Raft id.
    pub fn members(&self) -> BTreeMap<u64, Member> {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.nodes().map(|(id, member)| (*id, *member)).collect()
    }

    /// The voters among [`Consensus::members`].
    pub fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.voter_ids().collect()
    }

    /// Does its own log make this manager a voter? Raft itself is asked: what [`Consensus::voters`] says is a moment old.
    pub async fn is_voter_by_log(&self) -> bool {
        let me = self.raft_id();
        let asked = self.raft().with_raft_state(move |state| {
            state.membership_state.effective().membership().voter_ids().any(|id| id == me)
        });
        asked.await.unwrap_or(false)
    }

    /// Do the members know this one at its present address?
    pub fn is_listed(&self) -> bool {
        self.members().get(&self.raft_id()) == Some(&self.me())
    }

    /// Where others are to reach this manager.
    pub fn addr(&self) -> SocketAddr {
        self.me().addr
    }

    /// Is `node` a manager, as far as this replica knows: wanted as one, or in Raft still or already?
    pub(crate) fn knows_manager(&self, node: NodeId) -> bool {
        let wanted = self.state().nodes().get(&node).is_some_and(|node| node.spec.role == Role::Manager);
        wanted || self.members().values().any(|member| member.node_id == node)
    }

    /// Does this replica lead, or hear a leader that its own membership names? If not, it may be behind.
    pub(crate) fn follows_known_leader(&self) -> bool {
        let leader = self.leadership().borrow().leader;
        leader.is_some_and(|leader| self.members().contains_key(&leader))
    }

    /// Asks the manager at `via` (or the leader that it names) to make this node a voter; returns when it is one, and
    /// knows that the change is over: the leader may answer before this replica, which the majority did without, has
    /// heard so. One that is a voter already becomes known by its present address. Needs the node's object in the state,
    /// wanted as manager. Who comes to a long log asks more than once.
    pub async fn join(&self, via: SocketAddr) -> Result<(), JoinError> {
        let late = || {
            if self.is_learning() { JoinError::Learning } else { JoinError::NoLeader(NO_LEADER.to_owned()) }
        };
        timeout(MEMBERSHIP_TIMEOUT, self.ask_to_join(via)).await.map_err(|_| late())??;
        let me = self.raft_id();
        let is_voter = |metrics: &RaftMetrics<TypeConfig>| {
            let joint = metrics.membership_config.membership().get_joint_config();
            matches!(joint.as_slice(), [voters] if voters.contains(&me))
        };
        let waiting = self.raft().wait(Some(MEMBERSHIP_TIMEOUT)).metrics(is_voter, "to be a voter").await;
        waiting.map(|_| ()).map_err(|_| late())
    }

    /// The leader sends it the log, so that it can become a voter.
    fn is_learning(&self) -> bool {
        let me = self.raft_id();
        self.raft().metrics().borrow_watched().current_leader.is_some_and(|leader| leader != me)
    }

    async fn ask_to_join(&self, via: SocketAddr) -> Result<(), JoinError> {
        let Member { node_id, addr } = self.me();
        let request = pb::RaftJoinRequest {
            node_id: node_id.to_string(),
            raft_id: self.raft_id(),
            addr: addr.to_string(),
        };
        let mut target = via;
        loop {
            let mut client = raft_client(self.channels(), target);
            let Err(status) = client.join(request.clone()).await else { return Ok(()) };
            match status.code() {
                Code::FailedPrecondition => target = named_leader(&status).unwrap_or(via),
                Code::Unavailable | Code::Unknown | Code::DeadlineExceeded => target = via,
                _ => return Err(JoinError::Refused(status.message().to_owned())),
            }
            tracing::debug!(%target, %status, "asking again to join");
            sleep(RETRY_PAUSE).await;
        }
    }

    /// On the leader: makes `member` a voter, once it has the log; other changes don't wait for that. Who asked may give up
    /// meanwhile: the member goes on learning, and may ask again. For a voter that has moved, its new address is all that
    /// changes; it counts from the start, for the change may need this very vote.
    /// Another Raft id of the same node leaves with it: its disk is gone.
    pub async fn add_voter(&self, raft_id: u64, member: Member) -> Result<(), MembershipError> {
        if self.add_learner(raft_id, member).await? {
            return Ok(());
        }
        self.catch_up(raft_id).await?;
        let _one_at_a_time = self.changing_members().await;
        self.check_leader()?;
        self.finish_joint().await?;
        let members = self.members();
        if !members.contains_key(&raft_id) {
            return Err(MembershipError::UnknownMember);
        }
        let former =
            |(id, other): (&u64, &Member)| (*id != raft_id && other.node_id == member.node_id).then_some(*id);
        let former: BTreeSet<u64> = members.iter().filter_map(former).collect();
        let mut voters = self.voters();
        let learners: BTreeSet<u64> = former.difference(&voters).copied().collect();
        if !learners.is_empty() {
            self.change(ChangeMembers::RemoveNodes(learners)).await?;
        }
        voters.insert(raft_id);
        voters.retain(|id| !former.contains(id));
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Makes `member` known to all at its address, as a learner if it was no member. Is it a voter?
    async fn add_learner(&self, raft_id: u64, member: Member) -> Result<bool, MembershipError> {
        let _one_at_a_time = self.changing_members().await;
        let known = self.members().get(&raft_id).copied();
        let is_voter = self.voters().contains(&raft_id);
        if known == Some(member) && is_voter {
            self.finish_joint().await?;
            return Ok(true);
        }
        self.check_leader()?;
        // Who was on the way out in a change that was cut short is not to be a voter again.
        self.finish_joint().await?;
        self.check_reachable(raft_id, member).await?;
        if known.is_some_and(|known| known.node_id != member.node_id) {
            return Err(MembershipError::OtherNode(raft_id));
        }
        self.addresses().note(raft_id, member.addr);
        if known.is_none() {
            self.change(ChangeMembers::AddNodes([(raft_id, member)].into())).await?;
            // What is known of the members here is a moment old: whoever asks next is to find it.
            let is_known = |metrics: &RaftMetrics<TypeConfig>| {
                metrics.membership_config.membership().get_node(&raft_id).is_some()
            };
            let wait = self.raft().wait(Some(MEMBERSHIP_TIMEOUT));
            wait.metrics(is_known, "a learner to be known")
                .await
                .map_err(|_| MembershipError::UnknownMember)?;
        } else if known != Some(member) {
            tracing::info!(node = %member.node_id, addr = %member.addr, "a manager has moved");
            self.change(ChangeMembers::SetNodes([(raft_id, member)].into())).await?;
        }
        Ok(is_voter)
    }

    /// Returns when the learner has the log, so that no write waits for it once it is a voter: in rounds, each of what came during
    /// the one before, until one is short (Ongaro's dissertation, section 4.2.1). However long that takes, unless it is let go.
    async fn catch_up(&self, raft_id: u64) -> Result<(), MembershipError> {
        loop {
            let began = Instant::now();
            let metrics = self.raft().metrics();
            let last = metrics.borrow_watched().last_log_index;
            let has_it = |metrics: &RaftMetrics<TypeConfig>| {
                let Some(replication) = &metrics.replication else { return true };
                let is_member = metrics.membership_config.membership().get_node(&raft_id).is_some();
                !is_member || replication.get(&raft_id).is_some_and(|matching| matching.index() >= last)
            };
            let stopped = |_| MembershipError::NotManager;
            self.raft().wait(None).metrics(has_it, "a learner to have the log").await.map_err(stopped)?;
            self.check_leader()?;
            if began.elapsed() < CATCH_UP_ROUND {
                return Ok(());
            }
        }
    }

    /// On any manager: removes a voter, through the leader. Success if it is none. A leader hands over first.
    pub async fn remove_voter(&self, raft_id: u64) -> Result<(), MembershipError> {
        let removal = async {
            loop {
                let leader = match self.remove_here(raft_id).await {
                    Err(MembershipError::NotLeader(leader)) => leader,
                    Err(MembershipError::Changing) => None,
                    done => return done,
                };
                if let Some(leader) = leader {
                    let request = pb::RaftRemoveRequest { raft_id };
                    match raft_client(self.channels(), leader).remove(request).await {
                        Ok(_) => return Ok(()),
                        Err(status) if status.code() == Code::Aborted => {
                            return Err(MembershipError::WouldLoseQuorum);
                        }
                        Err(status) => tracing::debug!(%leader, %status, "asking again to remove a voter"),
                    }
                }
                sleep(RETRY_PAUSE).await;
            }
        };
        timeout(MEMBERSHIP_TIMEOUT, removal)
            .await
            .unwrap_or_else(|_| Err(MembershipError::NoLeader(NO_LEADER.to_owned())))
    }

    /// [`Consensus::remove_voter`], if this manager leads, and goes on leading.
    pub(crate) async fn remove_here(&self, raft_id: u64) -> Result<(), MembershipError> {
        let _one_at_a_time = self.changing_members().await;
        self.check_leader()?;
        self.finish_joint().await?;
        if !self.members().contains_key(&raft_id) {
            return Ok(());
        }
        let voters = self.voters();
        if !voters.contains(&raft_id) {
            return self.change(ChangeMembers::RemoveNodes([raft_id].into())).await;
        }
        self.check_quorum_without(raft_id, &voters).await?;
        if raft_id == self.raft_id() {
            self.transfer_leadership(&BTreeSet::new()).await?;
            self.check_leader()?;
            return Err(MembershipError::Failed("leadership was not handed over".to_owned()));
        }
        self.change(ChangeMembers::RemoveVoters([raft_id].into())).await
    }

    /// On the leader: ends a change of the voters that a former leader began and did not live to finish. Until then
    /// every decision needs a majority of the voters before the change as well. Nothing to do is success.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        let _one_at_a_time = self.changing_members().await;
        self.check_leader()?;
        self.finish_joint().await
    }

    async fn finish_joint(&self) -> Result<(), MembershipError> {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        match membership.membership().get_joint_config().as_slice() {
            [_before, .., after] => self.change(ChangeMembers::ReplaceAllVoters(after.clone())).await,
            _ => Ok(()),
        }
    }

    /// On the leader: hands leadership to the follower that is furthest, and to one of `last_choice` (Raft ids) only if
    /// there is no other. No-op on a follower, and without another manager.
    pub async fn transfer_leadership(&self, last_choice: &BTreeSet<u64>) -> Result<(), MembershipError> {
        let me = self.raft_id();
        let reachable = self.reachable();
        let metrics = self.raft().metrics();
        let replication = metrics.borrow_watched().replication.clone();
        let Some(replication) = replication else { return Ok(()) };
        let voters = self.voters();
        let next = replication
            .into_iter()
            .filter(|(id, _)| *id != me && voters.contains(id) && reachable.contains(id))
            .max_by_key(|(id, matching)| (!last_choice.contains(id), *matching));
        let Some((next, _)) = next else { return Ok(()) };
        let stopped = |_| MembershipError::NotManager;
        self.raft().trigger().transfer_leader(next).await.map_err(stopped)?;
        self.raft()
            .wait(Some(TRANSFER_TIMEOUT))
            .metrics(|metrics| metrics.current_leader.is_some_and(|leader| leader != me), "another leader")
            .await
            .map_err(|_| MembershipError::Failed(format!("raft member {next} did not take over")))?;
        Ok(())
    }

    /// As far as this replica knows, its node is to be a worker: its leaders send it nothing any more, and it has not
    /// stopped yet.
    pub(crate) fn is_let_go(&self) -> bool {
        self.state().nodes().get(&self.me().node_id).is_some_and(|node| node.spec.role == Role::Worker)
    }

    /// An error that names the leader, if this manager is not it.
    pub(crate) fn check_leader(&self) -> Result<(), MembershipError> {
        match self.raft().as_leader() {
            Ok(_) => Ok(()),
            Err(forward) => Err(MembershipError::NotLeader(self.other_leader(&forward))),
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>) -> Result<(), MembershipError> {
        match timeout(MEMBERSHIP_TIMEOUT, self.raft().change_membership(change, false)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.membership_error(error)),
            Err(_) => Err(MembershipError::NoLeader(NO_LEADER.to_owned())),
        }
    }

    fn membership_error(&self, error: WriteError) -> MembershipError {
        match error {
            RaftError::Fatal(_) => MembershipError::NotManager,
            RaftError::APIError(
                ClientWriteError::ForwardToLeader(forward) | ClientWriteError::LogEntryDiscarded(forward),
            ) => MembershipError::NotLeader(self.other_leader(&forward)),
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::EmptyMembership(_),
            )) => MembershipError::WouldLoseQuorum,
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            )) => MembershipError::Changing,
            RaftError::APIError(error) => MembershipError::Failed(error.to_string()),
        }
    }

    /// A member that can't be called would only make the quorum larger.
    async fn check_reachable(&self, raft_id: u64, member: Member) -> Result<(), MembershipError> {
        let call = async { raft_client(self.channels(), member.addr).read_index(pb::Empty {}).await };
        // It does not lead, and says so.
        match timeout(APPEND_TIMEOUT, call).await {
            Ok(Err(status)) if status.message() == crate::service::NOT_LEADER => Ok(()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(MembershipError::Unreachable(raft_id, member.addr)),
        }
    }

    /// Do the reachable voters still make a majority when `raft_id` is gone? A leader that was just elected has
    /// yet to hear from them.
    async fn check_quorum_without(
        &self,
        raft_id: u64,
        voters: &BTreeSet<u64>,
    ) -> Result<(), MembershipError> {
        let left = voters.len() - 1;
        let enough = || {
            let reachable = self.reachable();
            voters.iter().filter(|id| **id != raft_id && reachable.contains(id)).count() > left / 2
        };
        let wait = async {
            while !enough() {
                sleep(RETRY_PAUSE).await;
            }
        };
        let heard = left > 0 && timeout(REACHABLE_WITHIN, wait).await.is_ok();
        if heard { Ok(()) } else { Err(MembershipError::WouldLoseQuorum) }
    }

    /// This leader, and the members that answered its heartbeats lately.
    pub fn reachable(&self) -> BTreeSet<u64> {
        self.reachable_within(REACHABLE_WITHIN)
    }

    /// This leader, and the members that answered a heartbeat within `limit`.
    pub(crate) fn reachable_within(&self, limit: Duration) -> BTreeSet<u64> {
        let metrics = self.raft().metrics();
        let heartbeats = metrics.borrow_watched().heartbeat.clone().unwrap_or_default();
        let answered = heartbeats
            .into_iter()
            .filter(|(_, at)| at.is_some_and(|at| at.elapsed() < limit))
            .map(|(id, _)| id);
        answered.chain([self.raft_id()]).collect()
    }
}

fn named_leader(status: &tonic::Status) -> Option<SocketAddr> {
    status.metadata().get(LEADER_ADDR)?.to_str().ok()?.parse().ok()
}
