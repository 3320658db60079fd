//! What the API needs of the node that it serves. `meshd` implements it; tests implement it in memory.
//!
//! Everything that every manager can answer from its replica is *not* here: the API asks [`Node::store`] for that,
//! through `control_manager::control`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use control_model::authority::UnlockKey;
use control_model::spec::Availability;
use control_model::{ClusterId, Network, NodeId};
use control_store::ReplicatedStore;
use dataplane_model::inspect::{
    Assigned, DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowSamples, FlowsReport,
    GossipReport, LoadBalancerRow, NodeStatus, RingReport, TopReport, TraceReport, TraceRequest,
    TunnelledPacket, VerifyReport,
};
use futures::stream::BoxStream;
use ipnetwork::IpNetwork;

use crate::engine::{Engine, LocalEngine};
use crate::passage::Passage;

/// One node, as its API sees it.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Facts about the daemon that hold in every swarm state.
    fn host(&self) -> HostFacts;

    /// Where this node stands towards a swarm, now.
    fn local(&self) -> LocalState;

    /// `docker swarm init`: makes a cluster with this node as its first manager; returns when its store takes
    /// writes. [`SwarmError::AlreadyInSwarm`] if this node is part of one. With `force_new_cluster` a manager makes a cluster of
    /// itself alone out of the state that it has.
    async fn init(&self, request: InitRequest) -> Result<NodeId, SwarmError>;

    /// `docker swarm join`: returns when this node has its certificate and its session (as manager: its store). A member
    /// whose certificate ran out comes back as itself.
    async fn join(&self, request: JoinRequest) -> Result<(), SwarmError>;

    /// `docker swarm leave`: stops the node's tasks, forgets certificate and state. The API has already refused the
    /// cases that need `--force`; `force` says that the membership in Raft may be given up without an answer.
    async fn leave(&self, force: bool) -> Result<(), SwarmError>;

    /// `docker swarm unlock`: opens a locked manager's disk, and goes on as a member; returns when its store runs, or
    /// has had the time of a join to do so.
    async fn unlock(&self, key: UnlockKey) -> Result<(), UnlockError>;

    /// Locks this manager's disk as the cluster now wants it. Every manager does so by itself; the one that is asked for
    /// another key has it before it says so.
    fn follow_lock(&self);

    /// `meshctl backup`: the state of this manager, sealed.
    async fn backup(&self, secret: BackupSecret) -> Result<Vec<u8>, SwarmError>;

    /// `meshctl restore`: makes a cluster of a backup, with this node, which is in none, as its only manager.
    async fn restore(&self, request: RestoreRequest) -> Result<NodeId, SwarmError>;

    /// The replicated state, while this node is an active manager.
    fn store(&self) -> Option<Arc<dyn ReplicatedStore>>;

    /// The same, once this node is an active manager.
    async fn managed(&self) -> Arc<dyn ReplicatedStore>;

    /// What Raft knows now. Empty on a worker.
    fn raft(&self) -> RaftFacts;

    /// The networks that this node's agent was told of: what a worker can show of them. Managers show their store's.
    fn assigned_networks(&self) -> Arc<Vec<Network>>;

    /// Containers of this node's tasks.
    fn engine(&self) -> Arc<dyn Engine>;

    /// The same and all that it has, where this daemon runs them itself.
    fn local_engine(&self) -> Option<Arc<dyn LocalEngine>>;

    /// The way to the host's Docker Engine, where that runs them.
    fn passage(&self) -> Option<Passage> {
        None
    }

    /// `meshctl status`.
    async fn mesh_status(&self) -> Result<NodeStatus, InspectError>;
    /// `meshctl lb ls`.
    async fn mesh_load_balancers(&self) -> Result<Vec<LoadBalancerRow>, InspectError>;
    /// `meshctl lb ring`: of the service, frontend or virtual address with this name; empty if there is none.
    async fn mesh_rings(&self, of: &str) -> Result<Vec<RingReport>, InspectError>;
    /// `meshctl lb flows`, at most `limit` of either kind.
    async fn mesh_flows(&self, limit: usize) -> Result<FlowsReport, InspectError>;
    /// `meshctl fdb`.
    async fn mesh_fdb(&self) -> Result<FdbReport, InspectError>;

    /// `meshctl gossip`.
    async fn mesh_gossip(&self) -> Result<GossipReport, InspectError>;
    /// `meshctl endpoints`.
    async fn mesh_endpoints(&self) -> Result<Vec<EndpointRow>, InspectError>;
    /// `meshctl verify`. Reads all of the kernel's tables.
    async fn mesh_verify(&self) -> Result<VerifyReport, InspectError>;
    /// The assignments that this node has from the managers.
    async fn mesh_assigned(&self) -> Result<Assigned, InspectError>;
    /// What another node, or this one, answers to a path and query of its inspection API: its own word, JSON. Asked for on
    /// managers alone.
    async fn mesh_ask(&self, node: NodeId, question: &str) -> Result<Vec<u8>, InspectError>;
    /// The same of an answer that may go on for long, piece by piece. Dropped, it ends on that node, too.
    async fn mesh_open(&self, node: NodeId, question: &str) -> Result<LongAnswer, InspectError>;
    /// `/metrics`, in Prometheus' text format.
    async fn metrics(&self) -> Result<String, InspectError>;
    /// `meshctl dns zone`: of one task's sandbox, or of all; of one network, or of all.
    async fn mesh_dns_zone(
        &self,
        task: Option<&str>,
        network: Option<&str>,
    ) -> Result<DnsZoneReport, InspectError>;
    /// `meshctl dns query`: what the task gets for `name`.
    async fn mesh_dns_query(
        &self,
        task: &str,
        name: &str,
        record_type: &str,
    ) -> Result<DnsQueryReport, InspectError>;
    /// `meshctl top`: takes about a second.
    async fn mesh_top(&self) -> Result<TopReport, InspectError>;
    /// `meshctl flows`: one of `every` packets at each program; takes about a second.
    async fn mesh_samples(&self, every: u32) -> Result<FlowSamples, InspectError>;
    /// `meshctl trace`: as far as this node decides.
    async fn mesh_trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectError>;
    /// `meshctl trace --live`: sends a packet from a task of this node.
    async fn mesh_trace_live(&self, request: &TraceRequest) -> Result<TraceReport, InspectError>;
    /// `meshctl trace --live`: from now on this node's programs tell of packets with this source port, for some seconds; of
    /// none any more if it is 0.
    async fn mesh_trace_mark(&self, protocol: u8, port: u16) -> Result<(), InspectError>;
    /// `meshctl trace --live`: the rest of a marked packet's way, from another node's tunnel.
    async fn mesh_trace_marked(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError>;
    /// `meshctl trace`: on, from another node's tunnel.
    async fn mesh_trace_tunnelled(&self, packet: &TunnelledPacket) -> Result<TraceReport, InspectError>;
    /// `meshctl drops`.
    async fn mesh_drops(&self) -> Result<DropsReport, InspectError>;
}

/// A node's own word, as it comes.
pub type LongAnswer = BoxStream<'static, Result<Bytes, InspectError>>;

/// Facts about the daemon. What the kernel says of the machine, the API reads itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub hostname: String,
    /// The daemon's version, without a leading `v`.
    pub version: String,
    /// The state directory; Docker's "Docker Root Dir".
    pub root_dir: String,
    /// Engine labels, `key=value`.
    pub labels: BTreeMap<String, String>,
    /// Name of the OCI runtime binary in use (`runc`), and its path.
    pub runtime: String,
    pub runtime_path: String,
    /// Registries that may be spoken to by plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Where the output of containers goes whose service does not say.
    pub log_driver: String,
    /// What an administrator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Docker's words for a node's own state (`Swarm.LocalNodeState`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Membership {
    /// Not part of a swarm.
    #[default]
    Inactive,
    /// Joining, or starting up.
    Pending,
    Active,
    /// Part of a swarm, and can't take part: `error` says why.
    Error,
    /// Waits for the unlock key.
    Locked,
}

/// What is wrong with a member whose certificate ran out while it was off: moby's words, and the way back.
pub const EXPIRED: &str = "Swarm certificates have expired. To replace them, run `docker swarm join-token worker` (for a \
                           manager: `manager`) on a manager, and the command that it shows on this node: it stays who it is.";

/// What every call that needs the swarm gets from a locked manager, in moby's words.
pub const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm \
                          unlock\" to unlock it.";

/// A manager that this node knows how to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteManager {
    pub node: NodeId,
    /// `host:port`.
    pub addr: String,
}

/// Where this node stands towards a swarm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalState {
    pub membership: Membership,
    pub node: Option<NodeId>,
    pub cluster: Option<ClusterId>,
    /// This node's certificate says manager, and its store runs.
    pub is_manager: bool,
    /// The address that this node advertises, without a port.
    pub addr: Option<IpAddr>,
    /// This node's certificate ran out: a join with a token brings it back. `membership` is [`Membership::Error`].
    pub is_expired: bool,
    /// Why `membership` is [`Membership::Error`] or [`Membership::Locked`]; empty otherwise.
    pub error: String,
    pub remote_managers: Vec<RemoteManager>,
}

/// What Raft knows of the managers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftFacts {
    pub leader: Option<NodeId>,
    /// Managers that do not answer the leader, as of the last read; without a leader, those that do not answer this node.
    pub unreachable: BTreeSet<NodeId>,
}

/// `POST /swarm/init`, decoded. Addresses are as the user gave them: an address or an interface, maybe with a port;
/// empty lets the node choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    /// 0 is the default, 4789.
    pub data_path_port: u16,
    pub force_new_cluster: bool,
    pub availability: Availability,
    /// Empty is the default, `10.0.0.0/8`.
    pub default_address_pool: Vec<IpNetwork>,
    /// 0 is the default, 24.
    pub subnet_size: u8,
    pub cluster: control_model::spec::ClusterSpec,
}

/// `POST /swarm/join`, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    /// Managers, `host[:port]`; never empty.
    pub remote_addrs: Vec<String>,
    pub token: String,
    pub availability: Availability,
}

/// What a backup is sealed with.
#[derive(Clone, PartialEq, Eq)]
pub enum BackupSecret {
    Passphrase(String),
    /// A file's content.
    KeyFile(Vec<u8>),
}

/// `POST /mesh/restore`, decoded. Addresses as in [`InitRequest`].
#[derive(Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    pub secret: BackupSecret,
    pub file: Vec<u8>,
}

/// Why a node could not enter or leave a swarm. Nothing is left of a failed attempt, but for [`Self::JoinTimeout`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwarmError {
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyInSwarm,
    #[error("This node is not part of a swarm")]
    NotInSwarm,
    #[error(
        "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. \
         Use the \"docker info\" command to see the current swarm status of your node."
    )]
    JoinTimeout,
    /// The text after `--listen-addr`, `--advertise-addr` or `--data-path-addr` is none that this node has, or the
    /// choice is not clear. The sentence says which (400).
    #[error("{0}")]
    Address(String),
    /// The token is malformed, or was not accepted, or the other side's root has another digest (400).
    #[error("{0}")]
    Token(String),
    /// The managers named could not be reached, or gave up (503).
    #[error("{0}")]
    Unreachable(String),
    /// `--force-new-cluster` makes a cluster of a manager's state, and this node has none (503).
    #[error(
        "This node is not a swarm manager, and has no state to make a new cluster of. Run --force-new-cluster on a manager that \
         is left, or leave the swarm first: docker swarm leave --force"
    )]
    NothingToForce,
    /// The backup or its secret is not what it should be (400).
    #[error("{0}")]
    Backup(String),
    /// Anything else (500).
    #[error("{0}")]
    Failed(String),
}

/// Why a node was not unlocked. It stays as it was. The words are moby's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    #[error("swarm is not locked")]
    NotLocked,
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongKey,
    #[error("swarm component could not be started: {0}")]
    Failed(String),
}

/// Why an inspection could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InspectError(pub String);

/// The longest that [`Node::join`] may take before [`SwarmError::JoinTimeout`]: Docker's 20 s.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
