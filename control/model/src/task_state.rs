//! Task states. A task's state only grows, and each state has one owner that may move it on
//! (swarmkit `design/task_model.md`, `design/tla/Tasks.tla`).

use serde::{Deserialize, Serialize};

/// The life of a task, in order. `Remove` is only ever a desired state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Made by the orchestrator, nothing allocated.
    #[default]
    New,
    /// Addresses allocated, waiting for a node.
    Pending,
    /// Bound to a node by the scheduler.
    Assigned,
    /// The node's agent knows it.
    Accepted,
    /// Image and sandbox are being made.
    Preparing,
    /// Could start now.
    Ready,
    /// The process is being started.
    Starting,
    /// The process runs (and is healthy, where it has a check).
    Running,
    /// The process ended with 0.
    Complete,
    /// Stopped on request.
    Shutdown,
    /// The process ended with an error.
    Failed,
    /// Could not be prepared or started.
    Rejected,
    /// Its node has been gone for too long.
    Orphaned,
    /// Desired only: stop it and forget it.
    Remove,
}

/// Who may move a task out of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Allocator,
    Scheduler,
    Agent,
    Reaper,
}

impl TaskState {
    /// All states in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Orphaned,
        Self::Remove,
    ];

    /// Docker's word for the state, as in `Status.State` of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
            Self::Remove => "remove",
        }
    }

    /// The one component that may move a task out of this state.
    pub fn owner(self) -> Owner {
        match self {
            Self::New => Owner::Allocator,
            Self::Pending => Owner::Scheduler,
            Self::Assigned
            | Self::Accepted
            | Self::Preparing
            | Self::Ready
            | Self::Starting
            | Self::Running => Owner::Agent,
            Self::Complete
            | Self::Shutdown
            | Self::Failed
            | Self::Rejected
            | Self::Orphaned
            | Self::Remove => Owner::Reaper,
        }
    }

    /// The task has ended: no process is left and none will come.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }
}
