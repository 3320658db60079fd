//! The door between control and data plane, and what comes back through it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::view::{Generation, NodeView, SandboxId};

/// What the data plane has done, published after every pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Revision and generation of the newest view that was given.
    pub wanted_revision: u64,
    pub wanted: Generation,
    /// Revision and generation of the newest view by which no new flow goes to a task that it has let go of: rings, virtual
    /// addresses, frontends and endpoints are in the kernel, as far as they took something away. What else could not be done
    /// is in `errors`.
    pub applied_revision: u64,
    pub applied: Generation,
    pub sandboxes: BTreeMap<SandboxId, SandboxStatus>,
    /// What the last pass could not do, one sentence each; retried with the next pass.
    pub errors: Vec<String>,
}

/// A sandbox's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxStatus {
    /// Its namespace has all links, addresses, routes, and its names resolve.
    Ready {
        netns: PathBuf,
    },
    Failed {
        reason: String,
    },
}

/// The one door of the data plane. Implemented by the driver and by the simulation.
pub trait DataPlane: Send + Sync + 'static {
    /// Wants `view` from now on. Returns at once; a view with an older revision is ignored.
    fn set_view(&self, view: NodeView);
    /// The newest report, and a way to wait for the next.
    fn watch(&self) -> tokio::sync::watch::Receiver<Report>;
}
