//! Secrets and configs in numbers: how long all are together, and how many services refer to each.

use control_model::object::{Service, UpdateState};
use control_model::spec::ServiceSpec;
use control_model::{Dependency, DependencyId};
use imbl::OrdMap;

/// All secrets and configs together, bytes: they are in every manager's memory, and in each snapshot, which is sent to a manager
/// that is behind. Of the largest (1000 KiB) it takes 262.
pub const MAX_PAYLOAD_BYTES: usize = 256 << 20;

/// Made of the tables, and kept with them.
#[derive(Debug, Clone, Default)]
pub struct Payloads {
    n_bytes: usize,
    users: OrdMap<DependencyId, usize>,
}

impl Payloads {
    /// Room for one more as long as `new`.
    pub fn has_room_for(&self, new: &Dependency) -> bool {
        self.n_bytes.saturating_add(new.spec.data.0.len()) <= MAX_PAYLOAD_BYTES
    }

    pub fn is_used(&self, id: DependencyId) -> bool {
        self.users.contains_key(&id)
    }

    /// `new` is in the table where `old` was.
    pub fn replace(&mut self, old: Option<&Dependency>, new: Option<&Dependency>) {
        let length = |one: Option<&Dependency>| one.map_or(0, |one| one.spec.data.0.len());
        self.n_bytes = (self.n_bytes + length(new)).saturating_sub(length(old));
    }

    /// The same of services.
    pub fn replace_user(&mut self, old: Option<&Service>, new: Option<&Service>) {
        for id in new.into_iter().flat_map(held) {
            *self.users.entry(id).or_insert(0) += 1;
        }
        for id in old.into_iter().flat_map(held) {
            if let Some(n_users) = self.users.get_mut(&id) {
                *n_users -= 1;
                if *n_users == 0 {
                    self.users.remove(&id);
                }
            }
        }
    }
}

/// What the tasks of this spec are given, as often as they are.
pub fn of(spec: &ServiceSpec) -> impl Iterator<Item = DependencyId> + '_ {
    spec.task.container.dependencies.iter().map(|file| file.id)
}

/// What a service keeps from being removed: what its tasks are given, and, while it is updated, what they are given if that is
/// rolled back. One that is being removed keeps nothing.
pub fn held(service: &Service) -> impl Iterator<Item = DependencyId> + '_ {
    let is_updated = service.update_status.as_ref().is_some_and(|status| {
        matches!(
            status.state,
            UpdateState::Updating
                | UpdateState::Paused
                | UpdateState::RollbackStarted
                | UpdateState::RollbackPaused
        )
    });
    let previous = service.previous_spec.as_deref().filter(|_| is_updated);
    let specs = Some(&service.spec).into_iter().chain(previous).filter(|_| !service.pending_delete);
    specs.flat_map(of)
}
