//! Writes: a loop or an API call returns [`Change`]s, consensus carries them as one [`Entry`], the store applies
//! the entry whole or not at all.

mod pack;

use serde::{Deserialize, Serialize};

use crate::dependency::Dependency;
use crate::id::{ClusterId, DependencyId, NetworkId, NodeId, ServiceId, TaskId};
use crate::object::{
    Cluster, ManagerStatus, Network, Node, NodeDescription, NodeStatus, Service, Task, TaskStatus,
    UpdateStatus,
};
use crate::task_state::TaskState;
use crate::time::Timestamp;
pub use pack::{TaskEdit, TasksAlike, pack};

/// Names one write, so that one retried over a leader change applies once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// One atomic write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub request: RequestId,
    /// The proposer's clock; becomes `created_at` and `updated_at`.
    pub at: Timestamp,
    pub changes: Vec<Change>,
}

/// Any object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Cluster(Box<Cluster>),
    Node(Box<Node>),
    Service(Box<Service>),
    Task(Box<Task>),
    Network(Box<Network>),
    Dependency(Box<Dependency>),
}

/// Names any object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectRef {
    Cluster(ClusterId),
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Network(NetworkId),
    Dependency(DependencyId),
}

impl Object {
    /// The object's name.
    pub fn to_ref(&self) -> ObjectRef {
        match self {
            Self::Cluster(o) => ObjectRef::Cluster(o.id),
            Self::Node(o) => ObjectRef::Node(o.id),
            Self::Service(o) => ObjectRef::Service(o.id),
            Self::Task(o) => ObjectRef::Task(o.id),
            Self::Network(o) => ObjectRef::Network(o.id),
            Self::Dependency(o) => ObjectRef::Dependency(o.id),
        }
    }
}

/// One object write. The `meta` of given objects is ignored: the store writes it.
///
/// `Update` carries the version that the writer saw and fails when it is no longer the current one.
/// The narrow changes below it need no version: each touches what one owner writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Fails if the id exists, or the name for objects with unique names (services, networks, secrets, configs).
    Create(Object),
    /// Replaces the object if its `meta.version` is `expected`. Raises `spec_version` when the spec differs.
    Update { object: Object, expected: u64 },
    /// Creates tasks, as [`Change::Create`] does; all or none.
    CreateTasks(Box<TasksAlike>),
    /// [`Change::Update`] of a task of which most stays as it is.
    TaskEdit { id: TaskId, expected: u64, edit: Box<TaskEdit> },
    /// Deleting what is absent is success.
    Delete(ObjectRef),
    /// Liveness, by the leader. Ignored for an unknown node.
    NodeStatus { id: NodeId, status: NodeStatus },
    /// What a node says about itself when a session begins. Ignored for an unknown node.
    NodeDescription { id: NodeId, description: Box<NodeDescription> },
    /// Raft membership of a node, by the leader. Ignored for an unknown node.
    NodeManager { id: NodeId, manager: Option<ManagerStatus> },
    /// A report by the task's agent. Kept only if the state grows, or is the same with new details.
    /// Ignored for an unknown task.
    TaskStatus { id: TaskId, status: TaskStatus },
    /// Kept only if it is higher than the current desired state. Ignored for an unknown task.
    TaskDesired { id: TaskId, state: TaskState },
    /// No load balancer sends to this task any more. Ignored for an unknown task.
    TaskDrained { id: TaskId },
    /// A step of the task's slow start. Kept only if it is more than before. Ignored for an unknown task.
    TaskWeight { id: TaskId, weight: u8 },
    /// Progress of an update, by the orchestrator. Kept only if the service's update is still the one that it is about: a
    /// user may have asked for something else since the orchestrator's look. Ignored for an unknown service.
    UpdateStatus {
        id: ServiceId,
        status: Option<UpdateStatus>,
        /// `None`, as in logs that are older than this field: whatever the service's update is.
        #[serde(default)]
        of: Option<UpdateSeen>,
    },
}

impl Change {
    /// How many objects it changes.
    pub fn n_objects(&self) -> usize {
        match self {
            Self::CreateTasks(alike) => alike.made.len(),
            _ => 1,
        }
    }

    /// The tasks that it makes, each whole.
    pub fn created_tasks(&self) -> Vec<Task> {
        match self {
            Self::Create(Object::Task(task)) => vec![Task::clone(task)],
            Self::CreateTasks(alike) => alike.tasks().collect(),
            _ => Vec::new(),
        }
    }
}

/// The update of a service that the writer of a [`Change::UpdateStatus`] looked at.
///
/// The version of the spec alone does not name it: an update to the same spec resumes one that was paused, and a rollback
/// may be to a spec that is no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSeen {
    pub spec_version: u64,
    pub status: Option<UpdateStatus>,
}

impl UpdateSeen {
    /// The update that `service` is in.
    pub fn of(service: &Service) -> Self {
        Self { spec_version: service.meta.spec_version, status: service.update_status.clone() }
    }

    /// Whether `service` is still in it.
    pub fn is_of(&self, service: &Service) -> bool {
        self.spec_version == service.meta.spec_version && self.status == service.update_status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::UpdateState;

    /// The change as it was before it said which update it is about.
    #[derive(Serialize)]
    enum Older {
        UpdateStatus { id: ServiceId, status: Option<UpdateStatus> },
    }

    #[test]
    fn an_update_status_of_an_older_log_is_about_any_update() {
        let id = ServiceId::from_bits(1);
        let status = Some(UpdateStatus {
            state: UpdateState::Paused,
            started_at: Timestamp(1),
            completed_at: None,
            message: "m".into(),
        });
        let older = Older::UpdateStatus { id, status: status.clone() };
        let bytes = rmp_serde::to_vec_named(&older).expect("encodable");
        let read: Change = rmp_serde::from_slice(&bytes).expect("readable");
        assert_eq!(read, Change::UpdateStatus { id, status, of: None });
    }
}
