use std::collections::BTreeMap;

use dataplane_model::{
    Attachment, Backend, Generation, Network, NetworkKey, PublishedPort, Sandbox, ServiceKey, Table, Vni,
};

use super::*;

const INGRESS: NetworkKey = NetworkKey(1);
const APP: NetworkKey = NetworkKey(2);

fn ip(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, network, host)
}

fn network(number: u8) -> Network {
    Network {
        name: format!("net{number}"),
        vni: Vni::new(4096 + u32::from(number)).expect("a VNI"),
        subnet: format!("10.0.{number}.0/24").parse().expect("a subnet"),
        subnet6: Some(format!("fd00:0:0:{number}::/64").parse().expect("a subnet")),
        gateway: ip(number, 1),
        internal: false,
        mtu_bytes: None,
    }
}

fn service(name: &str, vips: &[(NetworkKey, Ipv4Addr)]) -> Service {
    let backend = |host| Backend {
        task_name: format!("{name}.{host}.x"),
        vtep: Ipv4Addr::new(198, 18, 0, 12).into(),
        ready: host != 8,
        weight: dataplane_model::FULL_WEIGHT,
    };
    Service {
        name: name.to_owned(),
        vips: vips.iter().copied().collect(),
        aliases: BTreeMap::from([(APP, vec![format!("{name}-alias")])]),
        ingress_ports: vec![PublishedPort { protocol: 6, published: 8080, target: 80 }],
        dsr: false,
        ports: Vec::new(),
        backends: [6, 7, 8].map(|host| ((APP, ip(1, host)), backend(host))).into(),
    }
}

/// A task in the ingress network and in `net1`; `web` has a virtual address in both, `rr` none.
fn view() -> NodeView {
    let attachment = |network, number| Attachment { network, address: ip(number, 5), aliases: Vec::new() };
    let sandbox = Sandbox {
        task_name: "client.1.c".to_owned(),
        hostname: String::new(),
        attachments: vec![attachment(INGRESS, 0), attachment(APP, 1)],
        egress: true,
        host_ports: Vec::new(),
        dns_servers: Vec::new(),
        dns_options: Vec::new(),
    };
    NodeView {
        revision: 1,
        generation: Generation::default(),
        vtep: Ipv4Addr::new(198, 18, 0, 11).into(),
        vxlan_port: 4789,
        ingress: Some(INGRESS),
        networks: Table::from_iter([(INGRESS, network(0)), (APP, network(1))]),
        sandboxes: Table::from_iter([(SandboxId("c".to_owned()), sandbox)]),
        remote_endpoints: Table::new(),
        services: Table::from_iter([
            (ServiceKey(1), service("web", &[(INGRESS, ip(0, 2)), (APP, ip(1, 2))])),
            (ServiceKey(2), service("rr", &[])),
        ]),
        peers: Table::new(),
    }
}

fn to(from: &str, to: &str) -> Result<Vec<String>, String> {
    by_family(false, from, to)
}

fn by_family(ipv6: bool, from: &str, to: &str) -> Result<Vec<String>, String> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let request = TraceRequest { from, to, protocol: 6, port: 40_000, ipv6 };
    let own = if request.is_ipv6() { "2001:db8::11" } else { "198.18.0.11" };
    let found = destinations_of(&view(), own.parse().ok(), &request)?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[test]
fn a_task_goes_where_its_dns_leads() {
    // Its first network is that of the routing mesh, which has no names.
    assert_eq!(to("client", "web:80"), Ok(vec!["10.0.1.2:80".to_owned()]));
    assert_eq!(to("client", "WEB-alias.net1:80"), Ok(vec!["10.0.1.2:80".to_owned()]));
    let ready = Ok(vec!["10.0.1.6:80".to_owned(), "10.0.1.7:80".to_owned()]);
    assert_eq!(to("client", "rr:80"), ready);
    assert_eq!(to("client", "tasks.web:80"), ready);
    assert_eq!(to("client", "10.9.9.9:1"), Ok(vec!["10.9.9.9:1".to_owned()]));
    assert_eq!(to("client", "db:80"), Err("no network of client has the name db".to_owned()));
    assert_eq!(to("client", "web"), Err("web: expected SERVICE:PORT or ADDRESS:PORT".to_owned()));
}

#[test]
fn a_client_outside_goes_to_a_published_port() {
    assert_eq!(to("outside/192.0.2.1", "web:8080"), Ok(vec!["198.18.0.11:8080".to_owned()]));
    assert_eq!(to("outside/2001:db8::1", "web:8080"), Ok(vec!["[2001:db8::11]:8080".to_owned()]));
    assert_eq!(
        to("outside/192.0.2.1", "web:80"),
        Err("web publishes no port 80/tcp in the routing mesh".to_owned())
    );
    assert_eq!(to("outside/192.0.2.1", "db:80"), Err("this node knows no service db".to_owned()));
}

#[test]
fn the_family_asked_for_is_looked_up() {
    assert_eq!(by_family(true, "client", "web:80"), Ok(vec!["[fd00:0:0:1::2]:80".to_owned()]));
    let tasks = ["[fd00:0:0:1::6]:80", "[fd00:0:0:1::7]:80"].map(str::to_owned);
    assert_eq!(by_family(true, "client", "tasks.web:80"), Ok(tasks.into()));
    assert_eq!(to("client", "[2001:db8::9]:80"), Ok(vec!["[2001:db8::9]:80".to_owned()]));
    let mut view = view();
    let plain = |network: &Network| Network { subnet6: None, ..network.clone() };
    view.networks = view.networks.iter().map(|(key, network)| (*key, plain(network))).collect();
    let (from, to) = ("client".to_owned(), "web:80".to_owned());
    let request = TraceRequest { from, to, protocol: 6, port: 40_000, ipv6: true };
    let refused = destinations_of(&view, None, &request);
    assert_eq!(refused, Err("web has no IPv6 address for client now".to_owned()));
}

#[test]
fn a_task_is_known_by_its_address_of_either_family() {
    for address in ["10.0.1.5", "fd00:0:0:1::5"] {
        assert_eq!(task_at(&view(), address.parse().unwrap()).as_deref(), Some("client.1.c"));
    }
    assert_eq!(task_at(&view(), "fd00:0:0:2::5".parse().unwrap()), None);
}
