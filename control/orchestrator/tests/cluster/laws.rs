//! What is true of every state, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control_model::NetworkId;
use control_model::spec::PublishMode;
use control_store::State;

pub fn check(state: &State) {
    check_addresses(state);
    check_networks(state);
    check_ports(state);
    check_tasks(state);
}

fn check_addresses(state: &State) {
    let mut held: BTreeSet<(NetworkId, IpAddr)> = BTreeSet::new();
    let mut hold = |network: NetworkId, address: IpAddr, who: &dyn std::fmt::Display| {
        assert!(held.insert((network, address)), "{address} of network {network} twice, now {who}");
        let of = state.networks().get(&network).and_then(|n| n.state.as_ref());
        let of = of.unwrap_or_else(|| panic!("{address} in unallocated network {network}"));
        let subnet = of.ipam.iter().find(|ipam| ipam.subnet.contains(address));
        let subnet = subnet.unwrap_or_else(|| panic!("{address} outside network {network}")).subnet;
        assert!(address != subnet.network() && address != subnet.broadcast(), "{address} is no host's");
    };
    for network in state.networks().iter() {
        let gateways = network.state.iter().flat_map(|s| &s.ipam).filter_map(|ipam| ipam.gateway);
        gateways.for_each(|gateway| hold(network.id, gateway, &"gateway"));
    }
    for service in state.services().iter() {
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.vips);
        vips.for_each(|(network, vip)| hold(*network, (*vip).into(), &service.spec.name));
    }
    for task in state.tasks().iter().filter(|task| !task.status.state.is_terminal()) {
        for attachment in &task.attachments {
            hold(attachment.network, attachment.address.ip(), &task.id);
        }
    }
}

fn check_networks(state: &State) {
    let mut vnis = BTreeSet::new();
    let allocated: Vec<_> = state.networks().iter().filter_map(|n| n.state.as_ref()).collect();
    for (at, network) in allocated.iter().enumerate() {
        assert!(network.vni >= 4096 && vnis.insert(network.vni), "VNI {} twice", network.vni);
        let others = allocated[at + 1..].iter().flat_map(|other| &other.ipam);
        for (a, b) in others.flat_map(|b| network.ipam.iter().map(move |a| (a.subnet, b.subnet))) {
            assert!(!a.contains(b.network()) && !b.contains(a.network()), "{a} overlaps {b}");
        }
    }
}

fn check_ports(state: &State) {
    let mut ports = BTreeMap::new();
    for service in state.services().iter() {
        let published = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        for port in published.filter(|port| port.mode == PublishMode::Ingress) {
            let other = ports.insert((port.protocol, port.published), &service.spec.name);
            assert_eq!(other, None, "port {} twice, now {}", port.published, service.spec.name);
        }
    }
}

fn check_tasks(state: &State) {
    for task in state.tasks().iter() {
        let has_addresses = task.attachments.len() >= task.spec.networks.len();
        let state = task.status.state;
        assert!(
            state == control_model::TaskState::New || has_addresses || state.is_terminal(),
            "{} without addresses",
            task.id
        );
    }
}
