//! Services: rings, virtual addresses, frontends and target ports.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dataplane_model::kernel_state::{EndpointKey, Frontend, FrontendKey, Place, PortKey, RingKey, VipKey};
use dataplane_model::{NetworkKey, NodeView, PublishedPort, Service, ServiceKey, Vni};
use ebpf_abi::protocol::{TCP, UDP};

use crate::facts::NodeFacts;
use crate::maglev::RingMemo;
use crate::plan::{Plan, ingress_vni, own_addresses};

/// Fills the tables of rings, VIPs, frontends and ports, and marks the endpoints that serve.
pub(crate) fn plan(view: &NodeView, facts: &NodeFacts, memo: &mut RingMemo, plan: &mut Plan) {
    for (key, service) in &view.services {
        for (network, vip) in &service.vips {
            let Some(vni) = view.networks.get(network).map(|network| network.vni) else { continue };
            let ring = plan_ring((*key, service), (*network, vni), memo, plan);
            plan.state.vips.insert(VipKey { vni, address: *vip }, ring);
        }
        if let (Some(network), Some(vni)) = (view.ingress, ingress_vni(view)) {
            let published = publishable(service, plan);
            if !published.is_empty() {
                let ring = plan_ring((*key, service), (network, vni), memo, plan);
                plan_frontends(service, &published, ring, (facts, plan));
                plan_target_ports(service, &published, (network, vni), plan);
            }
        }
    }
}

/// The service's ring in one network.
fn plan_ring(
    (key, service): (ServiceKey, &Service),
    (network, vni): (NetworkKey, Vni),
    memo: &mut RingMemo,
    plan: &mut Plan,
) -> RingKey {
    let ring_key = RingKey::of(key, vni);
    let reachable =
        |address: &Ipv4Addr| plan.state.endpoints.contains_key(&EndpointKey { vni, address: *address });
    let backends = chosen_backends(service, network, reachable);
    for address in &backends {
        if let Some(endpoint) = plan.state.endpoints.get_mut(&EndpointKey { vni, address: *address }) {
            endpoint.serves = true;
        }
    }
    plan.state.rings.insert(ring_key, memo.ring(&backends));
    ring_key
}

/// The backends that new flows may go to: those that are ready. Where none is, those that still exist: a task that is
/// being drained or has just begun may answer, an empty ring can't (fail static). An address whose node is unknown is
/// left out: packets to it could only be dropped.
fn chosen_backends(
    service: &Service,
    network: NetworkKey,
    reachable: impl Fn(&Ipv4Addr) -> bool,
) -> BTreeSet<Ipv4Addr> {
    let of_network =
        service.backends.range((network, Ipv4Addr::UNSPECIFIED)..=(network, Ipv4Addr::BROADCAST));
    let (mut ready, mut rest) = (BTreeSet::new(), BTreeSet::new());
    for ((_, address), backend) in of_network.filter(|((_, address), _)| reachable(address)) {
        if backend.ready {
            ready.insert(*address)
        } else {
            rest.insert(*address)
        };
    }
    if ready.is_empty() { rest } else { ready }
}

/// The ports that the programs can serve.
fn publishable(service: &Service, plan: &mut Plan) -> Vec<PublishedPort> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        service.ingress_ports.iter().partition(|port| matches!(port.protocol, TCP | UDP));
    plan.problems.extend(unknown.iter().map(|port| {
        let PublishedPort { protocol, published, .. } = port;
        format!(
            "port {published} of service {}: the routing mesh carries TCP and UDP, not protocol {protocol}",
            service.name
        )
    }));
    known
}

/// Each own address, and 127.0.0.1 for the node's own processes.
fn plan_frontends(
    service: &Service,
    ports: &[PublishedPort],
    ring: RingKey,
    (facts, plan): (&NodeFacts, &mut Plan),
) {
    for port in ports {
        let addresses = own_addresses(facts).chain([Ipv4Addr::LOCALHOST]);
        let keys =
            addresses.map(|address| FrontendKey { address, protocol: port.protocol, port: port.published });
        for key in keys {
            let held = plan.state.frontends.entry(key).or_insert(Frontend { ring, target: port.target });
            if held.ring != ring {
                plan.problems.push(format!("{key} of service {} is taken by another service", service.name));
            }
        }
    }
}

/// On the node of the task, published port → target port.
fn plan_target_ports(
    service: &Service,
    ports: &[PublishedPort],
    (network, vni): (NetworkKey, Vni),
    plan: &mut Plan,
) {
    for (backend_network, endpoint) in service.backends.keys().copied() {
        let here = plan.state.endpoints.get(&EndpointKey { vni, address: endpoint });
        if backend_network != network || !here.is_some_and(|here| matches!(here.place, Place::Local(_))) {
            continue;
        }
        for port in ports {
            let key = PortKey { endpoint, protocol: port.protocol, published: port.published };
            plan.state.ports.insert(key, port.target);
        }
    }
}
