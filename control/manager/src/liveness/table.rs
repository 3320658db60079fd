//! What the sessions of this manager say of their agents: when each was heard, from where, and which generation its
//! data plane holds. The leader reads its own table; a follower sends its own to the leader.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    agents: Mutex<Agents>,
    /// Counts the changes of any `applied`.
    acks: watch::Sender<u64>,
    /// Drains that ended though acknowledgements were missing, since this manager started.
    n_drains_given_up: AtomicU64,
}

#[derive(Debug, Default)]
struct Agents {
    heard: BTreeMap<NodeId, Heard>,
    /// Each node by the number of its last acknowledgement: what is new is at the end.
    acked: BTreeMap<u64, NodeId>,
    number_of: BTreeMap<NodeId, u64>,
}

impl Agents {
    fn number(&mut self, node: NodeId, number: u64) {
        self.acked.insert(number, node);
        if let Some(before) = self.number_of.insert(node, number) {
            self.acked.remove(&before);
        }
    }

    fn forget(&mut self, node: NodeId) {
        self.heard.remove(&node);
        if let Some(number) = self.number_of.remove(&node) {
            self.acked.remove(&number);
        }
    }
}

impl Default for LivenessTable {
    fn default() -> Self {
        Self { agents: Mutex::default(), acks: watch::Sender::new(0), n_drains_given_up: AtomicU64::new(0) }
    }
}

impl LivenessTable {
    /// The node's agent was heard at `at`. An older word than the last one changes nothing.
    pub fn heard(&self, node: NodeId, addr: Option<IpAddr>, at: Timestamp) {
        let mut agents = self.lock();
        let known = agents.heard.entry(node).or_insert(Heard { at, addr, applied: Generation::default() });
        if at >= known.at {
            known.at = at;
            known.addr = addr.or(known.addr);
        }
    }

    /// The data plane of a node that was heard before holds everything up to `applied`.
    pub fn acknowledged(&self, node: NodeId, applied: Generation) {
        let mut agents = self.lock();
        let Some(known) = agents.heard.get_mut(&node).filter(|known| applied > known.applied) else { return };
        known.applied = applied;
        // Numbered under the lock: who sees the count sees what it counts.
        self.acks.send_modify(|count| {
            *count += 1;
            agents.number(node, *count);
        });
    }

    /// Everything known now.
    pub fn snapshot(&self) -> BTreeMap<NodeId, Heard> {
        self.lock().heard.clone()
    }

    /// The agents that acknowledged something after the first `seen` acknowledgements; `seen` moves on.
    pub fn acknowledged_since(&self, seen: &mut u64) -> BTreeMap<NodeId, Heard> {
        let agents = self.lock();
        let new = agents.acked.range(*seen + 1..).map(|(_, node)| *node);
        let new = new.filter_map(|node| Some((node, *agents.heard.get(&node)?))).collect();
        *seen = agents.acked.last_key_value().map_or(*seen, |(number, _)| (*seen).max(*number));
        new
    }

    /// Forgets those for whom `keep` is false.
    pub fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        let mut agents = self.lock();
        let gone: Vec<_> = agents.heard.keys().filter(|id| !keep(id)).copied().collect();
        for node in gone {
            agents.forget(node);
        }
    }

    /// Changes whenever an agent has acknowledged a newer generation.
    pub fn watch_acks(&self) -> watch::Receiver<u64> {
        self.acks.subscribe()
    }

    /// A drain was not waited for to its end.
    pub fn drain_given_up(&self) {
        self.n_drains_given_up.fetch_add(1, Ordering::Relaxed);
    }

    pub fn n_drains_given_up(&self) -> u64 {
        self.n_drains_given_up.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Agents> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128) -> NodeId {
        NodeId::from_bits(id)
    }

    fn at(index: u64) -> Generation {
        Generation { epoch: 1, index }
    }

    fn acknowledged(table: &LivenessTable, seen: &mut u64) -> Vec<(NodeId, Generation)> {
        table.acknowledged_since(seen).into_iter().map(|(node, heard)| (node, heard.applied)).collect()
    }

    #[test]
    fn each_reader_is_given_the_new_acknowledgements_alone() {
        let table = LivenessTable::default();
        for id in 1..=100 {
            table.heard(node(id), None, Timestamp(0));
            table.acknowledged(node(id), at(5));
        }
        let (mut seen, mut late) = (0, 0);
        assert_eq!(acknowledged(&table, &mut seen).len(), 100);
        assert_eq!(acknowledged(&table, &mut seen), []);
        table.acknowledged(node(7), at(6));
        table.acknowledged(node(7), at(8));
        table.acknowledged(node(8), at(5));
        table.acknowledged(node(101), at(9));
        assert_eq!(
            acknowledged(&table, &mut seen),
            [(node(7), at(8))],
            "nothing new of 8; 101 was never heard"
        );
        assert_eq!(acknowledged(&table, &mut late).len(), 100, "each node once");
        // Who is forgotten and comes back begins anew.
        table.retain(|id| *id != node(7));
        table.heard(node(7), None, Timestamp(1));
        assert_eq!(acknowledged(&table, &mut seen), []);
        table.acknowledged(node(7), at(3));
        assert_eq!(acknowledged(&table, &mut seen), [(node(7), at(3))]);
    }
}
