//! A node `i` (198.18.0.11) and a node `b` (198.18.0.12): a published service with a task on each, in the ingress network
//! and in `app`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dataplane_model::kernel_state::LinkName;
use dataplane_model::{
    Attachment, Backend, Generation, Network, NetworkKey, NodeView, Peer, PublishedPort, RemoteEndpoint,
    Sandbox, SandboxId, Service, ServiceKey, Table, Vni,
};

use crate::facts::{Forwarding6, IngressHook, NodeFacts, TcAttach, Uplink};

pub const INGRESS: NetworkKey = NetworkKey(1);
pub const APP: NetworkKey = NetworkKey(2);
pub const WEB: ServiceKey = ServiceKey(0xabcd);
pub const NODE_I: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
pub const NODE_B: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 12);
pub const HTTP: PublishedPort = PublishedPort { protocol: 6, published: 8080, target: 80 };

pub fn facts() -> NodeFacts {
    let uplink = Uplink {
        index: 2,
        mtu_bytes: 1500,
        addresses: vec![NODE_I],
        addresses6: vec![],
        kind: Some("veth".into()),
        driver: None,
        has_native_xdp: false,
    };
    NodeFacts {
        uplinks: BTreeMap::from([(LinkName::new("up0").unwrap(), uplink)]),
        connected: ["198.18.0.0/24".parse().unwrap()].into(),
        host_forwards: false,
        forwarding6: Forwarding6::ByInterface,
        has_way_out6: true,
        has_tcx: true,
        has_ipv6: true,
        has_socket_reset: true,
        ingress_hook: IngressHook::Auto,
        tc_attach: TcAttach::Auto,
        xdp_refusals: BTreeMap::new(),
        gateway_subnet: "172.18.0.0/16".parse().unwrap(),
        gateway_subnet6: None,
        gateway_addresses: BTreeMap::new(),
    }
}

pub fn network(name: &str, vni: u32, third: u8) -> Network {
    Network {
        name: name.into(),
        vni: Vni::new(vni).unwrap(),
        subnet: format!("10.0.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, third, 1),
        subnet6: None,
        internal: false,
        mtu_bytes: None,
    }
}

pub fn sandbox(host: u8) -> (SandboxId, Sandbox) {
    let attachment =
        |network, third| Attachment { network, address: Ipv4Addr::new(10, 0, third, host), aliases: vec![] };
    let sandbox = Sandbox {
        task_name: format!("web.{host}.t{host}"),
        hostname: "web".into(),
        attachments: vec![attachment(INGRESS, 0), attachment(APP, 1)],
        egress: true,
        host_ports: vec![],
        dns_servers: vec![],
        dns_options: vec![],
    };
    (SandboxId(format!("t{host}")), sandbox)
}

pub fn view() -> NodeView {
    let backend =
        |vtep| Backend { task_name: "web".into(), vtep, ready: true, weight: dataplane_model::FULL_WEIGHT };
    let remote = || RemoteEndpoint { vtep: NODE_B.into(), task_name: "web.6.t6".into(), aliases: vec![] };
    let web = Service {
        name: "web".into(),
        vips: BTreeMap::from([(APP, Ipv4Addr::new(10, 0, 1, 2))]),
        aliases: BTreeMap::new(),
        ingress_ports: vec![HTTP],
        dsr: false,
        ports: vec![],
        backends: BTreeMap::from([
            ((INGRESS, Ipv4Addr::new(10, 0, 0, 5)), backend(NODE_I.into())),
            ((INGRESS, Ipv4Addr::new(10, 0, 0, 6)), backend(NODE_B.into())),
            ((APP, Ipv4Addr::new(10, 0, 1, 5)), backend(NODE_I.into())),
            ((APP, Ipv4Addr::new(10, 0, 1, 6)), backend(NODE_B.into())),
        ]),
    };
    NodeView {
        revision: 1,
        generation: Generation { epoch: 1, index: 7 },
        vtep: NODE_I.into(),
        vxlan_port: 4789,
        ingress: Some(INGRESS),
        networks: Table::from_iter([(INGRESS, network("ingress", 4096, 0)), (APP, network("app", 4097, 1))]),
        sandboxes: Table::from_iter([sandbox(5)]),
        remote_endpoints: Table::from_iter([
            ((INGRESS, Ipv4Addr::new(10, 0, 0, 6)), remote()),
            ((APP, Ipv4Addr::new(10, 0, 1, 6)), remote()),
        ]),
        services: Table::from_iter([(WEB, web)]),
        peers: Table::from_iter([(
            NODE_B,
            Peer { hostname: "b".into(), addresses: vec![NODE_B.into()], mtu_bytes: None },
        )]),
    }
}
