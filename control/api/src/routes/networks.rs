//! `docker network …`. Overlay networks are the cluster's; the way out of this node is shown beside them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use control_manager::control::{ControlError, Kind, labels_match, task_name};
use control_model::object::NetworkAttachment;
use control_model::{Network, NodeId, Task, TaskState};
use control_store::State as Cluster;
use dataplane_model::Mac;
use http::{Method, StatusCode, Uri};

use crate::body::Json;
use crate::context::Api;
use crate::convert::network::{network, network_spec};
use crate::dto::common::Time;
use crate::dto::network as api_network;
use crate::error::ApiError;
use crate::node::Membership;
use crate::query::{Filters, Query};
use crate::reply::{Reply, json, ok};
use crate::routes::absent::unsupported;

/// The way out of a node's sandboxes, by Docker's name.
const GATEWAY_BRIDGE: &str = "docker_gwbridge";
/// Networks that Docker has on every host, and this daemon has not.
const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["driver", "type", "name", "id", "label", "scope"])?;
    for kind in filters.get("type") {
        if !matches!(kind.as_str(), "builtin" | "custom") {
            return Err(ApiError::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let all = all_networks(&api).await?;
    ok(&all.into_iter().filter(|n| matches(&filters, n)).collect::<Vec<_>>())
}

/// The cluster's networks that this node knows, then its own.
async fn all_networks(api: &Api) -> Result<Vec<api_network::Network>, ApiError> {
    let mut networks: Vec<_> = match api.control() {
        Ok(control) => control.list_networks().await?.iter().map(|n| network(n)).collect(),
        Err(_) => api.node.assigned_networks().iter().map(network).collect(),
    };
    networks.extend(gateway_bridge(api));
    Ok(networks)
}

pub(super) fn gateway_bridge(api: &Api) -> Option<api_network::Network> {
    let local = api.node.local();
    let node = local.node.filter(|_| local.membership == Membership::Active)?;
    Some(api_network::Network {
        name: GATEWAY_BRIDGE.into(),
        // One per node, and always the same: 64 hex digits as Docker's local networks have.
        id: format!("{:032x}{:032x}", node.bits(), !node.bits()),
        created: Time(None),
        scope: "local",
        driver: "bridge",
        enable_ipv4: true,
        ipam: api_network::Ipam { driver: "default".into(), ..api_network::Ipam::default() },
        containers: Some(BTreeMap::new()),
        options: Some(BTreeMap::new()),
        labels: Some(BTreeMap::new()),
        ..api_network::Network::default()
    })
}

/// Moby `daemon/network/filter.go`: names and ids match anywhere.
fn matches(filters: &Filters, network: &api_network::Network) -> bool {
    let any = |key: &str, test: &dyn Fn(&str) -> bool| {
        let wanted = filters.get(key);
        wanted.is_empty() || wanted.iter().any(|value| test(value))
    };
    let builtin = network.name == GATEWAY_BRIDGE || network.ingress;
    any("driver", &|driver| network.driver == driver)
        && any("scope", &|scope| network.scope == scope)
        && any("name", &|name| network.name.contains(name))
        && any("id", &|id| network.id.contains(id))
        && any("type", &|kind| (kind == "builtin") == builtin)
        && network.labels.as_ref().is_none_or(|labels| labels_match(labels, &filters.labels("label")))
}

pub async fn inspect(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let verbose = query.bool("verbose")?;
    let scope = query.get("scope");
    let bridge =
        gateway_bridge(&api).filter(|n| n.name == term || (!term.is_empty() && n.id.starts_with(&term)));
    if let Some(bridge) = bridge.filter(|_| scope != "swarm") {
        return ok(&bridge);
    }
    if scope == "local" {
        return Err(not_found(&term));
    }
    let Ok(control) = api.control() else {
        let assigned = api.node.assigned_networks();
        return ok(&network(find_assigned(&assigned, &term).ok_or_else(|| not_found(&term))?));
    };
    let found = control.network(&term).await.map_err(|error| unless_predefined(&term, error))?;
    let (state, local) = (control.state(), api.node.local().node);
    let mut shown = network(&found);
    shown.containers =
        local.map(|node| containers(&state, &found, node)).filter(|c| !c.is_empty() || found.spec.ingress);
    shown.peers = peers(&state, &found);
    if verbose {
        shown.services = services(&state, &found);
    }
    ok(&shown)
}

/// By name; else by the beginning of the id, where that says which.
pub(super) fn find_assigned<'a>(assigned: &'a [Network], term: &str) -> Option<&'a Network> {
    let mut by_id = assigned.iter().filter(|n| !term.is_empty() && n.id.to_string().starts_with(term));
    let by_name = assigned.iter().find(|n| n.spec.name == term);
    by_name.or_else(|| by_id.next().filter(|_| by_id.next().is_none()))
}

/// Docker has networks for tasks in the node's own namespace and for tasks in none; who asks for one hears that it is not
/// here, and not that it was misspelt.
pub(super) fn unless_predefined(term: &str, error: ControlError) -> ApiError {
    match error {
        ControlError::NotFound { kind: Kind::Network, .. } if ["host", "none"].contains(&term) => {
            ApiError::unsupported(format!("the predefined network {term}"))
        }
        error => error.into(),
    }
}

fn not_found(term: &str) -> ApiError {
    ApiError::not_found(format!("{} {term} not found", Kind::Network))
}

/// Tasks in the network that run, with their places there.
fn running<'a>(
    state: &'a Cluster,
    network: &Network,
) -> impl Iterator<Item = (&'a Task, &'a NetworkAttachment)> {
    let id = network.id;
    let tasks = state.tasks().iter().filter(|task| task.status.state == TaskState::Running);
    tasks.filter_map(move |task| {
        let attachment = task.attachments.iter().find(|attachment| attachment.network == id)?;
        Some((&**task, attachment))
    })
}

/// The tasks of `node` in the network, by container id.
fn containers(
    state: &Cluster,
    network: &Network,
    node: NodeId,
) -> BTreeMap<String, api_network::EndpointResource> {
    let of_node = running(state, network).filter(|(task, _)| task.node == Some(node));
    let shown = of_node.filter_map(|(task, attachment)| {
        let container = task.status.container.as_ref()?;
        let mac = match attachment.address.ip() {
            IpAddr::V4(ip) => Mac::of_endpoint(ip).to_string(),
            IpAddr::V6(_) => String::new(),
        };
        let endpoint = api_network::EndpointResource {
            name: task_name(task),
            endpoint_id: task.id.to_string(),
            mac_address: mac,
            ipv4_address: attachment.address.to_string(),
            ipv6_address: network.address6(attachment).map(|a| a.to_string()).unwrap_or_default(),
        };
        Some((container.container_id.clone(), endpoint))
    });
    shown.collect()
}

/// The nodes with tasks in the network; for the routing mesh, all.
fn peers(state: &Cluster, network: &Network) -> Vec<api_network::PeerInfo> {
    let with_tasks: std::collections::BTreeSet<_> =
        running(state, network).filter_map(|(task, _)| task.node).collect();
    let nodes = state.nodes().iter().filter(|node| network.spec.ingress || with_tasks.contains(&node.id));
    let shown = nodes.filter_map(|node| {
        let id = node.id.to_string();
        Some(api_network::PeerInfo {
            name: format!("{}-{}", node.description.hostname, &id[..12]),
            ip: node.description.data_path_addr?.to_string(),
        })
    });
    shown.collect()
}

/// The services in the network, by name.
fn services(state: &Cluster, network: &Network) -> BTreeMap<String, api_network::ServiceInfo> {
    let users =
        state.services().iter().filter(|s| s.spec.task.networks.iter().any(|a| a.target == network.id));
    let shown = users.map(|service| {
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.vips);
        let vip = vips.into_iter().find(|(id, _)| *id == network.id);
        let tasks = running(state, network).filter(|(task, _)| task.service == service.id);
        let info = api_network::ServiceInfo {
            vip: vip.map(|(_, addr)| addr.to_string()).unwrap_or_default(),
            ports: Vec::new(),
            local_lb_index: 0,
            tasks: tasks.map(|(task, place)| service_task(state, task, place.address.ip())).collect(),
        };
        (service.spec.name.clone(), info)
    });
    shown.collect()
}

fn service_task(state: &Cluster, task: &Task, ip: IpAddr) -> api_network::ServiceTask {
    let node = task.node.and_then(|id| state.nodes().get(&id));
    let host = node.and_then(|node| node.description.data_path_addr);
    api_network::ServiceTask {
        name: task_name(task),
        endpoint_id: task.id.to_string(),
        endpoint_ip: ip.to_string(),
        info: host.map(|host| ("Host IP".to_owned(), host.to_string())).into_iter().collect(),
    }
}

pub async fn create(State(api): State<Api>, Json(given): Json<api_network::CreateRequest>) -> Reply {
    if PREDEFINED.contains(&given.name.as_str()) || given.name == GATEWAY_BRIDGE {
        let message = format!("{} is a pre-defined network and cannot be created", given.name);
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let spec = network_spec(given)?;
    let id = api.control()?.create_network(spec).await?;
    json(StatusCode::CREATED, &api_network::CreateReply { id: id.to_string(), warning: String::new() })
}

/// `docker network connect`. Containers stay where they are; what Docker would refuse is refused in its words.
pub async fn connect(State(api): State<Api>, Path(term): Path<String>, method: Method, uri: Uri) -> ApiError {
    refuse_to_attach(&api, &term).await.unwrap_or_else(|| unsupported(&method, &uri))
}

/// swarmkit's resource allocator, as moby `daemon/container_operations.go` passes its word on.
pub(super) async fn refuse_to_attach(api: &Api, term: &str) -> Option<ApiError> {
    let found = match api.control() {
        Ok(control) => control.network(term).await.ok()?,
        Err(_) => Arc::new(find_assigned(&api.node.assigned_networks(), term)?.clone()),
    };
    if found.spec.attachable {
        return None;
    }
    let message = format!(
        "Could not attach to network {term}: rpc error: code = PermissionDenied desc = network {} not manually attachable",
        found.spec.name
    );
    Some(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
}

pub async fn remove(State(api): State<Api>, Path(term): Path<String>) -> Reply {
    if gateway_bridge(&api).is_some_and(|n| n.name == term || n.id == term) {
        let message = format!("{GATEWAY_BRIDGE} is a pre-defined network and cannot be removed");
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    api.control()?.remove_network(&term).await?;
    Ok(axum::response::IntoResponse::into_response(StatusCode::NO_CONTENT))
}
