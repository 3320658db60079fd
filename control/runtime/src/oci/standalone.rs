//! Steps of a container that no service made: it is made for good, and starts again in what it has left.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use control_model::executor::{Provisions, SandboxPaths};
use control_model::object::HealthStatus;
use control_model::spec::{ANONYMOUS_VOLUME_LABEL, Mount, MountKind, PortConfig};
use control_model::standalone::{ConsoleSize, StandaloneSpec};
use control_model::{Task, TaskId};

use super::conmon::LaunchError;
use super::error::PrepareError;
use super::health::Health;
use super::net_files::hosts;
use super::record::{ContainerRecord, Place, Stage, StandaloneRecord};
use super::rootfs::mount_overlay;
use super::{Container, Oci};
use crate::image::{ImageError, LocalImage};
use crate::unmount::{is_mount_point, unmount_all};
use crate::volume::{VolumeError, VolumeSpec, anonymous_name};

/// What the runtime says of a command that is not there, or can't be run.
const COMMANDS_FAULTS: [&str; 3] =
    ["executable file not found", "no such file or directory", "permission denied"];

/// Why nothing came of it. `Display` is Docker's sentence.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What was asked for can't be.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Conflict(String),
    /// The node has no data plane.
    #[error("{0}")]
    NoSwarm(String),
    #[error("No such container: {0}")]
    NoContainer(String),
    #[error("{0}")]
    Failed(String),
}

impl From<PrepareError> for StandaloneError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Image(error) => Self::Image(error),
            PrepareError::Io { .. } | PrepareError::NoInit => Self::Failed(error.to_string()),
            refused => Self::Refused(refused.to_string()),
        }
    }
}

impl From<LaunchError> for StandaloneError {
    fn from(error: LaunchError) -> Self {
        let text = format!("failed to create task for container: failed to create shim task: {error}");
        let is_commands = COMMANDS_FAULTS.iter().any(|fault| text.contains(fault));
        if is_commands { Self::Refused(text) } else { Self::Failed(text) }
    }
}

impl From<io::Error> for StandaloneError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<VolumeError> for StandaloneError {
    fn from(error: VolumeError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What one run of a container has of its own.
pub(crate) struct Run {
    pub sandbox: TaskId,
    pub paths: SandboxPaths,
    pub ports: Vec<PortConfig>,
    pub place: Option<Place>,
}

impl Oci {
    /// Makes a container of an image that is here. Nothing runs yet.
    pub(crate) async fn make_standalone(
        &self,
        id: TaskId,
        name: &str,
        mut spec: StandaloneSpec,
    ) -> Result<(), StandaloneError> {
        let image = self.images().local(&spec.task.container.image).await?;
        for dir in &spec.made_dirs {
            // What is there is taken as it is.
            if std::fs::symlink_metadata(dir).is_err() {
                tokio::fs::create_dir_all(dir).await?;
            }
        }
        let drawn_volumes = name_volumes(id, &mut spec, &image);
        let record = StandaloneRecord { spec, drawn_volumes, ..StandaloneRecord::default() };
        let (oci, name) = (self.clone(), name.to_owned());
        blocking(move || {
            let task = record.task(id);
            let made = oci.make_as(&task, Some((&name, &record)), &Provisions::default(), &image);
            Ok(made?)
        })
        .await
    }

    /// Starts one that does not run: its files, its output and its volumes are as the last run has left them.
    pub(crate) async fn run_standalone(&self, id: TaskId, run: Run) -> Result<(), StandaloneError> {
        let container = self.container(id).ok_or_else(|| gone(id))?;
        let _changing = container.changing.lock().await;
        let task = container.task().ok_or_else(|| gone(id))?;
        self.make_ready(&task, &container).await?;
        let etc = container.paths.etc("hosts");
        std::fs::write(etc, hosts_of(&task, &container.record().hostname, run.place.as_ref()))?;
        container.update(|record| {
            (record.stage, record.ended, record.ports) = (Stage::Prepared, None, run.ports);
            if let Some(health) = &mut record.health {
                health.status = HealthStatus::Starting;
            }
            if let Some(own) = &mut record.standalone {
                (own.sandbox, own.place) = (Some(run.sandbox), run.place);
            }
        })?;
        *container.health.lock().expect("nobody panics while holding a container's health") =
            Health::new(HealthStatus::Starting);
        Ok(self.begin(&task, &container, &run.paths).await?)
    }

    /// What is left of a former run goes but for its files; what a reboot took away is there again.
    async fn make_ready(&self, task: &Task, container: &Arc<Container>) -> Result<(), StandaloneError> {
        self.delete_runtime_state(&container.paths).await;
        let image = self.images().local(&container.record().image_id).await?;
        let (oci, task, container) = (self.clone(), task.id, container.clone());
        blocking(move || {
            for dir in container.paths.directories() {
                std::fs::create_dir_all(dir)?;
            }
            if !is_mount_point(&container.paths.rootfs())? {
                mount_overlay(&container.paths, &image.rootfs)?;
            }
            let mounts = container.record().mounts;
            for mount in mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
                oci.0.volumes.hold(&mount.name, &VolumeSpec::default(), task)?;
            }
            Ok(())
        })
        .await
    }

    /// Unmounts the files of one that does not run: its next start mounts them again.
    pub(crate) fn lay_down_standalone(&self, id: TaskId) -> io::Result<()> {
        let Some(container) = self.container(id) else { return Ok(()) };
        unmount_all(&container.paths.rootfs())
    }

    /// Changes what is kept of one, in memory and on disk.
    pub(crate) fn update_standalone(
        &self,
        id: TaskId,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), StandaloneError> {
        let container = self.container(id).ok_or_else(|| gone(id))?;
        Ok(container.update(change)?)
    }

    /// What is kept of all of them.
    pub(crate) fn standalone_records(&self) -> Vec<ContainerRecord> {
        let all: Vec<_> = self.containers().values().cloned().collect();
        all.iter().map(|one| one.record()).filter(|record| record.standalone.is_some()).collect()
    }

    /// What is kept of one; `None` of a task's.
    pub(crate) fn standalone_record(&self, id: TaskId) -> Option<ContainerRecord> {
        self.container(id).map(|one| one.record()).filter(|record| record.standalone.is_some())
    }

    /// Sends nothing to who waits for it to start: it will not.
    pub(crate) fn give_up_start(&self, id: TaskId) {
        if let Some(container) = self.container(id) {
            container.attaching.close();
        }
    }
}

impl Container {
    /// As it is when no service made it.
    fn task(&self) -> Option<Task> {
        let record = self.locked();
        record.standalone.as_ref().map(|own| own.task(record.task))
    }

    /// Its standard input ends with its first client's. A terminal's does not.
    pub(super) fn ends_input(&self) -> bool {
        let record = self.locked();
        !record.tty && record.standalone.as_ref().is_some_and(|own| own.spec.stdin_once)
    }

    /// Of its terminal, at first.
    pub(super) fn console(&self) -> Option<ConsoleSize> {
        let record = self.locked();
        record.standalone.as_ref().filter(|_| record.tty)?.spec.console
    }
}

/// Gives the volumes without a name, the image's included, one that stays with the container. Gives those names.
fn name_volumes(id: TaskId, spec: &mut StandaloneSpec, image: &LocalImage) -> Vec<String> {
    let mounts = &mut spec.task.container.mounts;
    for target in image.config.volumes().iter().flatten() {
        let is_same = |mount: &Mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/');
        if !mounts.iter().any(is_same) {
            mounts.push(Mount::volume(target));
        }
    }
    let unnamed =
        mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume && mount.source.is_empty());
    let named = unnamed.enumerate().map(|(at, mount)| {
        mount.source = anonymous_name(id, at + 1);
        mount.volume_labels.insert(ANONYMOUS_VOLUME_LABEL.to_owned(), String::new());
        mount.source.clone()
    });
    named.collect()
}

fn hosts_of(task: &Task, hostname: &str, place: Option<&Place>) -> String {
    let mut text = hosts(task, &[], hostname);
    if let Some(place) = place {
        writeln!(text, "{}\t{hostname}", place.address.ip()).expect("writing to a string succeeds");
    }
    text
}

fn gone(id: TaskId) -> StandaloneError {
    StandaloneError::NoContainer(id.container_id())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StandaloneError> + Send + 'static,
) -> Result<T, StandaloneError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StandaloneError::Failed(error.to_string())))
}
