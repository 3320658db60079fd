//! Why an operation was refused: Docker's sentence, and the gRPC code in which Docker wraps it.

use std::fmt;

use control_model::validate::SpecError;
use control_model::{NetworkId, NodeId, ServiceId, TaskId};
use control_store::MAX_PAYLOAD_BYTES;

use super::authority::RotationError;

/// Sorts of objects, in Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

/// The gRPC codes that Docker's errors carry (google.golang.org/grpc/codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcCode {
    Unknown,
    InvalidArgument,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    Unimplemented,
    ResourceExhausted,
}

impl RpcCode {
    /// As Go prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Unimplemented => "Unimplemented",
            Self::ResourceExhausted => "ResourceExhausted",
        }
    }

    /// Status that Docker's API gives for it (moby `daemon/server/httpstatus`).
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::PermissionDenied => 403,
            Self::AlreadyExists => 409,
            Self::Unimplemented => 501,
            Self::Unknown | Self::ResourceExhausted => 500,
        }
    }
}

/// Why an operation was refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ControlError {
    #[error("{kind} {name} not found")]
    NotFound { kind: Kind, name: String },
    #[error("{kind} {name} is ambiguous ({matches} matches found)")]
    Ambiguous { kind: Kind, name: String, matches: usize },
    #[error(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run \
         this command on a manager node or promote the current node to a manager."
    )]
    NotManager,
    /// Docker's sentence, and which managers are missing, where that is known.
    #[error("{0}")]
    NoLeader(String),
    #[error("This node is not part of a swarm")]
    NoCluster,
    /// As one entry of the log it would be more than consensus carries.
    #[error("raft: raft message is too large and can't be sent")]
    TooLarge,
    #[error("update out of sequence")]
    OutOfSequence,
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("name conflicts with an existing object: {0} {1} already exists")]
    NameConflict(Kind, String),
    #[error("{0} {1} already exists")]
    DependencyExists(Kind, String),
    /// And the services that refer to it.
    #[error("{0} '{1}' is in use by the following {noun}: {users}", noun = plural("service", .2), users = .2.join(", "))]
    DependencyInUse(Kind, String, Vec<String>),
    #[error("{} not found: {}", plural(&.0.to_string(), .1), .1.join(", "))]
    DependenciesMissing(Kind, Vec<String>),
    #[error(
        "all secrets and configs together would be longer than {} MiB: remove some that no service uses",
        MAX_PAYLOAD_BYTES >> 20
    )]
    NoRoom,
    #[error("network with name {0} already exists")]
    NetworkExists(String),
    /// The allocator's sentence, which names the port and its holder.
    #[error("{0}")]
    PortInUse(String),
    #[error("Service cannot be explicitly attached to the ingress network {0:?}")]
    AttachIngress(String),
    #[error("service needs ingress network, but no ingress network is present")]
    NoIngress,
    #[error("service mode change is not allowed")]
    ModeChange,
    #[error("renaming services is not supported")]
    Rename,
    #[error("service {0} does not have a previous spec")]
    NoPreviousSpec(ServiceId),
    /// The allocator's sentence.
    #[error("{0}")]
    Subnet(String),
    #[error("ingress network ({0}) is already present")]
    IngressExists(NetworkId),
    #[error("network {0} is in use by service {1}")]
    NetworkInUse(NetworkId, ServiceId),
    #[error("network {0} is in use by task {1}")]
    NetworkInUseByTask(NetworkId, TaskId),
    #[error("network {0} not manually attachable")]
    NotAttachable(String),
    #[error("this node has {0} containers in the swarm's networks, which is the limit")]
    TooManyAttachments(usize),
    #[error("ingress network cannot be removed because service {0} depends on it")]
    IngressInUse(ServiceId),
    #[error("attempting to demote the last manager of the swarm")]
    LastManager,
    #[error("can't remove member from the raft: this would result in a loss of quorum")]
    Quorum,
    #[error(
        "node {0} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    )]
    IsManager(NodeId),
    #[error("node {0} is not down and can't be removed")]
    NotDown(NodeId),
    #[error("node {0} is still laying down its role as a manager; try again in a moment")]
    BeingDemoted(NodeId),
    /// Why the cluster can't go over to another root.
    #[error("{0}")]
    Authority(String),
}

impl ControlError {
    /// The code in which Docker's manager wraps this error; `None` where its daemon says it plainly.
    pub fn rpc_code(&self) -> Option<RpcCode> {
        Some(match self {
            Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::NotManager
            | Self::NoCluster
            | Self::NetworkExists(_)
            | Self::Subnet(_) => return None,
            Self::NoLeader(_)
            | Self::TooLarge
            | Self::OutOfSequence
            | Self::Spec(SpecError::Constraint(_)) => RpcCode::Unknown,
            Self::Spec(_)
            | Self::PortInUse(_)
            | Self::AttachIngress(_)
            | Self::DependencyInUse(..)
            | Self::DependenciesMissing(..)
            | Self::Authority(_) => RpcCode::InvalidArgument,
            Self::NameConflict(..) | Self::DependencyExists(..) | Self::IngressExists(_) => {
                RpcCode::AlreadyExists
            }
            Self::NoIngress
            | Self::NoRoom
            | Self::NoPreviousSpec(_)
            | Self::NetworkInUse(..)
            | Self::NetworkInUseByTask(..)
            | Self::IngressInUse(_)
            | Self::LastManager
            | Self::Quorum
            | Self::IsManager(_)
            | Self::NotDown(_)
            | Self::BeingDemoted(_) => RpcCode::FailedPrecondition,
            Self::NotAttachable(_) => RpcCode::PermissionDenied,
            Self::TooManyAttachments(_) => RpcCode::ResourceExhausted,
            Self::ModeChange | Self::Rename => RpcCode::Unimplemented,
        })
    }

    /// The HTTP status of Docker's API for it.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::NotFound { .. } => 404,
            Self::Ambiguous { .. } => 400,
            Self::NotManager | Self::NoCluster => 503,
            Self::NetworkExists(_) => 409,
            Self::Subnet(_) => 403,
            _ => self.rpc_code().map_or(500, RpcCode::http_status),
        }
    }

    /// The whole text that Docker's API gives.
    pub fn message(&self) -> String {
        match self.rpc_code() {
            Some(code) => format!("rpc error: code = {} desc = {self}", code.as_str()),
            None => self.to_string(),
        }
    }
}

/// Docker's number of a noun for so many names.
fn plural(noun: &str, names: &[String]) -> String {
    if names.len() == 1 { noun.to_owned() } else { format!("{noun}s") }
}

impl From<RotationError> for ControlError {
    fn from(error: RotationError) -> Self {
        Self::Authority(error.to_string())
    }
}
