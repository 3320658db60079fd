//! The `Executor` seam over containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use control_model::executor::{Executor, ExecutorError, Exit, Found, Provisions, SandboxPaths};
use control_model::object::{ContainerStatus, HealthStatus};
use control_model::spec::ContainerSpec;
use control_model::{Task, TaskId};

use super::conmon::{Launch, LaunchError, conmon_of, exit_code_of, run_runtime};
use super::error::PrepareError;
use super::listening::opening;
use super::paths::TaskPaths;
use super::prepare::Preparation;
use super::record::{Ended, Stage, StandaloneRecord};
use super::spec::{set_console, set_network};
use super::{Container, Oci, now};
use crate::events::ContainerChange;
use crate::files::remove_tree;
use crate::image::{ImageError, LocalImage, Reference};
use crate::unmount::unmount_all;

/// Code of a container whose end nobody saw (a reboot, a killed conmon). Docker's.
const EXIT_CODE_UNKNOWN: i32 = 255;
/// conmon ends right after its container; one that takes longer is left alone.
const CONMON_END_TIMEOUT: Duration = Duration::from_secs(5);
/// After SIGKILL a process ends at once, unless the kernel itself hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

#[async_trait]
impl Executor for Oci {
    async fn prepare(&self, task: &Task, provisions: &Provisions) -> Result<(), ExecutorError> {
        if let Some(container) = self.container(task.id) {
            if self.is_started(&container).await? {
                return Ok(());
            }
            self.remove(task.id).await?;
        }
        let image = self.local_or_pulled(&task.spec.container).await.map_err(rejected)?;
        let (oci, task, provisions) = (self.clone(), task.clone(), provisions.clone());
        let made = tokio::task::spawn_blocking(move || oci.make(&task, &provisions, &image)).await;
        made.map_err(|error| ExecutorError::Failed(format!("preparing: {error}")))?.map_err(rejected)
    }

    async fn start(&self, task: &Task, sandbox: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
        let container = self.container(task.id).ok_or(ExecutorError::Unknown(task.id))?;
        let _changing = container.changing.lock().await;
        if self.is_started(&container).await? {
            return Ok(container.status());
        }
        let failed = |error| format!("starting container failed: failed to create shim task: {error}");
        let begun = self.begin(task, &container, sandbox).await;
        begun.map_err(|error| ExecutorError::Failed(failed(error)))?;
        Ok(container.status())
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, ExecutorError> {
        let container = self.container(task).ok_or(ExecutorError::Unknown(task))?;
        if !self.is_started(&container).await? {
            return Err(ExecutorError::Failed("the container was not started".into()));
        }
        self.ended(&container).await.map(Ended::exit).map_err(failed)
    }

    async fn health(&self, task: TaskId, known: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError> {
        let container = self.container(task).ok_or(ExecutorError::Unknown(task))?;
        if !self.is_started(&container).await? {
            return Err(ExecutorError::Failed("the container was not started".into()));
        }
        tokio::select! {
            biased;
            _ = self.ended(&container) => Err(ExecutorError::Failed("the container has ended".into())),
            status = self.watch_health(&container, known) => status,
        }
    }

    async fn shutdown(&self, task: &Task) -> Result<(), ExecutorError> {
        let Some(container) = self.container(task.id) else { return Ok(()) };
        if !self.is_started(&container).await? || container.record().ended.is_some() {
            return Ok(());
        }
        let (signal, grace) = (container.record().stop_signal, container.record().stop_grace);
        self.signal_to_end(&container, signal).await;
        match tokio::time::timeout(grace, self.ended(&container)).await {
            Ok(ended) => drop(ended.map_err(failed)?),
            Err(_) => self.terminate(task.id).await?,
        }
        self.0.events.container(ContainerChange::Stopped, &container.record());
        Ok(())
    }

    async fn terminate(&self, task: TaskId) -> Result<(), ExecutorError> {
        let Some(container) = self.container(task) else { return Ok(()) };
        if !self.is_started(&container).await? || container.record().ended.is_some() {
            return Ok(());
        }
        self.signal_to_end(&container, libc::SIGKILL).await;
        let ended = tokio::time::timeout(KILL_TIMEOUT, self.ended(&container)).await;
        ended
            .map_err(|_| ExecutorError::Failed("the process does not end after SIGKILL".into()))?
            .map_err(failed)?;
        Ok(())
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        let Some(container) = self.container(task) else { return Ok(()) };
        let _changing = container.changing.lock().await;
        self.delete_runtime_state(&container.paths).await;
        container.forwarding.end(container.record().ended.is_some()).await;
        let paths = container.paths.clone();
        let removed = tokio::task::spawn_blocking(move || remove_files(&paths)).await;
        removed.map_err(|error| ExecutorError::Failed(format!("removing: {error}")))?.map_err(failed)?;
        self.containers().remove(&task);
        self.0.events.container(ContainerChange::Removed, &container.record());
        let oci = self.clone();
        let released = tokio::task::spawn_blocking(move || oci.0.volumes.release(task)).await;
        released.map_err(|error| ExecutorError::Failed(format!("removing: {error}")))
    }

    async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError> {
        // Those that no service made are nobody's to remove but their users'.
        let is_tasks = |one: &&Arc<Container>| one.locked().standalone.is_none();
        let containers: Vec<Arc<Container>> = self.containers().values().filter(is_tasks).cloned().collect();
        let mut found = Vec::with_capacity(containers.len());
        for container in containers {
            let started = self.is_started(&container).await?;
            let gone = started && container.record().ended.is_none() && conmon_of(&container.paths).is_none();
            if gone {
                self.ended(&container).await.map_err(failed)?;
            }
            let record = container.record();
            found.push(Found {
                task: record.task,
                status: container.status(),
                exit: record.ended.map(Ended::exit),
            });
        }
        Ok(found)
    }
}

impl Oci {
    /// The image for a task: the local one if there is one, else from its registry.
    async fn local_or_pulled(&self, spec: &ContainerSpec) -> Result<LocalImage, PrepareError> {
        let image = &spec.image;
        match self.0.images.local(image).await {
            Err(ImageError::NotFound(_)) => {}
            other => return Ok(other?),
        }
        let reference = Reference::parse(image).map_err(ImageError::from)?;
        if let Err(error) = self.0.images.pull(&reference, spec.registry.as_ref(), &|_| {}).await {
            tracing::warn!(image, %error, "the image can't be pulled");
            return Err(ImageError::NotFound(reference.familiar()).into());
        }
        Ok(self.0.images.local(image).await?)
    }

    /// Blocking half of a preparation. What a failed one leaves is removed at once.
    fn make(&self, task: &Task, provisions: &Provisions, image: &LocalImage) -> Result<(), PrepareError> {
        self.make_as(task, None, provisions, image)
    }

    /// The same of a container with a name of its own.
    pub(super) fn make_as(
        &self,
        task: &Task,
        standalone: Option<(&str, &StandaloneRecord)>,
        provisions: &Provisions,
        image: &LocalImage,
    ) -> Result<(), PrepareError> {
        let paths = self.0.layout.task(task.id);
        let preparation = Preparation {
            standalone,
            volumes: &self.0.volumes,
            paths: &paths,
            task,
            provisions,
            image,
            node_hostname: &self.0.node_hostname,
            log: &self.0.log,
            cgroup_parent: &self.0.cgroup_parent,
            cgroups: self.0.cgroups,
            now: now(),
        };
        let record = preparation.record()?;
        if let Err(error) = preparation.make(&record) {
            if let Err(error) = remove_files(&paths) {
                tracing::warn!(task = %task.id, %error, "files of a failed preparation stay");
            }
            self.0.volumes.release(task.id);
            return Err(error);
        }
        self.0.events.container(ContainerChange::Created, &record);
        let container = Container::new(paths, record, self.0.events.clone());
        self.containers().insert(task.id, Arc::new(container));
        Ok(())
    }

    /// Starts the process of a container that is held for it. Of a start that fails nothing is left.
    pub(super) async fn begin(
        &self,
        task: &Task,
        container: &Arc<Container>,
        sandbox: &SandboxPaths,
    ) -> Result<(), LaunchError> {
        let launched = async {
            let pid = self.launch(task, container, sandbox).await?;
            container.update(|record| record.stage = Stage::Started { pid, at: now() })?;
            Ok(())
        };
        if let Err(error) = launched.await {
            self.delete_runtime_state(&container.paths).await;
            container.attaching.close();
            return Err(error);
        }
        self.forward_output(container);
        Ok(())
    }

    async fn launch(
        &self,
        task: &Task,
        container: &Container,
        sandbox: &SandboxPaths,
    ) -> Result<i32, LaunchError> {
        let config = container.paths.bundle().join("config.json");
        let mut spec = oci_spec::runtime::Spec::load(&config).map_err(io::Error::other)?;
        set_network(&mut spec, sandbox.netns.clone());
        if let Some(size) = container.console() {
            set_console(&mut spec, size);
        }
        spec.save(&config).map_err(io::Error::other)?;
        container.update(|record| record.stage = Stage::Starting)?;
        // A start that failed may be tried again: the conmon of the first left its files.
        let _ = std::fs::remove_file(container.paths.exit_code());
        let runtime_root = self.0.layout.runtime_root();
        let launch = Launch {
            runtime: &self.0.runtime,
            runtime_root: &runtime_root,
            paths: &container.paths,
            name: &task.name(),
            kept_bytes: container.record().log.logging().map_err(io::Error::other)?.kept_bytes,
            tty: task.spec.container.tty,
            stdin: task.spec.container.open_stdin,
            ends_input: container.ends_input(),
        };
        let pid = launch.create().await?;
        container.attaching.open(&container.paths);
        self.run(&["start", &container.paths.container_id]).await?;
        Ok(pid)
    }

    async fn run(&self, arguments: &[&str]) -> Result<String, LaunchError> {
        run_runtime(&self.0.runtime, &self.0.layout.runtime_root(), arguments).await
    }

    /// Whether the process was ever started. A daemon that died between the start and its record asks the runtime.
    pub(super) async fn is_started(&self, container: &Container) -> Result<bool, ExecutorError> {
        match container.record().stage {
            Stage::Prepared => Ok(false),
            Stage::Started { .. } => Ok(true),
            Stage::Starting => {
                let Some(pid) = self.pid_by_runtime(container).await else { return Ok(false) };
                container
                    .update(|record| record.stage = Stage::Started { pid, at: now() })
                    .map_err(failed)?;
                container.attaching.open(&container.paths);
                Ok(true)
            }
        }
    }

    /// Its process, if the runtime says that it runs.
    pub(super) async fn pid_by_runtime(&self, container: &Container) -> Option<i32> {
        let state = self.run(&["state", &container.paths.container_id]).await.ok()?;
        running_pid(&state)
    }

    /// Waits for the end of a container that was started, and records it.
    pub(super) async fn ended(&self, container: &Container) -> io::Result<Ended> {
        if let Some(ended) = container.record().ended {
            return Ok(ended);
        }
        if let Some(conmon) = conmon_of(&container.paths) {
            conmon.ended().await?;
        }
        let code = exit_code_of(&container.paths);
        if code.is_none() {
            // conmon is gone without a word: nobody keeps the process's output or code, so it must not go on.
            self.delete_runtime_state(&container.paths).await;
        }
        let code = code.unwrap_or(EXIT_CODE_UNKNOWN);
        let out_of_memory = self.0.cgroups.was_out_of_memory(&container.record().cgroup);
        let ended = Ended { code, out_of_memory, at: now() };
        container.update(|record| record.ended = record.ended.or(Some(ended)))?;
        container.attaching.close();
        // Nobody reads them any more, and they are not to stay longer than that.
        unmount_all(&container.paths.dependencies())?;
        Ok(container.record().ended.unwrap_or(ended))
    }

    /// Signals the container's first process, for an end that somebody waits for: one that has ended is no error.
    pub(super) async fn signal_to_end(&self, container: &Container, signal: i32) {
        if let Err(error) = self.signal(container, signal).await {
            tracing::debug!(container = container.paths.container_id, %error, "not signalled");
        }
    }

    /// Signals the container's first process.
    pub(super) async fn signal(&self, container: &Container, signal: i32) -> Result<(), LaunchError> {
        self.run(&["kill", &container.paths.container_id, &signal.to_string()]).await?;
        self.0.events.container(ContainerChange::Signalled(signal), &container.record());
        Ok(())
    }

    /// Kills what runs and removes the runtime's state and the cgroups. A container that the runtime doesn't know is
    /// success.
    pub(super) async fn delete_runtime_state(&self, paths: &TaskPaths) {
        // Twice: a creation that a killed daemon began may be under way at the first time, and end after it.
        for _ in 0..2 {
            let conmon = conmon_of(paths);
            if let Err(error) = self.run(&["delete", "--force", &paths.container_id]).await {
                tracing::debug!(container = paths.container_id, %error, "not deleted");
            }
            let Some(conmon) = conmon else { return };
            if tokio::time::timeout(CONMON_END_TIMEOUT, conmon.ended()).await.is_ok() {
                return;
            }
        }
        tracing::warn!(container = paths.container_id, "its conmon does not end");
    }
}

impl Container {
    fn status(&self) -> ContainerStatus {
        let record = self.record();
        let pid = match record.stage {
            Stage::Started { pid, .. } => pid,
            Stage::Prepared | Stage::Starting => 0,
        };
        let exit_code = record.ended.map_or(0, |ended| ended.code);
        let opening = opening(&record, now()).map(|_| HealthStatus::Starting);
        let health = record.health.map(|health| health.status).or(opening);
        ContainerStatus { container_id: record.container_id, pid, exit_code, health }
    }
}

/// Removes all files and mounts of a task.
pub(super) fn remove_files(paths: &TaskPaths) -> io::Result<()> {
    unmount_all(&paths.rootfs())?;
    unmount_all(&paths.dependencies())?;
    remove_tree(&paths.run)?;
    remove_tree(&paths.dir)
}

/// The process id in the runtime's state, if the container runs.
fn running_pid(state: &str) -> Option<i32> {
    #[derive(serde::Deserialize)]
    struct State {
        status: String,
        pid: i32,
    }
    let state: State = serde_json::from_str(state).ok()?;
    (state.status == "running").then_some(state.pid)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn rejected(error: PrepareError) -> ExecutorError {
    ExecutorError::Rejected(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn failed(error: io::Error) -> ExecutorError {
    ExecutorError::Failed(error.to_string())
}
