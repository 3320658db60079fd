//! What users ask for: specs of services, networks, nodes and the cluster, in the shape of Docker's API
//! but with defaults filled in and words turned into types.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::dependency::DependencyFile;
use crate::generic::GenericRequests;
use crate::id::NetworkId;
use crate::log_driver::LogDriver;
use crate::rebalance::MoveLimit;
use crate::shared::Shared;
use crate::slow_start;

/// User-given key/value pairs, ordered.
pub type Labels = BTreeMap<String, String>;

/// A service as the user wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: String,
    pub labels: Labels,
    /// One value in memory with those of its tasks that are made of it.
    pub task: Shared<TaskSpec>,
    pub mode: ServiceMode,
    pub update: UpdateConfig,
    pub rollback: UpdateConfig,
    /// Whether the user gave the update (rollback) config: decides what `inspect` without defaults prints.
    pub has_update: bool,
    pub has_rollback: bool,
    pub endpoint: EndpointSpec,
}

impl ServiceSpec {
    /// Label of a service whose answers to clients of published ports leave from the task's own node (direct server
    /// return), not by the node that the client asked: `true` or `false`.
    pub const DSR_LABEL: &str = "mesh.dsr";

    /// Label of a service whose tasks get their share of new flows little by little when they begin: over how long.
    pub const SLOW_START_LABEL: &str = "mesh.slow-start";

    /// Label of a replicated service whose tasks move to nodes that come, or have room again: how many at once.
    pub const REBALANCE_LABEL: &str = "mesh.rebalance";

    /// The label's limit; `None` without label, and for what it can't be.
    pub fn rebalance(&self) -> Option<MoveLimit> {
        MoveLimit::parse(self.labels.get(Self::REBALANCE_LABEL)?)
    }

    /// The label's time; `None` without label, and for what it can't be.
    pub fn slow_start(&self) -> Option<Duration> {
        slow_start::parse_period(self.labels.get(Self::SLOW_START_LABEL)?)
    }

    /// What the label says; `None` for a word that it doesn't know. Without label: false.
    pub fn dsr(&self) -> Option<bool> {
        self.labels.get(Self::DSR_LABEL).map_or(Some(false), |value| value.parse().ok())
    }
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    Replicated {
        replicas: u64,
    },
    /// A task on each node.
    Global,
    /// Tasks that are to end with 0, so many in all, and so many at once.
    ReplicatedJob {
        max_concurrent: u64,
        total_completions: u64,
    },
    /// One such task on each node.
    GlobalJob,
}

impl ServiceMode {
    /// Its tasks are to end.
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }

    /// Its slots are the nodes.
    pub fn is_global(self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob)
    }

    /// Docker's word, as in the filter `mode` of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Replicated { .. } => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob { .. } => "replicated-job",
            Self::GlobalJob => "global-job",
        }
    }
}

impl Default for ServiceMode {
    /// Docker's.
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What each task of a service is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub resources: ResourceRequirements,
    pub restart: RestartPolicy,
    pub placement: Placement,
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Raised by `service update --force`.
    pub force_update: u64,
    /// Where the output goes; `None` is as the node has it.
    #[serde(default)]
    pub log_driver: Option<LogDriver>,
}

/// The container of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Image reference as the CLI sent it, maybe with `@sha256:…`.
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    pub hostname: String,
    /// `KEY=value` or `KEY`.
    pub env: Vec<String>,
    pub dir: String,
    pub user: String,
    pub groups: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    pub init: Option<bool>,
    pub mounts: Vec<Mount>,
    pub stop_signal: String,
    pub stop_grace_period: Option<Duration>,
    /// `IP name…` lines for `/etc/hosts`.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
    pub sysctls: BTreeMap<String, String>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    #[serde(default)]
    pub health: Option<HealthConfig>,
    /// Secrets and configs.
    #[serde(default)]
    pub dependencies: Vec<DependencyFile>,
    /// As whom nodes pull the image. Never shown.
    #[serde(default)]
    pub registry: Option<RegistryCredentials>,
}

/// Who somebody is at an image's registry.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    pub username: String,
    pub password: String,
    /// What the registry gave at a login, instead of a password; or empty.
    #[serde(default)]
    pub identity_token: String,
}

impl fmt::Debug for RegistryCredentials {
    /// Keeps the password out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How a container's health is found out. A time of 0 and 0 retries stand for Docker's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthConfig {
    /// `CMD` and a program with its arguments, `CMD-SHELL` and a shell's command, or `NONE`. Empty: the image's.
    pub test: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures count from here on, or from the first success.
    pub start_period: Duration,
    /// Between probes as long as failures don't count.
    pub start_interval: Duration,
    /// Failures in a row that make a container unhealthy.
    pub retries: u32,
}

/// Default grace between the stop signal and SIGKILL.
pub const DEFAULT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Resolver settings of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A resource limit (setrlimit).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Bytes; 0 is the kernel's default. Tmpfs only.
    pub tmpfs_size_bytes: u64,
    /// Mode bits; 0 is 1777. Tmpfs only.
    pub tmpfs_mode: u32,
    /// Of a volume that is made for it.
    #[serde(default)]
    pub volume_labels: Labels,
    /// Of the volume's driver, `local`, the same.
    #[serde(default)]
    pub volume_options: BTreeMap<String, String>,
    /// An empty volume stays so: the image's content is not copied into it.
    #[serde(default)]
    pub no_copy: bool,
}

impl Mount {
    /// A volume without a name.
    pub fn volume(target: &str) -> Self {
        Self {
            kind: MountKind::Volume,
            source: String::new(),
            target: target.to_owned(),
            read_only: false,
            tmpfs_size_bytes: 0,
            tmpfs_mode: 0,
            volume_labels: Labels::new(),
            volume_options: BTreeMap::new(),
            no_copy: false,
        }
    }
}

/// Docker marks volumes so whose name was drawn.
pub const ANONYMOUS_VOLUME_LABEL: &str = "com.docker.volume.anonymous";

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    Bind,
    Volume,
    Tmpfs,
}

/// Reserved and limiting amounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequirements {
    pub limits: Resources,
    pub reservations: Resources,
    /// Reserved besides: so many of each kind.
    #[serde(default)]
    pub generic: GenericRequests,
    /// Largest number of processes; 0 is no limit.
    pub pids_limit: i64,
}

/// Amounts of CPU and memory; 0 is none given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// 10^9 is one CPU.
    pub nano_cpus: i64,
    pub memory_bytes: i64,
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

/// How tasks that ended are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Duration,
    /// 0 is without limit.
    pub max_attempts: u64,
    /// Span in which attempts are counted; zero is for ever.
    pub window: Duration,
}

impl Default for RestartPolicy {
    /// Docker's: any, 5 s, no limit.
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// Where tasks may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// `key==value` or `key!=value`, validated.
    pub constraints: Vec<String>,
    /// Node label or engine label descriptors to spread over, outermost first.
    pub spread_preferences: Vec<String>,
    /// 0 is no limit.
    pub max_replicas_per_node: u64,
    pub platforms: Vec<Platform>,
}

/// An operating system and architecture; an empty part matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
}

impl Platform {
    /// The only one that this program runs on.
    pub const HOST_OS: &str = "linux";
    /// What this program was built for, in the kernel's words.
    pub const HOST_ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "aarch64" } else { "x86_64" };
}

/// A network that a service's tasks join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentSpec {
    pub target: NetworkId,
    pub aliases: Vec<String>,
}

/// What happens when an update's tasks fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

/// Whether the old or the new task goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

/// How an update (or a rollback) proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Tasks at once; 0 is all.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: FailureAction,
    pub monitor: Duration,
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Eq for UpdateConfig {}

impl Default for UpdateConfig {
    /// Docker's: one at a time, no delay, pause, 5 s, stop-first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// How a service is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
}

/// Virtual IP, or all tasks by DNS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    #[default]
    Vip,
    Dnsrr,
}

/// A transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// On every node (routing mesh), or on the task's node only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishMode {
    Ingress,
    Host,
}

/// A published port. `published` 0 asks the allocator for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortConfig {
    pub name: String,
    pub protocol: Protocol,
    pub target: u16,
    pub published: u16,
    pub mode: PublishMode,
}

impl PortConfig {
    /// A port without a name.
    pub fn new(protocol: Protocol, target: u16, published: u16, mode: PublishMode) -> Self {
        Self { name: String::new(), protocol, target, published, mode }
    }
}

/// A network as the user wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct NetworkSpec {
    pub name: String,
    pub labels: Labels,
    pub options: BTreeMap<String, String>,
    pub internal: bool,
    pub attachable: bool,
    /// The cluster's one routing-mesh network.
    pub ingress: bool,
    /// Endpoints have IPv6 addresses too. The routing mesh's have them in any case.
    #[serde(default)]
    pub ipv6: bool,
    /// Asked-for subnets, at most one of each family; the allocator chooses what is not given.
    pub ipam: Vec<IpamConfig>,
}

impl NetworkSpec {
    /// Driver option for the MTU of a network's endpoints, bytes.
    pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";

    /// The MTU that was asked for.
    pub fn mtu_bytes(&self) -> Option<u32> {
        self.options.get(Self::MTU_OPTION)?.parse().ok()
    }
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfig {
    pub subnet: IpNetwork,
    pub range: Option<IpNetwork>,
    /// Filled in by the allocator when not given: the IPv4 subnet's first address, and the IPv6 address that it gives.
    pub gateway: Option<IpAddr>,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    Pause,
    Drain,
}

/// Manager or worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

/// A node as the user wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    pub labels: Labels,
    pub role: Role,
    pub availability: Availability,
}

/// The cluster's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    pub name: String,
    pub labels: Labels,
    /// Ended tasks kept per slot.
    pub task_history_limit: i64,
    /// Three of them without a heartbeat make a node `Down`. Agents beat once a second, however long it is: other deaths are
    /// seen sooner by that.
    pub heartbeat_period: Duration,
    pub node_cert_expiry: Duration,
    /// Entries of the log between snapshots.
    pub snapshot_interval: u64,
    /// Entries kept behind a snapshot, for followers that were away for a short time.
    pub log_entries_for_slow_followers: u64,
    /// Docker's number, shown and never changed: elections have times of their own here.
    pub heartbeat_tick: u32,
    /// As `heartbeat_tick`.
    pub election_tick: u32,
    pub autolock: bool,
    /// Another number than the last asks for a new root.
    #[serde(default)]
    pub force_rotate: u64,
}

impl ClusterSpec {
    /// Agents beat no more often than this: a shorter period would take nodes for dead between two beats.
    pub const MIN_HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
}

impl Default for ClusterSpec {
    /// Docker's.
    fn default() -> Self {
        Self {
            name: "default".into(),
            labels: Labels::new(),
            task_history_limit: 5,
            heartbeat_period: Duration::from_secs(5),
            node_cert_expiry: Duration::from_hours(90 * 24),
            snapshot_interval: 10_000,
            log_entries_for_slow_followers: 500,
            heartbeat_tick: 1,
            election_tick: 10,
            autolock: false,
            force_rotate: 0,
        }
    }
}
