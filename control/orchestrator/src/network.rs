//! Networks that were removed while something was still in them: deleted when the last has gone.

use std::collections::{BTreeMap, BTreeSet};

use control_model::change::{Change, ObjectRef};
use control_model::object::{Service, Task};
use control_model::{NetworkId, ServiceId, TaskId};
use control_store::State;

/// Who is in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum User {
    Task(TaskId),
    /// With its virtual IP, or because its tasks will be.
    Service(ServiceId),
}

/// The networks that are going, and who is still in them. No one can join: the allocator gives no address.
#[derive(Debug, Default)]
pub(crate) struct LeavingNetworks(BTreeMap<NetworkId, BTreeSet<User>>);

impl LeavingNetworks {
    /// Notes a network that is to go.
    pub(crate) fn add(&mut self, state: &State, network: NetworkId) {
        self.0.entry(network).or_insert_with(|| {
            let tasks = state.tasks().iter().filter(|task| is_task_in(task, network));
            let services = state.services().iter().filter(|service| is_service_in(service, network));
            tasks.map(|task| User::Task(task.id)).chain(services.map(|s| User::Service(s.id))).collect()
        });
    }

    pub(crate) fn forget(&mut self, network: NetworkId) {
        self.0.remove(&network);
    }

    /// Takes in a task that ended or was deleted; returns the networks that it was the last in.
    pub(crate) fn note_task_end(&mut self, task: &Task) -> Vec<NetworkId> {
        self.leave(User::Task(task.id), |_| true)
    }

    /// Takes in what a service has now, `None` if it was deleted; returns the networks that it was the last in.
    pub(crate) fn note_service(&mut self, id: ServiceId, service: Option<&Service>) -> Vec<NetworkId> {
        self.leave(User::Service(id), |network| {
            service.is_none_or(|service| !is_service_in(service, network))
        })
    }

    fn leave(&mut self, user: User, has_left: impl Fn(NetworkId) -> bool) -> Vec<NetworkId> {
        let left = self.0.iter_mut().filter(|(network, users)| users.contains(&user) && has_left(**network));
        left.filter_map(|(network, users)| {
            users.remove(&user);
            users.is_empty().then_some(*network)
        })
        .collect()
    }

    /// The deletion of a network in which nothing is left.
    pub(crate) fn delete_if_empty(&self, network: NetworkId) -> Option<Change> {
        self.0.get(&network).filter(|users| users.is_empty())?;
        Some(Change::Delete(ObjectRef::Network(network)))
    }
}

fn is_task_in(task: &Task, network: NetworkId) -> bool {
    !task.status.state.is_terminal() && task.attachments.iter().any(|a| a.network == network)
}

fn is_service_in(service: &Service, network: NetworkId) -> bool {
    let has_vip = service.endpoint.as_ref().is_some_and(|e| e.vips.iter().any(|(of, _)| *of == network));
    has_vip || service.spec.task.networks.iter().any(|asked| asked.target == network)
}
