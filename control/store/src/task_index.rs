//! Which tasks a service, a node, a slot or a network has.

use control_model::object::{Slot, Task};
use control_model::{NetworkId, NodeId, ServiceId, TaskId};
use imbl::OrdSet;

const FIRST: TaskId = TaskId::from_bits(0);
const LAST: TaskId = TaskId::from_bits(u128::MAX);

/// Cloning shares everything. Whoever replaces a task removes what stood of it before.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskIndex {
    services: OrdSet<(ServiceId, TaskId)>,
    nodes: OrdSet<(NodeId, TaskId)>,
    slots: OrdSet<(ServiceId, Slot, TaskId)>,
    networks: OrdSet<(NetworkId, TaskId)>,
}

impl TaskIndex {
    pub(crate) fn insert(&mut self, task: &Task) {
        self.services.insert((task.service, task.id));
        self.slots.insert((task.service, task.slot, task.id));
        self.nodes.extend(task.node.map(|node| (node, task.id)));
        self.networks.extend(task.attachments.iter().map(|to| (to.network, task.id)));
    }

    pub(crate) fn remove(&mut self, task: &Task) {
        self.services.remove(&(task.service, task.id));
        self.slots.remove(&(task.service, task.slot, task.id));
        if let Some(node) = task.node {
            self.nodes.remove(&(node, task.id));
        }
        for to in &task.attachments {
            self.networks.remove(&(to.network, task.id));
        }
    }

    /// The task `new` stands where `old` stood. Mostly nothing moves.
    pub(crate) fn replace(&mut self, old: &Task, new: &Task) {
        let networks = |task: &Task| task.attachments.iter().map(|to| to.network).collect::<Vec<_>>();
        let stays = (old.service, old.slot, old.node) == (new.service, new.slot, new.node)
            && networks(old) == networks(new);
        if !stays {
            self.remove(old);
            self.insert(new);
        }
    }

    pub(crate) fn of_service(&self, id: ServiceId) -> impl Iterator<Item = TaskId> {
        self.services.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }

    pub(crate) fn of_node(&self, id: NodeId) -> impl Iterator<Item = TaskId> {
        self.nodes.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }

    pub(crate) fn of_slot(&self, id: ServiceId, slot: Slot) -> impl Iterator<Item = TaskId> {
        self.slots.range((id, slot, FIRST)..=(id, slot, LAST)).map(|(_, _, task)| *task)
    }

    pub(crate) fn of_network(&self, id: NetworkId) -> impl Iterator<Item = TaskId> {
        self.networks.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }
}
