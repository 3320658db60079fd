//! A small node for the tests of this crate: network `app` with the services `web` (VIP), `Old` (VIP, no task) and `rr`
//! (dnsrr); network `back`, internal; the ingress network.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dataplane_model::{
    Attachment, Backend, Generation, Network, NetworkKey, NodeView, RemoteEndpoint, Sandbox, SandboxId,
    Service, ServiceKey, ServicePort, Table, Vni,
};

pub const INGRESS: NetworkKey = NetworkKey(1);
pub const APP: NetworkKey = NetworkKey(2);
pub const BACK: NetworkKey = NetworkKey(3);

pub const HERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
pub const THERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 12);

/// The node's view: `client` is in `app` and `back` and has a way out, `vault` is in `back` alone and has none.
pub fn node_view() -> NodeView {
    let back_to = |address, name: &str, vtep| {
        (address, RemoteEndpoint { vtep, task_name: name.to_owned(), aliases: vec![format!("{name}-host")] })
    };
    NodeView {
        revision: 7,
        generation: Generation { epoch: 1, index: 9 },
        vtep: HERE.into(),
        vxlan_port: 4789,
        ingress: Some(INGRESS),
        networks: networks(),
        sandboxes: Table::from_iter([
            (
                SandboxId("client".to_owned()),
                sandbox("client.1.c", &[(INGRESS, 0, 4), (APP, 1, 4), (BACK, 2, 4)], true),
            ),
            (SandboxId("vault".to_owned()), sandbox("vault.1.v", &[(BACK, 2, 5)], false)),
        ]),
        remote_endpoints: Table::from_iter([back_to((APP, ip(1, 6)), "web.2.b", THERE.into())]),
        services: services(),
        peers: Table::new(),
    }
}

pub fn ip(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, network, host)
}

fn networks() -> Table<NetworkKey, Network> {
    let network = |name: &str, number: u8, internal| Network {
        name: name.to_owned(),
        vni: Vni::new(4096 + u32::from(number)).unwrap(),
        subnet: format!("10.0.{number}.0/24").parse().unwrap(),
        gateway: ip(number, 1),
        subnet6: None,
        internal,
        mtu_bytes: None,
    };
    Table::from_iter([
        (INGRESS, network("ingress", 0, false)),
        (APP, network("App", 1, false)),
        (BACK, network("back", 2, true)),
    ])
}

fn sandbox(task_name: &str, attachments: &[(NetworkKey, u8, u8)], egress: bool) -> Sandbox {
    let hostname = task_name.split('.').next().unwrap();
    Sandbox {
        task_name: task_name.to_owned(),
        hostname: format!("{hostname}-Host"),
        attachments: attachments
            .iter()
            .map(|(network, number, host)| Attachment {
                network: *network,
                address: ip(*number, *host),
                aliases: vec![format!("{hostname}-alias")],
            })
            .collect(),
        egress,
        host_ports: Vec::new(),
        dns_servers: Vec::new(),
        dns_options: Vec::new(),
    }
}

/// HTTP by a name and by its number, and DNS over UDP without a name.
fn web_ports() -> Vec<ServicePort> {
    let port = |name: &str, protocol, target| ServicePort { name: name.to_owned(), protocol, target };
    vec![port("HTTP", 6, 80), port("", 17, 53)]
}

fn services() -> Table<ServiceKey, Service> {
    let backends = |rows: &[(&str, u8, bool)]| {
        let backend = |name: &str, ready| Backend {
            task_name: name.to_owned(),
            vtep: THERE.into(),
            ready,
            weight: dataplane_model::FULL_WEIGHT,
        };
        rows.iter().map(|(name, host, ready)| ((APP, ip(1, *host)), backend(name, *ready))).collect()
    };
    let service = |name: &str, vip: Option<u8>, alias: &str, rows| Service {
        name: name.to_owned(),
        vips: vip.map(|host| (APP, ip(1, host))).into_iter().collect(),
        aliases: BTreeMap::from([(APP, vec![alias.to_owned()])]),
        ingress_ports: Vec::new(),
        dsr: false,
        ports: if name == "web" { web_ports() } else { Vec::new() },
        backends: backends(rows),
    };
    Table::from_iter([
        (
            ServiceKey(1),
            service(
                "web",
                Some(2),
                "www",
                &[("web.1.a", 5, true), ("web.2.b", 6, true), ("web.3.c", 7, false)],
            ),
        ),
        (ServiceKey(2), service("Old", Some(3), "older", &[])),
        (ServiceKey(3), service("rr", None, "round", &[("rr.1.d", 8, true), ("rr.2.e", 9, true)])),
        (ServiceKey(4), service("idle", None, "lazy", &[])),
    ])
}
