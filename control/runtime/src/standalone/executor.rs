//! What a node's agent runs: the containers of its tasks, and the places that the managers give to the node's own containers.

use async_trait::async_trait;
use control_model::executor::{Executor, ExecutorError, Exit, Found, Provisions, SandboxPaths};
use control_model::object::{ContainerStatus, HealthStatus};
use control_model::{Task, TaskId};

use super::Standalone;
use super::attachments::Given;
use crate::oci::{Oci, StandaloneError};

/// The executor of a whole node.
pub struct NodeExecutor {
    pub oci: Oci,
    pub standalone: Standalone,
}

#[async_trait]
impl Executor for NodeExecutor {
    async fn prepare(&self, task: &Task, provisions: &Provisions) -> Result<(), ExecutorError> {
        if !task.is_attachment() {
            return self.oci.prepare(task, provisions).await;
        }
        let waits = self.standalone.0.attachments.holder(task.id);
        waits.map(drop).ok_or_else(|| ExecutorError::Rejected("no container waits for it".to_owned()))
    }

    async fn start(&self, task: &Task, sandbox: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
        if !task.is_attachment() {
            return self.oci.start(task, sandbox).await;
        }
        let attachments = &self.standalone.0.attachments;
        let container = attachments.holder(task.id).ok_or(ExecutorError::Unknown(task.id))?;
        let given = Given { paths: sandbox.clone(), attachments: task.attachments.clone() };
        attachments.give(task.id, given);
        Ok(ContainerStatus { container_id: container.container_id(), ..ContainerStatus::default() })
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, ExecutorError> {
        let attachments = &self.standalone.0.attachments;
        if attachments.holder(task).is_none() {
            return self.oci.wait(task).await;
        }
        attachments.over(task).await;
        Ok(Exit { code: 0, out_of_memory: false })
    }

    async fn health(&self, task: TaskId, known: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError> {
        self.oci.health(task, known).await
    }

    /// A place that the swarm takes back takes its container along.
    async fn shutdown(&self, task: &Task) -> Result<(), ExecutorError> {
        if !task.is_attachment() {
            return self.oci.shutdown(task).await;
        }
        let Some(container) = self.standalone.0.attachments.holder(task.id) else { return Ok(()) };
        let stopped = self.standalone.stop(&container.container_id(), None, None).await;
        stopped.map(drop).map_err(|error| failed(&error))
    }

    async fn terminate(&self, task: TaskId) -> Result<(), ExecutorError> {
        let Some(container) = self.standalone.0.attachments.holder(task) else {
            return self.oci.terminate(task).await;
        };
        let id = container.container_id();
        let stopped = self.standalone.stop(&id, Some("SIGKILL"), None).await;
        stopped.map(drop).map_err(|error| failed(&error))
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.oci.remove(task).await
    }

    async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError> {
        let mut found = self.oci.list_ours().await?;
        for (task, container) in self.standalone.0.attachments.all() {
            let pid = self.oci.container_of_task(container).and_then(|one| one.pid).unwrap_or(0);
            let container_id = container.container_id();
            let status = ContainerStatus { container_id, pid, ..ContainerStatus::default() };
            found.push(Found { task, status, exit: None });
        }
        Ok(found)
    }
}

fn failed(error: &StandaloneError) -> ExecutorError {
    ExecutorError::Failed(error.to_string())
}
