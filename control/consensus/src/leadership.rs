//! Who leads, and since when its state is complete.

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Instant as _, Raft, RaftState, ReadPolicy, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::limits::{LEADER_CHECK_INTERVAL, LEADER_LOST_AFTER};
use crate::machine::Machine;
use crate::types::TypeConfig;

/// Who leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft id of the leader, if this manager knows one.
    pub leader: Option<u64>,
    pub term: u64,
    /// This manager leads, and its state holds every write that was ever acknowledged.
    pub is_me: bool,
}

/// Tells `sender` of every change until Raft stops; then drops it.
pub(crate) async fn watch(raft: Raft<TypeConfig, Machine>, sender: watch::Sender<Leadership>) {
    // These change with leaders alone; the full metrics change with every entry.
    let mut changes = raft.server_metrics();
    let mut quorum = Quorum::default();
    loop {
        let (running, state, leader, term) = {
            let metrics = raft.metrics();
            let now = metrics.borrow_watched();
            (now.running_state.is_ok(), now.state, now.current_leader, now.current_term)
        };
        if !running {
            return;
        }
        let is_me = state == ServerState::Leader && quorum.answers(&raft, term).await;
        // A leader that can't reach a quorum is none, and so is one that is not heard.
        let known = is_me || (state != ServerState::Leader && is_heard(&raft).await);
        let next = Leadership { leader: leader.filter(|_| known), term, is_me };
        sender.send_if_modified(|now| std::mem::replace(now, next) != next);
        if matches!(timeout(LEADER_CHECK_INTERVAL, changes.changed()).await, Ok(Err(_))) {
            return;
        }
    }
}

/// Has a leader been heard lately?
async fn is_heard(raft: &Raft<TypeConfig, Machine>) -> bool {
    let heard = raft.with_raft_state(RaftState::vote_last_modified).await;
    heard.is_ok_and(|at| at.is_some_and(|at| at.elapsed() < LEADER_LOST_AFTER))
}

/// When a quorum last confirmed this leader.
#[derive(Default)]
struct Quorum {
    term: u64,
    confirmed: Option<Instant>,
}

impl Quorum {
    /// Is this leader confirmed, now or a short while ago? At first, and when it was not for a while, it waits until all
    /// that it has in its log is applied: what it wrote itself before it lost its quorum is committed only now.
    async fn answers(&mut self, raft: &Raft<TypeConfig, Machine>, term: u64) -> bool {
        if self.term != term {
            *self = Self { term, confirmed: None };
        }
        let policy = if self.confirmed.is_none() { ReadPolicy::ReadIndex } else { ReadPolicy::LeaseRead };
        let confirmed = timeout(LEADER_CHECK_INTERVAL, raft.ensure_linearizable(policy)).await;
        if matches!(confirmed, Ok(Ok(_))) && (self.confirmed.is_some() || has_applied_all(raft).await) {
            self.confirmed = Some(Instant::now());
        }
        if self.confirmed.is_some_and(|at| at.elapsed() > LEADER_LOST_AFTER) {
            self.confirmed = None;
        }
        self.confirmed.is_some()
    }
}

/// Waits a short while for what is in this leader's log now to be applied.
async fn has_applied_all(raft: &Raft<TypeConfig, Machine>) -> bool {
    // Behind all writes that were asked for before.
    let last = raft.with_raft_state(|state| state.log_ids.last().map(|id| id.index)).await;
    let Ok(last) = last else { return false };
    raft.wait(Some(LEADER_CHECK_INTERVAL)).applied_index_at_least(last, "all entries applied").await.is_ok()
}
