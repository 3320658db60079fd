//! Reading sandboxes back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use dataplane_model::kernel_state::{Device, Leg, Leg6, LinkName, SandboxNet};
use dataplane_model::{KernelState, Mac, SandboxId};
use ipnetwork::IpNetwork;

use super::leg::are_paired;
use crate::net::NetError;
use crate::net::namespace::Namespace;
use crate::net::netlink::{Address, Ipv6Mode, Link, Netlink, Route, SourceRule};

/// Records the sandboxes of `netns_dir`, and host ends that lead into none of them.
pub(in crate::net) async fn observe(
    netns_dir: &Path,
    node_links: &[Link],
    state: &mut KernelState,
) -> Result<(), NetError> {
    let mut led_to = BTreeSet::new();
    for id in ids(netns_dir)? {
        let path = netns_dir.join(&id.0);
        // Not mounted: an empty sandbox, which is made anew or removed.
        let net = match Namespace::open(&path)? {
            Some(namespace) => {
                let inside = read(&namespace).await?;
                led_to.extend(inside.host_ends(node_links));
                SandboxNet { legs: inside.legs(node_links) }
            }
            None => SandboxNet { legs: Vec::new() },
        };
        state.sandboxes.insert(id, net);
    }
    let host_ends =
        node_links.iter().filter(|link| link.is_veth()).filter_map(|link| LinkName::new(&link.name));
    let stray: Vec<LinkName> =
        host_ends.filter(|name| name.is_host_end() && !led_to.contains(name)).collect();
    state.devices.extend(stray.into_iter().map(|name| (name, Device::Stray)));
    Ok(())
}

/// The sandboxes that there are files for.
pub(in crate::net) fn ids(netns_dir: &Path) -> Result<Vec<SandboxId>, NetError> {
    let entries = match fs::read_dir(netns_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(NetError::file("list", netns_dir, error)),
    };
    let id = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map_err(|error| NetError::file("list", netns_dir, error))?.file_name();
        Ok(name.into_string().ok().map(SandboxId))
    };
    entries.map(id).filter_map(Result::transpose).collect()
}

async fn read(namespace: &Namespace) -> Result<Inside, NetError> {
    let netlink = Netlink::inside(namespace)?;
    let inside = Inside::read(&netlink).await;
    netlink.close().await;
    inside
}

/// All that is in a sandbox.
struct Inside {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    rules: Vec<SourceRule>,
}

impl Inside {
    async fn read(netlink: &Netlink) -> Result<Self, NetError> {
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
            rules: netlink.source_rules().await?,
        })
    }

    /// Host ends of all its pairs, complete or not.
    fn host_ends(&self, node_links: &[Link]) -> Vec<LinkName> {
        let is_ours = |host: &&Link| self.links.iter().any(|end| are_paired(host, end));
        node_links.iter().filter(is_ours).filter_map(|host| LinkName::new(&host.name)).collect()
    }

    /// The legs that are complete, by name; a leg that lacks anything is left out, so that it is put right.
    fn legs(&self, node_links: &[Link]) -> Vec<Leg> {
        if !self.links.iter().any(|link| link.name == "lo" && link.is_up) {
            return Vec::new();
        }
        let mut ends: Vec<&Link> = self.links.iter().filter(|link| link.is_veth()).collect();
        ends.sort_by_key(|link| (link.name.len(), link.name.clone()));
        ends.into_iter().filter_map(|end| self.leg(end, node_links)).collect()
    }

    fn leg(&self, end: &Link, node_links: &[Link]) -> Option<Leg> {
        let host = node_links.iter().find(|host| are_paired(host, end))?;
        let bridge = host.controller.and_then(|index| node_links.iter().find(|link| link.index == index));
        let sound = end.is_up
            && host.is_up
            && host.mtu_bytes == end.mtu_bytes
            && host.is_isolated == bridge.is_some();
        let IpNetwork::V4(address) = self.addresses_of(end, false).next().filter(|_| sound)? else {
            return None;
        };
        let table = self.rule_of(address.ip().into())?.table;
        let side = self.side(end, address.into(), table)?;
        let IpAddr::V4(gateway) = side.gateway else { return None };
        Some(Leg {
            name: LinkName::new(&end.name)?,
            host: LinkName::new(&host.name)?,
            bridge: bridge.and_then(|link| LinkName::new(&link.name)),
            address,
            mac: Mac(end.mac.as_slice().try_into().ok()?),
            mtu_bytes: end.mtu_bytes,
            gateway,
            table,
            default_route: side.default_route,
            ipv6: self.leg6(end, table)?,
        })
    }

    /// The IPv6 side: `Some(None)` if it has none, `None` if it is neither whole nor absent.
    #[expect(clippy::option_option, reason = "a side that is damaged is not one that is absent")]
    fn leg6(&self, end: &Link, table: u32) -> Option<Option<Leg6>> {
        let has_rule = self.rules.iter().any(|rule| rule.source.is_ipv6() && rule.table == table);
        match end.ipv6 {
            Ipv6Mode::Off => return (!has_rule).then_some(None),
            Ipv6Mode::Given => {}
            Ipv6Mode::Other => return None,
        }
        let mut own = self.addresses_of(end, true);
        let (Some(IpNetwork::V6(address)), None) = (own.next(), own.next()) else { return None };
        self.rule_of(address.ip().into()).filter(|rule| rule.table == table)?;
        let side = self.side(end, address.into(), table)?;
        let IpAddr::V6(gateway) = side.gateway else { return None };
        Some(Some(Leg6 { address, gateway, default_route: side.default_route }))
    }

    fn addresses_of(&self, end: &Link, of_ipv6: bool) -> impl Iterator<Item = IpNetwork> {
        let own = self.addresses.iter().filter(|address| address.device == end.index);
        own.map(|address| address.network).filter(move |address| address.is_ipv6() == of_ipv6)
    }

    fn rule_of(&self, source: IpAddr) -> Option<&SourceRule> {
        self.rules.iter().find(|rule| rule.source.ip() == source)
    }

    /// The routes of a leg in the family of `address`, if they are all there.
    fn side(&self, end: &Link, address: IpNetwork, table: u32) -> Option<Side> {
        let family = |route: &&Route| route.destination.is_ipv4() == address.is_ipv4();
        let own = || self.routes.iter().filter(|route| route.device == Some(end.index)).filter(family);
        let in_table = || own().filter(|route| route.table == table);
        in_table().find(|route| {
            (route.destination.ip(), route.destination.prefix()) == (address.network(), address.prefix())
        })?;
        let gateway = in_table().find(|route| route.is_default())?.gateway?;
        let leads_out =
            |route: &Route| route.is_main() && route.is_default() && route.gateway == Some(gateway);
        Some(Side { gateway, default_route: own().any(leads_out) })
    }
}

/// Where a leg leads to in one family.
struct Side {
    gateway: IpAddr,
    default_route: bool,
}
