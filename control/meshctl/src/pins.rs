//! The kernel's maps without meshd, through their pins.

use std::path::Path;

use dataplane_kernel::inspect;
use dataplane_model::Generation;
use dataplane_model::inspect::{
    DropsReport, EndpointRow, FdbReport, FlowsReport, LoadBalancerRow, NodeStatus, RingReport,
};

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

/// By frontend or virtual address alone: the kernel knows no service's name.
pub fn rings(pin_dir: &Path, of: &str) -> anyhow::Result<Vec<RingReport>> {
    Ok(inspect::rings(pin_dir, of, |_| None)?)
}

pub fn flows(pin_dir: &Path, limit: usize) -> anyhow::Result<FlowsReport> {
    Ok(inspect::flows(pin_dir, limit)?)
}

pub fn fdb(pin_dir: &Path) -> anyhow::Result<FdbReport> {
    Ok(inspect::fdb(pin_dir)?)
}

pub fn endpoints(pin_dir: &Path) -> anyhow::Result<Vec<EndpointRow>> {
    Ok(inspect::endpoints(pin_dir)?)
}

pub fn drops(pin_dir: &Path) -> anyhow::Result<DropsReport> {
    Ok(inspect::drops(pin_dir)?)
}
