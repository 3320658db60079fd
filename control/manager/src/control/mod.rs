//! What users do to the cluster: read, create, change and remove its objects, from any manager.
//!
//! Reads come from this manager's own replica once it is as new as the last acknowledged write, or, without a leader, as
//! it is, which the reader can tell ([`Control::with_mark`]). Writes carry the
//! version that was read; a write that was overtaken by a status report alone is tried again.

mod attachments;
mod authority;
mod cluster;
mod dependencies;
mod error;
mod lookup;
mod networks;
mod nodes;
mod services;
mod tasks;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use control_model::{Change, Timestamp};
use control_store::{ProposeError, ReadError, ReplicatedStore, State};

pub use authority::SigningCa;
pub use cluster::Rotation;
pub use dependencies::DependencyFilter;
pub use error::{ControlError, Kind, RpcCode};
pub use lookup::{LabelFilter, labels_match, starts_with_any};
pub use networks::find_network;
pub use nodes::NodeFilter;
pub use services::{ServiceFilter, ServiceStatus, random_service_name};
pub use tasks::{TaskFilter, task_name};

/// How often a write is tried again when another write came between reading and writing. Status reports and loops
/// write an object a few times a second at most; more than this is a fault.
const MAX_ATTEMPTS: usize = 16;

/// The operations over one manager's store.
#[derive(Clone)]
pub struct Control {
    store: Arc<dyn ReplicatedStore>,
    clock: fn() -> Timestamp,
    /// Set by a read that may be old.
    stale: Arc<AtomicBool>,
}

impl Control {
    /// Operations over `store`, with the wall clock.
    pub fn new(store: Arc<dyn ReplicatedStore>) -> Self {
        Self::with_mark(store, Arc::default())
    }

    /// The same; sets `stale` when a read was answered without a leader, by what this replica happens to have.
    pub fn with_mark(store: Arc<dyn ReplicatedStore>, stale: Arc<AtomicBool>) -> Self {
        Self { store, clock: crate::clock::now, stale }
    }

    /// A read was answered without a leader.
    pub fn was_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The state, as new as every write acknowledged before the call; without a leader, as it is.
    pub async fn read(&self) -> Result<Arc<State>, ControlError> {
        match self.current().await {
            Err(ControlError::NoLeader(_)) if self.store.state().cluster().is_some() => {
                self.stale.store(true, Ordering::Relaxed);
                Ok(self.store.state())
            }
            read => read,
        }
    }

    /// The state, as new as every write acknowledged before the call.
    async fn current(&self) -> Result<Arc<State>, ControlError> {
        self.store.linearize().await.map_err(|error| match error {
            ReadError::NoLeader(why) => ControlError::NoLeader(why),
            ReadError::NotManager => ControlError::NotManager,
        })?;
        Ok(self.store.state())
    }

    /// What the operations are over: for who watches it.
    pub fn store(&self) -> Arc<dyn ReplicatedStore> {
        self.store.clone()
    }

    /// The state of this replica as it is, without asking for the newest.
    pub fn state(&self) -> Arc<State> {
        self.store.state()
    }

    /// Reads, lets `edit` make changes of what it sees, and writes them; from the start again when overtaken.
    async fn write<T>(
        &self,
        mut edit: impl FnMut(&State) -> Result<(Vec<Change>, T), ControlError> + Send,
    ) -> Result<T, ControlError> {
        for _ in 0..MAX_ATTEMPTS {
            let state = self.current().await?;
            let (changes, result) = edit(&state)?;
            if changes.is_empty() {
                return Ok(result);
            }
            match self.store.propose(changes).await {
                Ok(_) => return Ok(result),
                // Somebody else was quicker, or took the name: the next look says which.
                Err(ProposeError::Refused(_)) => {}
                Err(ProposeError::NoLeader(why)) => return Err(ControlError::NoLeader(why)),
                Err(ProposeError::TooLarge) => return Err(ControlError::TooLarge),
                Err(ProposeError::NotManager) => return Err(ControlError::NotManager),
            }
        }
        Err(ControlError::OutOfSequence)
    }
}
