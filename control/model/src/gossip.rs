//! What gossip and the rest of a node tell each other: keys, whom to watch, what has ended, and who is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, TaskId};
use crate::time::Timestamp;

/// TCP and UDP port of gossip, Docker's.
pub const GOSSIP_PORT: u16 = 7946;
/// Between two rotations (swarmkit `manager/keymanager`).
pub const ROTATION_PERIOD: Duration = Duration::from_hours(12);
/// Keys in a ring: the one before, the one in use, the next one.
pub const RING_LEN: usize = 3;

/// One symmetric key of the nodes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKey {
    /// Numbers rise by one with each key.
    pub id: u32,
    pub key: [u8; 32],
}

impl fmt::Debug for GossipKey {
    /// Keeps the key out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys that nodes accept, oldest first. Datagrams are sealed with the last but one: each key has been known for a
/// whole rotation period before it is used, and is accepted for one after it was, so that a rotation loses no datagram of a
/// node that has had a session with some manager in that time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKeys {
    pub keys: Vec<GossipKey>,
    pub rotated_at: Timestamp,
}

impl GossipKeys {
    /// The key to seal with; `None` of an empty ring.
    pub fn in_use(&self) -> Option<&GossipKey> {
        self.keys.iter().rev().nth(1).or(self.keys.last())
    }

    /// The key with this number.
    pub fn get(&self, id: u32) -> Option<&GossipKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The ring after a rotation: `fresh` comes, the oldest goes. An empty ring gets a key to use and the next one.
    #[must_use]
    pub fn rotated(&self, mut fresh: impl FnMut() -> [u8; 32], now: Timestamp) -> Self {
        let mut keys = self.keys.clone();
        let n_new = if keys.is_empty() { 2 } else { 1 };
        for _ in 0..n_new {
            let id = keys.last().map_or(1, |last| last.id.wrapping_add(1));
            keys.push(GossipKey { id, key: fresh() });
        }
        keys.drain(..keys.len().saturating_sub(RING_LEN));
        Self { keys, rotated_at: now }
    }

    /// When the next rotation is due.
    pub fn due(&self) -> Timestamp {
        if self.keys.is_empty() { Timestamp::default() } else { self.rotated_at.after(ROTATION_PERIOD) }
    }
}

/// How another node is reached by what watches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// `None` of a node that takes no part in gossip.
    pub gossip: Option<SocketAddr>,
    /// Its tunnel's end, which answers probes.
    pub data_path: SocketAddr,
}

/// What a node's agent tells its gossip.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// All other nodes, as the managers know them: gossip adds none.
    pub contacts: Arc<BTreeMap<NodeId, Contact>>,
    /// Own tasks whose process has ended, or is being stopped, and that the managers still hand out.
    pub ended: BTreeSet<TaskId>,
    /// Tasks of other nodes that have ended, as gossip says, and that the managers still hand out.
    pub heeded: BTreeSet<TaskId>,
}

/// What gossip tells its node's agent: who is to get no new flows, although the managers have not said so (yet).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opinion {
    /// Nodes whose data path doesn't answer this node.
    pub silent_paths: BTreeSet<NodeId>,
    /// Nodes whose agents answer nobody.
    pub silent_agents: BTreeSet<NodeId>,
    /// Tasks of other nodes that have ended.
    pub ended: Arc<BTreeSet<TaskId>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_a_period_before_it_is_used_and_a_period_after() {
        let mut n = 0;
        let mut fresh = move || {
            n += 1;
            [n; 32]
        };
        let ids = |ring: &GossipKeys| ring.keys.iter().map(|key| key.id).collect::<Vec<_>>();
        let mut ring = GossipKeys::default();
        assert_eq!((ring.in_use(), ring.due()), (None, Timestamp::default()));
        let mut used = Vec::new();
        for hour in [0_u64, 12, 24, 36] {
            let before = ring.clone();
            ring = ring.rotated(&mut fresh, Timestamp(0).after(Duration::from_hours(hour)));
            let in_use = ring.in_use().expect("a key").id;
            used.push(in_use);
            assert!(before.keys.is_empty() || before.get(in_use).is_some(), "nobody seals with a new key");
            assert!(before.in_use().is_none_or(|key| ring.get(key.id).is_some()), "it is still accepted");
        }
        assert_eq!((used, ids(&ring)), (vec![1, 2, 3, 4], vec![3, 4, 5]));
        assert_eq!(ring.due(), Timestamp(0).after(Duration::from_hours(48)));
        assert!(!format!("{ring:?}").contains("key: ["), "no key is printed");
    }
}
