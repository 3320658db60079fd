//! What a node's gossip knows, for those who look inside.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use control_model::gossip::Contact;
use control_model::{NodeId, TaskId};

/// All of it, at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Of what this node says of itself.
    pub incarnation: u64,
    /// 0 when all is well here, 8 at worst.
    pub trouble: u32,
    pub members: Vec<Member>,
    /// Tasks of other nodes that have ended.
    pub ended: Arc<BTreeSet<TaskId>>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub contact: Contact,
    /// `None` of a node that takes no part.
    pub agent: Option<AgentView>,
    pub path: PathView,
}

/// What is thought of a node's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    pub incarnation: u64,
    pub state: AgentState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    Alive,
    /// By whom.
    Suspect(BTreeSet<NodeId>),
    Silent,
}

/// What is thought of a node's data path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathView {
    pub has_answered: bool,
    /// Its backends get no new flows from this node.
    pub is_silent: bool,
    /// Probes in a row without an answer.
    pub n_missed: u32,
    /// Since the last probe.
    pub probed: Option<Duration>,
}
