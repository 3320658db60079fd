//! Containers that no service made, over their owner in the runtime; and the streams and ends of all.

use std::time::Duration;

use async_trait::async_trait;
use control_api::engine::EngineError;
use control_api::standalone::{Attachment, Standalone};
use control_model::TaskId;
use control_model::standalone::{ConsoleSize, RestartRule, StandaloneSpec, WaitFor};
use control_runtime::Oci;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::wrappers::ReceiverStream;

use super::OciEngine;
use super::convert::{not_done, not_standing};

#[async_trait]
impl Standalone for OciEngine {
    async fn create(&self, name: &str, spec: StandaloneSpec) -> Result<String, EngineError> {
        self.standalone.create(name, spec).await.map_err(not_standing)
    }

    async fn start(&self, id: &str) -> Result<bool, EngineError> {
        self.standalone.start(id).await.map_err(not_standing)
    }

    async fn restart(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.standalone.restart(id, signal, grace).await.map_err(not_standing)
    }

    async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<(), EngineError> {
        self.standalone.remove(id, force, volumes).await.map_err(not_standing)
    }

    async fn rename(&self, id: &str, name: &str) -> Result<String, EngineError> {
        self.standalone.rename(id, name).map_err(not_standing)
    }

    async fn set_rule(&self, id: &str, rule: RestartRule) -> Result<(), EngineError> {
        self.standalone.set_rule(id, rule).map_err(not_standing)
    }

    async fn wait(&self, id: &str, what: WaitFor) -> Result<BoxFuture<'static, i32>, EngineError> {
        if self.is_own(id) {
            return Ok(self.standalone.wait(id, what).map_err(not_standing)?.boxed());
        }
        let unknown = || EngineError::NotFound(format!("No such container: {id}"));
        let task = TaskId::of_container(id).ok_or_else(unknown)?;
        self.oci.container_of_task(task).ok_or_else(unknown)?;
        Ok(end_of_task(self.oci.clone(), task, what).boxed())
    }

    async fn attach(&self, id: &str, with_input: bool) -> Result<Attachment, EngineError> {
        let attached = self.oci.attach(id, with_input).map_err(not_done)?;
        Ok(Attachment { input: attached.input, output: ReceiverStream::new(attached.output).boxed() })
    }

    async fn resize(&self, id: &str, size: ConsoleSize) -> Result<(), EngineError> {
        self.oci.resize(id, size).map_err(not_done)
    }
}

impl OciEngine {
    /// No service made it.
    pub(super) fn is_own(&self, id: &str) -> bool {
        TaskId::of_container(id).is_some_and(|task| self.standalone.phase(task).is_some())
    }
}

/// The code with which a task's container has ended. It has one run.
async fn end_of_task(oci: Oci, task: TaskId, what: WaitFor) -> i32 {
    let mut events = oci.events().subscribe();
    let (mut code, mut was_running) = (0, false);
    loop {
        let Some(info) = oci.container_of_task(task) else { return code };
        let is_running = info.state == "running";
        code = info.ended.map_or(code, |ended| ended.code);
        match what {
            WaitFor::NotRunning if !is_running => return code,
            WaitFor::NextExit if was_running && !is_running => return code,
            WaitFor::NotRunning | WaitFor::NextExit | WaitFor::Removed => {}
        }
        was_running |= is_running;
        // Of those that were missed, what came of them is looked at.
        if let Err(RecvError::Closed) = events.recv().await {
            return code;
        }
    }
}
