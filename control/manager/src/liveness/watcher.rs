//! The leader's liveness at work: heartbeats and probes in, node statuses out.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_consensus::{Consensus, Leadership};
use control_model::gossip::Opinion;
use control_model::{NodeId, Timestamp};
use control_store::{ReplicatedStore as _, State};
use tokio::sync::watch;

use super::Liveness;
use super::leaders::Leaders;
use super::prober::Prober;
use super::rounds::Rounds;
use super::table::LivenessTable;
use crate::clock;
use crate::entries::in_entries;
use crate::leading::while_leading;

/// After a write that failed. The next look returns the same change.
const RETRY: Duration = Duration::from_millis(300);
/// A leader that doubts its own data path for so long hands leadership over. What ends sooner (a switch that starts
/// anew) is not worth an election.
const HAND_OVER_AFTER: Duration = Duration::from_secs(10);

/// Until the own driver has looked, the own data path is as the last leader left it: it outlives daemons. A driver that has not
/// come so far by then does not come up.
const OWN_DRIVER_GRACE: Duration = Duration::from_secs(10);

/// What the log says once.
const DOUBT: &str = "most nodes' data paths do not answer, though their agents are heard: this node's own is taken to be \
     broken, and none of theirs to be dead";

/// What the machine is fed from.
#[derive(Clone)]
pub struct LivenessWatcher {
    pub consensus: Arc<Consensus>,
    pub table: Arc<LivenessTable>,
    pub leadership: watch::Receiver<Leadership>,
    pub me: NodeId,
    pub senses: Senses,
}

/// What this node knows of data paths besides the leader's probes.
#[derive(Clone)]
pub struct Senses {
    /// It can't be probed from itself: its driver says whether it works.
    pub own_data_path: watch::Receiver<bool>,
    /// What this node's gossip thinks of the others.
    pub opinion: watch::Receiver<Arc<Opinion>>,
}

/// One term's.
struct Watch<'a> {
    watcher: &'a LivenessWatcher,
    term: u64,
    started: Timestamp,
    liveness: Liveness,
    prober: Prober,
    rounds: Rounds<(NodeId, SocketAddr)>,
    is_in_doubt: bool,
    leaders: &'a Mutex<Leaders>,
}

impl LivenessWatcher {
    /// The leader's part, whenever this manager leads. Ends with consensus.
    pub async fn run_leader(self) {
        let (this, leaders) = (&self, &Mutex::default());
        let lead = while_leading(self.leadership.clone(), |term| async move {
            match Watch::new(this, term, leaders).await {
                Ok(watch) => watch.run().await,
                Err(error) => {
                    tracing::error!(%error, "cannot probe data paths");
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        tokio::join!(lead, note_leaders(self.leadership.clone(), leaders));
    }
}

/// Ends with consensus.
async fn note_leaders(mut leadership: watch::Receiver<Leadership>, leaders: &Mutex<Leaders>) {
    loop {
        let leader = leadership.borrow_and_update().leader;
        leaders.lock().unwrap_or_else(PoisonError::into_inner).saw(leader, clock::monotonic());
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

impl<'a> Watch<'a> {
    async fn new(
        watcher: &'a LivenessWatcher,
        term: u64,
        leaders: &'a Mutex<Leaders>,
    ) -> std::io::Result<Self> {
        let (started, prober) = (clock::monotonic(), Prober::new().await?);
        let (liveness, rounds) = (Liveness::new(watcher.me, started), Rounds::new(started));
        Ok(Self { watcher, term, started, liveness, prober, rounds, is_in_doubt: false, leaders })
    }

    /// Never returns.
    async fn run(mut self) {
        let mut opinion = self.watcher.senses.opinion.clone();
        opinion.mark_changed();
        loop {
            // What answers change is seen at the end of the round.
            let is_due = tokio::select! {
                nodes = self.prober.answers() => {
                    let now = clock::monotonic();
                    for node in nodes {
                        self.liveness.probe_answered(node, now);
                    }
                    false
                }
                Ok(()) = opinion.changed() => {
                    self.liveness.gossip(&opinion.borrow_and_update());
                    true
                }
                () = sleep_until(Some(self.rounds.next_burst())) => self.probe(),
                () = sleep_until(self.liveness.next_deadline()) => true,
            };
            if is_due {
                self.tick().await;
                self.act_on_doubt().await;
            }
        }
    }

    /// Sends the probes that are due; true if there is something to judge.
    fn probe(&mut self) -> bool {
        let (state, now) = (self.watcher.consensus.state(), clock::monotonic());
        let mut has_died = false;
        if self.rounds.is_complete() {
            self.prober.retain(|id| state.nodes().get(id).is_some());
            let me = self.watcher.me;
            if *self.watcher.senses.own_data_path.borrow() {
                self.liveness.probe_answered(me, now);
            } else if now.since(self.started) > OWN_DRIVER_GRACE {
                has_died |= self.liveness.probe_sent(me, now);
            }
        }
        for (node, vtep) in self.rounds.burst(now, || targets(&state, self.watcher.me)) {
            has_died |= self.liveness.probe_sent(node, now);
            self.prober.send(node, vtep);
        }
        has_died || self.rounds.is_complete()
    }

    async fn tick(&mut self) {
        let Self { watcher, term, liveness, .. } = self;
        liveness.hear(watcher.table.snapshot(), clock::monotonic());
        let state = watcher.consensus.state();
        watcher.table.retain(|id| state.nodes().get(id).is_some());
        let changes = liveness.tick(&state, clock::monotonic());
        for entry in in_entries(changes) {
            if let Err(error) = watcher.consensus.propose_as_leader(*term, entry).await {
                tracing::warn!(%error, "liveness not written");
                return tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Says once that this leader doubts its own data path, and lets another manager judge if that stays so.
    async fn act_on_doubt(&mut self) {
        let since = self.liveness.doubts_itself_since();
        if std::mem::replace(&mut self.is_in_doubt, since.is_some()) != since.is_some() {
            if since.is_some() {
                tracing::warn!("{DOUBT}");
            } else {
                tracing::info!("no doubt of this node's own data path any more");
            }
        }
        let now = clock::monotonic();
        if since.is_none_or(|since| now.since(since) < HAND_OVER_AFTER) {
            return;
        }
        let led = self.leaders.lock().unwrap_or_else(PoisonError::into_inner).hand_over(now);
        if let Some(led) = led {
            tracing::warn!("this node's data path stays broken: another manager is to lead");
            if let Err(error) = self.watcher.consensus.transfer_leadership(&led).await {
                tracing::warn!(%error, "leadership was not handed over");
            }
        }
    }
}

/// Whom to probe, and where.
fn targets(state: &State, me: NodeId) -> Vec<(NodeId, SocketAddr)> {
    let Some(port) = state.cluster().map(|c| c.data_path_port) else { return Vec::new() };
    let others = state.nodes().iter().filter(|node| node.id != me);
    others.filter_map(|n| Some((n.id, SocketAddr::new(n.description.data_path_addr?, port)))).collect()
}

/// Returns at `deadline` by the clock that never jumps; never without one.
async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::monotonic())).await,
        None => std::future::pending().await,
    }
}
