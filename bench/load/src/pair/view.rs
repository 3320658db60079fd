//! The views of the two nodes: the service that is asked, and others that are only there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dataplane_model::{
    Attachment, Backend, Generation, Network, NetworkKey, NodeView, Peer, PublishedPort, RemoteEndpoint,
    Sandbox, SandboxId, Service, ServiceKey, Table, Vni,
};
use ebpf_abi::RingKey;
use ebpf_abi::protocol::TCP;

use super::NODES;

const INGRESS: NetworkKey = NetworkKey(1);
const OVERLAY: NetworkKey = NetworkKey(2);
const INGRESS_VNI: u32 = 4096;

/// The published port of the service that is asked, and its target.
pub const PORT: u16 = 9080;
/// Its virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);

/// A node that is not there: the others' backends are its.
const ABSENT_NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 13);
/// Published ports of the others count up from here.
const FIRST_OTHER_PORT: u16 = 10_000;
/// Addresses of the others' backends, likewise.
const FIRST_OTHER_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 16, 0, 0);
/// Addresses of endpoints without a service, likewise.
const FIRST_IDLE_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// How much there is besides what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The one that is asked included.
    pub n_services: u16,
    /// Of each of the others.
    pub n_backends: u32,
}

impl Extent {
    pub const fn services(n_services: u16) -> Self {
        Self { n_services, n_backends: 1 }
    }
}

pub fn task_name(index: usize) -> String {
    format!("task{index}")
}

fn ingress_address(index: usize) -> Ipv4Addr {
    [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(10, 0, 0, 6)][index]
}

pub fn overlay_address(index: usize) -> Ipv4Addr {
    [Ipv4Addr::new(172, 30, 0, 5), Ipv4Addr::new(172, 30, 0, 6)][index]
}

/// What the node with this tunnel end has to know.
pub fn view_of(vtep: Ipv4Addr, revision: u64, extent: Extent) -> NodeView {
    let own = usize::from(vtep != NODES[0]);
    let other = 1 - own;
    let peer = |address: Ipv4Addr| {
        let peer = Peer { hostname: address.to_string(), addresses: vec![address.into()] };
        (address, peer)
    };
    let mut services: Table<ServiceKey, Service> = others(extent).collect();
    let absent = services.values().flat_map(|service| service.backends.keys().copied());
    let remote_endpoints = absent
        .map(|key| (key, remote(ABSENT_NODE)))
        .chain(
            [(INGRESS, ingress_address(other)), (OVERLAY, overlay_address(other))]
                .map(|key| (key, remote(NODES[other]))),
        )
        .collect();
    services.insert(ServiceKey(0), asked());
    NodeView {
        revision,
        generation: Generation { epoch: 1, index: revision },
        vtep: vtep.into(),
        vxlan_port: 4789,
        ingress: Some(INGRESS),
        networks: Table::from_iter([
            (INGRESS, network("ingress", INGRESS_VNI, "10.0.0.0/8", Ipv4Addr::new(10, 0, 0, 1))),
            (OVERLAY, network("app", 4097, "172.30.0.0/24", Ipv4Addr::new(172, 30, 0, 1))),
        ]),
        sandboxes: Table::from_iter([(SandboxId(task_name(own)), sandbox(own))]),
        remote_endpoints,
        services,
        peers: Table::from_iter([peer(NODES[other]), peer(ABSENT_NODE)]),
    }
}

fn network(name: &str, vni: u32, subnet: &str, gateway: Ipv4Addr) -> Network {
    Network {
        name: name.to_owned(),
        vni: Vni::new(vni).expect("24 bits"),
        subnet: subnet.parse().expect("a subnet"),
        gateway,
        subnet6: None,
        internal: false,
        mtu_bytes: None,
    }
}

fn sandbox(index: usize) -> Sandbox {
    let attachment = |network, address| Attachment { network, address, aliases: Vec::new() };
    Sandbox {
        task_name: task_name(index),
        hostname: task_name(index),
        attachments: vec![
            attachment(INGRESS, ingress_address(index)),
            attachment(OVERLAY, overlay_address(index)),
        ],
        egress: true,
        host_ports: Vec::new(),
        dns_servers: Vec::new(),
        dns_options: Vec::new(),
    }
}

fn service(name: String, port: u16, target: u16) -> Service {
    Service {
        name,
        vips: BTreeMap::new(),
        aliases: BTreeMap::new(),
        ingress_ports: vec![PublishedPort { protocol: TCP, published: port, target }],
        dsr: false,
        ports: Vec::new(),
        backends: BTreeMap::new(),
    }
}

fn remote(vtep: Ipv4Addr) -> RemoteEndpoint {
    RemoteEndpoint { vtep: vtep.into(), task_name: "task".to_owned(), aliases: Vec::new() }
}

fn backend(vtep: Ipv4Addr) -> Backend {
    Backend {
        task_name: "task".to_owned(),
        vtep: vtep.into(),
        ready: true,
        weight: dataplane_model::FULL_WEIGHT,
    }
}

/// The service whose only task is on the second node.
fn asked() -> Service {
    let mut service = service("asked".to_owned(), PORT, PORT);
    service.vips.insert(OVERLAY, VIP);
    for key in [(INGRESS, ingress_address(1)), (OVERLAY, overlay_address(1))] {
        service.backends.insert(key, backend(NODES[1]));
    }
    service
}

/// Services that nobody asks, with backends that nobody reaches.
fn others(extent: Extent) -> impl Iterator<Item = (ServiceKey, Service)> {
    (1..extent.n_services).map(move |number| {
        let first = first_backend(number, extent);
        let mut service = service(format!("other{number}"), FIRST_OTHER_PORT + number, 80);
        let addresses = (first..first + extent.n_backends).map(Ipv4Addr::from);
        service.backends = addresses.map(|address| ((INGRESS, address), backend(ABSENT_NODE))).collect();
        (ServiceKey(number.into()), service)
    })
}

/// There is room for one more after each service's.
fn first_backend(number: u16, extent: Extent) -> u32 {
    u32::from(FIRST_OTHER_BACKEND) + u32::from(number) * (extent.n_backends + 1)
}

/// Adds endpoints of the absent node that no service has.
pub fn add_endpoints(view: &mut NodeView, n_endpoints: u32) {
    let first = u32::from(FIRST_IDLE_ENDPOINT);
    for address in first..first + n_endpoints {
        view.remote_endpoints.insert((INGRESS, Ipv4Addr::from(address)), remote(ABSENT_NODE));
    }
}

/// Gives the last service one backend more, or takes it away again.
pub fn set_one_more(view: &mut NodeView, extent: Extent, is_there: bool) {
    let last = extent.n_services - 1;
    let key = (INGRESS, Ipv4Addr::from(first_backend(last, extent) + extent.n_backends));
    let Some(service) = view.services.get_mut(&ServiceKey(last.into())) else { return };
    if is_there {
        service.backends.insert(key, backend(ABSENT_NODE));
        view.remote_endpoints.insert(key, remote(ABSENT_NODE));
    } else {
        service.backends.remove(&key);
        view.remote_endpoints.remove(&key);
    }
}

/// The ring of the last service.
pub fn last_ring(extent: Extent) -> RingKey {
    RingKey::new((extent.n_services - 1).into(), INGRESS_VNI)
}
