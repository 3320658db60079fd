//! The kernel's maps without meshd, through their pins.

use std::path::Path;

use dataplane_kernel::inspect;
use dataplane_model::Generation;
use dataplane_model::inspect::{DropsReport, EndpointRow, LoadBalancerRow, NodeStatus};

/// What the kernel knows of its node: hooks. What only meshd knows is left empty.
pub fn status(pin_dir: &Path) -> anyhow::Result<NodeStatus> {
    Ok(NodeStatus {
        hostname: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        node_id: String::new(),
        cluster_id: String::new(),
        role: String::new(),
        vtep: None,
        wanted: Generation::default(),
        applied: Generation::default(),
        hooks: inspect::hooks(pin_dir)?,
        errors: Vec::new(),
        from_pins: true,
    })
}

pub fn load_balancers(pin_dir: &Path) -> anyhow::Result<Vec<LoadBalancerRow>> {
    Ok(inspect::load_balancers(pin_dir)?)
}

pub fn endpoints(pin_dir: &Path) -> anyhow::Result<Vec<EndpointRow>> {
    Ok(inspect::endpoints(pin_dir)?)
}

pub fn drops(pin_dir: &Path) -> anyhow::Result<DropsReport> {
    Ok(inspect::drops(pin_dir)?)
}
