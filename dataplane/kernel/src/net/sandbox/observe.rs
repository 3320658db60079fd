//! Reading sandboxes back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use dataplane_model::kernel_state::{Device, Leg, LinkName, SandboxNet};
use dataplane_model::{KernelState, Mac, SandboxId};
use ipnetwork::Ipv4Network;

use super::leg::are_paired;
use crate::net::NetError;
use crate::net::namespace::Namespace;
use crate::net::netlink::{Link, Netlink, Route, SourceRule};

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

fn ids(netns_dir: &Path) -> Result<Vec<SandboxId>, NetError> {
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
    addresses: Vec<(u32, Ipv4Network)>,
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
        let mut addresses =
            self.addresses.iter().filter(|(index, _)| *index == end.index).map(|(_, address)| *address);
        let address = addresses.next().filter(|_| sound)?;
        let table = self.rules.iter().find(|rule| rule.source.ip() == address.ip())?.table;
        let by_here = |route: &&Route| route.device == Some(end.index);
        let mut own = self.routes.iter().filter(by_here);
        let in_table = |route: &&Route| route.table == table;
        self.routes.iter().filter(by_here).filter(in_table).find(|route| {
            route.destination == Ipv4Network::new(address.network(), address.prefix()).unwrap_or(address)
        })?;
        let gateway = own.clone().filter(in_table).find(|route| route.is_default())?.gateway?;
        Some(Leg {
            name: LinkName::new(&end.name)?,
            host: LinkName::new(&host.name)?,
            bridge: bridge.and_then(|link| LinkName::new(&link.name)),
            address,
            mac: Mac(end.mac.as_slice().try_into().ok()?),
            mtu_bytes: end.mtu_bytes,
            gateway,
            table,
            default_route: own.any(|route| route.is_main() && is_default_by(route, gateway)),
        })
    }
}

fn is_default_by(route: &Route, gateway: Ipv4Addr) -> bool {
    route.is_default() && route.gateway == Some(gateway)
}
