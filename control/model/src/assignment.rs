//! What a manager sends to a node's agent: the node's own tasks, and what its data plane must know of the others.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::dependency::Dependency;
use crate::id::{DependencyId, NetworkId, NodeId, ServiceId, TaskId};
use crate::object::{Endpoint, Network, NetworkAttachment, Task};
use crate::slow_start;

/// How new a piece of state is: the fencing epoch first, then the log index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    pub epoch: u64,
    pub index: u64,
}

/// One row of a node's assignment set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Assignment {
    /// A task for this very node, whole.
    Task(Box<Task>),
    /// A network that a task of this node is in; the ingress network always.
    Network(Box<Network>),
    /// A service that is published through the mesh, or shares a network with a task of this node.
    Service(ServiceView),
    /// A task of another node (or of this one) that is a backend or a neighbour.
    Endpoint(EndpointView),
    /// Another node of the cluster, and this one.
    Peer(Peer),
    /// A secret or config of a task of this node.
    Dependency(Box<Dependency>),
}

/// Names a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AssignmentKey {
    Task(TaskId),
    Network(NetworkId),
    Service(ServiceId),
    Endpoint(TaskId),
    Peer(NodeId),
    Dependency(DependencyId),
}

impl Assignment {
    /// The row's name.
    pub fn key(&self) -> AssignmentKey {
        match self {
            Self::Task(t) => AssignmentKey::Task(t.id),
            Self::Network(n) => AssignmentKey::Network(n.id),
            Self::Service(s) => AssignmentKey::Service(s.id),
            Self::Endpoint(e) => AssignmentKey::Endpoint(e.task),
            Self::Peer(p) => AssignmentKey::Peer(p.id),
            Self::Dependency(d) => AssignmentKey::Dependency(d.id),
        }
    }
}

/// What data planes must know of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub id: ServiceId,
    pub name: String,
    pub endpoint: Endpoint,
    /// Answers from its published ports go straight to the clients, see [`crate::spec::ServiceSpec::DSR_LABEL`].
    #[serde(default)]
    pub dsr: bool,
    /// Aliases of the service per network.
    pub aliases: Vec<(NetworkId, Vec<String>)>,
}

/// What data planes must know of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub task: TaskId,
    pub service: ServiceId,
    /// `<service>.<slot>.<task id>`.
    pub name: String,
    pub node: NodeId,
    pub attachments: Vec<NetworkAttachment>,
    /// Load balancers send new flows to it: it runs, is wanted, and its node's data path is alive.
    /// A row that is not ready keeps its forwarding entry, so that flows it has go on.
    pub ready: bool,
    /// As [`Task::weight`].
    #[serde(default = "slow_start::full_weight")]
    pub weight: u8,
}

/// What data planes must know of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub id: NodeId,
    pub hostname: String,
    /// Tunnel end.
    pub vtep: IpAddr,
    /// All addresses that the node says are its own: replies to a flow that entered there are tunnelled to it.
    pub addresses: Vec<IpAddr>,
    /// Since which log index it says so.
    pub addresses_since: u64,
    /// MTU of its underlay, bytes, as far as it has said so.
    #[serde(default)]
    pub underlay_mtu_bytes: Option<u32>,
    /// Where its gossip listens; `None` of a node that takes no part.
    #[serde(default)]
    pub gossip: Option<SocketAddr>,
    /// Its data path answers. Where two nodes claim an address, the one that lives has it, else the newer.
    pub alive: bool,
}

/// A message on the assignments stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentUpdate {
    /// The whole set; replaces what the agent has.
    Complete { generation: Generation, set: Vec<Assignment> },
    /// On top of the message before, whose generation is `base`.
    Incremental {
        base: Generation,
        generation: Generation,
        upserts: Vec<Assignment>,
        removals: Vec<AssignmentKey>,
    },
}

impl AssignmentUpdate {
    /// How new the set is with this update.
    pub fn generation(&self) -> Generation {
        match self {
            Self::Complete { generation, .. } | Self::Incremental { generation, .. } => *generation,
        }
    }
}
