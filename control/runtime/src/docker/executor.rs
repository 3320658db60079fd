//! The `Executor` seam over Docker Engine.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, HealthStatusEnum};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, KillContainerOptions, StopContainerOptions,
    WaitContainerOptions,
};
use control_model::executor::{Executor, ExecutorError, Exit, Found, Provisions, SandboxPaths};
use control_model::object::{ContainerStatus, HealthStatus};
use control_model::spec::{DEFAULT_STOP_GRACE_PERIOD, Platform};
use control_model::template::TemplateContext;
use control_model::{Task, TaskId, Timestamp};
use futures::TryStreamExt as _;

use super::spec::{File, SANDBOX_LABEL, TASK_LABEL, container};
use super::{DockerEngine, Opened, TIMEOUT, is_missing, words};
use crate::files::remove_tree;
use crate::image::Reference;
use crate::oci::{
    Opening, PrepareError, SHORT_ID_LEN, Sources, dependency_files, environment, hosts, hosts_are_valid, now,
    resolv_conf,
};
use crate::unmount::unmount_all;

/// Code of a container whose end nobody saw. Docker's.
const EXIT_CODE_UNKNOWN: i32 = 255;
/// Before an engine that does not answer is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// After SIGKILL a process ends at once, unless the kernel itself hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

#[async_trait]
impl Executor for DockerEngine {
    fn gives_namespaces(&self) -> bool {
        true
    }

    async fn prepare(&self, task: &Task, provisions: &Provisions) -> Result<(), ExecutorError> {
        if let Some(id) = self.container_of(task.id).await.map_err(failed)? {
            let state = self.state(&id).await.map_err(failed)?;
            if state.is_some_and(|state| was_started(&state)) {
                return Ok(());
            }
        }
        self.remove(task.id).await?;
        let image_env = self.local_or_pulled(task).await?;
        let made = self.make(task, provisions, image_env).await;
        if made.is_err()
            && let Err(error) = self.remove(task.id).await
        {
            tracing::warn!(task = %task.id, %error, "a half-made container stays");
        }
        made
    }

    async fn start(&self, task: &Task, sandbox: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
        let id = self.known(task.id).await?;
        if !is_same_namespace(&self.given_netns(task.id), &sandbox.netns) {
            return Err(ExecutorError::Failed("the sandbox is made of another network namespace".into()));
        }
        let is_new = self
            .state(&id)
            .await
            .map_err(failed)?
            .is_some_and(|state| state.status == Some(ContainerStateStatusEnum::CREATED));
        if is_new && let Err(error) = self.patient_client().start_container(&id, None).await {
            if !matches!(error, Error::DockerResponseServerError { .. }) {
                // It may be about to start: what is told of it must be so.
                self.remove_surely(&id).await;
            }
            return Err(ExecutorError::Failed(format!("starting container failed: {}", words(&error))));
        }
        let found = self.inspected(&id).await.ok_or(ExecutorError::Unknown(task.id))?;
        let mut status = status_of(&found);
        if status.health.is_none() && is_new {
            let opened = Opened { pid: status.pid, at: now(), ports: task.ports.clone() };
            status.health = opened.opening().map(|_| HealthStatus::Starting);
            self.opening().insert(task.id, opened);
        }
        Ok(status)
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, ExecutorError> {
        let id = loop {
            match self.container_of(task).await {
                Ok(found) => break found.ok_or(ExecutorError::Unknown(task))?,
                Err(error) => tracing::debug!(%task, %error, "the engine does not say what it has"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        loop {
            let options = WaitContainerOptions { condition: "not-running".to_owned() };
            let waited = self.client().wait_container(&id, Some(options)).try_collect::<Vec<_>>().await;
            let exit = match self.inspected(&id).await {
                None => Some(Exit { code: EXIT_CODE_UNKNOWN, out_of_memory: false }),
                Some(found) => exit_of(&found),
            };
            if let Some(exit) = exit {
                self.forget_dependencies(task).await?;
                return Ok(exit);
            }
            tracing::debug!(%task, ?waited, "the engine waits no more for a container that runs");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn health(&self, task: TaskId, known: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError> {
        let id = self.known(task).await?;
        loop {
            // What happens from here on is told again to who asks after it.
            let since = now();
            let found = self.inspect(&id).await.map_err(failed)?.ok_or(ExecutorError::Unknown(task))?;
            if exit_of(&found).is_some() {
                return Err(ExecutorError::Failed("the container has ended".into()));
            }
            match status_of(&found).health {
                Some(status) if status != known => return Ok(Some(status)),
                Some(_) => self.next_event(&id, since).await.map_err(failed)?,
                None => {
                    let opened = self.opening().remove(&task);
                    if let Some(opening) = opened.as_ref().and_then(Opened::opening) {
                        opening.over().await;
                    }
                    return Ok(None);
                }
            }
        }
    }

    async fn shutdown(&self, task: &Task) -> Result<(), ExecutorError> {
        let Some(id) = self.container_of(task.id).await.map_err(failed)? else { return Ok(()) };
        let grace = task.spec.container.stop_grace_period.unwrap_or(DEFAULT_STOP_GRACE_PERIOD);
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptions { signal: None, t: Some(seconds) };
        // It answers when the process has ended.
        let client = self.client().clone().with_timeout(grace.saturating_add(TIMEOUT));
        match client.stop_container(&id, Some(options)).await {
            Err(error) if !is_missing(&error) && !is_unchanged(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn terminate(&self, task: TaskId) -> Result<(), ExecutorError> {
        let Some(id) = self.container_of(task).await.map_err(failed)? else { return Ok(()) };
        let is_over = |state: &Option<ContainerState>| !state.as_ref().is_some_and(is_running);
        if is_over(&self.state(&id).await.map_err(failed)?) {
            return Ok(());
        }
        let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
        if let Err(error) = self.client().kill_container(&id, Some(options)).await {
            // It may have ended meanwhile.
            if !is_over(&self.state(&id).await.map_err(failed)?) {
                return Err(failed(error));
            }
        }
        let ended = tokio::time::timeout(KILL_TIMEOUT, self.wait(task)).await;
        ended.map_err(|_| ExecutorError::Failed("the process does not end after SIGKILL".into()))?.map(drop)
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        if let Some(id) = self.container_of(task).await.map_err(failed)? {
            self.remove_container(&id).await.map_err(failed)?;
        }
        self.opening().remove(&task);
        let dir = self.task_dir(task);
        let removed = tokio::task::spawn_blocking(move || remove_files(&dir)).await;
        removed.map_err(broken)?.map_err(broken)?;
        self.remove_sandbox(task).await.map_err(failed)
    }

    async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        for container in self.labelled(TASK_LABEL, None).await.map_err(failed)? {
            let Some(task) = task_of(container.labels.as_ref(), TASK_LABEL) else { continue };
            let id = container.id.unwrap_or_default();
            let Some(inspected) = self.inspect(&id).await.map_err(failed)? else { continue };
            seen.insert(task);
            found.push(Found { task, status: status_of(&inspected), exit: exit_of(&inspected) });
        }
        // Of a preparation or a removal that was cut short.
        for container in self.labelled(SANDBOX_LABEL, None).await.map_err(failed)? {
            if let Some(task) =
                task_of(container.labels.as_ref(), SANDBOX_LABEL).filter(|task| seen.insert(*task))
            {
                found.push(Found { task, status: ContainerStatus::default(), exit: None });
            }
        }
        let left = self.tasks_with_files().into_iter().filter(|task| !seen.contains(task));
        found.extend(left.map(|task| Found { task, status: ContainerStatus::default(), exit: None }));
        Ok(found)
    }
}

impl DockerEngine {
    /// The image's environment; from its registry, if the engine does not have it.
    async fn local_or_pulled(&self, task: &Task) -> Result<Vec<String>, ExecutorError> {
        let spec = &task.spec.container;
        let found = match self.client().inspect_image(&spec.image).await {
            Err(error) if is_missing(&error) => {
                self.pull(task).await?;
                self.client().inspect_image(&spec.image).await
            }
            found => found,
        };
        let image = found.map_err(|error| ExecutorError::Rejected(words(&error)))?;
        Ok(image.config.and_then(|config| config.env).unwrap_or_default())
    }

    async fn pull(&self, task: &Task) -> Result<(), ExecutorError> {
        let spec = &task.spec.container;
        let reference =
            Reference::parse(&spec.image).map_err(|error| ExecutorError::Rejected(error.to_string()))?;
        let options = CreateImageOptions {
            from_image: Some(reference.repository()),
            tag: reference.digest().or(reference.tag()).map(str::to_owned),
            ..CreateImageOptions::default()
        };
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        let credentials = spec.registry.as_ref().map(|known| DockerCredentials {
            username: text(&known.username),
            password: text(&known.password),
            identitytoken: text(&known.identity_token),
            serveraddress: Some(reference.domain().to_owned()),
            ..DockerCredentials::default()
        });
        let pulled = self.client().create_image(Some(options), None, credentials);
        pulled.try_for_each(|_| std::future::ready(Ok(()))).await.map_err(|error| {
            tracing::warn!(image = spec.image, error = words(&error), "the image can't be pulled");
            ExecutorError::Rejected(format!("No such image: {}", reference.familiar()))
        })
    }

    /// Makes sandbox, files and container.
    async fn make(
        &self,
        task: &Task,
        provisions: &Provisions,
        image_env: Vec<String>,
    ) -> Result<(), ExecutorError> {
        let context = TemplateContext {
            task,
            node_hostname: &self.0.options.node_hostname,
            node_os: Platform::HOST_OS,
            node_architecture: Platform::HOST_ARCHITECTURE,
        };
        let hostname = match task.spec.container.hostname.as_str() {
            "" => task.id.container_id()[..SHORT_ID_LEN].to_owned(),
            wanted => context.expand(wanted).map_err(|error| rejected(error.into()))?,
        };
        self.make_sandbox(task, &hostname).await.map_err(refused)?;
        let files = Files { dir: self.task_dir(task.id), hostname, image_env };
        let made = {
            let (task, provisions) = (task.clone(), provisions.clone());
            let node_hostname = self.0.options.node_hostname.clone();
            move || files.make(&task, &provisions, &node_hostname)
        };
        let files = tokio::task::spawn_blocking(made).await.map_err(broken)?.map_err(rejected)?;
        let body = container(&context, &files).map_err(rejected)?;
        let options = CreateContainerOptions { name: Some(task.name()), ..CreateContainerOptions::default() };
        self.patient_client().create_container(Some(options), body).await.map(drop).map_err(refused)
    }

    /// Asks until the engine answers; `None` if it has no such container.
    async fn inspected(&self, id: &str) -> Option<ContainerInspectResponse> {
        loop {
            match self.inspect(id).await {
                Ok(found) => return found,
                Err(error) => tracing::debug!(id, %error, "the engine does not say how a container is"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Tries until it is gone.
    async fn remove_surely(&self, id: &str) {
        while let Err(error) = self.remove_container(id).await {
            tracing::debug!(id, %error, "the engine has not removed a container");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Nobody reads them any more, and they are not to stay longer than that.
    async fn forget_dependencies(&self, task: TaskId) -> Result<(), ExecutorError> {
        let dir = dependencies_dir(&self.task_dir(task));
        tokio::task::spawn_blocking(move || unmount_all(&dir)).await.map_err(broken)?.map_err(broken)
    }

    async fn known(&self, task: TaskId) -> Result<String, ExecutorError> {
        self.container_of(task).await.map_err(failed)?.ok_or(ExecutorError::Unknown(task))
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, Error> {
        match self.client().inspect_container(id, None).await {
            Err(error) if is_missing(&error) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn state(&self, id: &str) -> Result<Option<ContainerState>, Error> {
        Ok(self.inspect(id).await?.and_then(|found| found.state))
    }

    /// Returns at the next event of the container since then that its health may be in.
    async fn next_event(&self, id: &str, since: Timestamp) -> Result<(), Error> {
        let filters = [("container", vec![id]), ("event", vec!["health_status", "die"])];
        let filters =
            filters.map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect()));
        let options = EventsOptions {
            since: Some(format!(
                "{}.{:09}",
                since.0.div_euclid(1_000_000_000),
                since.0.rem_euclid(1_000_000_000)
            )),
            until: None,
            filters: Some(HashMap::from(filters)),
        };
        let mut events = std::pin::pin!(self.client().events(Some(options)));
        events.try_next().await.map(drop)
    }

    fn opening(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<TaskId, Opened>> {
        self.0.opening.lock().expect("nobody panics while holding the table")
    }

    fn task_dir(&self, task: TaskId) -> PathBuf {
        self.0.options.run_dir.join(task.to_string())
    }
}

impl Opened {
    fn opening(&self) -> Option<Opening<'_>> {
        Opening::of(self.pid, &self.ports, self.at, now())
    }
}

/// What a task's container sees of the node's files.
struct Files {
    dir: PathBuf,
    hostname: String,
    image_env: Vec<String>,
}

impl Files {
    fn make(
        &self,
        task: &Task,
        provisions: &Provisions,
        node_hostname: &str,
    ) -> Result<Vec<File>, PrepareError> {
        let spec = &task.spec.container;
        if !hosts_are_valid(&spec.hosts) {
            return Err(PrepareError::ExtraHost(spec.hosts.clone()));
        }
        let host_resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let etc = [
            ("hosts", hosts(task, &provisions.addresses6, &self.hostname)),
            ("hostname", format!("{}\n", self.hostname)),
            ("resolv.conf", resolv_conf(&task.spec.container.dns, &host_resolv_conf)),
        ];
        fs::create_dir_all(&self.dir).map_err(PrepareError::io(&self.dir))?;
        let mut files = Vec::new();
        for (name, text) in etc {
            let source = self.dir.join(name);
            fs::write(&source, text).map_err(PrepareError::io(&source))?;
            files.push(File { source, target: Path::new("/etc").join(name), read_only: false });
        }
        let context = TemplateContext {
            task,
            node_hostname,
            node_os: Platform::HOST_OS,
            node_architecture: Platform::HOST_ARCHITECTURE,
        };
        let own = task.spec.container.env.iter().map(|entry| context.expand(entry));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let environment = environment(&self.image_env, &own, &self.hostname, task.spec.container.tty);
        let sources = Sources { context, environment: &environment, dependencies: &provisions.dependencies };
        let dependencies = dependency_files(&dependencies_dir(&self.dir), &sources)?;
        files.extend(dependencies.into_iter().map(|(source, target)| File {
            source,
            target,
            read_only: true,
        }));
        Ok(files)
    }
}

/// Both are there, and the same.
fn is_same_namespace(given: &Path, filled: &Path) -> bool {
    let of = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    of(given).is_some_and(|namespace| of(filled) == Some(namespace))
}

fn dependencies_dir(dir: &Path) -> PathBuf {
    dir.join("dependencies")
}

fn remove_files(dir: &Path) -> io::Result<()> {
    unmount_all(&dependencies_dir(dir))?;
    remove_tree(dir)
}

fn task_of(labels: Option<&HashMap<String, String>>, label: &str) -> Option<TaskId> {
    labels?.get(label)?.parse().ok()
}

fn was_started(state: &ContainerState) -> bool {
    use ContainerStateStatusEnum::{EXITED, PAUSED, RESTARTING, RUNNING};
    matches!(state.status, Some(RUNNING | PAUSED | RESTARTING | EXITED))
}

fn is_running(state: &ContainerState) -> bool {
    state.running == Some(true)
}

fn status_of(found: &ContainerInspectResponse) -> ContainerStatus {
    let state = found.state.clone().unwrap_or_default();
    let health = state.health.and_then(|health| health.status);
    ContainerStatus {
        container_id: found.id.clone().unwrap_or_default(),
        // What has ended had one: 0 is what was never started.
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
        exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        health: match health {
            Some(HealthStatusEnum::STARTING) => Some(HealthStatus::Starting),
            Some(HealthStatusEnum::HEALTHY) => Some(HealthStatus::Healthy),
            Some(HealthStatusEnum::UNHEALTHY) => Some(HealthStatus::Unhealthy),
            None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) => None,
        },
    }
}

/// How it ended; `None` while it runs, or before it was started.
fn exit_of(found: &ContainerInspectResponse) -> Option<Exit> {
    let state = found.state.as_ref()?;
    let is_over =
        matches!(state.status, Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD));
    is_over.then(|| Exit {
        code: state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(EXIT_CODE_UNKNOWN),
        out_of_memory: state.oom_killed == Some(true),
    })
}

/// It is as it was wanted already.
fn is_unchanged(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 304, .. })
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn failed(error: Error) -> ExecutorError {
    ExecutorError::Failed(words(&error))
}

/// What the engine does not take, it will not take again; what it could not do, it may.
#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn refused(error: Error) -> ExecutorError {
    match error {
        Error::DockerResponseServerError { status_code: 400..500, .. } => {
            ExecutorError::Rejected(words(&error))
        }
        _ => ExecutorError::Failed(words(&error)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn rejected(error: PrepareError) -> ExecutorError {
    ExecutorError::Rejected(error.to_string())
}

fn broken(error: impl std::fmt::Display) -> ExecutorError {
    ExecutorError::Failed(error.to_string())
}
