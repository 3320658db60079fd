//! The kernel's maps without meshd, through their pins.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use dataplane_kernel::inspect;
use dataplane_kernel::inspect::trace::Origin;
use dataplane_model::Generation;
use dataplane_model::inspect::{
    DropsReport, EndpointRow, FdbReport, FlowsReport, LoadBalancerRow, NodeStatus, RingReport, TopReport,
    TraceReport, TraceRequest,
};

/// Between two looks at the maps.
const TOP_PERIOD: Duration = Duration::from_secs(1);

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

/// Takes a second.
pub fn top(pin_dir: &Path) -> anyhow::Result<TopReport> {
    let before = inspect::TopReading::take(pin_dir)?;
    std::thread::sleep(TOP_PERIOD);
    Ok(inspect::TopReading::take(pin_dir)?.since(&before))
}

/// From outside to an address.
pub fn trace(pin_dir: &Path, request: &TraceRequest) -> anyhow::Result<TraceReport> {
    let client = request.client().context("without meshd no task is known: trace from outside/ADDRESS")?;
    let to = request.to.parse().context("without meshd no service is known: trace to ADDRESS:PORT")?;
    let to = request.checked(to)?;
    Ok(inspect::trace::trace(pin_dir, &Origin::Outside(client), to, request.protocol)?)
}
