//! What every handler has: the node, and the cluster's operations where this node may do them.

use std::sync::Arc;

use control_manager::control::{Control, ControlError};

use crate::engine::LocalEngine;
use crate::error::ApiError;
use crate::events::Events;
use crate::execs::Execs;
use crate::node::{EXPIRED, LOCKED, Membership, Node};
use crate::stale;

/// The served node.
#[derive(Clone)]
pub struct Api {
    pub node: Arc<dyn Node>,
    pub execs: Arc<Execs>,
    pub events: Arc<Events>,
}

impl Api {
    pub fn new(node: Arc<dyn Node>) -> Self {
        Self { node, execs: Arc::default(), events: Arc::default() }
    }

    /// What this node runs itself.
    pub fn local_engine(&self) -> Result<Arc<dyn LocalEngine>, ApiError> {
        self.node
            .local_engine()
            .ok_or_else(|| ApiError::unavailable("this node's containers are Docker Engine's"))
    }

    /// The cluster's operations; in any other state than that of an active manager, Docker's sentence for it
    /// (moby `daemon/cluster/cluster.go`, `errNoManager`).
    pub fn control(&self) -> Result<Control, ApiError> {
        if let Some(store) = self.node.store() {
            return Ok(Control::with_mark(store, stale::mark()));
        }
        let local = self.node.local();
        Err(match local.membership {
            Membership::Error if local.is_expired => ApiError::unavailable(EXPIRED),
            Membership::Inactive | Membership::Error => ApiError::unavailable(
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
                 this node to swarm and try again.",
            ),
            Membership::Locked => ApiError::unavailable(LOCKED),
            Membership::Pending => ApiError::unavailable(
                "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the \
                 cluster.",
            ),
            Membership::Active if local.is_manager => ApiError::unavailable(
                "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the \
                 cluster.",
            ),
            Membership::Active => ControlError::NotManager.into(),
        })
    }
}
