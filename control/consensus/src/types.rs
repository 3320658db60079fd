//! The types that openraft is made of here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use control_model::change::Entry;
use control_model::{NodeId, Timestamp};
use control_rpc::{BodyError, decode, encode};
use control_store::{ApplyError, Event, State};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

openraft::declare_raft_types!(
    /// openraft's types for this cluster. A term has one leader, as in Raft (openraft's own default lets it have several).
    pub TypeConfig: D = Batch, R = Reply, NodeId = u64, Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>
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

/// What one entry of Raft's log carries: writes that came at the same time, each applied or refused by itself. Of the cost of an
/// entry (a message, a record that is sealed, its turn in Raft) each bears a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's clock.
    pub at: Timestamp,
    pub writes: Vec<Proposal>,
}

impl Batch {
    /// Applies the writes to a state, as the entry at `index`; `applied` hears of each that changed something.
    pub fn apply(&self, index: u64, state: &mut State, mut applied: impl FnMut(Vec<Event>)) -> Reply {
        state.pass_time(self.at);
        let outcomes = self.writes.iter().map(|write| {
            applied(state.apply(index, write.entry())?);
            Ok(index)
        });
        Reply(outcomes.collect())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, proposal) in self.writes.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{proposal}")?;
        }
        Ok(())
    }
}

/// One write, with its encoding. It is encoded once, where it is proposed: what is sent to the leader and to followers, and what
/// is kept, are these bytes. Shared, for the log's memory, replication and the state machine hold it at once.
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

    /// One whose body has this length, whatever is in it.
    #[cfg(test)]
    pub(crate) fn padded(entry: Entry, n_bytes: usize) -> Self {
        Self(Arc::new(Encoded { entry, body: vec![0; n_bytes] }))
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

/// What each write of a [`Batch`] did: the index at which it was applied, or why it changed nothing. The same on all replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Vec<Result<u64, ApplyError>>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, outcome) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match outcome {
                Ok(index) => write!(f, "{comma}applied at {index}")?,
                Err(error) => write!(f, "{comma}refused: {error}")?,
            }
        }
        Ok(())
    }
}
