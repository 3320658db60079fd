//! What the sessions of this manager say of their agents: when each was heard, from where, and which generation its
//! data plane holds. The leader reads its own table; a follower sends its own to the leader.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use control_model::{Generation, NodeId, Timestamp};
use tokio::sync::watch;

/// One agent, as heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub at: Timestamp,
    pub addr: Option<IpAddr>,
    /// The node's data plane holds everything up to here.
    pub applied: Generation,
}

/// Agents by node.
#[derive(Debug)]
pub struct LivenessTable {
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    /// Counts the changes of any `applied`.
    acks: watch::Sender<u64>,
}

impl Default for LivenessTable {
    fn default() -> Self {
        Self { heard: Mutex::default(), acks: watch::Sender::new(0) }
    }
}

impl LivenessTable {
    /// The node's agent was heard at `at`. An older word than the last one changes nothing.
    pub fn heard(&self, node: NodeId, addr: Option<IpAddr>, at: Timestamp) {
        let mut table = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.entry(node).or_insert(Heard { at, addr, applied: Generation::default() });
        if at >= known.at {
            known.at = at;
            known.addr = addr.or(known.addr);
        }
    }

    /// The data plane of a node that was heard before holds everything up to `applied`.
    pub fn acknowledged(&self, node: NodeId, applied: Generation) {
        let mut table = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = table.get_mut(&node).filter(|known| applied > known.applied) else { return };
        known.applied = applied;
        drop(table);
        self.acks.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Everything known now.
    pub fn snapshot(&self) -> BTreeMap<NodeId, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What each node's data plane has applied.
    pub fn applied(&self) -> BTreeMap<NodeId, Generation> {
        self.snapshot().into_iter().map(|(id, heard)| (id, heard.applied)).collect()
    }

    /// Forgets those for whom `keep` is false.
    pub fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(id));
    }

    /// Changes whenever an agent has acknowledged a newer generation.
    pub fn watch_acks(&self) -> watch::Receiver<u64> {
        self.acks.subscribe()
    }
}
