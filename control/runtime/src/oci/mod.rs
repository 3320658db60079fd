//! The embedded executor: one container per task, by an OCI runtime (`runc` or `crun`) under `conmon`, in the sandbox
//! that the data plane made. All state is on disk and in the kernel: a daemon that starts finds its containers.

mod attach;
mod cgroup;
mod conmon;
mod containers;
mod control;
mod copy;
mod dependencies;
mod error;
mod exec;
mod executor;
mod forwarding;
mod health;
mod limits;
mod listening;
mod log_files;
mod mounts;
mod net_files;
mod output;
mod paths;
mod prepare;
mod probe;
mod process;
mod process_fd;
mod record;
mod rootfs;
mod security;
mod spec;
mod standalone;
mod usage;
mod user;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use control_model::log_driver::LogDriver;
use control_model::object::HealthStatus;
use control_model::{TaskId, Timestamp};

use crate::events::{Events, changes};
use crate::image::{ImageError, ImageStore};
use crate::volume::Volumes;
use attach::Attaching;
use cgroup::CgroupLayout;
use forwarding::Forwarding;
use paths::{Layout, TaskPaths};

pub(crate) use dependencies::{Sources, dependency_files};
pub(crate) use error::PrepareError;
pub(crate) use listening::Opening;
pub(crate) use net_files::{hosts, hosts_are_valid, resolv_conf};
pub(crate) use process::{SHORT_ID_LEN, environment};

pub use attach::Attachment;
pub use containers::ContainerInfo;
pub use control::{ControlError, ProcessTable};
pub use copy::Unpacking;
pub use exec::{Console, Exec, ExecError, ExecSpec};
pub use health::{Health, HealthCheck, Probe};
pub use output::{OutputError, OutputPieces};
pub use record::{ContainerRecord, Ended, MountPoint, Place, Stage, StandaloneRecord};
pub(crate) use standalone::Run;
pub use standalone::StandaloneError;
pub use usage::{CpuUsage, InterfaceUsage, IoUsage, MemoryUsage, Usage};
pub use volumes::DiskUse;

/// Settings of an executor.
#[derive(Debug, Clone)]
pub struct OciOptions {
    /// Images, volumes and container files. On a file system that can hold an overlay's changes.
    pub state_dir: PathBuf,
    /// Process ids and runtime state; a tmpfs that a reboot empties.
    pub run_dir: PathBuf,
    /// Absolute cgroup path under which containers are put, `/meshd`.
    pub cgroup_parent: String,
    /// `runc` or `crun`.
    pub runtime: PathBuf,
    /// Registries (`host:port`, or networks as `10.0.0.0/8`) that may be spoken to without TLS. Loopback always may.
    pub insecure_registries: BTreeSet<String>,
    /// For `{{.Node.Hostname}}`.
    pub node_hostname: String,
    /// Where output goes if a task does not say.
    pub log: LogDriver,
}

/// Why the executor can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Images(#[from] ImageError),
    #[error("{0} is not installed (Debian packages: runc, crun, conmon, skopeo, umoci)")]
    Missing(String),
    /// crun gives up where both cgroup v1 controllers and a v2 tree are mounted.
    #[error("crun needs the unified cgroup hierarchy, and this host has v1 controllers: use runc")]
    HybridCgroups,
}

/// The executor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Oci(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    runtime: PathBuf,
    cgroup_parent: String,
    node_hostname: String,
    log: LogDriver,
    cgroups: CgroupLayout,
    images: ImageStore,
    volumes: Volumes,
    events: Events,
    containers: Mutex<BTreeMap<TaskId, Arc<Container>>>,
}

/// A container in memory.
#[derive(Debug)]
struct Container {
    paths: TaskPaths,
    record: Mutex<ContainerRecord>,
    /// Means something only where the record has a check.
    health: Mutex<Health>,
    events: Events,
    forwarding: Forwarding,
    attaching: Attaching,
    /// Held while the container is made, started or removed.
    changing: tokio::sync::Mutex<()>,
}

impl Oci {
    /// Opens the executor over what is on disk. Blocks; containers that run are not touched.
    pub fn open(options: OciOptions) -> Result<Self, OpenError> {
        for program in
            ["conmon", "skopeo", "umoci"].map(Path::new).into_iter().chain([options.runtime.as_path()])
        {
            if !is_installed(program) {
                return Err(OpenError::Missing(program.display().to_string()));
            }
        }
        let cgroups = CgroupLayout::of_host();
        if cgroups == CgroupLayout::Hybrid && options.runtime.file_name().is_some_and(|name| name == "crun") {
            return Err(OpenError::HybridCgroups);
        }
        let layout = Layout { state_dir: made(&options.state_dir)?, run_dir: made(&options.run_dir)? };
        made(&layout.tasks())?;
        made(&layout.runtime_root())?;
        let events = Events::default();
        let containers = load_containers(&layout, &events)?;
        let volumes = open_volumes(&layout, &containers, &events)?;
        Ok(Self(Arc::new(Inner {
            images: ImageStore::open(&layout.images(), options.insecure_registries, events.clone())?,
            volumes,
            events,
            layout,
            runtime: options.runtime,
            cgroup_parent: options.cgroup_parent.trim_end_matches('/').to_owned(),
            node_hostname: options.node_hostname,
            log: options.log,
            cgroups,
            containers: Mutex::new(containers),
        })))
    }

    /// What happens to containers and images.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// The node's images.
    pub fn images(&self) -> &ImageStore {
        &self.0.images
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<TaskId, Arc<Container>>> {
        self.0.containers.lock().expect("nobody panics while holding the table")
    }

    fn container_by_id(&self, id: &str) -> Option<Arc<Container>> {
        self.container(TaskId::of_container(id)?)
    }

    fn container(&self, task: TaskId) -> Option<Arc<Container>> {
        self.containers().get(&task).cloned()
    }
}

impl Container {
    fn new(paths: TaskPaths, record: ContainerRecord, events: Events) -> Self {
        let status = record.health.as_ref().map_or(HealthStatus::Starting, |health| health.status);
        let health = Mutex::new(Health::new(status));
        let is_running = matches!(record.stage, Stage::Started { .. }) && record.ended.is_none();
        Self {
            paths,
            record: Mutex::new(record),
            health,
            events,
            forwarding: Forwarding::default(),
            attaching: Attaching::new(is_running),
            changing: tokio::sync::Mutex::default(),
        }
    }

    fn record(&self) -> ContainerRecord {
        self.locked().clone()
    }

    /// Changes the record, in memory and on disk, and tells what that means.
    fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> io::Result<()> {
        let mut record = self.locked();
        let mut next = record.clone();
        change(&mut next);
        next.write(&self.paths.record())?;
        for change in changes(&record, &next) {
            self.events.container(change, &next);
        }
        *record = next;
        Ok(())
    }

    fn health(&self) -> Health {
        self.health.lock().expect("nobody panics while holding a container's health").clone()
    }

    /// Takes a probe in. What it changes goes to disk too, for a daemon that starts anew; a record that can't be written is
    /// tried again with the next probe.
    fn take_probe(&self, check: &HealthCheck, started: Timestamp, probe: Probe) {
        let status = {
            let mut health = self.health.lock().expect("nobody panics while holding a container's health");
            health.take(check, started, probe);
            health.status
        };
        if self.locked().health.as_ref().is_none_or(|health| health.status == status) {
            return;
        }
        let written = self.update(|record| {
            if let Some(health) = &mut record.health {
                health.status = status;
            }
        });
        if let Err(error) = written {
            let path = self.paths.record();
            tracing::warn!(path = %path.display(), %error, health = status.word(), "a container's health was not recorded");
        }
    }

    fn locked(&self) -> MutexGuard<'_, ContainerRecord> {
        self.record.lock().expect("nobody panics while holding a record")
    }
}

pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

/// Makes the directory and gives its real path: the runtime wants a root file system without links in its path.
fn made(dir: &Path) -> Result<PathBuf, OpenError> {
    let io = |source| OpenError::Io { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    dir.canonicalize().map_err(io)
}

fn is_installed(program: &Path) -> bool {
    if program.is_absolute() {
        return program.exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

fn open_volumes(
    layout: &Layout,
    containers: &BTreeMap<TaskId, Arc<Container>>,
    events: &Events,
) -> Result<Volumes, OpenError> {
    let dir = layout.volumes();
    let users = containers.iter().flat_map(|(task, container)| {
        let mounts = container.record().mounts;
        // A former daemon kept none: they are in what the runtime was told.
        let names: Vec<String> = if mounts.is_empty() {
            mounts::volumes_of_bundle(&container.paths, &dir)
        } else {
            let named = mounts.into_iter().filter(|mount| !mount.is_anonymous && !mount.name.is_empty());
            named.map(|mount| mount.name).collect()
        };
        names.into_iter().map(|name| (name, *task))
    });
    Volumes::open(dir.clone(), users, events.clone()).map_err(|source| OpenError::Io { path: dir, source })
}

/// One that a user wanted was made to its end, or its user has not heard of it.
fn whole(record: ContainerRecord, paths: &TaskPaths) -> io::Result<ContainerRecord> {
    if record.standalone.is_some() && !paths.bundle().join("config.json").exists() {
        return Err(io::Error::other("its preparation was cut off"));
    }
    Ok(record)
}

/// The containers on disk. A directory without a readable record is the start of a preparation that was cut off:
/// nothing ran there, it goes.
fn load_containers(layout: &Layout, events: &Events) -> Result<BTreeMap<TaskId, Arc<Container>>, OpenError> {
    let dir = layout.tasks();
    let io = |source| OpenError::Io { path: dir.clone(), source };
    let mut containers = BTreeMap::new();
    for entry in std::fs::read_dir(&dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(task) = name.to_str().and_then(|name| name.parse::<TaskId>().ok()) else { continue };
        let paths = layout.task(task);
        let read = ContainerRecord::read(&paths.record()).and_then(|record| whole(record, &paths));
        match read {
            Ok(record) => {
                containers.insert(task, Arc::new(Container::new(paths, record, events.clone())));
            }
            Err(error) => {
                tracing::warn!(%task, %error, "a container without a record is removed");
                executor::remove_files(&paths).map_err(io)?;
            }
        }
    }
    Ok(containers)
}
