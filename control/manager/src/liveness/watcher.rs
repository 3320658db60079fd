//! The leader's liveness at work: heartbeats and probes in, node statuses out.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::{NodeId, Timestamp};
use control_store::ReplicatedStore;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::prober::Prober;
use super::table::LivenessTable;
use super::{Liveness, PROBE_PERIOD};
use crate::clock;
use crate::leading::while_leading;

/// After a write that failed. The next look returns the same change.
const RETRY: Duration = Duration::from_millis(300);

/// What the machine is fed from.
#[derive(Clone)]
pub struct LivenessWatcher {
    pub store: Arc<dyn ReplicatedStore>,
    pub table: Arc<LivenessTable>,
    pub leadership: watch::Receiver<Leadership>,
    /// This node: its own data path can't be probed from itself, its driver says whether it works.
    pub me: NodeId,
    pub own_data_path: watch::Receiver<bool>,
}

impl LivenessWatcher {
    /// The leader's part, whenever this manager leads. Ends with consensus.
    pub async fn run_leader(self) {
        let this = &self;
        while_leading(self.leadership.clone(), |_| async move {
            if let Err(error) = this.lead().await {
                tracing::error!(%error, "cannot probe data paths");
                tokio::time::sleep(RETRY).await;
            }
        })
        .await;
    }

    async fn lead(&self) -> std::io::Result<()> {
        let started = clock::monotonic();
        let mut liveness = Liveness::new(started);
        let mut prober = Prober::new().await?;
        let mut probes = interval(PROBE_PERIOD);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Answers come one per node: what they change is seen after the next probes.
            let is_due = tokio::select! {
                node = prober.answer() => {
                    liveness.probe_answered(node, clock::monotonic());
                    false
                }
                _ = probes.tick() => {
                    self.probe(&mut liveness, &mut prober);
                    true
                }
                () = sleep_until(liveness.next_deadline()) => true,
            };
            if is_due {
                self.tick(&mut liveness, started).await;
            }
        }
    }

    fn probe(&self, liveness: &mut Liveness, prober: &mut Prober) {
        let (state, now) = (self.store.state(), clock::monotonic());
        prober.retain(|id| state.nodes().get(id).is_some());
        let Some(port) = state.cluster().map(|c| c.data_path_port) else { return };
        for node in state.nodes().iter() {
            let Some(vtep) = node.description.data_path_addr else { continue };
            if node.id != self.me {
                liveness.probe_sent(node.id, now);
                prober.send(node.id, SocketAddrV4::new(vtep, port));
            } else if *self.own_data_path.borrow() {
                liveness.probe_answered(node.id, now);
            }
            // Until the own driver has looked, the own data path is as the last leader left it: it outlives daemons.
        }
    }

    async fn tick(&self, liveness: &mut Liveness, started: Timestamp) {
        for (node, heard) in self.table.snapshot() {
            if heard.at >= started {
                liveness.heartbeat(node, heard.addr, heard.at);
            }
        }
        let state = self.store.state();
        self.table.retain(|id| state.nodes().get(id).is_some());
        let changes = liveness.tick(&state, clock::monotonic());
        if !changes.is_empty()
            && let Err(error) = self.store.propose(changes).await
        {
            tracing::warn!(%error, "liveness not written");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Returns at `deadline` by the clock that never jumps; never without one.
async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::monotonic())).await,
        None => std::future::pending().await,
    }
}
