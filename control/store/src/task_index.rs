//! Which tasks a service, a node, a slot or a network has.

use control_model::object::{Slot, Task};
use control_model::{NetworkId, NodeId, ServiceId, TaskId};
use imbl::OrdSet;

const FIRST: TaskId = TaskId::from_bits(0);
const LAST: TaskId = TaskId::from_bits(u128::MAX);

/// Cloning shares everything. Whoever replaces a task removes what stood of it before.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskIndex {
    of_service: OrdSet<(ServiceId, TaskId)>,
    of_node: OrdSet<(NodeId, TaskId)>,
    of_slot: OrdSet<(ServiceId, Slot, TaskId)>,
    of_network: OrdSet<(NetworkId, TaskId)>,
}

impl TaskIndex {
    pub(crate) fn insert(&mut self, task: &Task) {
        self.of_service.insert((task.service, task.id));
        self.of_slot.insert((task.service, task.slot, task.id));
        self.of_node.extend(task.node.map(|node| (node, task.id)));
        self.of_network.extend(task.attachments.iter().map(|to| (to.network, task.id)));
    }

    pub(crate) fn remove(&mut self, task: &Task) {
        self.of_service.remove(&(task.service, task.id));
        self.of_slot.remove(&(task.service, task.slot, task.id));
        if let Some(node) = task.node {
            self.of_node.remove(&(node, task.id));
        }
        for to in &task.attachments {
            self.of_network.remove(&(to.network, task.id));
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
        self.of_service.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }

    pub(crate) fn of_node(&self, id: NodeId) -> impl Iterator<Item = TaskId> {
        self.of_node.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }

    pub(crate) fn of_slot(&self, id: ServiceId, slot: Slot) -> impl Iterator<Item = TaskId> {
        self.of_slot.range((id, slot, FIRST)..=(id, slot, LAST)).map(|(_, _, task)| *task)
    }

    pub(crate) fn of_network(&self, id: NetworkId) -> impl Iterator<Item = TaskId> {
        self.of_network.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }
}
