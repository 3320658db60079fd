//! What the API needs of the node's images and containers. Implemented over `control_runtime`, and in memory by tests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use control_model::log_driver::LogDriver;
use control_model::object::HealthStatus;
use control_model::spec::{ANONYMOUS_VOLUME_LABEL, HealthConfig, MountKind, PortConfig, RegistryCredentials};
use control_model::{OutputPiece, OutputQuery, OutputStream, TaskId, Timestamp};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::standalone::{Own, Standalone};

/// The containers of one node's tasks, whoever runs them.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// All containers of this node, ended ones that are not yet removed included.
    async fn containers(&self) -> Result<Vec<Container>, EngineError>;
    /// What the container with this id writes, as far as `query` wants it.
    async fn output(&self, container: &str, query: OutputQuery) -> Result<Output, EngineError>;
}

/// Images, volumes and containers of one node that runs them itself. One that leaves that to the host's Docker Engine has a
/// [`Passage`](crate::passage::Passage) instead.
#[async_trait]
pub trait LocalEngine: Engine + Standalone {
    /// All images, in no given order.
    async fn images(&self) -> Result<Vec<Image>, EngineError>;
    /// The image that `name` (reference, id, or a unique prefix of an id) names.
    async fn image(&self, name: &str) -> Result<Image, EngineError>;
    /// Gets `reference` (`name:tag` or `name@digest`) from its registry; progress lines on the way.
    async fn pull(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pulled, EngineError>;
    /// Takes all images of a `docker save` archive; returns the references (or ids of images without one).
    async fn load(&self, archive: Upload) -> Result<Vec<String>, EngineError>;
    /// The steps of its making, the last one first.
    async fn history(&self, name: &str) -> Result<Vec<HistoryEntry>, EngineError>;
    /// A `docker save` archive of an image, with these of its names.
    async fn save(&self, names: &[String]) -> Result<Download, EngineError>;
    /// Puts an image into its registry.
    async fn push(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pushed, EngineError>;
    /// Does the registry know who this is?
    async fn login(&self, registry: &str, credentials: &RegistryCredentials) -> Result<(), EngineError>;
    /// Makes an image of a root file system in a tar archive; returns its id.
    async fn import(&self, archive: Upload, request: ImportRequest) -> Result<String, EngineError>;
    /// Gives the image another reference.
    async fn tag(&self, name: &str, reference: &str) -> Result<(), EngineError>;
    /// Takes the reference away, and the image with its last one. Returns what happened.
    async fn remove_image(&self, name: &str, force: bool) -> Result<Vec<Removed>, EngineError>;
    /// The registry's word for `reference`: digest and platforms, without getting the layers.
    async fn distribution(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Distribution, EngineError>;
    /// This node's volumes, by name.
    async fn volumes(&self) -> Result<Vec<Volume>, EngineError>;
    /// Makes one, unless there is one of that name; without a name, one with a new name.
    async fn create_volume(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        options: BTreeMap<String, String>,
    ) -> Result<Volume, EngineError>;
    /// Removes one that no container has; gives the bytes that it had.
    async fn remove_volume(&self, name: &str) -> Result<u64, EngineError>;
    /// Sends a signal, by its name or number, to the container with this id.
    async fn kill(&self, container: &str, signal: &str) -> Result<(), EngineError>;
    /// Stops it by `signal`, or its own; by force after `grace`, or its own time. False if it did not run.
    async fn stop(
        &self,
        container: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, EngineError>;
    /// What is at `path` in the container.
    async fn path_stat(&self, container: &str, path: &str) -> Result<PathStat, EngineError>;
    /// An archive (tar) of that.
    async fn pack(&self, container: &str, path: &str) -> Result<Download, EngineError>;
    /// Puts an archive into a directory of the container.
    async fn unpack(
        &self,
        container: &str,
        path: &str,
        how: Unpacking,
        archive: Upload,
    ) -> Result<(), EngineError>;
    /// What `ps` with these arguments says of it.
    async fn top(&self, container: &str, arguments: &[String]) -> Result<ProcessTable, EngineError>;
    /// What it uses now.
    async fn usage(&self, container: &str) -> Result<Usage, EngineError>;
    /// What lies on the disk.
    async fn disk_use(&self) -> Result<DiskUse, EngineError>;
    /// What happens to containers and images from now on. Who is slow misses some.
    fn events(&self) -> BoxStream<'static, EngineEvent>;
    /// Runs a further process in the container with this id.
    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<Process, EngineError>;
}

/// Something has happened to a container or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    pub at: Timestamp,
    pub kind: EngineEventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEventKind {
    Container {
        change: ContainerChange,
        container: Box<Container>,
    },
    /// Of a pull, `id` is the reference and `name` its repository; else `id` is the image's, and `name` its new name, or the id
    /// once more.
    Image {
        change: ImageChange,
        id: String,
        name: String,
    },
    Volume {
        change: VolumeChange,
        name: String,
    },
}

/// What has happened to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeChange {
    Created,
    Removed,
}

/// What has happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerChange {
    Created,
    Started,
    /// It was sent a signal, by number.
    Signalled(i32),
    OutOfMemory,
    Ended,
    /// It has ended because it was told to.
    Stopped,
    Health(HealthStatus),
    Removed,
}

/// What has happened to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageChange {
    Pulled,
    Loaded,
    Imported,
    Tagged,
    Untagged,
    Deleted,
}

/// What is to run in a container beside its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    pub arguments: Vec<String>,
    /// Beside the container's, as `KEY=value`.
    pub env: Vec<String>,
    /// As `--user` has it; empty is the container's own.
    pub user: String,
    /// Empty is the container's own.
    pub working_dir: String,
    pub tty: bool,
    /// It reads what the client writes.
    pub stdin: bool,
}

/// A process that runs.
pub struct Process {
    /// Dropped, it reads the end.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// All that it writes, until it has ended.
    pub output: BoxStream<'static, (OutputStream, Vec<u8>)>,
    pub resize: Resize,
    /// Its exit code.
    pub ended: BoxFuture<'static, i32>,
}

/// Sizes the terminal of a process.
#[derive(Clone)]
pub struct Resize(pub Arc<dyn Fn(u16, u16) -> Result<(), EngineError> + Send + Sync>);

impl Resize {
    /// Of a process without a terminal.
    pub fn none() -> Self {
        Self(Arc::new(|_, _| Ok(())))
    }

    /// To so many rows and columns.
    pub fn to(&self, rows: u16, columns: u16) -> Result<(), EngineError> {
        (self.0)(rows, columns)
    }
}

impl fmt::Debug for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resize")
    }
}

/// What a container writes, in its order. A piece may have no line. Ends behind an error; dropped when nobody wants more.
pub type Output = BoxStream<'static, Result<OutputPiece, EngineError>>;

/// Bytes that a client sends.
pub type Upload = Box<dyn AsyncRead + Send + Unpin>;

/// Bytes that a client gets.
pub type Download = BoxStream<'static, std::io::Result<Bytes>>;

/// A step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryEntry {
    pub created: Option<Timestamp>,
    pub created_by: String,
    pub comment: String,
    pub size_bytes: u64,
}

/// What a push left at the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Of its manifest.
    pub digest: String,
    pub size_bytes: u64,
}

/// What is at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    pub name: String,
    pub size_bytes: u64,
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    pub modified: Timestamp,
    /// Of a link: where it leads, absolute; else empty.
    pub link_target: String,
}

/// How an archive is put into a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacking {
    /// No directory takes the place of a file, and no file that of a directory.
    pub keeps_kinds: bool,
    /// The files are the container's user's, whatever the archive says.
    pub is_users: bool,
}

/// What a pull brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Of the manifest: `sha256:…`.
    pub digest: String,
    /// The image was not here before.
    pub is_new: bool,
}

/// An image of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and 64 hex digits.
    pub id: String,
    /// `name:tag`, in Docker's short form.
    pub tags: Vec<String>,
    /// `name@sha256:…`.
    pub digests: Vec<String>,
    pub created: Option<Timestamp>,
    pub size_bytes: u64,
    pub os: String,
    pub architecture: String,
    /// Diff ids of the layers.
    pub layers: Vec<String>,
    pub config: ImageConfig,
    pub comment: String,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub stop_signal: String,
    pub health: Option<HealthConfig>,
}

/// `docker import`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportRequest {
    /// `name[:tag]`; empty leaves the image without a reference.
    pub reference: String,
    /// Dockerfile instructions (`CMD ["/x"]`).
    pub changes: Vec<String>,
    pub message: String,
}

/// One line of `docker rmi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    Deleted(String),
}

/// What a registry says of a reference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    pub media_type: String,
    pub digest: String,
    pub size_bytes: u64,
    /// (os, architecture).
    pub platforms: Vec<(String, String)>,
}

/// Bytes on the disk; what can't be counted is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Of volumes, by name.
    pub volumes: BTreeMap<String, u64>,
    /// What containers have changed of their images, by id.
    pub containers: BTreeMap<String, u64>,
}

/// The container's rows of `ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessTable {
    pub titles: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What a container uses: counters since its start, unless they are said to be of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: CpuUsage,
    /// Now.
    pub memory_bytes: u64,
    /// Its own limit, or what the host has.
    pub memory_limit_bytes: u64,
    /// By the kernel's own names; of now.
    pub memory_parts: BTreeMap<String, u64>,
    /// Processes and threads now.
    pub n_pids: u64,
    /// `None` is no limit.
    pub pids_limit: Option<u64>,
    /// Bytes read and written, by device's major and minor number.
    pub io: BTreeMap<(u64, u64), (u64, u64)>,
    /// By interface.
    pub interfaces: BTreeMap<String, InterfaceUsage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub total_ns: u64,
    pub user_ns: u64,
    pub kernel_ns: u64,
    pub n_periods: u64,
    pub n_throttled: u64,
    pub throttled_ns: u64,
    /// Of the whole host, idle time included.
    pub host_ns: u64,
    /// Processors of the host.
    pub n_cpus: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// A volume of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Of the driver, `local`.
    pub options: BTreeMap<String, String>,
    pub created: Timestamp,
    /// Its content, on this node.
    pub mountpoint: String,
    /// Ids of the containers that have it.
    pub containers: Vec<String>,
}

impl Volume {
    /// Nobody has given it its name.
    pub fn is_drawn(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_VOLUME_LABEL)
    }
}

/// What is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub kind: MountKind,
    /// A volume's; else empty.
    pub name: String,
    /// On the node; empty of a tmpfs.
    pub source: String,
    pub target: String,
    pub read_only: bool,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// `<service>.<slot>.<task id>`; of one that no service made, its user's.
    pub name: String,
    pub task: TaskId,
    /// `None` of a task's.
    pub own: Option<Box<Own>>,
    pub image: String,
    pub image_id: String,
    pub command: Vec<String>,
    /// What its process has.
    pub env: Vec<String>,
    /// Empty is root.
    pub user: String,
    pub working_dir: String,
    pub hostname: String,
    /// It has a terminal: its standard error is its standard output.
    pub tty: bool,
    /// Where its output goes.
    pub log: LogDriver,
    /// Published on this node alone.
    pub host_ports: Vec<PortConfig>,
    /// `80/tcp`: what the image says that it listens on.
    pub exposed_ports: Vec<String>,
    pub mounts: Vec<MountPoint>,
    pub labels: BTreeMap<String, String>,
    pub created: Timestamp,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub running: bool,
    pub pid: i32,
    pub exit_code: i32,
    pub out_of_memory: bool,
    /// `None` if it has no check.
    pub health: Option<Health>,
}

impl Container {
    /// It runs, or is about to run again.
    pub fn is_up(&self) -> bool {
        self.running || self.own.as_ref().is_some_and(|own| own.is_restarting)
    }
}

/// What a container's health check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub status: HealthStatus,
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: Vec<HealthProbe>,
}

/// One run of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProbe {
    pub start: Timestamp,
    pub end: Timestamp,
    pub exit_code: i32,
    pub output: String,
}

/// Why the engine could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// 404.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// 404, in the registry's or the tool's words.
    #[error("{0}")]
    NotFound(String),
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 401.
    #[error("{0}")]
    Unauthorized(String),
    /// 403.
    #[error("{0}")]
    Forbidden(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 500.
    #[error("{0}")]
    Failed(String),
    /// 501.
    #[error("{0}")]
    Unsupported(String),
    /// 503.
    #[error("{0}")]
    Busy(String),
}
