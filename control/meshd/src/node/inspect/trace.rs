//! `meshctl trace`: names become addresses here, the maps tell the rest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use control_api::node::InspectError;
use dataplane_dns::answer::{addresses, sandbox_views};
use dataplane_dns::{TtlPolicy, zones_from_view};
use dataplane_kernel::inspect::trace::{Origin, TaskOrigin, trace, trace_arrival, trace_live, trace_marked};
use dataplane_kernel::net::namespace::Namespace;
use dataplane_model::inspect::{TraceEnd, TraceReport, TraceRequest, TunnelledPacket};
use dataplane_model::kernel_state::protocol_name;
use dataplane_model::{NodeView, SandboxId, Service};

use super::dns::find_sandbox;
use super::read;
use super::watch::Watching;
use crate::host::Host;
use crate::node::swarm::Swarm;

/// From a task or a client outside to a service, as far as this node decides.
pub async fn from_here(
    host: &Host,
    swarm: Option<&Swarm>,
    request: &TraceRequest,
) -> Result<TraceReport, InspectError> {
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    let view = view.ok_or_else(|| InspectError("this node has no tasks and no services yet".to_owned()))?;
    let origin = origin(host, &view, request)?;
    let mut report = TraceReport::default();
    for destination in destinations(host, &view, request)? {
        let (origin, protocol) = (origin.clone(), request.protocol);
        let traced = read(host, move |pins| trace(pins, &origin, destination, protocol)).await?;
        report.ways.extend(traced.ways);
    }
    Ok(named(report, &view))
}

/// On, from another node's tunnel.
pub async fn arrival(
    host: &Host,
    swarm: Option<&Swarm>,
    packet: TunnelledPacket,
) -> Result<TraceReport, InspectError> {
    let report = read(host, move |pins| trace_arrival(pins, &packet)).await?;
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    Ok(match view {
        Some(view) => named(report, &view),
        None => report,
    })
}

/// A packet that is sent now, from a task.
pub async fn live(
    host: &Host,
    swarm: Option<&Swarm>,
    watching: &Watching,
    request: &TraceRequest,
) -> Result<TraceReport, InspectError> {
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    let view = view.ok_or_else(|| InspectError("this node has no tasks and no services yet".to_owned()))?;
    let Origin::Task(task) = origin(host, &view, request)? else {
        return Err(InspectError(
            "this node can't send a client's packet: trace --live from a task".to_owned(),
        ));
    };
    let id = find_sandbox(Some(&view), &request.from)?;
    let sandbox = sandbox(host, &id)?;
    let destinations = destinations(host, &view, request)?;
    let destination = destinations.first().copied();
    let destination = destination.ok_or_else(|| InspectError("it has no address".to_owned()))?;
    let (turn, protocol, pins) = (watching.turn(true)?, request.protocol, host.config.bpffs_dir.clone());
    let traced = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        trace_live(&pins, &sandbox, &task, destination, protocol)
    });
    let report = traced.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(named(report, &view))
}

/// On, from another node's tunnel, for the packets that this node was told to wait for.
pub async fn marked(
    host: &Host,
    swarm: Option<&Swarm>,
    watching: &Watching,
    packet: TunnelledPacket,
) -> Result<TraceReport, InspectError> {
    let marked = watching.take_marked();
    let mut marked =
        marked.ok_or_else(|| InspectError("the node does not wait for the packet".to_owned()))?;
    let pins = host.config.bpffs_dir.clone();
    let traced = tokio::task::spawn_blocking(move || trace_marked(&pins, &mut marked.watch, &packet));
    let report = traced.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    let report = report.ok_or_else(|| InspectError("the packet has not come to this node".to_owned()))?;
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    Ok(match view {
        Some(view) => named(report, &view),
        None => report,
    })
}

fn failed(error: &dyn std::error::Error) -> InspectError {
    let source = error.source().map(|source| format!(": {source}"));
    InspectError(format!("{error}{}", source.unwrap_or_default()))
}

fn sandbox(host: &Host, id: &SandboxId) -> Result<Namespace, InspectError> {
    let path = host.config.run_dir.join("netns").join(&id.0);
    let failed = |error: &dyn std::fmt::Display| InspectError(format!("{}: {error}", path.display()));
    let namespace = Namespace::open(&path).map_err(|error| failed(&error))?;
    namespace.ok_or_else(|| failed(&"there is no sandbox yet"))
}

fn origin(host: &Host, view: &NodeView, request: &TraceRequest) -> Result<Origin, InspectError> {
    if let Some(client) = request.client() {
        return Ok(Origin::Outside(client));
    }
    let id = find_sandbox(Some(view), &request.from)?;
    let sandbox = sandbox(host, &id)?;
    let netns_cookie = sandbox.cookie().map_err(|error| failed(&error))?;
    let far_source4 = sandbox.far_source4().map_err(|error| failed(&error))?;
    let far_source6 = sandbox.far_source6().map_err(|error| failed(&error))?;
    let addresses = legs(view, &id);
    Ok(Origin::Task(TaskOrigin { netns_cookie, addresses, far_source4, far_source6, port: request.port }))
}

/// A task's VNIs and its address in each.
fn legs(view: &NodeView, id: &SandboxId) -> Vec<(u32, Ipv4Addr)> {
    let attachments = view.sandboxes.get(id).map(|sandbox| &sandbox.attachments[..]).unwrap_or_default();
    let vni = |attachment: &dataplane_model::Attachment| {
        Some((view.networks.get(&attachment.network)?.vni.get(), attachment.address))
    };
    attachments.iter().filter_map(vni).collect()
}

/// As [`destinations_of`], with the addresses of this node.
fn destinations(
    host: &Host,
    view: &NodeView,
    request: &TraceRequest,
) -> Result<Vec<SocketAddr>, InspectError> {
    let is_asked = |address: &IpAddr| address.is_ipv6() == request.is_ipv6();
    let own = Some(view.vtep).filter(is_asked).or_else(|| host.addresses.read().all().filter(is_asked).min());
    let found = destinations_of(view, own, request).map_err(InspectError)?;
    found.into_iter().map(|to| request.checked(to).map_err(|error| InspectError(error.to_string()))).collect()
}

/// Where a connection to `request.to` goes: an address is taken as it is, a name as the routing mesh has it for clients
/// outside, and as the service DNS has it for a task.
fn destinations_of(
    view: &NodeView,
    own: Option<IpAddr>,
    request: &TraceRequest,
) -> Result<Vec<SocketAddr>, String> {
    if let Ok(destination) = request.to.parse() {
        return Ok(vec![destination]);
    }
    let expected = || format!("{}: expected SERVICE:PORT or ADDRESS:PORT", request.to);
    let (name, port) = request.to.rsplit_once(':').ok_or_else(expected)?;
    let port: u16 = port.parse().map_err(|_| expected())?;
    if request.client().is_none() {
        return inside(view, request, (name, port));
    }
    let service = view.services.values().find(|service| service.name == name);
    let service = service.ok_or_else(|| format!("this node knows no service {name}"))?;
    let own = own.ok_or("this node has no lasting address of the client's family")?;
    published(own, service, request, port)
}

/// By this node's own address.
fn published(
    own: IpAddr,
    service: &Service,
    request: &TraceRequest,
    port: u16,
) -> Result<Vec<SocketAddr>, String> {
    let is_it = |p: &dataplane_model::PublishedPort| p.published == port && p.protocol == request.protocol;
    if service.ingress_ports.iter().any(is_it) {
        return Ok(vec![SocketAddr::new(own, port)]);
    }
    Err(format!(
        "{} publishes no port {port}/{} in the routing mesh",
        service.name,
        protocol_name(request.protocol)
    ))
}

/// What the service DNS tells the task, by the same code: the first of its networks that has the name, never the ingress
/// network, where nothing has one.
fn inside(
    view: &NodeView,
    request: &TraceRequest,
    (name, port): (&str, u16),
) -> Result<Vec<SocketAddr>, String> {
    let id = find_sandbox(Some(view), &request.from).map_err(|error| error.0)?;
    let names = sandbox_views(zones_from_view(view, Path::new(""), TtlPolicy::default())).remove(&id);
    let names = names.ok_or_else(|| format!("{} has no names", request.from))?;
    let found = addresses(name, &names);
    let found = found.ok_or_else(|| format!("no network of {} has the name {name}", request.from))?;
    let asked = found.iter().filter(|address| address.is_ipv6() == request.is_ipv6());
    let destinations: Vec<SocketAddr> = asked.map(|address| SocketAddr::new(*address, port)).collect();
    if destinations.is_empty() {
        let family = if request.is_ipv6() { "IPv6" } else { "IPv4" };
        return Err(format!("{name} has no {family} address for {} now", request.from));
    }
    Ok(destinations)
}

/// Whose sandbox a way ends in.
fn named(mut report: TraceReport, view: &NodeView) -> TraceReport {
    for way in &mut report.ways {
        if let TraceEnd::Sandbox { destination, task, .. } = &mut way.end {
            *task = task_at(view, destination.ip()).unwrap_or_default();
        }
    }
    report
}

/// Networks may share addresses: where several tasks have it, none is named.
fn task_at(view: &NodeView, address: IpAddr) -> Option<String> {
    let is_it = |attachment: &dataplane_model::Attachment| match address {
        IpAddr::V4(address) => attachment.address == address,
        IpAddr::V6(address) => {
            let network = view.networks.get(&attachment.network);
            network.and_then(|network| network.address6(attachment.address)) == Some(address)
        }
    };
    let has = |sandbox: &&dataplane_model::Sandbox| sandbox.attachments.iter().any(is_it);
    let mut found = view.sandboxes.values().filter(has);
    let sandbox = found.next()?;
    found.next().is_none().then(|| sandbox.task_name.clone())
}

#[cfg(test)]
mod tests;
