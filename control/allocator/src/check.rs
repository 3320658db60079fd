//! What the API asks before it accepts a spec, so that a bad one gets its error at once.

use control_model::ServiceId;
use control_model::object::{Network, Service};
use control_model::spec::{PortConfig, PublishMode};
use control_store::State;
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::subnet::overlap;

/// Docker's words for a subnet that another network has.
const POOL_OVERLAPS: &str = "invalid pool request: Pool overlaps with other one on this address space";

/// Whether a network may have `subnet`: IPv4, and no address of it in another network.
pub fn check_subnet(state: &State, subnet: IpNetwork) -> Result<(), String> {
    let IpNetwork::V4(subnet) = subnet else {
        return Err(format!("invalid subnet {subnet}: overlay networks carry IPv4 only"));
    };
    if state.networks().iter().any(|network| subnets(network).any(|other| overlap(other, subnet))) {
        return Err(POOL_OVERLAPS.into());
    }
    Ok(())
}

/// The subnets that a network has, or has asked for.
pub(crate) fn subnets(network: &Network) -> impl Iterator<Item = Ipv4Network> {
    let ipam = network.state.as_ref().map_or(&network.spec.ipam, |state| &state.ipam);
    ipam.iter().filter_map(|ipam| match ipam.subnet {
        IpNetwork::V4(subnet) => Some(subnet),
        IpNetwork::V6(_) => None,
    })
}

/// Whether `ports` can be published beside what other services publish. `service` is the one being updated.
///
/// Host-mode ports of several services may be equal: the scheduler keeps their tasks apart.
pub fn check_ports(state: &State, ports: &[PortConfig], service: Option<ServiceId>) -> Result<(), String> {
    if ports.iter().all(|port| port.published == 0) {
        return Ok(());
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
