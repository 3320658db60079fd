//! The views of the two nodes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dataplane_model::{
    Attachment, Backend, Generation, Network, NetworkKey, NodeView, Peer, PublishedPort, RemoteEndpoint,
    Sandbox, SandboxId, Service, ServiceKey, Table, Vni, change_rows, remove_rows,
};

use super::{NODE_A, NODE_B};

const INGRESS: NetworkKey = NetworkKey(1);
const APP: NetworkKey = NetworkKey(2);
const WEB: ServiceKey = ServiceKey(7);

/// Virtual address of the service in `app`.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// Where TCP of the service is published [`after_update`].
pub const MOVED_PORT: u16 = 8090;

pub fn ingress(task: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, task)
}

pub fn app(task: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, task)
}

fn id(task: u8) -> SandboxId {
    SandboxId(format!("task{task}"))
}

/// Task 5 on `a` and task 6 on `b`, seen from the node with `vtep`.
pub fn of_node(revision: u64, vtep: Ipv4Addr) -> NodeView {
    let (own, other_task, other) = if vtep == NODE_A { (5, 6, NODE_B) } else { (6, 5, NODE_A) };
    let remote =
        |_| RemoteEndpoint { vtep: other.into(), task_name: format!("web.{other_task}"), aliases: vec![] };
    let peer = Peer { hostname: "other".into(), addresses: vec![other.into()], mtu_bytes: None };
    NodeView {
        revision,
        generation: Generation { epoch: 1, index: revision },
        vtep: vtep.into(),
        vxlan_port: 4789,
        ingress: Some(INGRESS),
        networks: Table::from_iter([(INGRESS, network("ingress", 4096, 0)), (APP, network("app", 4097, 1))]),
        sandboxes: Table::from_iter([(id(own), sandbox(own))]),
        remote_endpoints: [(INGRESS, ingress(other_task)), (APP, app(other_task))]
            .into_iter()
            .map(|key| (key, remote(key)))
            .collect(),
        services: Table::from_iter([(WEB, web())]),
        peers: Table::from_iter([(other, peer)]),
    }
}

/// The same without the node's own task; its backend is gone everywhere.
pub fn without_task(revision: u64, vtep: Ipv4Addr, task: u8) -> NodeView {
    let mut view = of_node(revision, vtep);
    view.sandboxes.remove(&id(task));
    remove_rows(&mut view.remote_endpoints, |(_, address), _| address.octets()[3] == task);
    change_rows(&mut view.services, |service| {
        service.backends.retain(|(_, address), _| address.octets()[3] != task);
    });
    view
}

/// What comes after [`of_node`]: task 7 has replaced task 5, the port of TCP has moved, and the network `app` is gone.
pub fn after_update(revision: u64, vtep: Ipv4Addr) -> NodeView {
    let mut view = of_node(revision, vtep);
    view.networks.remove(&APP);
    remove_rows(&mut view.remote_endpoints, |(network, _), _| *network == APP);
    if let Some(row) = view.remote_endpoints.remove(&(INGRESS, ingress(5))) {
        view.remote_endpoints.insert((INGRESS, ingress(7)), row);
    }
    if view.sandboxes.remove(&id(5)).is_some() {
        view.sandboxes.insert(id(7), sandbox(7));
    }
    let own: Vec<SandboxId> = view.sandboxes.keys().cloned().collect();
    for id in own {
        view.sandboxes[&id].attachments.retain(|attachment| attachment.network == INGRESS);
    }
    change_rows(&mut view.services, |service| {
        service.vips.clear();
        service.ingress_ports[0].published = MOVED_PORT;
        service.backends.retain(|(network, _), _| *network == INGRESS);
        let backend = service.backends.remove(&(INGRESS, ingress(5))).expect("it is there");
        service.backends.insert((INGRESS, ingress(7)), backend);
    });
    view
}

/// A task in no network, with a way out.
pub fn add_lone_task(view: &mut NodeView, task: u8) {
    let lone = Sandbox { attachments: vec![], ..sandbox(task) };
    view.sandboxes.insert(id(task), lone);
}

pub fn change_sandbox(view: &mut NodeView, task: u8, change: impl FnOnce(&mut Sandbox)) {
    change(view.sandboxes.get_mut(&id(task)).expect("it is there"));
}

/// Other published ports than the service's own.
pub fn publish(view: &mut NodeView, ports: &[PublishedPort]) {
    change_rows(&mut view.services, |service| service.ingress_ports = ports.to_vec());
}

fn network(name: &str, vni: u32, third: u8) -> Network {
    Network {
        name: name.into(),
        vni: Vni::new(vni).unwrap(),
        subnet: format!("10.0.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, third, 1),
        subnet6: Some(format!("fd00:0:{third}::/64").parse().unwrap()),
        internal: false,
        mtu_bytes: None,
    }
}

fn sandbox(task: u8) -> Sandbox {
    let attachment = |network, address| Attachment { network, address, aliases: vec![] };
    Sandbox {
        task_name: format!("web.{task}"),
        hostname: "web".into(),
        attachments: vec![attachment(INGRESS, ingress(task)), attachment(APP, app(task))],
        egress: true,
        host_ports: vec![],
        dns_servers: vec![],
        dns_options: vec![],
    }
}

fn web() -> Service {
    let backend =
        |vtep| Backend { task_name: "web".into(), vtep, ready: true, weight: dataplane_model::FULL_WEIGHT };
    let port = |protocol, published, target| PublishedPort { protocol, published, target };
    Service {
        name: "web".into(),
        vips: BTreeMap::from([(APP, VIP)]),
        aliases: BTreeMap::new(),
        ingress_ports: vec![port(6, 8080, 80), port(17, 8080, 80), port(6, 8081, 81)],
        dsr: false,
        ports: vec![],
        backends: BTreeMap::from([
            ((INGRESS, ingress(5)), backend(NODE_A.into())),
            ((INGRESS, ingress(6)), backend(NODE_B.into())),
            ((APP, app(5)), backend(NODE_A.into())),
            ((APP, app(6)), backend(NODE_B.into())),
        ]),
    }
}
