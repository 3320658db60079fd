//! What `meshctl` shows of this node.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control_api::node::InspectError;
use control_model::TaskState;
use control_model::spec::Role;
use control_store::ReplicatedStore as _;
use dataplane_kernel::inspect::{self, Entrance};
use dataplane_model::inspect::{
    DropsReport, EndpointRow, FdbReport, FlowsReport, LoadBalancerRow, NodeStatus, RingReport, VerifyReport,
};
use dataplane_model::kernel_state::protocol_name;
use dataplane_model::{Backend, DataPlane as _, NetworkKey, NodeView, PublishedPort, Service};

pub mod cluster;
pub mod dns;
pub mod gossip;
pub mod top;
pub mod trace;
pub mod watch;

use super::manager::RunningManager;
use super::metrics::{self, Maps, Metrics, Raft};
use super::swarm::Swarm;
use crate::host::Host;

/// `meshctl status`.
pub fn status(host: &Host, swarm: Option<&Swarm>) -> NodeStatus {
    let outside = NodeStatus {
        hostname: host.config.hostname.clone(),
        node_id: String::new(),
        cluster_id: String::new(),
        role: "none".into(),
        vtep: None,
        wanted: dataplane_model::Generation::default(),
        applied: dataplane_model::Generation::default(),
        hooks: Vec::new(),
        errors: Vec::new(),
        from_pins: false,
    };
    let Some(swarm) = swarm else { return outside };
    let report = swarm.data_plane().driver.watch().borrow().clone();
    let me = swarm.me();
    NodeStatus {
        node_id: me.node_id.to_string(),
        cluster_id: me.cluster_id.to_string(),
        role: role(swarm).into(),
        vtep: Some(swarm.file().data_path),
        wanted: report.wanted,
        applied: report.applied,
        hooks: swarm.data_plane().driver.hooks(),
        errors: report.errors,
        ..outside
    }
}

fn role(swarm: &Swarm) -> &'static str {
    let leads = swarm.consensus().is_some_and(|consensus| consensus.leadership().borrow().is_me);
    match swarm.me().role {
        Role::Manager if leads => "manager (leader)",
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// `meshctl lb ls`.
pub async fn load_balancers(
    host: &Host,
    swarm: Option<&Swarm>,
) -> Result<Vec<LoadBalancerRow>, InspectError> {
    let mut rows = read(host, inspect::load_balancers).await?;
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    if let Some(view) = view {
        for row in &mut rows {
            if let Some(service) = service_of(&view, &row.kind, &row.frontend, row.vni) {
                row.service.clone_from(&service.name);
                row.dsr = service.dsr && row.kind != VIP;
            }
        }
    }
    Ok(rows)
}

/// The kind of a virtual address.
const VIP: &str = "vip";

/// The service behind a frontend or a virtual address.
fn service_of<'a>(view: &'a NodeView, kind: &str, frontend: &str, vni: u32) -> Option<&'a Service> {
    if kind == VIP {
        let address = frontend.parse().ok()?;
        let (network, _) = view.networks.iter().find(|(_, network)| network.vni.get() == vni)?;
        view.services.values().find(|service| service.vips.get(network) == Some(&address))
    } else {
        let (_, port) = frontend.rsplit_once(':')?;
        let is_it = |p: &PublishedPort| format!("{}/{}", p.published, protocol_name(p.protocol)) == port;
        view.services.values().find(|service| service.ingress_ports.iter().any(is_it))
    }
}

/// `meshctl lb ring`.
pub async fn rings(host: &Host, swarm: Option<&Swarm>, of: &str) -> Result<Vec<RingReport>, InspectError> {
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    let of = of.to_owned();
    read(host, move |pins| {
        inspect::rings(pins, &of, |Entrance { frontend, kind, vni }| {
            service_of(view.as_deref()?, kind, frontend, *vni).map(|service| service.name.clone())
        })
    })
    .await
}

/// `meshctl lb flows`.
pub async fn flows(host: &Host, limit: usize) -> Result<FlowsReport, InspectError> {
    read(host, move |pins| inspect::flows(pins, limit)).await
}

/// `meshctl fdb`.
pub async fn fdb(host: &Host) -> Result<FdbReport, InspectError> {
    read(host, inspect::fdb).await
}

/// `meshctl verify`.
pub async fn verify(host: &Host, swarm: &Swarm) -> Result<VerifyReport, InspectError> {
    let driver = &swarm.data_plane().driver;
    let mut report = driver.verify().await.map_err(|error| InspectError(error.to_string()))?;
    report.hostname.clone_from(&host.config.hostname);
    report.node_id = swarm.me().node_id.to_string();
    Ok(report)
}

/// Outside a swarm nothing is assigned, and nobody else can be asked.
pub fn in_no_swarm() -> InspectError {
    InspectError("This node is not part of a swarm".to_owned())
}

/// `meshctl endpoints`.
pub async fn endpoints(host: &Host, swarm: Option<&Swarm>) -> Result<Vec<EndpointRow>, InspectError> {
    let mut rows = read(host, inspect::endpoints).await?;
    if let Some(view) = swarm.and_then(|swarm| swarm.views.borrow().clone()) {
        let weights = weights(&view);
        for row in &mut rows {
            row.weight = weights.get(&(row.vni, row.address)).copied();
        }
    }
    Ok(rows)
}

/// Of all backends, by VNI and address.
fn weights(view: &NodeView) -> BTreeMap<(u32, Ipv4Addr), u8> {
    let backends = view.services.values().flat_map(|service| &service.backends);
    let weight = |((network, address), backend): (&(NetworkKey, Ipv4Addr), &Backend)| {
        let vni = view.networks.get(network)?.vni.get();
        Some(((vni, *address), if backend.ready { backend.weight } else { 0 }))
    };
    backends.filter_map(weight).collect()
}

/// `meshctl drops`.
pub async fn drops(host: &Host) -> Result<DropsReport, InspectError> {
    read(host, inspect::drops).await
}

/// `/metrics`. Costs a pass over the flow tables.
pub async fn metrics(host: Arc<Host>, swarm: Option<Arc<Swarm>>) -> Result<String, InspectError> {
    let Some(swarm) = swarm else { return Ok(metrics::render(&Metrics::default())) };
    let pins = host.config.bpffs_dir.clone();
    let maps = tokio::task::spawn_blocking(move || maps(&pins))
        .await
        .map_err(|error| InspectError(error.to_string()))?;
    let maps = match maps {
        // Before the first view there are none.
        Err(inspect::InspectError::Absent { .. }) => None,
        maps => Some(maps.map_err(|error| InspectError(error.to_string()))?),
    };
    let raft = swarm.manager().map(|manager| raft(&manager));
    let report = swarm.data_plane().driver.watch().borrow().clone();
    let gossip = swarm.gossip_inspector.as_ref();
    let gossip = gossip.map(|gossip| metrics::Gossip::read(gossip.counters(), &swarm.opinion.borrow()));
    Ok(metrics::render(&Metrics { maps, raft, report: Some(report), gossip }))
}

fn maps(pins: &Path) -> Result<Maps, inspect::InspectError> {
    let endpoints = inspect::endpoints(pins)?;
    let n_local = endpoints.iter().filter(|row| row.interface.is_some()).count();
    let flows = inspect::count_flows(pins)?;
    Ok(Maps {
        drops: inspect::drops(pins)?,
        n_local_endpoints: n_local as u64,
        n_remote_endpoints: (endpoints.len() - n_local) as u64,
        n_rings: inspect::count_rings(pins)?,
        n_cached_flows: flows.n_cached,
        n_kept_flows: flows.n_kept,
        n_unremembered_flows: flows.gate.n_unremembered,
        n_displaced_flows: flows.gate.n_displaced,
    })
}

fn raft(manager: &RunningManager) -> Raft {
    let consensus = &manager.consensus;
    let (leadership, state) = (*consensus.leadership().borrow(), consensus.state());
    let mut tasks: BTreeMap<TaskState, u64> = TaskState::ALL.map(|state| (state, 0)).into();
    for task in state.tasks().iter() {
        *tasks.entry(task.status.state).or_default() += 1;
    }
    let (term, is_leader) = (leadership.term, leadership.is_me);
    let n_drains_given_up = manager.n_drains_given_up();
    let refused = manager.n_refused();
    Raft { term, is_leader, applied_index: state.index(), n_drains_given_up, refused, tasks }
}

/// Reads the pins, away from the threads that serve.
async fn read<T: Send + 'static>(
    host: &Host,
    read: impl FnOnce(&Path) -> Result<T, inspect::InspectError> + Send + 'static,
) -> Result<T, InspectError> {
    let pins: PathBuf = host.config.bpffs_dir.clone();
    tokio::task::spawn_blocking(move || read(&pins))
        .await
        .map_err(|error| InspectError(error.to_string()))?
        .map_err(|error| InspectError(error.to_string()))
}
