//! A follower's reports to the leader: which of the agents whose sessions it holds are alive, and what they applied.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::{Generation, NodeId, Timestamp};
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{Channels, pb};
use control_store::{ReplicatedStore, State};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::table::{Heard, LivenessTable};
use crate::clock;

/// Between two reports of all agents; between them goes only what is acknowledged.
const PERIOD: Duration = Duration::from_secs(1);
/// Acknowledgements of several agents go together.
const GATHER: Duration = Duration::from_millis(20);
/// Agents that were not heard for this long have gone elsewhere, or away.
const FRESH: Duration = Duration::from_secs(3);
/// A leader that takes longer gets the next report.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Reports for as long as consensus runs.
#[derive(Clone)]
pub struct Reporter {
    pub store: Arc<dyn ReplicatedStore>,
    pub table: Arc<LivenessTable>,
    pub leadership: watch::Receiver<Leadership>,
    pub channels: Arc<Channels>,
}

impl Reporter {
    /// Ends with consensus.
    pub async fn run(mut self) {
        let mut acks = self.table.watch_acks();
        let mut seen = 0;
        let mut last_whole = None;
        loop {
            tokio::select! {
                _ = acks.changed() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(PERIOD) => {}
                gone = self.leadership.changed() => {
                    if gone.is_err() {
                        return;
                    }
                    last_whole = None;
                }
            }
            acks.mark_unchanged();
            let leadership = *self.leadership.borrow();
            let state = self.store.state();
            if leadership.is_me {
                continue;
            }
            let Some(leader) = leadership.leader.and_then(|id| address_of(&state, id)) else { continue };
            let now = Instant::now();
            let acknowledged = self.table.acknowledged_since(&mut seen);
            let is_whole = last_whole.is_none_or(|last| now.duration_since(last) >= PERIOD);
            let told = if is_whole {
                self.table.retain(|id| state.nodes().get(id).is_some());
                self.table.snapshot()
            } else {
                acknowledged
            };
            match self.report(leader, told).await {
                Ok(()) if is_whole => last_whole = Some(now),
                Ok(()) => {}
                Err(status) => {
                    tracing::debug!(%leader, %status, "liveness report failed");
                    last_whole = None;
                }
            }
        }
    }

    async fn report(&self, leader: SocketAddr, told: BTreeMap<NodeId, Heard>) -> Result<(), Status> {
        let report = to_report(told, clock::monotonic());
        if report.nodes.is_empty() {
            return Ok(());
        }
        let mut client = DispatcherClient::new(self.channels.get(leader));
        let call = client.report_liveness(report);
        tokio::time::timeout(TIMEOUT, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer from the leader"))??;
        Ok(())
    }
}

/// Where the manager with this Raft id is reached.
pub fn address_of(state: &State, raft_id: u64) -> Option<SocketAddr> {
    state.nodes().iter().find_map(|n| n.manager.filter(|m| m.raft_id == raft_id).map(|m| m.addr))
}

/// What is told of `table` at `now`, by the clock of its times: whom it has heard lately.
pub fn to_report(table: BTreeMap<NodeId, Heard>, now: Timestamp) -> pb::LivenessReport {
    let fresh = table.into_iter().filter(|(_, heard)| now.since(heard.at) < FRESH);
    let nodes = fresh.map(|(id, heard)| pb::NodeAlive {
        node_id: id.to_string(),
        applied: Some(pb::Generation { epoch: heard.applied.epoch, index: heard.applied.index }),
        addr: heard.addr.map(|addr| addr.to_string()).unwrap_or_default(),
        age_ms: u64::try_from(now.since(heard.at).as_millis()).unwrap_or(u64::MAX),
    });
    pb::LivenessReport { nodes: nodes.collect() }
}

/// Takes a follower's report into the leader's table at `now`, by the clock of its times.
pub fn take_report(table: &LivenessTable, report: &pb::LivenessReport, now: Timestamp) -> Result<(), Status> {
    for alive in &report.nodes {
        let id = alive.node_id.parse().map_err(|_| Status::invalid_argument("malformed node id"))?;
        let age = Duration::from_millis(alive.age_ms).min(FRESH);
        table.heard(id, alive.addr.parse().ok(), now.before(age));
        let applied = alive.applied.unwrap_or_default();
        table.acknowledged(id, Generation { epoch: applied.epoch, index: applied.index });
    }
    Ok(())
}
