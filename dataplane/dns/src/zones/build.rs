//! Zones of a view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use dataplane_model::{
    Network, NetworkKey, NodeView, ProtocolNumber, Sandbox, SandboxId, Service, ServicePort, changed,
};
use ipnetwork::IpNetwork;

use super::{Forwarding, NetworkZone, PortRecord, SandboxZone, TtlPolicy, Zones};

/// Where the service DNS itself answers in a sandbox: a resolver of this address would be asked for what it asks.
const SERVICE_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// Makes the zones of views that follow each other: again those of the networks in which a name may differ.
#[derive(Debug, Default)]
pub struct ZoneMaker {
    last: Option<NodeView>,
    networks: BTreeMap<NetworkKey, NetworkZone>,
}

impl ZoneMaker {
    /// Takes the next view; says whether its zones may be others than those of the view before, but for the revision.
    pub fn take(&mut self, view: &NodeView) -> bool {
        let used = used_networks(view);
        let touched = self.last.as_ref().map_or_else(|| used.clone(), |last| touched_networks(last, view));
        self.networks.retain(|key, _| used.contains(key) && !touched.contains(key));
        let due: BTreeSet<NetworkKey> =
            used.into_iter().filter(|key| !self.networks.contains_key(key)).collect();
        let is_same = due.is_empty() && self.last.as_ref().is_some_and(|last| has_same_sandboxes(last, view));
        if !due.is_empty() {
            let mut builder = Builder::new(view, due);
            builder.add_services(view);
            builder.add_endpoints(view);
            self.networks.extend(builder.finish());
        }
        self.last = Some(view.clone());
        !is_same
    }

    /// The names that the view taken last gives to its sandboxes, whose namespaces are `<netns_dir>/<sandbox id>`. The ingress
    /// network has no names. No zones without a view.
    pub fn zones(&self, netns_dir: &Path, ttl: TtlPolicy) -> Zones {
        let Some(view) = &self.last else { return Zones::default() };
        let zone =
            |(id, sandbox): (&SandboxId, &Sandbox)| (id.clone(), sandbox_zone(view, id, sandbox, netns_dir));
        let sandboxes = view.sandboxes.iter().map(zone).collect();
        Zones { revision: view.revision, ttl, networks: self.networks.clone(), sandboxes }
    }
}

/// [`ZoneMaker::zones`] of a single view.
pub fn zones_from_view(view: &NodeView, netns_dir: &Path, ttl: TtlPolicy) -> Zones {
    let mut maker = ZoneMaker::default();
    maker.take(view);
    maker.zones(netns_dir, ttl)
}

/// In which a sandbox asks for names.
fn used_networks(view: &NodeView) -> BTreeSet<NetworkKey> {
    view.sandboxes.values().flat_map(|sandbox| networks_of(view, sandbox)).collect()
}

fn networks_of<'a>(view: &'a NodeView, sandbox: &'a Sandbox) -> impl Iterator<Item = NetworkKey> + 'a {
    let attached = sandbox.attachments.iter().map(|attachment| attachment.network);
    attached.filter(|key| Some(*key) != view.ingress && view.networks.contains_key(key))
}

/// Do both have the same in what says which networks a sandbox asks, besides the names in them?
fn has_same_sandboxes(one: &NodeView, other: &NodeView) -> bool {
    one.ingress == other.ingress && one.networks == other.networks && one.sandboxes == other.sandboxes
}

/// Networks in which a name may differ.
fn touched_networks(before: &NodeView, after: &NodeView) -> BTreeSet<NetworkKey> {
    let mut touched: BTreeSet<NetworkKey> = changed(&before.networks, &after.networks).collect();
    touched.extend(changed(&before.remote_endpoints, &after.remote_endpoints).map(|(network, _)| network));
    for id in changed(&before.sandboxes, &after.sandboxes) {
        let both = [before, after].into_iter().filter_map(|view| view.sandboxes.get(&id));
        touched.extend(both.flat_map(|sandbox| &sandbox.attachments).map(|attachment| attachment.network));
    }
    for key in changed(&before.services, &after.services) {
        let both = [before, after].into_iter().filter_map(|view| view.services.get(&key));
        touched.extend(both.flat_map(networks_with));
    }
    touched
}

/// Networks in which a service has names or tasks.
fn networks_with(service: &Service) -> BTreeSet<NetworkKey> {
    let backends = service.backends.keys().map(|(network, _)| network);
    service.vips.keys().chain(service.aliases.keys()).chain(backends).copied().collect()
}

fn sandbox_zone(view: &NodeView, id: &SandboxId, sandbox: &Sandbox, netns_dir: &Path) -> SandboxZone {
    let networks = networks_of(view, sandbox).collect();
    let forwarding = match (sandbox.egress, sandbox.dns_servers.is_empty()) {
        (false, _) => Forwarding::Forbidden,
        (true, true) => Forwarding::Node,
        (true, false) => {
            Forwarding::Servers(sandbox.dns_servers.iter().copied().filter(|s| *s != SERVICE_DNS).collect())
        }
    };
    let keeps_short_names = ndots(&sandbox.dns_options).is_some_and(|ndots| ndots > 0);
    SandboxZone { netns: netns_dir.join(&id.0), networks, forwarding, keeps_short_names }
}

/// The last `ndots` of the options, as the libc of the container reads them.
fn ndots(options: &[String]) -> Option<u32> {
    options.iter().filter_map(|option| option.strip_prefix("ndots:")?.parse().ok()).next_back()
}

/// Tables of several networks at once: the services are gone through once, however many networks there are.
struct Builder<'a> {
    tables: BTreeMap<NetworkKey, Tables<'a>>,
}

/// One network's names while they are collected.
struct Tables<'a> {
    network: &'a Network,
    services: NameTable,
    endpoints: NameTable,
    ports: BTreeMap<String, BTreeSet<PortRecord>>,
}

/// Names and addresses.
#[derive(Default)]
struct NameTable {
    names: BTreeMap<String, BTreeSet<IpAddr>>,
    reverse: BTreeMap<IpAddr, String>,
}

impl NameTable {
    /// `name` exists, with `addresses` among its own.
    fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        if !name.is_empty() {
            self.names.entry(name.to_ascii_lowercase()).or_default().extend(addresses);
        }
    }

    fn add_reverse(&mut self, address: IpAddr, name: &str) {
        self.reverse.entry(address).or_insert_with(|| name.to_ascii_lowercase());
    }
}

impl<'a> Builder<'a> {
    fn new(view: &'a NodeView, used: BTreeSet<NetworkKey>) -> Self {
        let table = |key: NetworkKey| {
            let tables = Tables {
                network: view.networks.get(&key)?,
                services: NameTable::default(),
                endpoints: NameTable::default(),
                ports: BTreeMap::new(),
            };
            Some((key, tables))
        };
        Self { tables: used.into_iter().filter_map(table).collect() }
    }

    fn add_services(&mut self, view: &NodeView) {
        for service in view.services.values() {
            for key in networks_with(service) {
                if let Some(tables) = self.tables.get_mut(&key) {
                    tables.add_service(service, key);
                }
            }
        }
    }

    fn add_endpoints(&mut self, view: &NodeView) {
        for sandbox in view.sandboxes.values() {
            for attachment in &sandbox.attachments {
                let Some(tables) = self.tables.get_mut(&attachment.network) else { continue };
                let names = [&sandbox.task_name, &sandbox.hostname].into_iter().chain(&attachment.aliases);
                tables.add_endpoint(attachment.address, names, &sandbox.task_name);
            }
        }
        for (key, tables) in &mut self.tables {
            let here = (*key, Ipv4Addr::UNSPECIFIED)..=(*key, Ipv4Addr::BROADCAST);
            for ((_, address), endpoint) in view.remote_endpoints.range(here) {
                let names = std::iter::once(&endpoint.task_name).chain(&endpoint.aliases);
                tables.add_endpoint(*address, names, &endpoint.task_name);
            }
        }
    }

    fn finish(self) -> BTreeMap<NetworkKey, NetworkZone> {
        self.tables.into_iter().map(|(key, tables)| (key, tables.finish())).collect()
    }
}

impl Tables<'_> {
    /// An endpoint's, in each family that the network has.
    fn addresses(&self, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        [address.into()].into_iter().chain(self.network.address6(address).map(IpAddr::from))
    }

    /// The service's name and aliases, plain and under `tasks.`, and the names of its tasks.
    fn add_service(&mut self, service: &Service, key: NetworkKey) {
        let vip = service.vips.get(&key).map(|vip| self.addresses(*vip).collect::<Vec<_>>());
        let here = (key, Ipv4Addr::UNSPECIFIED)..=(key, Ipv4Addr::BROADCAST);
        let mut ready: Vec<IpAddr> = Vec::new();
        for ((_, address), backend) in service.backends.range(here) {
            self.add_endpoint(*address, std::iter::once(&backend.task_name), &backend.task_name);
            if backend.ready {
                ready.extend(self.addresses(*address));
            }
        }
        let plain = vip.as_ref().unwrap_or(&ready);
        for name in std::iter::once(&service.name).chain(service.aliases.get(&key).into_iter().flatten()) {
            self.services.add(name, plain.iter().copied());
            let tasks = format!("tasks.{name}");
            self.services.add(&tasks, ready.iter().copied());
            self.add_ports(name, service);
            self.add_ports(&tasks, service);
        }
        for vip in vip.into_iter().flatten() {
            self.services.add_reverse(vip, &service.name);
        }
    }

    fn add_ports(&mut self, name: &str, service: &Service) {
        if !service.ports.is_empty() {
            let ports = self.ports.entry(name.to_ascii_lowercase()).or_default();
            ports.extend(service.ports.iter().flat_map(port_records));
        }
    }

    fn add_endpoint<'a>(
        &mut self,
        address: Ipv4Addr,
        names: impl Iterator<Item = &'a String>,
        task_name: &str,
    ) {
        for name in names {
            self.endpoints.add(name, self.addresses(address));
        }
        for address in self.addresses(address) {
            self.endpoints.add_reverse(address, task_name);
        }
    }

    /// A service's name wins over an endpoint's of the same spelling: what says `web` means the service.
    fn finish(self) -> NetworkZone {
        let mut names = self.endpoints.names;
        names.extend(self.services.names);
        let mut reverse = self.endpoints.reverse;
        reverse.extend(self.services.reverse);
        NetworkZone {
            name: self.network.name.to_ascii_lowercase(),
            subnets: [self.network.subnet.into()]
                .into_iter()
                .chain(self.network.subnet6.map(IpNetwork::from))
                .collect(),
            names: names
                .into_iter()
                .map(|(name, addresses)| (name, addresses.into_iter().collect()))
                .collect(),
            reverse,
            ports: self.ports.into_iter().map(|(name, ports)| (name, ports.into_iter().collect())).collect(),
        }
    }
}

/// By number always, by name where there is one.
fn port_records(port: &ServicePort) -> Vec<PortRecord> {
    let Some(protocol) = protocol_label(port.protocol) else { return Vec::new() };
    let labels = [port.target.to_string(), port.name.to_ascii_lowercase()];
    let record = |label| PortRecord { label, protocol: protocol.to_owned(), port: port.target };
    labels.into_iter().filter(|label| !label.is_empty()).map(record).collect()
}

fn protocol_label(protocol: ProtocolNumber) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        132 => Some("sctp"),
        _ => None,
    }
}
