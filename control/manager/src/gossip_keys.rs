//! The leader's loop that rotates the keys of the nodes' gossip. They reach the nodes by their sessions.

use control_model::{Change, Object, Timestamp};
use control_store::{Event, EventKind, State};

use crate::leader::LeaderLoop;

/// Draws a key.
pub type Draw = fn() -> [u8; 32];

/// Writes a new ring when that is due.
#[derive(Debug)]
pub struct GossipKeyLoop {
    draw: Draw,
    due: Option<Timestamp>,
}

impl GossipKeyLoop {
    pub fn new(state: &State, draw: Draw) -> Self {
        Self { draw, due: due(state) }
    }
}

/// `None` before there is a cluster.
fn due(state: &State) -> Option<Timestamp> {
    state.cluster().map(|cluster| cluster.gossip_keys.due())
}

impl LeaderLoop for GossipKeyLoop {
    fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        if !events.iter().any(|event| matches!(event.kind, EventKind::Cluster(..))) {
            return Vec::new();
        }
        self.tick(state, now)
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        self.due
    }

    fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.due = due(state);
        let Some(cluster) = state.cluster().filter(|cluster| cluster.gossip_keys.due() <= now) else {
            return Vec::new();
        };
        let mut next = (**cluster).clone();
        next.gossip_keys = cluster.gossip_keys.rotated(self.draw, now);
        self.due = Some(next.gossip_keys.due());
        let expected = cluster.meta.version;
        vec![Change::Update { object: Object::Cluster(Box::new(next)), expected }]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use control_model::gossip::{GossipKeys, ROTATION_PERIOD};
    use control_store::ReplicatedStore as _;

    use super::*;
    use crate::testing;

    fn draw() -> [u8; 32] {
        [9; 32]
    }

    #[test]
    fn a_new_cluster_gets_its_keys_at_once_and_another_one_each_period() {
        let store = testing::store(1);
        let at = |hours| Timestamp(0).after(Duration::from_hours(hours));
        let mut machine = GossipKeyLoop::new(&store.state(), draw);
        let write = |machine: &mut GossipKeyLoop, now| {
            let changes = machine.tick(&store.state(), now);
            let n = changes.len();
            store.commit(changes).expect("it fits");
            n
        };
        let ids = || {
            let keys = store.state().cluster().expect("a cluster").gossip_keys.keys.clone();
            keys.iter().map(|key| key.id).collect::<Vec<_>>()
        };
        assert_eq!((write(&mut machine, at(1)), ids()), (1, vec![1, 2]));
        assert_eq!(machine.next_deadline(), Some(at(1).after(ROTATION_PERIOD)));
        assert_eq!(write(&mut machine, at(12)), 0, "not yet");
        assert_eq!((write(&mut machine, at(13)), ids()), (1, vec![1, 2, 3]));
        // The next leader goes on.
        let mut machine = GossipKeyLoop::new(&store.state(), draw);
        assert_eq!(machine.next_deadline(), Some(at(25)));
        assert_eq!((write(&mut machine, at(30)), ids()), (1, vec![2, 3, 4]));
        let cluster = store.state().cluster().expect("a cluster").clone();
        assert_ne!(
            cluster.meta.spec_version, cluster.meta.version,
            "no user's update is out of sequence by it"
        );
        assert_ne!(cluster.gossip_keys, GossipKeys::default());
    }
}
