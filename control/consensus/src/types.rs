//! The types that openraft is made of here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use control_model::NodeId;
use control_model::change::Entry;
use control_rpc::{BodyError, decode, encode};
use control_store::ApplyError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

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

/// One entry of the log, with its encoding. It is encoded once, where it is proposed: what is sent to the leader and to
/// followers, and what is kept, are these bytes. Shared, for the log's memory, replication and the state machine hold it at
/// once.
#[derive(Clone)]
pub struct Proposal(Arc<Encoded>);

struct Encoded {
    entry: Entry,
    body: Vec<u8>,
}

impl Proposal {
    /// Fails for an entry beyond what a message takes.
    pub fn new(entry: Entry) -> Result<Self, BodyError> {
        let body = encode(&entry)?;
        Ok(Self(Arc::new(Encoded { entry, body })))
    }

    /// The proposal that [`Proposal::body`] is of.
    pub fn from_body(body: Vec<u8>) -> Result<Self, BodyError> {
        Ok(Self(Arc::new(Encoded { entry: decode(&body)?, body })))
    }

    pub fn entry(&self) -> &Entry {
        &self.0.entry
    }

    /// The entry, encoded.
    pub fn body(&self) -> &[u8] {
        &self.0.body
    }
}

impl PartialEq for Proposal {
    fn eq(&self, other: &Self) -> bool {
        self.entry() == other.entry()
    }
}

impl Eq for Proposal {}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.body())
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = ByteBuf::deserialize(deserializer)?.into_vec();
        Self::from_body(body).map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entry().fmt(f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:x} with {} changes", self.entry().request.0, self.entry().changes.len())
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
