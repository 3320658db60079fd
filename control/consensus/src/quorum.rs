//! Whether enough voters answer to decide anything, and who does not. They are asked only while no leader is heard.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use control_rpc::pb::Empty;
use control_store::ReplicatedStore as _;
use futures::future::join_all;
use openraft::{Instant as _, RaftState};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use crate::consensus::{Consensus, NO_LEADER};
use crate::limits::{
    ASK_AFTER, ASK_AGAIN_AFTER, ASK_TIMEOUT, ASKED_LATELY, LEADER_HEARD_WITHIN, LEADER_LOOK_AFTER, LOOKS,
    REACHABLE_WITHIN, RETRY_PAUSE,
};
use crate::network::raft_client;
use crate::service::NOT_LEADER;
use crate::types::Member;

/// What is known of the other members' silence.
#[derive(Default)]
pub(crate) struct Silence {
    /// Held while the voters are asked: who comes meanwhile gets the same answer.
    asked: tokio::sync::Mutex<Option<Asked>>,
    /// Raft ids: the leader's last word, or what this manager found without one.
    silent: Mutex<BTreeSet<u64>>,
}

impl Silence {
    /// Takes the word of the leader, or this manager's own.
    pub(crate) fn note(&self, silent: BTreeSet<u64>) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
    }

    fn noted(&self) -> BTreeSet<u64> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One round of questions.
#[derive(Clone)]
struct Asked {
    at: Instant,
    silent: BTreeSet<u64>,
    /// So many rounds in a row, this one included, found too few voters.
    too_few: u32,
}

impl Consensus {
    /// Raft ids of the members that do not answer: as the leader sees it, or, without one, as this manager does.
    pub fn silent(&self) -> BTreeSet<u64> {
        if self.leadership().borrow().is_me { self.silent_here() } else { self.silence().noted() }
    }

    /// On the leader: the members that have not answered its heartbeats lately.
    pub(crate) fn silent_here(&self) -> BTreeSet<u64> {
        let reachable = self.reachable();
        self.members().into_keys().filter(|id| !reachable.contains(id)).collect()
    }

    /// Returns when it is certain that too few voters answer to elect a leader, or to follow this one; then with a
    /// sentence that names them. Never, as long as a leader is heard: an election is waited for.
    pub(crate) async fn no_quorum(&self) -> String {
        sleep(ASK_AFTER).await;
        loop {
            // Asked as soon as a heartbeat is missed, and believed when several are.
            if !self.is_led_within(LEADER_LOOK_AFTER).await {
                let asked = self.ask_voters().await;
                if asked.too_few >= LOOKS && !self.is_led_within(LEADER_HEARD_WITHIN).await {
                    return self.explain(&asked.silent);
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// On a leader: it has no quorum behind it, and what it wrote now might never be committed.
    pub(crate) fn leads_alone(&self) -> bool {
        !self.leadership().borrow().is_me && !self.is_followed_within(REACHABLE_WITHIN)
    }

    /// A leader was heard here within `limit`, or this one by a quorum. One that was just elected counts.
    async fn is_led_within(&self, limit: Duration) -> bool {
        (self.raft().as_leader().is_ok() && self.is_followed_within(limit))
            || self.heard_vote_within(limit).await
    }

    /// A leader was heard here within `limit`, or this one leads.
    pub(crate) async fn hears_leader_within(&self, limit: Duration) -> bool {
        let leads = self.raft().as_leader().is_ok() && self.is_followed_within(REACHABLE_WITHIN);
        leads || self.heard_vote_within(limit).await
    }

    async fn heard_vote_within(&self, limit: Duration) -> bool {
        let heard = self.raft().with_raft_state(RaftState::vote_last_modified).await;
        heard.is_ok_and(|at| at.is_some_and(|at| at.elapsed() < limit))
    }

    /// More than half of the voters have answered this leader's heartbeats within `limit`.
    fn is_followed_within(&self, limit: Duration) -> bool {
        let (voters, reachable) = (self.voters(), self.reachable_within(limit));
        is_majority(voters.intersection(&reachable).count(), &voters)
    }

    /// Asks all voters at once whether they are there, unless that was done a moment ago.
    async fn ask_voters(&self) -> Asked {
        let mut last = self.silence().asked.lock().await;
        if let Some(asked) = last.as_ref().filter(|asked| asked.at.elapsed() < ASK_AGAIN_AFTER) {
            return asked.clone();
        }
        let (voters, members) = (self.voters(), self.members());
        let others = members.iter().filter(|(id, _)| voters.contains(id) && **id != self.raft_id());
        let asking = others.map(|(id, member)| {
            let (id, member) = (*id, *member);
            async move { (!self.answers(member).await).then_some(id) }
        });
        let silent: BTreeSet<u64> = join_all(asking).await.into_iter().flatten().collect();
        self.silence().note(silent.clone());
        let before = last.as_ref().filter(|asked| asked.at.elapsed() < ASKED_LATELY);
        let before = before.map_or(0, |asked| asked.too_few);
        let too_few = if is_majority(voters.len() - silent.len(), &voters) { 0 } else { before + 1 };
        let asked = Asked { at: Instant::now(), silent, too_few };
        *last = Some(asked.clone());
        asked
    }

    async fn answers(&self, member: Member) -> bool {
        let call = async { raft_client(self.channels(), member.addr).read_index(Empty {}).await };
        match timeout(ASK_TIMEOUT, call).await {
            Ok(Ok(_)) => true,
            // It does not lead, and says so; or this manager is none to it any more.
            Ok(Err(status)) => status.message() == NOT_LEADER || status.code() == Code::PermissionDenied,
            Err(_) => false,
        }
    }

    /// Docker's sentence, and what an operator wants to know next.
    fn explain(&self, silent: &BTreeSet<u64>) -> String {
        let (voters, state) = (self.voters(), self.state());
        let name = |member: &Member| {
            let hostname = state.nodes().get(&member.node_id).map(|node| node.description.hostname.clone());
            let hostname = hostname.filter(|name| !name.is_empty());
            format!("{} at {}", hostname.unwrap_or_else(|| member.node_id.to_string()), member.addr)
        };
        let members = self.members();
        let names: Vec<String> = silent.iter().filter_map(|id| members.get(id)).map(name).collect();
        format!(
            "{NO_LEADER} {} of {} managers answer, {} are needed. Missing: {}. Start them again; only if they are lost for \
             good, run \"docker swarm init --force-new-cluster\" on this node.",
            voters.len().saturating_sub(silent.len()),
            voters.len(),
            voters.len() / 2 + 1,
            names.join(", "),
        )
    }
}

fn is_majority(n: usize, voters: &BTreeSet<u64>) -> bool {
    n > voters.len() / 2
}
