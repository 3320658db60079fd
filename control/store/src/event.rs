//! What an applied entry did.

use std::sync::Arc;

use control_model::{Cluster, Dependency, Network, Node, ObjectRef, Service, Task};

use crate::state::State;

/// One object before and after. Both are shared with the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub object: ObjectRef,
    pub kind: EventKind,
}

/// `(before, after)`: `None` before is a creation, `None` after a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    Cluster(Option<Arc<Cluster>>, Option<Arc<Cluster>>),
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Service(Option<Arc<Service>>, Option<Arc<Service>>),
    Task(Option<Arc<Task>>, Option<Arc<Task>>),
    Network(Option<Arc<Network>>, Option<Arc<Network>>),
    Dependency(Option<Arc<Dependency>>, Option<Arc<Dependency>>),
}

/// The events of an entry, or of several that were applied together, in the order of their changes.
#[derive(Debug, Clone)]
pub struct EventBatch {
    /// Log index of the last entry.
    pub index: u64,
    pub events: Vec<Event>,
    /// The state right after it.
    pub state: Arc<State>,
}
