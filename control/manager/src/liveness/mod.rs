//! Two kinds of life: agents heartbeat, data paths answer probes. Here is what follows from them.
//!
//! [`Liveness`] is pure: the leader feeds it with heartbeats and probes and writes what [`Liveness::tick`] returns.
//! [`table`] holds what sessions say, [`prober`] sends the probes, [`watcher`] is the leader's part at work,
//! [`reporter`] a follower's.

pub mod prober;
pub mod reporter;
pub mod table;
pub mod watcher;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use control_model::object::{NodeState, NodeStatus};
use control_model::{Change, Node, NodeId, Timestamp};
use control_store::State;

/// Between two probes of one node.
pub const PROBE_PERIOD: Duration = Duration::from_millis(300);
/// Probes in a row without an answer that make a data path dead: 1.5 s.
pub const PROBE_MISSES: u32 = 5;
/// Heartbeat periods (of the cluster's spec) without a heartbeat after which a node shows as `Down`.
pub const GRACE_PERIODS: u32 = 3;
/// With the data path dead as well, so much silence of the agent is enough: two heartbeats and a half.
pub const SILENCE_BESIDE_DEAD_DATA_PATH: Duration = Duration::from_millis(2500);
/// A gap between two ticks longer than this means that this process stood still, and nobody else.
const STALL: Duration = Duration::from_secs(1);

/// The leader's picture of who lives.
#[derive(Debug, Clone)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Life>,
    last_tick: Timestamp,
}

#[derive(Debug, Clone, Default)]
struct Life {
    /// Start of the agent's silence: its last heartbeat, or when this leader began.
    silent_since: Timestamp,
    /// The agent has been heard by this leader.
    heard: bool,
    addr: Option<IpAddr>,
    /// A probe is out and has no answer yet.
    waiting: bool,
    misses: u32,
    /// The data path has answered this leader.
    answered: bool,
}

impl Liveness {
    /// A new leader's: it has heard nobody and gives everyone a whole grace.
    pub fn new(now: Timestamp) -> Self {
        Self { nodes: BTreeMap::new(), last_tick: now }
    }

    /// The node's agent was heard at `at`.
    pub fn heartbeat(&mut self, node: NodeId, addr: Option<IpAddr>, at: Timestamp) {
        let life = self.life(node, at);
        life.silent_since = life.silent_since.max(at);
        life.heard = true;
        life.addr = addr.or(life.addr);
    }

    /// A probe goes out to the node. One that is still out has missed.
    pub fn probe_sent(&mut self, node: NodeId, now: Timestamp) {
        let life = self.life(node, now);
        if std::mem::replace(&mut life.waiting, true) {
            life.misses = life.misses.saturating_add(1);
        }
    }

    /// The node's data path answered.
    pub fn probe_answered(&mut self, node: NodeId, now: Timestamp) {
        let life = self.life(node, now);
        life.waiting = false;
        life.misses = 0;
        life.answered = true;
    }

    /// When [`Liveness::tick`] is to be called although no probe is due: what else it decides may wait for that.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let silenced = self.nodes.values().filter(|life| life.misses >= PROBE_MISSES);
        let ends =
            silenced.map(|l| l.silent_since.after(SILENCE_BESIDE_DEAD_DATA_PATH + Duration::from_nanos(1)));
        ends.filter(|end| *end > self.last_tick).min()
    }

    /// What has to be written now.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.forgive_own_stall(now);
        self.nodes.retain(|id, _| state.nodes().get(id).is_some());
        let Some(cluster) = state.cluster() else { return Vec::new() };
        let grace = cluster.spec.heartbeat_period * GRACE_PERIODS;
        let mut changes = Vec::new();
        for node in state.nodes().iter() {
            let status = self.life(node.id, now).judge(node, grace, now);
            if status != node.status {
                changes.push(Change::NodeStatus { id: node.id, status });
            }
        }
        changes
    }

    fn life(&mut self, node: NodeId, now: Timestamp) -> &mut Life {
        self.nodes.entry(node).or_insert_with(|| Life { silent_since: now, ..Life::default() })
    }

    fn forgive_own_stall(&mut self, now: Timestamp) {
        let gap = now.since(self.last_tick);
        self.last_tick = now;
        if gap > STALL {
            for life in self.nodes.values_mut() {
                life.silent_since = life.silent_since.after(gap).min(now);
            }
        }
    }
}

impl Life {
    fn judge(&self, node: &Node, grace: Duration, now: Timestamp) -> NodeStatus {
        let dead_path = self.misses >= PROBE_MISSES;
        let data_path_alive = !dead_path && (self.answered || node.status.data_path_alive);
        let silence = now.since(self.silent_since);
        let (state, message) = if silence > grace {
            (NodeState::Down, "heartbeat failure")
        } else if dead_path && silence > SILENCE_BESIDE_DEAD_DATA_PATH {
            (NodeState::Down, "heartbeat failure and no answer from the data path")
        } else if self.heard {
            (NodeState::Ready, "")
        } else {
            (node.status.state, node.status.message.as_str())
        };
        // A node that stays down keeps the reason that it was given first.
        let message = if state == node.status.state { node.status.message.as_str() } else { message };
        NodeStatus {
            state,
            message: message.to_owned(),
            addr: self.addr.or(node.status.addr),
            data_path_alive,
        }
    }
}

#[cfg(test)]
mod tests;
