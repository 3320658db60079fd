//! What is in the rows of a view, each for itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::gossip::Opinion;
use control_model::object::NetworkAttachment;
use control_model::spec::{Platform, PortConfig, Protocol, PublishMode};
use control_model::template::TemplateContext;
use control_model::{Network, NetworkId, NodeId, ServiceId, Task, TaskId};
use dataplane_model::{self as dp, Table};

use super::NodeContext;
use super::index::{Index, Place, place_of};
use crate::machine::Phase;
use crate::set::AssignmentSet;

/// What an underlay's MTU may be, bytes, from what every host takes (RFC 791 section 3.1); a node that says another says
/// nothing.
const UNDERLAY_MTUS: RangeInclusive<u32> = 576..=65_535;

/// Digits of a container id that make the default host name.
const SHORT_ID_LEN: usize = 12;

/// What rows are made of.
pub(super) struct Rows<'a> {
    pub context: &'a NodeContext,
    pub set: &'a AssignmentSet,
    pub own: &'a Table<TaskId, (Task, Phase)>,
    pub opinion: &'a Opinion,
    /// Those of the view.
    pub networks: Table<dp::NetworkKey, dp::Network>,
    pub ingress: Option<dp::NetworkKey>,
    pub index: &'a Index,
}

impl Rows<'_> {
    pub(super) fn sandbox(&self, id: TaskId) -> Option<dp::Sandbox> {
        let (task, _) = self.own.get(&id)?;
        let attachments: Vec<dp::Attachment> =
            task.attachments.iter().filter_map(|attachment| self.attachment(task.id, attachment)).collect();
        let mut own =
            attachments.iter().filter(|attachment| Some(attachment.network) != self.ingress).peekable();
        let internal_only =
            own.peek().is_some() && own.all(|attachment| self.networks[&attachment.network].internal);
        let host_ports = task.ports.iter().filter(|port| port.mode == PublishMode::Host);
        Some(dp::Sandbox {
            task_name: task.name(),
            hostname: self.hostname(task),
            egress: !internal_only,
            host_ports: host_ports.filter_map(published).collect(),
            dns_servers: task.spec.container.dns.nameservers.clone(),
            dns_options: task.spec.container.dns.options.clone(),
            attachments,
        })
    }

    fn hostname(&self, task: &Task) -> String {
        let wanted = &task.spec.container.hostname;
        if wanted.is_empty() {
            return short_id(task.id);
        }
        let context = TemplateContext {
            task,
            node_hostname: &self.context.hostname,
            node_os: Platform::HOST_OS,
            node_architecture: Platform::HOST_ARCHITECTURE,
        };
        // A placeholder that can't be expanded makes the executor refuse the task; until then any name will do.
        context.expand(wanted).unwrap_or_else(|_| wanted.clone())
    }

    fn attachment(&self, task: TaskId, attachment: &NetworkAttachment) -> Option<dp::Attachment> {
        let (network, address) = self.known_place(attachment)?;
        Some(dp::Attachment { network, address, aliases: names(task, attachment) })
    }

    /// Network and address of an attachment to a network that the view has.
    fn known_place(&self, attachment: &NetworkAttachment) -> Option<(dp::NetworkKey, Ipv4Addr)> {
        place_of(attachment).map(place_key).filter(|(network, _)| self.networks.contains_key(network))
    }

    /// Of several endpoints on other nodes that have the address, the last by its id.
    pub(super) fn remote_endpoint(&self, place: Place) -> Option<dp::RemoteEndpoint> {
        if !self.networks.contains_key(&key(place.0)) {
            return None;
        }
        let claims = self.index.at_place(place).rev().filter_map(|task| self.set.endpoints.get(&task));
        let mut remote = claims.filter(|endpoint| endpoint.node != self.context.node);
        remote.find_map(|endpoint| {
            let mut attachments = endpoint.attachments.iter().rev();
            let attachment = attachments.find(|attachment| place_of(attachment) == Some(place))?;
            Some(dp::RemoteEndpoint {
                vtep: self.vtep_of(endpoint.node)?,
                task_name: endpoint.name.clone(),
                aliases: names(endpoint.task, attachment),
            })
        })
    }

    fn vtep_of(&self, node: NodeId) -> Option<IpAddr> {
        if node == self.context.node {
            return Some(self.context.vtep);
        }
        self.set.peers.get(&node).map(|peer| peer.vtep)
    }

    pub(super) fn service(&self, id: ServiceId) -> Option<dp::Service> {
        let service: &ServiceView = self.set.services.get(&id)?;
        let known = |network: &NetworkId| self.networks.contains_key(&key(*network));
        let vips = service.endpoint.vips.iter().filter(|(network, _)| known(network));
        let aliases = service.aliases.iter().filter(|(network, _)| known(network));
        let ingress = service.endpoint.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
        Some(dp::Service {
            name: service.name.clone(),
            vips: vips.map(|(network, address)| (key(*network), *address)).collect(),
            aliases: aliases.map(|(network, names)| (key(*network), names.clone())).collect(),
            ingress_ports: ingress.filter_map(published).collect(),
            dsr: service.dsr,
            ports: service.endpoint.ports.iter().map(declared).collect(),
            backends: self.backends(id),
        })
    }

    fn backends(&self, service: ServiceId) -> BTreeMap<(dp::NetworkKey, Ipv4Addr), dp::Backend> {
        let endpoints = self.index.of_service(service).filter_map(|task| self.set.endpoints.get(&task));
        let rows = endpoints.flat_map(|endpoint| {
            endpoint.attachments.iter().filter_map(move |attachment| {
                let row = dp::Backend {
                    task_name: endpoint.name.clone(),
                    vtep: self.vtep_of(endpoint.node)?,
                    ready: self.is_ready(endpoint),
                    weight: endpoint.weight,
                };
                Some((self.known_place(attachment)?, row))
            })
        });
        rows.collect()
    }

    /// The managers' word, for an own task also its process (nobody knows sooner that it has ended), and for another that
    /// gossip has nothing against it.
    fn is_ready(&self, endpoint: &EndpointView) -> bool {
        if endpoint.node == self.context.node {
            return endpoint.ready && matches!(self.own.get(&endpoint.task), Some((_, Phase::Running)));
        }
        let Opinion { silent_paths, ended, .. } = self.opinion;
        endpoint.ready && !silent_paths.contains(&endpoint.node) && !ended.contains(&endpoint.task)
    }

    /// The other nodes, each with the addresses that it has: one that two claim goes to the one that lives, else to the
    /// one that claimed it last.
    pub(super) fn peers(&self) -> BTreeMap<IpAddr, dp::Peer> {
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
            row.mtu_bytes = peer.underlay_mtu_bytes.filter(|mtu| UNDERLAY_MTUS.contains(mtu));
            row.addresses.extend(peer.addresses.iter().filter(|address| owners[address] == peer.id));
        }
        peers
    }
}

/// The task's addresses in networks that were made with IPv6.
pub fn addresses6(task: &Task, networks: &Table<NetworkId, Network>) -> Vec<Ipv6Addr> {
    let address = |attachment: &NetworkAttachment| networks.get(&attachment.network)?.address6(attachment);
    task.attachments.iter().filter_map(address).map(|address| address.ip()).collect()
}

pub(super) fn key(id: NetworkId) -> dp::NetworkKey {
    dp::NetworkKey(id.bits())
}

pub(super) fn place_key((network, address): Place) -> (dp::NetworkKey, Ipv4Addr) {
    (key(network), address)
}

pub(super) fn service_key(id: ServiceId) -> dp::ServiceKey {
    dp::ServiceKey(id.bits())
}

/// The routing mesh's network, if it is among `known`.
pub(super) fn ingress(
    set: &AssignmentSet,
    known: &Table<dp::NetworkKey, dp::Network>,
) -> Option<dp::NetworkKey> {
    let ingress = set.networks.values().find(|network| network.spec.ingress)?;
    Some(key(ingress.id)).filter(|key| known.contains_key(key))
}

/// `None` for what has no IPv4 subnet yet.
pub(super) fn network(network: &Network) -> Option<dp::Network> {
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

/// What a task answers to in a network besides its name: its aliases, and its container's id as `docker ps` shows it.
fn names(task: TaskId, attachment: &NetworkAttachment) -> Vec<String> {
    attachment.aliases.iter().cloned().chain([short_id(task)]).collect()
}

fn short_id(task: TaskId) -> String {
    task.container_id()[..SHORT_ID_LEN].to_owned()
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
