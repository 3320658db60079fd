//! What a node's gossip knows, and thinks of the others.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `meshctl gossip`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipReport {
    /// Of what this node says of itself: raised when it refutes what others say.
    pub incarnation: u64,
    /// How much is wrong with this node itself, as it seems to it: 0 to 8. It is the more patient with others (Lifeguard, section
    /// IV-A).
    pub trouble: u32,
    /// Number of the key that datagrams are sealed with; `None` before the managers have sent one.
    pub key: Option<u32>,
    /// Numbers of the keys that are accepted, oldest first.
    pub keys: Vec<u32>,
    pub members: Vec<GossipMember>,
    /// Tasks of other nodes that get no new flows because their nodes say that they have ended.
    pub ended: Vec<String>,
    /// Datagrams since the daemon began.
    pub n_sent: u64,
    pub n_received: u64,
    /// Datagrams that changed nothing, by reason.
    pub refused: Vec<(String, u64)>,
    /// Exchanges of all that is known, since the daemon began, and those that failed.
    pub n_exchanged: u64,
    pub n_exchanges_failed: u64,
}

/// Another node, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipMember {
    pub node_id: String,
    /// `None` of a node that takes no part.
    pub address: Option<SocketAddr>,
    pub data_path: SocketAddr,
    /// `None` of a node that takes no part.
    pub agent: Option<GossipAgent>,
    pub path: GossipPath,
}

/// What is thought of a node's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipAgent {
    pub incarnation: u64,
    pub state: AgentState,
    /// Nodes that suspect it.
    pub suspected_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    Alive,
    Suspect,
    Silent,
}

/// What is thought of a node's data path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipPath {
    pub state: PathState,
    /// Probes in a row without an answer.
    pub n_missed: u32,
    /// Milliseconds since the last probe.
    pub probed_ms_ago: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// It has never answered this node: nothing follows from its silence.
    #[default]
    Unknown,
    Answers,
    /// Its backends get no new flows from this node.
    Silent,
}
