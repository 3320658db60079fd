//! One veth pair: making it, addresses and routes inside, the bridge outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use dataplane_model::kernel_state::{Leg, Leg6, LinkName};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, State};
use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::packet_route::route::RouteHeader;
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::net::NetError;
use crate::net::devices::{given_ipv6_only, no_ipv6};
use crate::net::namespace::Namespace;
use crate::net::netlink::{Ipv6Mode, Link, Netlink, Route, SourceRule};
use crate::net::routes::PROTOCOL;

/// Priority of the source rules: before the main table's (32766), after the local one's (0).
const RULE_PRIORITY: u32 = 1000;

/// Metric of a default route that any other one goes before.
const LAST_RESORT_METRIC: u32 = 1 << 16;

/// How long the kernel may take to notice a carrier, and how often we ask. From Linux 6.9 on, asking makes it notice.
const CARRIER_WITHIN: Duration = Duration::from_secs(5);
const CARRIER_POLL: Duration = Duration::from_millis(2);

/// Makes the leg, or makes it what it should be.
pub(super) async fn put(
    node: &Netlink,
    namespace: &Namespace,
    inside: &Netlink,
    leg: &Leg,
) -> Result<(), NetError> {
    if !is_paired(node, inside, leg).await? {
        remove_ends(node, inside, leg).await?;
        make_pair(node, namespace, leg).await?;
    }
    set_outside(node, leg).await?;
    set_inside(namespace, inside, leg).await?;
    carries(inside, &leg.name).await?;
    carries(node, &leg.host).await?;
    match &leg.bridge {
        Some(bridge) => carries(node, bridge).await,
        None => Ok(()),
    }
}

/// Waits until the interface sends. The kernel notices a carrier some time after the pair is up, and drops packets
/// until then: a task that began before would wait a second for its first ARP request to be sent again.
async fn carries(netlink: &Netlink, name: &LinkName) -> Result<(), NetError> {
    let noticed = async {
        while existing(netlink, name).await?.state != Some(State::Up) {
            tokio::time::sleep(CARRIER_POLL).await;
        }
        Ok(())
    };
    let in_time = tokio::time::timeout(CARRIER_WITHIN, noticed).await;
    in_time.unwrap_or_else(|_| Err(NetError::NoCarrier { name: name.clone() }))
}

/// Both ends are there and belong together.
pub(super) fn are_paired(host: &Link, end: &Link) -> bool {
    host.is_veth() && end.is_veth() && host.peer == Some(end.index) && end.peer == Some(host.index)
}

async fn is_paired(node: &Netlink, inside: &Netlink, leg: &Leg) -> Result<bool, NetError> {
    let host = node.link(leg.host.as_str()).await?;
    let end = inside.link(leg.name.as_str()).await?;
    Ok(matches!((host, end), (Some(host), Some(end)) if are_paired(&host, &end)))
}

async fn remove_ends(node: &Netlink, inside: &Netlink, leg: &Leg) -> Result<(), NetError> {
    for (netlink, name) in [(node, &leg.host), (inside, &leg.name)] {
        if let Some(link) = netlink.link(name.as_str()).await? {
            netlink.delete_link(link.index).await?;
        }
    }
    Ok(())
}

/// The far end is made inside the sandbox at once: it never has a name that another one could have.
async fn make_pair(node: &Netlink, namespace: &Namespace, leg: &Leg) -> Result<(), NetError> {
    let end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(leg.name.as_str())
        .address(leg.mac.0.to_vec())
        .mtu(leg.mtu_bytes)
        .setns_by_fd(namespace.as_fd().as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(leg.host.as_str())
        .mtu(leg.mtu_bytes)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(end)))
        .build();
    let added = node.handle.link().add(pair).execute().await;
    added.map_err(NetError::netlink(format!("make the veth pair {} to {}", leg.host, leg.name)))
}

async fn set_outside(node: &Netlink, leg: &Leg) -> Result<(), NetError> {
    no_ipv6(leg.host.as_str())?;
    let host = existing(node, &leg.host).await?;
    let mut settings = LinkUnspec::new_with_index(host.index).mtu(leg.mtu_bytes).up();
    let Some(bridge) = &leg.bridge else {
        return node.set_link(&format!("set up {}", leg.host), settings.build()).await;
    };
    let bridge = existing(node, bridge).await?;
    settings = settings.controller(bridge.index);
    node.set_link(&format!("make {} a port of its bridge", leg.host), settings.build()).await?;
    // Tasks meet in their networks, not on the way out.
    let isolated = LinkBridgePort::new(host.index).isolated(true).build();
    let set = node.handle.link().set_port(isolated).execute().await;
    set.map_err(NetError::netlink(format!("isolate {}", leg.host)))
}

async fn set_inside(namespace: &Namespace, inside: &Netlink, leg: &Leg) -> Result<(), NetError> {
    let end = existing(inside, &leg.name).await?;
    match leg.ipv6 {
        Some(_) => namespace.run(|| given_ipv6_only(leg.name.as_str()))?,
        None if end.ipv6 == Ipv6Mode::Off => {}
        None => namespace.run(|| no_ipv6(leg.name.as_str()))?,
    }
    let settings = LinkUnspec::new_with_index(end.index).mtu(leg.mtu_bytes).address(leg.mac.0.to_vec()).up();
    inside.set_link(&format!("set up {}", leg.name), settings.build()).await?;
    for side in sides(leg) {
        inside.set_only_addresses(end.index, &[side.address]).await?;
        for route in routes(&side, leg, end.index) {
            inside.put_route(route).await?;
        }
        if !side.default_route {
            delete_main_default(inside, end.index, side.address).await?;
        }
    }
    let rules = inside.source_rules().await?;
    for source in sources(leg).filter(|source| !rules.iter().any(|rule| is_rule_of(rule, *source, leg))) {
        inside.add_source_rule(source, leg.table, RULE_PRIORITY).await?;
    }
    Ok(())
}

/// The addresses that a leg's packets come from.
pub(super) fn sources(leg: &Leg) -> impl Iterator<Item = IpAddr> {
    sides(leg).map(|side| side.address.ip())
}

pub(super) fn is_rule_of(rule: &SourceRule, source: IpAddr, leg: &Leg) -> bool {
    rule.source.ip() == source && rule.table == leg.table
}

/// A leg in one family.
struct Side {
    address: IpNetwork,
    gateway: IpAddr,
    default_route: bool,
}

fn sides(leg: &Leg) -> impl Iterator<Item = Side> {
    let Leg { address, gateway, default_route, .. } = *leg;
    let ipv4 = Side { address: address.into(), gateway: gateway.into(), default_route };
    let ipv6 = leg.ipv6.map(|Leg6 { address, gateway, default_route }| Side {
        address: address.into(),
        gateway: gateway.into(),
        default_route,
    });
    [ipv4].into_iter().chain(ipv6)
}

async fn existing(netlink: &Netlink, name: &LinkName) -> Result<Link, NetError> {
    netlink.link(name.as_str()).await?.ok_or_else(|| NetError::NoLink { name: name.clone() })
}

/// In the leg's own table the subnet and the gateway, so that answers leave by the leg on which the question came; in
/// the main table the gateway, if this is the way to everywhere.
fn routes(side: &Side, leg: &Leg, index: u32) -> Vec<RouteMessage> {
    let base = |table: u32, destination: IpNetwork| {
        RouteMessageBuilder::<IpAddr>::new()
            .output_interface(index)
            .table_id(table)
            .protocol(PROTOCOL)
            .destination_prefix(destination.network(), destination.prefix())
            .and_then(|route| route.pref_source(side.address.ip()))
    };
    let everywhere: IpNetwork = match side.address {
        IpNetwork::V4(_) => Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("a short prefix").into(),
        IpNetwork::V6(_) => Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).expect("a short prefix").into(),
    };
    let subnet = base(leg.table, side.address).map(|route| route.scope(RouteScope::Link));
    let default = |table| base(table, everywhere).and_then(|route| route.gateway(side.gateway));
    let mut routes = vec![subnet, default(leg.table)];
    if side.default_route {
        let main = default(u32::from(RouteHeader::RT_TABLE_MAIN));
        routes.push(main.map(|route| route.priority(metric(side, leg))));
    }
    let built = routes.into_iter().map(|route| route.expect("all of one family").build());
    built.collect()
}

/// The kernel's own for the way out. Of IPv6, the leg of a network is the way to everywhere only for want of a better one.
fn metric(side: &Side, leg: &Leg) -> u32 {
    if side.address.is_ipv4() || leg.bridge.is_some() { 0 } else { LAST_RESORT_METRIC }
}

async fn delete_main_default(inside: &Netlink, index: u32, of: IpNetwork) -> Result<(), NetError> {
    let is_stale = |route: &Route| {
        route.is_main()
            && route.is_default()
            && route.destination.is_ipv4() == of.is_ipv4()
            && route.device == Some(index)
            && route.protocol == PROTOCOL
    };
    for route in inside.routes().await?.into_iter().filter(is_stale) {
        inside.delete_route(route.message).await?;
    }
    Ok(())
}
