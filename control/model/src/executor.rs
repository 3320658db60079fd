//! The seam between the agent and what runs containers. Implemented by the runtimes and by the simulation.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::dependency::Dependency;
use crate::id::TaskId;
use crate::object::{ContainerStatus, HealthStatus, Task};

/// Why an executor could not do its part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The task can never run here as it is specified (Docker shows it as REJECTED).
    #[error("{0}")]
    Rejected(String),
    /// The attempt failed (FAILED).
    #[error("{0}")]
    Failed(String),
    /// The executor does not know this task.
    #[error("no container for task {0}")]
    Unknown(TaskId),
}

/// What a task is made of besides its own spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provisions {
    /// Those of its addresses that follow from its networks.
    pub addresses6: Vec<Ipv6Addr>,
    /// Its secrets and configs, as far as the node has them.
    pub dependencies: Vec<Arc<Dependency>>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    /// Killed by the kernel for memory.
    pub out_of_memory: bool,
}

/// What the data plane made for a task before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    /// Network namespace file.
    pub netns: PathBuf,
}

/// A container that was found running (or ended) after a restart of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub task: TaskId,
    /// A pid of 0 with no exit: made, but never started.
    pub status: ContainerStatus,
    /// `None` while it runs, or before it was started.
    pub exit: Option<Exit>,
}

/// Runs one container per task. All calls are idempotent; removing the absent is success.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Whether a preparation makes the task's network namespace too. Else the data plane does, at the same time.
    fn gives_namespaces(&self) -> bool {
        false
    }
    /// Gets the image and makes the root file system. Nothing runs yet.
    async fn prepare(&self, task: &Task, provisions: &Provisions) -> Result<(), ExecutorError>;
    /// Starts the process in the sandbox. Its health is `Starting` until it may be sent to: its check has succeeded, or without
    /// one it listens on the ports that it publishes.
    async fn start(&self, task: &Task, sandbox: &SandboxPaths) -> Result<ContainerStatus, ExecutorError>;
    /// Returns when the process has ended, at once if it already has.
    async fn wait(&self, task: TaskId) -> Result<Exit, ExecutorError>;
    /// Returns when the container's health is something else than `known`, `None` once it has no check to say more; an error once
    /// the container has ended.
    async fn health(&self, task: TaskId, known: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError>;
    /// Sends the stop signal, and SIGKILL after the grace period; returns when the process has ended.
    async fn shutdown(&self, task: &Task) -> Result<(), ExecutorError>;
    /// SIGKILL now.
    async fn terminate(&self, task: TaskId) -> Result<(), ExecutorError>;
    /// Forgets the container and its files.
    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError>;
    /// All containers of this executor on this node.
    async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError>;
}
