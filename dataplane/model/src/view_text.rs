//! A view as text, one row per line, for operators and golden tests.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::kernel_state::protocol_name;
use crate::view::{Attachment, Backend, Network, NetworkKey, NodeView, PublishedPort, Sandbox, Service};

impl fmt::Display for NodeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, generation, .. } = self;
        let vtep = SocketAddr::new(self.vtep, self.vxlan_port);
        writeln!(f, "view {revision} of {}.{} at {vtep}", generation.epoch, generation.index)?;
        for (key, network) in &self.networks {
            writeln!(f, "network {}", network_text(*key, network, self.ingress))?;
        }
        for (vtep, peer) in &self.peers {
            let addresses = words(&peer.addresses);
            let mtu = peer.mtu_bytes.map_or(String::new(), |mtu_bytes| format!(" mtu {mtu_bytes}"));
            writeln!(f, "peer {vtep} {}{addresses}{mtu}", peer.hostname)?;
        }
        for (id, sandbox) in &self.sandboxes {
            writeln!(f, "sandbox {id} {}", self.sandbox_text(sandbox))?;
        }
        for ((network, address), remote) in &self.remote_endpoints {
            let network = self.network_name(*network);
            writeln!(f, "endpoint {network}/{address} {} on {}", remote.task_name, remote.vtep)?;
        }
        self.services.values().try_for_each(|service| self.write_service(f, service))
    }
}

impl NodeView {
    fn network_name(&self, key: NetworkKey) -> &str {
        self.networks.get(&key).map_or("?", |network| &network.name)
    }

    fn sandbox_text(&self, sandbox: &Sandbox) -> String {
        let places = sandbox.attachments.iter().map(|attachment| {
            let Attachment { network, address, .. } = attachment;
            format!("{}/{address}", self.network_name(*network))
        });
        let ports = sandbox.host_ports.iter().map(|port| format!("host {}", port_text(*port)));
        let egress = sandbox.egress.then(|| "egress".to_owned());
        [sandbox.task_name.clone()]
            .into_iter()
            .chain(places)
            .chain(ports)
            .chain(egress)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn write_service(&self, f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
        let ports: Vec<String> = service.ingress_ports.iter().map(|port| port_text(*port)).collect();
        writeln!(f, "service {}{}{}", service.name, words(&ports), if service.dsr { " dsr" } else { "" })?;
        for (network, vip) in &service.vips {
            writeln!(f, "  vip {}/{vip}", self.network_name(*network))?;
        }
        for ((network, address), backend) in &service.backends {
            writeln!(f, "  backend {}", backend_text(self.network_name(*network), *address, backend))?;
        }
        Ok(())
    }
}

fn network_text(key: NetworkKey, network: &Network, ingress: Option<NetworkKey>) -> String {
    let Network { name, vni, subnet, gateway, subnet6, internal, mtu_bytes } = network;
    let subnet6 = subnet6.map_or_else(String::new, |subnet6| format!(" and {subnet6}"));
    let mut text = format!("{name} vni {vni} {subnet} via {gateway}{subnet6}");
    if ingress == Some(key) {
        text += " ingress";
    }
    if *internal {
        text += " internal";
    }
    mtu_bytes.map_or(text.clone(), |mtu_bytes| format!("{text} mtu {mtu_bytes}"))
}

fn backend_text(network: &str, address: Ipv4Addr, backend: &Backend) -> String {
    let Backend { task_name, vtep, ready, weight } = backend;
    let weight = if *weight == crate::FULL_WEIGHT { String::new() } else { format!(" weight {weight}") };
    format!("{network}/{address} {task_name} on {vtep}{weight}{}", if *ready { "" } else { " not ready" })
}

fn port_text(port: PublishedPort) -> String {
    let PublishedPort { protocol, published, target } = port;
    format!("{published}->{target}/{}", protocol_name(protocol))
}

fn words<T: ToString>(items: &[T]) -> String {
    let texts = items.iter().map(ToString::to_string);
    [String::new()].into_iter().chain(texts).collect::<Vec<_>>().join(" ")
}
