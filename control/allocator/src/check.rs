//! What the API asks before it accepts a spec, so that a bad one gets its error at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use control_model::ServiceId;
use control_model::families::cluster_prefix;
use control_model::object::{Cluster, Network, Service};
use control_model::spec::{IpamConfig, NetworkSpec, PortConfig, Protocol, PublishMode};
use control_model::validate::{SpecError, check_host_numbers};
use control_store::State;
use ipnetwork::IpNetwork;

use crate::subnet::overlap;

/// Docker's words for a subnet that another network has.
const POOL_OVERLAPS: &str = "invalid pool request: Pool overlaps with other one on this address space";

/// Whether a network may have the subnets that `spec` asks for: no address of them in another network, and not of the
/// prefix that the cluster gives parts of to networks that ask for none.
pub fn check_subnets(state: &State, spec: &NetworkSpec) -> Result<(), String> {
    let own = state.cluster().map(|cluster| IpNetwork::V6(cluster_prefix(cluster.id)));
    for IpamConfig { subnet, .. } in &spec.ipam {
        if state.networks().iter().any(|network| subnets(network).any(|other| overlap(other, *subnet))) {
            return Err(POOL_OVERLAPS.into());
        }
        if let Some(own) = own.filter(|own| overlap(*own, *subnet)) {
            return Err(format!(
                "subnet {subnet} overlaps with {own}, from which the cluster gives networks their IPv6 subnets"
            ));
        }
    }
    Ok(())
}

/// Whether the IPv6 subnet that `spec` asks for fits beside the IPv4 subnet that the network will get from the pool.
pub fn check_beside_pool(state: &State, spec: &NetworkSpec) -> Result<(), SpecError> {
    if spec.ipam.iter().any(|ipam| ipam.subnet.is_ipv4()) {
        return Ok(());
    }
    let size = |cluster: &Arc<Cluster>| {
        let pool = cluster.default_address_pool.first()?;
        IpNetwork::new(pool.network(), cluster.subnet_size).ok()
    };
    let Some(subnet) = state.cluster().and_then(size) else { return Ok(()) };
    let chosen = IpamConfig { subnet, range: None, gateway: None };
    spec.ipam.iter().try_for_each(|v6| check_host_numbers(&chosen, v6))
}

/// The subnets that a network has, or has asked for.
fn subnets(network: &Network) -> impl Iterator<Item = IpNetwork> {
    let ipam = network.state.as_ref().map_or(&network.spec.ipam, |state| &state.ipam);
    ipam.iter().map(|ipam| ipam.subnet)
}

/// Whether `ports` can be published beside what other services publish and what the nodes themselves need. `service` is the
/// one being updated.
///
/// Host-mode ports of several services may be equal: the scheduler keeps their tasks apart.
pub fn check_ports(state: &State, ports: &[PortConfig], service: Option<ServiceId>) -> Result<(), String> {
    if ports.iter().all(|port| port.published == 0) {
        return Ok(());
    }
    let own = own_ports(state);
    for port in ports {
        if own.contains(&(port.protocol, port.published)) {
            let holder = match port.protocol {
                _ if gossip_ports(state).any(|number| number == port.published) => {
                    "gossip, see --gossip-port"
                }
                Protocol::Udp => "data path, see --data-path-port",
                _ => "managers, which the nodes reach there",
            };
            return Err(format!("port '{}' is already in use by the swarm's {holder}", port.published));
        }
    }
    let others = state.services().iter().filter(|other| Some(other.id) != service && !other.pending_delete);
    for other in others {
        let allocated = other.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        for taken in other.spec.endpoint.ports.iter().chain(allocated) {
            check_port(ports, taken, other)?;
        }
    }
    Ok(())
}

/// A published port takes what comes for any node: with one of these no manager would be reached any more, no tunnel's
/// end, or no node's gossip.
pub(crate) fn own_ports(state: &State) -> BTreeSet<(Protocol, u16)> {
    let managers = state.nodes().iter().filter_map(|node| node.manager);
    let tunnels = state.cluster().map(|cluster| (Protocol::Udp, cluster.data_path_port));
    let gossip = gossip_ports(state).flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]);
    managers.map(|manager| (Protocol::Tcp, manager.addr.port())).chain(tunnels).chain(gossip).collect()
}

/// Those on which nodes listen for gossip.
fn gossip_ports(state: &State) -> impl Iterator<Item = u16> {
    state.nodes().iter().filter_map(|node| node.description.gossip_addr).map(|addr| addr.port())
}

fn check_port(ports: &[PortConfig], taken: &PortConfig, holder: &Service) -> Result<(), String> {
    let conflicts = ports.iter().any(|port| {
        port.published != 0
            && (port.protocol, port.published) == (taken.protocol, taken.published)
            && (port.mode == PublishMode::Ingress || taken.mode == PublishMode::Ingress)
    });
    if !conflicts {
        return Ok(());
    }
    let kind = match taken.mode {
        PublishMode::Ingress => "an ingress port",
        PublishMode::Host => "a host-published port",
    };
    let (port, name, id) = (taken.published, &holder.spec.name, holder.id);
    Err(format!("port '{port}' is already in use by service '{name}' ({id}) as {kind}"))
}
