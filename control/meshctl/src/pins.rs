//! The kernel's maps without meshd, through their pins.

use std::path::Path;

use dataplane_model::inspect::{DropsReport, EndpointRow, LoadBalancerRow, NodeStatus};

pub fn status(_pin_dir: &Path) -> anyhow::Result<NodeStatus> {
    not_yet()
}

pub fn load_balancers(_pin_dir: &Path) -> anyhow::Result<Vec<LoadBalancerRow>> {
    not_yet()
}

pub fn endpoints(_pin_dir: &Path) -> anyhow::Result<Vec<EndpointRow>> {
    not_yet()
}

pub fn drops(_pin_dir: &Path) -> anyhow::Result<DropsReport> {
    not_yet()
}

fn not_yet<T>() -> anyhow::Result<T> {
    anyhow::bail!("this build of meshctl can't read pins")
}
