//! Routes of the node itself, known as ours by their protocol number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_model::KernelState;
use dataplane_model::kernel_state::{LinkName, NodeRoute};
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::RouteMessageBuilder;

use super::NetError;
use super::netlink::{Link, Netlink, Route};

/// Protocol number of our routes (`rtm_protocol`): above what `rt_protos` gives names to. `m` in ASCII.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x6d);

pub(super) async fn observe(node: &Netlink, links: &[Link], state: &mut KernelState) -> Result<(), NetError> {
    for route in node.routes().await?.iter().filter(|route| is_ours(route)) {
        let device = links.iter().find(|link| Some(link.index) == route.device);
        let Some(device) = device.and_then(|link| LinkName::new(&link.name)) else { continue };
        let unknown: IpAddr = match route.destination {
            IpNetwork::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpNetwork::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let source = route.source.unwrap_or(unknown);
        state.routes.insert(route.destination, NodeRoute { device, source });
    }
    Ok(())
}

fn is_ours(route: &Route) -> bool {
    route.is_main() && route.protocol == PROTOCOL
}

/// Leaves alone whoever leads there already, be it with another metric.
pub(super) async fn put(node: &Netlink, subnet: IpNetwork, route: &NodeRoute) -> Result<(), NetError> {
    let device = node.link(route.device.as_str()).await?;
    let device = device.ok_or_else(|| NetError::NoLink { name: route.device.clone() })?;
    let is_foreign = |other: &Route| other.is_main() && !is_ours(other) && other.destination == subnet;
    if node.routes().await?.iter().any(is_foreign) {
        return Err(NetError::ForeignRoute { subnet });
    }
    let base = RouteMessageBuilder::<IpAddr>::new().output_interface(device.index).protocol(PROTOCOL);
    let message = base
        .destination_prefix(subnet.network(), subnet.prefix())
        .and_then(|message| message.pref_source(route.source))
        .expect("the source is of the subnet's family");
    node.put_route(message.scope(RouteScope::Link).build()).await
}

pub(super) async fn delete(node: &Netlink, subnet: IpNetwork) -> Result<(), NetError> {
    let routes = node.routes().await?;
    for route in routes.into_iter().filter(|route| is_ours(route) && route.destination == subnet) {
        node.delete_route(route.message).await?;
    }
    Ok(())
}
