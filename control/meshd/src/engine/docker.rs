//! The API's view of the containers that the host's Docker Engine runs for this node's tasks.

use async_trait::async_trait;
use control_api::engine::{Container, Engine, EngineError, Output};
use control_model::OutputQuery;
use control_model::log_driver::LogDriver;
use control_runtime::{DockerEngine, TaskContainer};
use futures::{StreamExt as _, TryStreamExt as _};

/// Docker Engine as the API's engine.
pub struct HostEngine {
    pub docker: DockerEngine,
}

#[async_trait]
impl Engine for HostEngine {
    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let found = self.docker.containers().await.map_err(|error| EngineError::Failed(error.to_string()))?;
        Ok(found.into_iter().map(to_container).collect())
    }

    async fn output(&self, container: &str, query: OutputQuery) -> Result<Output, EngineError> {
        let pieces = self.docker.output(container, query);
        Ok(pieces.map_err(|error| EngineError::Failed(error.to_string())).boxed())
    }
}

/// As much as logs need: all else, the engine tells itself.
fn to_container(found: TaskContainer) -> Container {
    Container {
        id: found.id,
        name: found.name,
        task: found.task,
        image: found.image,
        image_id: found.image_id,
        labels: found.labels,
        created: found.created,
        running: found.is_running,
        command: Vec::new(),
        env: Vec::new(),
        user: String::new(),
        working_dir: String::new(),
        hostname: String::new(),
        tty: false,
        log: LogDriver::default(),
        host_ports: Vec::new(),
        exposed_ports: Vec::new(),
        mounts: Vec::new(),
        started: None,
        finished: None,
        pid: 0,
        exit_code: 0,
        out_of_memory: false,
        health: None,
        own: None,
    }
}
