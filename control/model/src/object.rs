//! The objects that Raft keeps: spec as asked for, state as allocated, status as reported.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use crate::authority::NodeTls;
pub use crate::authority::{CaState, UnlockKey};
use crate::generic::GenericResources;
use crate::gossip::GossipKeys;
use crate::id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
use crate::shared::Shared;
use crate::slow_start;
use crate::spec::{
    ClusterSpec, EndpointMode, IpamConfig, Labels, NetworkSpec, NodeSpec, Platform, PortConfig, Resources,
    Role, ServiceSpec, TaskSpec,
};
use crate::task_state::TaskState;
use crate::time::Timestamp;

/// Versions and times of an object; written by the store alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Log index of the last write of any kind: what a [`crate::Change`] must expect.
    pub version: u64,
    /// Log index of the last write that changed the spec: the API's `Version.Index`,
    /// so that a status report never makes a user's update fail.
    pub spec_version: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    /// What the node said about itself when its session began.
    pub description: NodeDescription,
    /// Log index of the write that last changed the description's addresses: of two nodes that claim one, the newer
    /// has taken it over. Written by the store alone.
    #[serde(default)]
    pub addresses_since: u64,
    pub status: NodeStatus,
    /// Present while the node is a voter or learner of Raft.
    pub manager: Option<ManagerStatus>,
    /// Role in the certificate that the node was last given.
    pub certificate_role: Role,
}

impl Node {
    /// An active node that has said nothing yet.
    pub fn new(id: NodeId, role: Role) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: NodeSpec { role, ..NodeSpec::default() },
            description: NodeDescription::default(),
            addresses_since: 0,
            status: NodeStatus::default(),
            manager: None,
            certificate_role: role,
        }
    }
}

/// A node's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    #[serde(default)]
    pub generic: GenericResources,
    pub engine_version: String,
    pub engine_labels: Labels,
    /// Address of the tunnel end (VTEP).
    pub data_path_addr: Option<IpAddr>,
    /// All addresses on which published ports answer.
    pub addresses: Vec<IpAddr>,
    /// MTU of the interface that has the tunnel's end, bytes: what others may send there. `None` of a node that doesn't know it.
    #[serde(default)]
    pub underlay_mtu_bytes: Option<u32>,
    /// Where its gossip listens, TCP and UDP. `None` of a node that takes no part.
    #[serde(default)]
    pub gossip_addr: Option<SocketAddr>,
    /// `None` of a node that doesn't say it.
    #[serde(default)]
    pub tls: Option<NodeTls>,
}

/// Liveness of a node, as the leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub state: NodeState,
    pub message: String,
    /// Address from which the node's session comes.
    pub addr: Option<IpAddr>,
    /// The node's data path answers probes. While it does, its backends stay, agent or not.
    pub data_path_alive: bool,
}

/// Docker's words for a node's liveness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    #[default]
    Unknown,
    Down,
    Ready,
    Disconnected,
}

/// Raft's side of a manager. Who leads and who is reachable is not stored: consensus knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    pub raft_id: u64,
    pub addr: SocketAddr,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// Log index of the write that brought `previous_spec`.
    pub previous_spec_version: u64,
    /// Given by the allocator.
    pub endpoint: Option<Endpoint>,
    pub update_status: Option<UpdateStatus>,
    /// Of a job only: which run of it this is.
    #[serde(default)]
    pub job: Option<JobStatus>,
    /// Set by `service rm`: tasks are being removed, then the service goes.
    pub pending_delete: bool,
}

impl Service {
    /// A service for which nothing has been done yet.
    pub fn new(id: ServiceId, spec: ServiceSpec) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec,
            previous_spec: None,
            previous_spec_version: 0,
            endpoint: None,
            update_status: None,
            job: None,
            pending_delete: false,
        }
    }

    /// The number of the job's current run; `None` of a service that is no job.
    pub fn job_iteration(&self) -> Option<u64> {
        self.job.map(|job| job.iteration)
    }
}

/// A job's runs. Every update begins another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// From 0.
    pub iteration: u64,
    /// When the run was asked for.
    pub last_execution: Timestamp,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub mode: EndpointMode,
    /// The spec's ports with `published` filled in.
    pub ports: Vec<PortConfig>,
    pub vips: Vec<(NetworkId, Ipv4Addr)>,
}

/// Progress of a rolling update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

/// States of an update, Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

/// Which of a service's tasks this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// Replica number from 1; of a replicated job from 0, as Docker's clients count.
    Replica(u64),
    /// The task of a global service (or job) on this node.
    Node(NodeId),
}

/// One container to run, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// Name of the service when the task was made.
    pub service_name: String,
    pub slot: Slot,
    /// Set once, by the scheduler (by the orchestrator for a global service).
    pub node: Option<NodeId>,
    pub spec: Shared<TaskSpec>,
    /// The service's `spec_version` from which the task was made: equal means up to date.
    pub spec_version: u64,
    /// The job's run that it belongs to; `None` for tasks of services that are no jobs.
    #[serde(default)]
    pub job_iteration: Option<u64>,
    pub endpoint_mode: EndpointMode,
    /// The service's published ports when addresses were allocated.
    pub ports: Vec<PortConfig>,
    pub attachments: Vec<NetworkAttachment>,
    /// What it was given of its node's, by the scheduler.
    #[serde(default)]
    pub generic: GenericResources,
    pub status: TaskStatus,
    /// Nodes need not know it.
    #[serde(default, skip_serializing_if = "Life::is_unknown")]
    pub life: Life,
    pub desired_state: TaskState,
    /// Every node has acknowledged that no load balancer sends to this task any more;
    /// its process may be signalled.
    pub drained: bool,
    /// What it gets of its share of new flows, percent: less than the whole while it starts slowly (see
    /// [`crate::slow_start`]).
    #[serde(default = "slow_start::full_weight")]
    pub weight: u8,
}

/// In the place of a task's service where there is none.
pub const NO_SERVICE: ServiceId = ServiceId::from_bits(0);

impl Task {
    /// A new task that shall run, on the slot's node where the slot names one.
    pub fn new(id: TaskId, service: ServiceId, slot: Slot) -> Self {
        Self {
            id,
            meta: Meta::default(),
            service,
            service_name: String::new(),
            slot,
            node: match slot {
                Slot::Node(node) => Some(node),
                Slot::Replica(_) => None,
            },
            spec: Shared::default(),
            spec_version: 0,
            job_iteration: None,
            endpoint_mode: EndpointMode::default(),
            ports: Vec::new(),
            attachments: Vec::new(),
            generic: GenericResources::new(),
            status: TaskStatus::default(),
            life: Life::default(),
            desired_state: TaskState::Running,
            drained: false,
            weight: slow_start::FULL_WEIGHT,
        }
    }

    /// When it ended, by the managers' clocks; of one that has not, when it was last written.
    pub fn ended_at(&self) -> Timestamp {
        self.life.ended_at.unwrap_or(self.meta.updated_at)
    }

    /// It is to run now, to its end if it belongs to a job: not held back, and not stopped.
    pub fn is_to_run(&self) -> bool {
        matches!(self.desired_state, TaskState::Running | TaskState::Complete)
    }

    /// It holds a place in networks for a container that no service made, and nothing else: its node runs that container by
    /// itself.
    pub fn is_attachment(&self) -> bool {
        self.service == NO_SERVICE
    }

    /// `<service>.<slot>.<task id>`: the container's name, and a name of the task in DNS. An attachment has its container's.
    pub fn name(&self) -> String {
        match self.slot {
            _ if self.is_attachment() => self.service_name.clone(),
            Slot::Replica(number) => format!("{}.{number}.{}", self.service_name, self.id),
            Slot::Node(node) => format!("{}.{node}.{}", self.service_name, self.id),
        }
    }
}

/// A task's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    pub network: NetworkId,
    /// Address with the network's prefix length.
    pub address: IpNetwork,
    pub aliases: Vec<String>,
}

/// What became of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When `state` was entered, by the reporter's clock.
    pub at: Timestamp,
    pub message: String,
    /// Empty when there is none.
    pub error: String,
    pub container: Option<ContainerStatus>,
}

/// When a task began to run, and when it ended. Written by the store alone.
///
/// [`TaskStatus::at`] is by the node's clock, which may be anywhere: it is measured against nothing but that clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When it was RUNNING, by its node's clock.
    pub ran: Option<Timestamp>,
    /// When that was written, by the manager's clock.
    pub ran_at: Option<Timestamp>,
    /// When it was written that it had ended, by the manager's clock.
    pub ended_at: Option<Timestamp>,
}

impl Life {
    /// Takes in a status that is written at `at`.
    pub fn note(&mut self, status: &TaskStatus, at: Timestamp) {
        if status.state == TaskState::Running {
            self.ran.get_or_insert(status.at);
            self.ran_at.get_or_insert(at);
        }
        if status.state.is_terminal() {
            self.ended_at.get_or_insert(at);
        }
    }

    /// Nothing has been noted.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// The container of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// 64 hex digits.
    pub container_id: String,
    pub pid: i32,
    pub exit_code: i32,
    /// What its health check says; `None` if it has none.
    #[serde(default)]
    pub health: Option<HealthStatus>,
}

/// What a health check says of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthStatus {
    /// No probe has succeeded yet, and not too many have failed.
    Starting,
    Healthy,
    /// Too many probes have failed in a row: it is to be replaced.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word, as in `State.Health.Status` of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl TaskStatus {
    /// Its health check has given the container up: nobody is to send to it any more.
    pub fn is_unhealthy(&self) -> bool {
        let health = self.container.as_ref().and_then(|container| container.health);
        health == Some(HealthStatus::Unhealthy)
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// Given by the allocator.
    pub state: Option<NetworkState>,
    /// Set by `network rm` while tasks still leave.
    pub pending_delete: bool,
}

impl Network {
    /// A network that has no subnet yet.
    pub fn new(id: NetworkId, spec: NetworkSpec) -> Self {
        Self { id, meta: Meta::default(), spec, state: None, pending_delete: false }
    }

    /// The routing mesh's network, under Docker's name.
    pub fn ingress(id: NetworkId) -> Self {
        Self::new(id, NetworkSpec { name: "ingress".into(), ingress: true, ..NetworkSpec::default() })
    }
}

/// What the allocator gave a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    pub vni: u32,
    /// Subnets in use, gateways filled in.
    pub ipam: Vec<IpamConfig>,
}

/// The cluster itself. There is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    pub ca: CaState,
    /// Pool for networks without a subnet of their own.
    pub default_address_pool: Vec<IpNetwork>,
    /// Prefix length of each subnet from the pool.
    pub subnet_size: u8,
    /// UDP port of the tunnels.
    pub data_path_port: u16,
    /// Raised by `--force-new-cluster`: fences off managers of the old side.
    pub epoch: u64,
    /// Keys of the nodes' gossip.
    #[serde(default)]
    pub gossip_keys: GossipKeys,
}

impl Cluster {
    /// Docker's UDP port of the tunnels.
    pub const DATA_PATH_PORT: u16 = 4789;
    /// Docker's prefix length of the subnets from the pool.
    pub const SUBNET_SIZE: u8 = 24;

    /// A cluster with Docker's settings and no authority yet.
    pub fn new(id: ClusterId) -> Self {
        let pool = Ipv4Network::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("Docker's pool is a network");
        Self {
            id,
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            ca: CaState::default(),
            default_address_pool: vec![IpNetwork::V4(pool)],
            subnet_size: Self::SUBNET_SIZE,
            data_path_port: Self::DATA_PATH_PORT,
            epoch: 0,
            gossip_keys: GossipKeys::default(),
        }
    }
}
