//! Networks that were removed while tasks were still in them: deleted when the last has gone.

use std::collections::{BTreeMap, BTreeSet};

use control_model::change::{Change, ObjectRef};
use control_model::{NetworkId, Task, TaskId};
use control_store::State;

/// The networks that are going, and the tasks still in them.
#[derive(Debug, Default)]
pub(crate) struct LeavingNetworks(BTreeMap<NetworkId, BTreeSet<TaskId>>);

impl LeavingNetworks {
    /// Notes a network that is to go. Tasks can only leave it: the allocator gives none of its addresses any more.
    pub(crate) fn add(&mut self, state: &State, network: NetworkId) {
        self.0.entry(network).or_insert_with(|| {
            state.tasks().iter().filter(|task| is_in(task, network)).map(|task| task.id).collect()
        });
    }

    pub(crate) fn forget(&mut self, network: NetworkId) {
        self.0.remove(&network);
    }

    /// Takes in a task that ended or was deleted; returns the networks that it was the last in.
    pub(crate) fn note_end(&mut self, task: &Task) -> Vec<NetworkId> {
        let mut emptied = Vec::new();
        for attachment in &task.attachments {
            if let Some(tasks) = self.0.get_mut(&attachment.network)
                && tasks.remove(&task.id)
                && tasks.is_empty()
            {
                emptied.push(attachment.network);
            }
        }
        emptied
    }

    /// The deletion of a network in which no task is left.
    pub(crate) fn delete_if_empty(&self, network: NetworkId) -> Option<Change> {
        self.0.get(&network).filter(|tasks| tasks.is_empty())?;
        Some(Change::Delete(ObjectRef::Network(network)))
    }
}

fn is_in(task: &Task, network: NetworkId) -> bool {
    !task.status.state.is_terminal() && task.attachments.iter().any(|a| a.network == network)
}
