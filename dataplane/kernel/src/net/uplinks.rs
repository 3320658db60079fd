//! Which interfaces lead to other machines, and what they can do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use dataplane_model::kernel_state::LinkName;
use dataplane_plan::{Forwarding6, Uplink};
use ipnetwork::IpNetwork;

use super::netlink::{Address, Link, Netlink, Route};
use super::{NetError, forwarding, routes, sysctl};

/// Drivers that run XDP programs on received packets before they make a socket buffer, by their names in Linux 6.1.
const NATIVE_XDP_DRIVERS: [&str; 22] = [
    "atlantic",
    "bnxt_en",
    "cpsw",
    "ena",
    "fsl_dpaa2_eth",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "thunder-nic",
    "virtio_net",
];

/// What the plan must know of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Machine {
    pub uplinks: BTreeMap<LinkName, Uplink>,
    /// Networks that interfaces which are not meshd's are in.
    pub connected: BTreeSet<IpNetwork>,
    pub host_forwards: bool,
    pub forwarding6: Forwarding6,
    pub has_way_out6: bool,
    pub has_tcx: bool,
    pub has_ipv6: bool,
    /// The kernel can end sockets of others.
    pub has_socket_reset: bool,
}

/// How uplinks are known: by name, or, where none is named, by an address or an index.
pub(super) struct Chosen<'a> {
    pub named: &'a [LinkName],
    pub vtep: IpAddr,
    pub index: Option<u32>,
}

pub(super) async fn machine(
    node: &Netlink,
    chosen: &Chosen<'_>,
    has_socket_reset: bool,
) -> Result<Machine, NetError> {
    let links = node.links().await?;
    let addresses = node.addresses().await?;
    let mut uplinks = BTreeMap::new();
    for link in &links {
        let Some(name) = LinkName::new(&link.name) else { continue };
        let own: Vec<&Address> = addresses.iter().filter(|address| address.device == link.index).collect();
        let is_end = own.iter().any(|address| address.network.ip() == chosen.vtep);
        let is_known = is_end || chosen.index == Some(link.index);
        if chosen.named.contains(&name) || (chosen.named.is_empty() && is_known) {
            uplinks.insert(name, uplink(link, &own));
        }
    }
    let connected = connected(&links, &addresses);
    let (host_forwards, forwarding6) = (forwarding::host_forwards()?, forwarding::forwarding6()?);
    let has_ipv6 = sysctl::read("ipv6/conf/default/disable_ipv6")?.is_some();
    let has_way_out6 = node.routes6().await?.iter().any(|route| is_way_out6(route, &links));
    Ok(Machine {
        uplinks,
        connected,
        host_forwards,
        forwarding6,
        has_way_out6,
        has_tcx: has_tcx(),
        has_ipv6,
        has_socket_reset,
    })
}

/// Leads by IPv6 to machines beyond this one, and is not ours.
fn is_way_out6(route: &Route, links: &[Link]) -> bool {
    let IpNetwork::V6(destination) = route.destination else { return false };
    let may_lead_out = |link: &Link| link.is_up && link.name != "lo" && !is_ours(&link.name);
    // A route over several interfaces names none.
    let leads_out =
        route.device.is_none_or(|index| links.iter().any(|link| link.index == index && may_lead_out(link)));
    let is_far = destination.prefix() == 0 || is_known_by_others(destination.network());
    route.is_main() && route.is_unicast() && leads_out && is_far && route.protocol != routes::PROTOCOL
}

fn is_ours(link: &str) -> bool {
    let name = LinkName::new(link);
    name.is_some_and(|name| {
        name.is_host_end() || name == LinkName::gateway_bridge() || name == LinkName::vxlan()
    })
}

fn connected(links: &[Link], addresses: &[Address]) -> BTreeSet<IpNetwork> {
    let is_ours = |link: &Link| [LinkName::VXLAN, LinkName::GATEWAY_BRIDGE].contains(&link.name.as_str());
    let ours: BTreeSet<u32> = links.iter().filter(|link| is_ours(link)).map(|link| link.index).collect();
    let networks = addresses.iter().filter(|address| !ours.contains(&address.device));
    let known = networks.map(|address| address.network).filter(|network| match network.ip() {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => is_known_by_others(ip),
    });
    known.map(|own| IpNetwork::new(own.network(), own.prefix()).expect("of a network")).collect()
}

fn uplink(link: &Link, own: &[&Address]) -> Uplink {
    let (mut addresses, mut addresses6) = (Vec::new(), Vec::new());
    for address in own {
        match address.network.ip() {
            IpAddr::V4(address) => addresses.push(address),
            IpAddr::V6(ip) if is_known_by_others(ip) && address.is_lasting => addresses6.push(ip),
            IpAddr::V6(_) => {}
        }
    }
    let kind = link.kind.as_ref().map(ToString::to_string);
    // `/sys` may be of another namespace; the NICs are in the one that it is of.
    let driver = if kind.is_none() { driver(&link.name) } else { None };
    let has_native_xdp = driver.as_deref().is_some_and(|driver| NATIVE_XDP_DRIVERS.contains(&driver));
    let (index, mtu_bytes) = (link.index, link.mtu_bytes);
    Uplink { index, mtu_bytes, addresses, addresses6, kind, driver, has_native_xdp }
}

/// Others may send to it: it is global or unique-local (RFC 4291 section 2.4, RFC 4193).
fn is_known_by_others(ip: Ipv6Addr) -> bool {
    !ip.is_unicast_link_local() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()
}

fn driver(link: &str) -> Option<String> {
    let target = fs::read_link(Path::new("/sys/class/net").join(link).join("device/driver")).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// TCX came with Linux 6.6.
fn has_tcx() -> bool {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    release.is_ok_and(|release| is_at_least_6_6(&release))
}

fn is_at_least_6_6(release: &str) -> bool {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 6)
}

#[cfg(test)]
mod tests {
    use super::is_at_least_6_6;

    #[test]
    fn releases() {
        assert!(is_at_least_6_6("6.18.44-fc-v657"));
        assert!(is_at_least_6_6("6.6-rc1"));
        assert!(is_at_least_6_6("7.0.0"));
        assert!(!is_at_least_6_6("6.1.0-40-amd64"));
        assert!(!is_at_least_6_6("5.15.0"));
        assert!(!is_at_least_6_6("what"));
    }
}
