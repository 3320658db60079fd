//! The types that openraft is made of here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use control_model::NodeId;
use control_model::change::Entry;
use control_store::ApplyError;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// openraft's types for this cluster.
    pub TypeConfig: D = Proposal, R = Reply, NodeId = u64, Node = Member
);

/// A voter or learner of Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node that this Raft id belongs to.
    pub node_id: NodeId,
    /// Where its RPC listens.
    pub addr: SocketAddr,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.node_id, self.addr)
    }
}

/// One entry of the log; shared, for the log's memory, replication and the state machine hold it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(pub Arc<Entry>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:x} with {} changes", self.0.request.0, self.0.changes.len())
    }
}

/// What an entry did: the index at which it was applied, or why it changed nothing. The same on all replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Result<u64, ApplyError>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(index) => write!(f, "applied at {index}"),
            Err(error) => write!(f, "refused: {error}"),
        }
    }
}
