//! The node's view of the network, made of its assignments and of what its own tasks are doing. Pure: the same inputs
//! give the same view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::object::NetworkAttachment;
use control_model::spec::{PortConfig, Protocol, PublishMode};
use control_model::template::TemplateContext;
use control_model::{Generation, Network, NetworkId, NodeId, ServiceId, Task, TaskId};
use dataplane_model as dp;

use crate::machine::Phase;
use crate::set::AssignmentSet;

/// Digits of a container id that make the default host name.
const SHORT_ID_LEN: usize = 12;

/// What does not come from the managers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContext {
    pub node: NodeId,
    pub hostname: String,
    /// This node's tunnel end.
    pub vtep: IpAddr,
    pub vxlan_port: u16,
}

/// Makes the view. `tasks` are the own tasks that have a sandbox, `leftover_networks` those that such a task is in
/// though they have left the set.
pub fn build(
    context: &NodeContext,
    set: &AssignmentSet,
    leftover_networks: &BTreeMap<NetworkId, Network>,
    tasks: &[(&Task, Phase)],
    revision: u64,
) -> dp::NodeView {
    let running =
        tasks.iter().filter(|(_, phase)| *phase == Phase::Running).map(|(task, _)| task.id).collect();
    let builder = Builder {
        context,
        set,
        networks: networks(set, leftover_networks),
        tasks,
        running,
        endpoints: by_service(set),
    };
    let Generation { epoch, index } = set.generation();
    dp::NodeView {
        revision,
        generation: dp::Generation { epoch, index },
        vtep: context.vtep,
        vxlan_port: context.vxlan_port,
        ingress: builder.ingress(),
        sandboxes: builder.sandboxes().into(),
        remote_endpoints: builder.remote_endpoints().into(),
        services: set.services.values().map(|service| builder.service(service)).collect(),
        peers: builder.peers().into(),
        networks: builder.networks.into(),
    }
}

/// The task's addresses in networks that were made with IPv6.
pub fn addresses6(task: &Task, networks: &BTreeMap<NetworkId, Network>) -> Vec<Ipv6Addr> {
    let address = |attachment: &NetworkAttachment| networks.get(&attachment.network)?.address6(attachment);
    task.attachments.iter().filter_map(address).map(|address| address.ip()).collect()
}

/// Networks that own tasks with a sandbox are in: they are kept while the sandbox is.
pub fn networks_in_use(tasks: &[(&Task, Phase)]) -> BTreeSet<NetworkId> {
    tasks.iter().flat_map(|(task, _)| task.attachments.iter().map(|attachment| attachment.network)).collect()
}

struct Builder<'a> {
    context: &'a NodeContext,
    set: &'a AssignmentSet,
    networks: BTreeMap<dp::NetworkKey, dp::Network>,
    tasks: &'a [(&'a Task, Phase)],
    /// Own tasks whose process runs and is not to stop.
    running: BTreeSet<TaskId>,
    /// Grouped once: looking through all of them for every service would be quadratic.
    endpoints: BTreeMap<ServiceId, Vec<&'a EndpointView>>,
}

impl Builder<'_> {
    fn ingress(&self) -> Option<dp::NetworkKey> {
        let ingress = self.set.networks.values().find(|network| network.spec.ingress)?;
        Some(key(ingress.id)).filter(|key| self.networks.contains_key(key))
    }

    fn sandboxes(&self) -> BTreeMap<dp::SandboxId, dp::Sandbox> {
        self.tasks.iter().map(|(task, _)| (dp::SandboxId(task.id.to_string()), self.sandbox(task))).collect()
    }

    fn sandbox(&self, task: &Task) -> dp::Sandbox {
        let attachments: Vec<dp::Attachment> =
            task.attachments.iter().filter_map(|attachment| self.attachment(task.id, attachment)).collect();
        let ingress = self.ingress();
        let mut own = attachments.iter().filter(|attachment| Some(attachment.network) != ingress).peekable();
        let internal_only =
            own.peek().is_some() && own.all(|attachment| self.networks[&attachment.network].internal);
        let host_ports = task.ports.iter().filter(|port| port.mode == PublishMode::Host);
        dp::Sandbox {
            task_name: task.name(),
            hostname: self.hostname(task),
            egress: !internal_only,
            host_ports: host_ports.filter_map(published).collect(),
            dns_servers: task.spec.container.dns.nameservers.clone(),
            dns_options: task.spec.container.dns.options.clone(),
            attachments,
        }
    }

    fn hostname(&self, task: &Task) -> String {
        let wanted = &task.spec.container.hostname;
        if wanted.is_empty() {
            return short_id(task.id);
        }
        let context = TemplateContext { task, node_hostname: &self.context.hostname };
        // A placeholder that can't be expanded makes the executor refuse the task; until then any name will do.
        context.expand(wanted).unwrap_or_else(|_| wanted.clone())
    }

    fn attachment(&self, task: TaskId, attachment: &NetworkAttachment) -> Option<dp::Attachment> {
        let (network, address) = self.place(attachment)?;
        Some(dp::Attachment { network, address, aliases: names(task, attachment) })
    }

    /// Network and address of an attachment to a network that the view has.
    fn place(&self, attachment: &NetworkAttachment) -> Option<(dp::NetworkKey, Ipv4Addr)> {
        let network = key(attachment.network);
        let IpAddr::V4(address) = attachment.address.ip() else { return None };
        self.networks.contains_key(&network).then_some((network, address))
    }

    fn remote_endpoints(&self) -> BTreeMap<(dp::NetworkKey, Ipv4Addr), dp::RemoteEndpoint> {
        let remote = self.set.endpoints.values().filter(|endpoint| endpoint.node != self.context.node);
        let rows = remote.flat_map(|endpoint| {
            endpoint.attachments.iter().filter_map(move |attachment| {
                let row = dp::RemoteEndpoint {
                    vtep: self.vtep_of(endpoint.node)?,
                    task_name: endpoint.name.clone(),
                    aliases: names(endpoint.task, attachment),
                };
                Some((self.place(attachment)?, row))
            })
        });
        rows.collect()
    }

    fn vtep_of(&self, node: NodeId) -> Option<IpAddr> {
        if node == self.context.node {
            return Some(self.context.vtep);
        }
        self.set.peers.get(&node).map(|peer| peer.vtep)
    }

    fn service(&self, service: &ServiceView) -> (dp::ServiceKey, dp::Service) {
        let known = |network: &NetworkId| self.networks.contains_key(&key(*network));
        let vips = service.endpoint.vips.iter().filter(|(network, _)| known(network));
        let aliases = service.aliases.iter().filter(|(network, _)| known(network));
        let ingress = service.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
        let row = dp::Service {
            name: service.name.clone(),
            vips: vips.map(|(network, address)| (key(*network), *address)).collect(),
            aliases: aliases.map(|(network, names)| (key(*network), names.clone())).collect(),
            ingress_ports: ingress.filter_map(published).collect(),
            dsr: service.dsr,
            ports: service.endpoint.ports.iter().map(declared).collect(),
            backends: self.backends(service),
        };
        (dp::ServiceKey(service.id.bits()), row)
    }

    fn backends(&self, service: &ServiceView) -> BTreeMap<(dp::NetworkKey, Ipv4Addr), dp::Backend> {
        let endpoints = self.endpoints.get(&service.id).into_iter().flatten();
        let rows = endpoints.flat_map(|endpoint| {
            endpoint.attachments.iter().filter_map(move |attachment| {
                let row = dp::Backend {
                    task_name: endpoint.name.clone(),
                    vtep: self.vtep_of(endpoint.node)?,
                    ready: self.is_ready(endpoint),
                    weight: endpoint.weight,
                };
                Some((self.place(attachment)?, row))
            })
        });
        rows.collect()
    }

    /// The managers' word, and for an own task also its process: nobody knows sooner that it has ended.
    fn is_ready(&self, endpoint: &EndpointView) -> bool {
        endpoint.ready && (endpoint.node != self.context.node || self.running.contains(&endpoint.task))
    }

    /// The other nodes, each with the addresses that it has: one that two claim goes to the one that lives, else to the
    /// one that claimed it last.
    fn peers(&self) -> BTreeMap<IpAddr, dp::Peer> {
        let others = self.set.peers.values().filter(|peer| peer.id != self.context.node);
        let mut others: Vec<&Peer> = others.collect();
        others.sort_by_key(|peer| (peer.alive, peer.addresses_since));
        let claims = others.iter().flat_map(|p| p.addresses.iter().map(|address| (*address, p.id)));
        let owners: BTreeMap<IpAddr, NodeId> = claims.collect();
        let mut peers = BTreeMap::new();
        for peer in others {
            // A node that joined anew may have the tunnel's end of the one that it was before.
            let row: &mut dp::Peer = peers.entry(peer.vtep).or_default();
            row.hostname.clone_from(&peer.hostname);
            row.addresses.extend(peer.addresses.iter().filter(|address| owners[address] == peer.id));
        }
        peers
    }
}

/// What a task answers to in a network besides its name: its aliases, and its container's id as `docker ps` shows it.
fn names(task: TaskId, attachment: &NetworkAttachment) -> Vec<String> {
    attachment.aliases.iter().cloned().chain([short_id(task)]).collect()
}

fn short_id(task: TaskId) -> String {
    task.container_id()[..SHORT_ID_LEN].to_owned()
}

fn by_service(set: &AssignmentSet) -> BTreeMap<ServiceId, Vec<&EndpointView>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for endpoint in set.endpoints.values() {
        groups.entry(endpoint.service).or_default().push(endpoint);
    }
    groups
}

fn key(id: NetworkId) -> dp::NetworkKey {
    dp::NetworkKey(id.bits())
}

fn networks(
    set: &AssignmentSet,
    leftover: &BTreeMap<NetworkId, Network>,
) -> BTreeMap<dp::NetworkKey, dp::Network> {
    let all = leftover.values().chain(set.networks.values());
    all.filter_map(|network| Some((key(network.id), translate(network)?))).collect()
}

/// `None` for what has no IPv4 subnet yet.
fn translate(network: &Network) -> Option<dp::Network> {
    let state = network.state.as_ref()?;
    let (subnet, gateway) = state.subnet()?;
    Some(dp::Network {
        name: network.spec.name.clone(),
        vni: dp::Vni::new(state.vni)?,
        subnet,
        gateway,
        subnet6: state.subnet6(),
        internal: network.spec.internal,
        mtu_bytes: network.spec.mtu_bytes(),
    })
}

fn declared(port: &PortConfig) -> dp::ServicePort {
    dp::ServicePort { name: port.name.clone(), protocol: number(port.protocol), target: port.target }
}

/// IANA protocol numbers.
fn number(protocol: Protocol) -> dp::ProtocolNumber {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// `None` for a port that has no number yet.
fn published(port: &PortConfig) -> Option<dp::PublishedPort> {
    (port.published != 0).then_some(dp::PublishedPort {
        protocol: number(port.protocol),
        published: port.published,
        target: port.target,
    })
}

#[cfg(test)]
mod tests;
