//! [`Zones`]: every name that this node's sandboxes can ask for, as plain ordered tables, made of a [`NodeView`] by
//! [`zones_from_view`]. Pure; the server process gets it whole and swaps it whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use dataplane_model::{NetworkKey, NodeView, Sandbox, SandboxId, Service};
use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

/// How long a client may keep an answer, seconds. Short, because the addresses of tasks come and go; not 0, so that a
/// resolver that caches spares the second of two look-ups for one connection.
pub const DEFAULT_TTL_S: u32 = 5;

/// All names of one node's sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zones {
    /// Of the view that they were made of; comes back in the acknowledgement.
    pub revision: u64,
    /// Seconds.
    pub ttl_s: u32,
    /// One table per network, shared by the sandboxes that are in it.
    pub networks: BTreeMap<NetworkKey, NetworkZone>,
    pub sandboxes: BTreeMap<SandboxId, SandboxZone>,
}

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkZone {
    /// `web.<this>` is `web` in this network alone.
    pub name: String,
    /// Addresses in here are never asked for outside.
    pub subnet: Ipv4Network,
    /// Lower case, without the last dot. A name without addresses exists: it has no address now.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Name of each address, lower case, without the network.
    pub reverse: BTreeMap<Ipv4Addr, String>,
}

/// What one sandbox may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxZone {
    /// Its network namespace.
    pub netns: PathBuf,
    /// In the order in which they are asked.
    pub networks: Vec<NetworkKey>,
    pub forwarding: Forwarding,
}

/// Where names go that no network of the sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarding {
    /// Nowhere: the sandbox has no way out.
    Forbidden,
    /// The node's own resolvers.
    Node,
    /// The task's own resolvers.
    Servers(Vec<IpAddr>),
}

/// The names that `view` gives to its sandboxes, whose namespaces are `<netns_dir>/<sandbox id>`. The ingress network
/// has no names.
pub fn zones_from_view(view: &NodeView, netns_dir: &Path) -> Zones {
    let sandboxes: BTreeMap<SandboxId, SandboxZone> = view
        .sandboxes
        .iter()
        .map(|(id, sandbox)| (id.clone(), sandbox_zone(view, id, sandbox, netns_dir)))
        .collect();
    let used: BTreeSet<NetworkKey> = sandboxes.values().flat_map(|s| s.networks.iter().copied()).collect();
    let networks = used.into_iter().filter_map(|key| Some((key, network_zone(view, key)?))).collect();
    Zones { revision: view.revision, ttl_s: DEFAULT_TTL_S, networks, sandboxes }
}

fn sandbox_zone(view: &NodeView, id: &SandboxId, sandbox: &Sandbox, netns_dir: &Path) -> SandboxZone {
    let networks = sandbox
        .attachments
        .iter()
        .map(|attachment| attachment.network)
        .filter(|key| Some(*key) != view.ingress && view.networks.contains_key(key))
        .collect();
    let forwarding = match (sandbox.egress, sandbox.dns_servers.is_empty()) {
        (false, _) => Forwarding::Forbidden,
        (true, true) => Forwarding::Node,
        (true, false) => Forwarding::Servers(sandbox.dns_servers.clone()),
    };
    SandboxZone { netns: netns_dir.join(&id.0), networks, forwarding }
}

fn network_zone(view: &NodeView, key: NetworkKey) -> Option<NetworkZone> {
    let network = view.networks.get(&key)?;
    let mut services = NameTable::default();
    let mut endpoints = NameTable::default();
    for service in view.services.values() {
        add_service(&mut services, service, key);
        add_backends(&mut endpoints, service, key);
    }
    add_sandboxes(&mut endpoints, view, key);
    add_remote_endpoints(&mut endpoints, view, key);
    Some(merge(network.name.to_ascii_lowercase(), network.subnet, services, endpoints))
}

/// Names and addresses while a zone is being made.
#[derive(Default)]
struct NameTable {
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
}

impl NameTable {
    /// `name` exists, with `addresses` among its own.
    fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        if !name.is_empty() {
            self.names.entry(name.to_ascii_lowercase()).or_default().extend(addresses);
        }
    }

    fn add_reverse(&mut self, address: Ipv4Addr, name: &str) {
        self.reverse.entry(address).or_insert_with(|| name.to_ascii_lowercase());
    }
}

/// The service's name and aliases, plain and under `tasks.`.
fn add_service(table: &mut NameTable, service: &Service, key: NetworkKey) {
    let vip = service.vips.get(&key).copied();
    let aliases = service.aliases.get(&key);
    let backends: Vec<_> = service.backends.iter().filter(|((network, _), _)| *network == key).collect();
    if vip.is_none() && aliases.is_none() && backends.is_empty() {
        return;
    }
    let ready: Vec<Ipv4Addr> =
        backends.iter().filter(|(_, b)| b.ready).map(|((_, address), _)| *address).collect();
    let plain = vip.map_or_else(|| ready.clone(), |vip| vec![vip]);
    for name in std::iter::once(&service.name).chain(aliases.into_iter().flatten()) {
        table.add(name, plain.iter().copied());
        table.add(&format!("tasks.{name}"), ready.iter().copied());
    }
    if let Some(vip) = vip {
        table.add_reverse(vip, &service.name);
    }
}

fn add_backends(table: &mut NameTable, service: &Service, key: NetworkKey) {
    for ((_, address), backend) in service.backends.iter().filter(|((network, _), _)| *network == key) {
        table.add(&backend.task_name, [*address]);
        table.add_reverse(*address, &backend.task_name);
    }
}

fn add_sandboxes(table: &mut NameTable, view: &NodeView, key: NetworkKey) {
    for sandbox in view.sandboxes.values() {
        for attachment in sandbox.attachments.iter().filter(|a| a.network == key) {
            let names = [&sandbox.task_name, &sandbox.hostname];
            for name in names.into_iter().chain(&attachment.aliases) {
                table.add(name, [attachment.address]);
            }
            table.add_reverse(attachment.address, &sandbox.task_name);
        }
    }
}

fn add_remote_endpoints(table: &mut NameTable, view: &NodeView, key: NetworkKey) {
    for ((_, address), endpoint) in view.remote_endpoints.iter().filter(|((network, _), _)| *network == key) {
        for name in std::iter::once(&endpoint.task_name).chain(&endpoint.aliases) {
            table.add(name, [*address]);
        }
        table.add_reverse(*address, &endpoint.task_name);
    }
}

/// A service's name wins over an endpoint's of the same spelling: what says `web` means the service.
fn merge(name: String, subnet: Ipv4Network, services: NameTable, endpoints: NameTable) -> NetworkZone {
    let mut names = endpoints.names;
    names.extend(services.names);
    let mut reverse = endpoints.reverse;
    reverse.extend(services.reverse);
    let names = names.into_iter().map(|(name, addresses)| (name, addresses.into_iter().collect())).collect();
    NetworkZone { name, subnet, names, reverse }
}

#[cfg(test)]
mod tests;
