//! What managers know of nodes, and say for them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::view::Generation;

/// A node that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub hostname: String,
    pub node_id: String,
    /// Tunnel end.
    pub vtep: Option<IpAddr>,
}

/// What one of several nodes said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnswer<T> {
    pub hostname: String,
    pub node_id: String,
    #[serde(flatten)]
    pub outcome: NodeOutcome<T>,
}

/// Its answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeOutcome<T> {
    Answer(T),
    Error(String),
}

/// The assignments that a node has, or that the managers want it to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Of the state that they were made of. Two of the same content may differ in it.
    pub generation: Generation,
    /// Fingerprint of the content.
    pub digest: String,
}
