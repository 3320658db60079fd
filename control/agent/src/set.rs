//! The node's assignment set, as the managers have sent it. Pure.

use std::sync::Arc;

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::{Assignment, AssignmentKey, AssignmentUpdate, Dependency, DependencyId};
use control_model::{Generation, Network, NetworkId, NodeId, ServiceId, Task, TaskId};
use dataplane_model::Table;

/// What a node must do and know. A clone shares its rows, so that two sets are compared by the rows that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssignmentSet {
    generation: Generation,
    complete: bool,
    pub tasks: Table<TaskId, Task>,
    pub networks: Table<NetworkId, Network>,
    pub services: Table<ServiceId, ServiceView>,
    pub endpoints: Table<TaskId, EndpointView>,
    pub peers: Table<NodeId, Peer>,
    pub dependencies: Table<DependencyId, Arc<Dependency>>,
}

/// An update that does not fit: the stream must be opened anew, maybe from another manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The manager is behind, or on the losing side of a fence.
    #[error("the manager's state ({offered:?}) is older than what this node has seen ({known:?})")]
    Older { offered: Generation, known: Generation },
    #[error("an increment on {base:?}, but this node is at {known:?}")]
    Gap { base: Generation, known: Generation },
}

impl AssignmentSet {
    /// Nothing yet, and nothing of a fencing epoch before `epoch` ever.
    pub fn since(epoch: u64) -> Self {
        Self { generation: Generation { epoch, index: 0 }, ..Self::default() }
    }

    /// Of the last update.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a complete set has come yet: before it, absence means nothing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// All rows, in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = Assignment> + '_ {
        let tasks = self.tasks.values().map(|task| Assignment::Task(Box::new(task.clone())));
        let networks = self.networks.values().map(|network| Assignment::Network(Box::new(network.clone())));
        tasks
            .chain(networks)
            .chain(self.services.values().cloned().map(Assignment::Service))
            .chain(self.endpoints.values().cloned().map(Assignment::Endpoint))
            .chain(self.peers.values().cloned().map(Assignment::Peer))
            .chain(
                self.dependencies
                    .values()
                    .map(|one| Assignment::Dependency(Box::new(Dependency::clone(one)))),
            )
    }

    /// Applies an update whole, or refuses it and stays as it is.
    pub fn apply(&mut self, update: AssignmentUpdate) -> Result<(), SetError> {
        let known = self.generation;
        match update {
            AssignmentUpdate::Complete { generation, set } => {
                if generation < known {
                    return Err(SetError::Older { offered: generation, known });
                }
                *self = Self { generation, complete: true, ..Self::default() };
                for row in set {
                    self.put(row);
                }
            }
            AssignmentUpdate::Incremental { base, generation, upserts, removals } => {
                if base != known || !self.complete {
                    return Err(SetError::Gap { base, known });
                }
                if generation < known {
                    return Err(SetError::Older { offered: generation, known });
                }
                self.generation = generation;
                for key in removals {
                    self.take(key);
                }
                for row in upserts {
                    self.put(row);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, row: Assignment) {
        match row {
            Assignment::Task(task) => drop(self.tasks.insert(task.id, *task)),
            Assignment::Network(network) => drop(self.networks.insert(network.id, *network)),
            Assignment::Service(service) => drop(self.services.insert(service.id, service)),
            Assignment::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.task, endpoint)),
            Assignment::Peer(peer) => drop(self.peers.insert(peer.id, peer)),
            Assignment::Dependency(one) => drop(self.dependencies.insert(one.id, Arc::new(*one))),
        }
    }

    fn take(&mut self, key: AssignmentKey) {
        match key {
            AssignmentKey::Task(id) => drop(self.tasks.remove(&id)),
            AssignmentKey::Network(id) => drop(self.networks.remove(&id)),
            AssignmentKey::Service(id) => drop(self.services.remove(&id)),
            AssignmentKey::Endpoint(id) => drop(self.endpoints.remove(&id)),
            AssignmentKey::Peer(id) => drop(self.peers.remove(&id)),
            AssignmentKey::Dependency(id) => drop(self.dependencies.remove(&id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn generation(epoch: u64, index: u64) -> Generation {
        Generation { epoch, index }
    }

    fn peer(bits: u128) -> Assignment {
        Assignment::Peer(Peer {
            id: NodeId::from_bits(bits),
            hostname: format!("n{bits}"),
            vtep: Ipv4Addr::LOCALHOST.into(),
            addresses: vec![],
            addresses_since: 1,
            underlay_mtu_bytes: None,
            gossip: None,
            alive: true,
        })
    }

    fn peers(set: &AssignmentSet) -> Vec<u128> {
        set.peers.keys().map(|id| id.bits()).collect()
    }

    #[test]
    fn increments_go_on_top_of_a_complete_set() {
        let mut set = AssignmentSet::default();
        let early = AssignmentUpdate::Incremental {
            base: generation(0, 0),
            generation: generation(0, 1),
            upserts: vec![],
            removals: vec![],
        };
        assert!(matches!(set.apply(early), Err(SetError::Gap { .. })), "nothing to go on top of");
        set.apply(AssignmentUpdate::Complete { generation: generation(1, 5), set: vec![peer(1), peer(2)] })
            .expect("applied");
        set.apply(AssignmentUpdate::Incremental {
            base: generation(1, 5),
            generation: generation(1, 7),
            upserts: vec![peer(3)],
            removals: vec![AssignmentKey::Peer(NodeId::from_bits(1))],
        })
        .expect("applied");
        assert_eq!((peers(&set), set.generation()), (vec![2, 3], generation(1, 7)));
    }

    #[test]
    fn what_was_seen_before_a_restart_fences_still() {
        let mut set = AssignmentSet::since(2);
        let old = AssignmentUpdate::Complete { generation: generation(1, 99), set: vec![peer(1)] };
        assert!(matches!(set.apply(old), Err(SetError::Older { .. })));
        assert!(!set.is_complete());
        let new = AssignmentUpdate::Complete { generation: generation(2, 1), set: vec![peer(1)] };
        set.apply(new).expect("of this epoch");
    }

    #[test]
    fn older_sets_and_gaps_change_nothing() {
        let mut set = AssignmentSet::default();
        set.apply(AssignmentUpdate::Complete { generation: generation(2, 5), set: vec![peer(1)] })
            .expect("applied");
        let before = set.clone();
        // A later index of an earlier epoch is from the side that was fenced off.
        let old = AssignmentUpdate::Complete { generation: generation(1, 99), set: vec![] };
        assert!(matches!(set.apply(old), Err(SetError::Older { .. })));
        let gap = AssignmentUpdate::Incremental {
            base: generation(2, 4),
            generation: generation(2, 6),
            upserts: vec![],
            removals: vec![],
        };
        assert!(matches!(set.apply(gap), Err(SetError::Gap { .. })));
        assert_eq!(set, before);
        set.apply(AssignmentUpdate::Complete { generation: generation(2, 5), set: vec![] })
            .expect("the same again");
    }
}
