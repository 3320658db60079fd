//! A small cluster's view as text, and what of it changes with the own tasks' phases.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::object::{Endpoint, NetworkAttachment, NetworkState, Slot};
use control_model::spec::{EndpointMode, IpamConfig, NetworkSpec, PortConfig, Protocol, PublishMode};
use control_model::{Assignment, AssignmentUpdate};
use ipnetwork::IpNetwork;

use super::*;

mod edits;
mod slow_start;

const ME: NodeId = NodeId::from_bits(1);
const OTHER: NodeId = NodeId::from_bits(2);
const INGRESS: NetworkId = NetworkId::from_bits(100);
const APP: NetworkId = NetworkId::from_bits(101);
const BACK: NetworkId = NetworkId::from_bits(102);
const WEB: ServiceId = ServiceId::from_bits(7);

fn context() -> NodeContext {
    NodeContext {
        node: ME,
        hostname: "n1".into(),
        vtep: Ipv4Addr::new(198, 18, 0, 11).into(),
        vxlan_port: 4789,
    }
}

fn network(id: NetworkId, name: &str, subnet: &str, change: impl FnOnce(&mut NetworkSpec)) -> Network {
    let subnet: IpNetwork = subnet.parse().expect("a subnet");
    let gateway = subnet.iter().nth(1);
    let mut spec = NetworkSpec { name: name.into(), ..NetworkSpec::default() };
    change(&mut spec);
    let vni = 4000 + u32::try_from(id.bits()).expect("small");
    Network {
        state: Some(NetworkState { vni, ipam: vec![IpamConfig { subnet, range: None, gateway }] }),
        ..Network::new(id, spec)
    }
}

fn attachments(rows: &[(NetworkId, &str)]) -> Vec<NetworkAttachment> {
    let row = |&(network, address): &(NetworkId, &str)| NetworkAttachment {
        network,
        address: address.parse().expect("an address"),
        aliases: vec![format!("alias-{}", network.bits())],
    };
    rows.iter().map(row).collect()
}

fn task(number: u64, attached: &[(NetworkId, &str)]) -> Task {
    Task {
        service_name: "web".into(),
        node: Some(ME),
        spec_version: 1,
        ports: ports(),
        attachments: attachments(attached),
        ..Task::new(TaskId::from_bits(number.into()), WEB, Slot::Replica(number))
    }
}

fn ports() -> Vec<PortConfig> {
    let port = |protocol, target, published, mode| PortConfig {
        name: String::new(),
        protocol,
        target,
        published,
        mode,
    };
    vec![
        port(Protocol::Tcp, 80, 8080, PublishMode::Ingress),
        port(Protocol::Udp, 53, 0, PublishMode::Ingress),
        port(Protocol::Tcp, 90, 9090, PublishMode::Host),
    ]
}

fn endpoint(number: u64, node: NodeId, attached: &[(NetworkId, &str)]) -> Assignment {
    Assignment::Endpoint(EndpointView {
        task: TaskId::from_bits(number.into()),
        service: WEB,
        name: format!("web.{number}"),
        node,
        attachments: attachments(attached),
        ready: true,
        weight: if number == 2 { 40 } else { 100 },
    })
}

fn peer(id: NodeId, last: u8) -> Assignment {
    Assignment::Peer(node(id, last, &[], 1, true))
}

/// A node whose tunnels end at 198.18.0.`last`, with further addresses.
fn node(id: NodeId, last: u8, further: &[u8], addresses_since: u64, alive: bool) -> Peer {
    let address = |last: &u8| IpAddr::from([198, 18, 0, *last]);
    Peer {
        id,
        hostname: format!("n{}", id.bits()),
        vtep: Ipv4Addr::new(198, 18, 0, last).into(),
        addresses: [&last].into_iter().chain(further).map(address).collect(),
        addresses_since,
        underlay_mtu_bytes: Some(1400 + u32::from(last)),
        gossip: None,
        alive,
    }
}

#[test]
fn the_ipv6_subnet_comes_from_the_network_s_state() {
    let mut both = network(APP, "app", "10.0.1.0/24", |spec| spec.ipv6 = true);
    let (subnet, gateway) = ("fd00:1::/64".parse().expect("a subnet"), "fd00:1::1".parse().ok());
    both.state.as_mut().expect("a state").ipam.push(IpamConfig { subnet, range: None, gateway });
    let found = rows::network(&both).expect("a network");
    assert_eq!(found.subnet6.map(|subnet| subnet.to_string()).as_deref(), Some("fd00:1::/64"));
    assert_eq!(found.address6([10, 0, 1, 7].into()).map(|a| a.to_string()).as_deref(), Some("fd00:1::7"));
    let plain = network(APP, "app", "10.0.1.0/24", |_| {});
    assert_eq!(rows::network(&plain).expect("a network").subnet6, None);
}

#[test]
fn a_task_knows_its_addresses_in_networks_that_were_made_with_ipv6() {
    let with = |id, name, subnet, prefix: &str, ipv6| {
        let mut network = network(id, name, subnet, |spec| spec.ipv6 = ipv6);
        let subnet = prefix.parse().expect("a subnet");
        network.state.as_mut().expect("a state").ipam.push(IpamConfig { subnet, range: None, gateway: None });
        (id, network)
    };
    // The routing mesh's network has a prefix too, which nobody asked for.
    let networks = [
        with(INGRESS, "ingress", "10.0.0.0/24", "fd00:0::/64", false),
        with(APP, "app", "10.0.1.0/24", "fd00:1::/64", true),
        (BACK, network(BACK, "back", "10.0.2.0/24", |_| {})),
    ];
    let attached = [(INGRESS, "10.0.0.4/24"), (BACK, "10.0.2.4/24"), (APP, "10.0.1.9/24")];
    let found = addresses6(&task(1, &attached), &networks.into_iter().collect());

    assert_eq!(found, ["fd00:1::9".parse::<Ipv6Addr>().expect("an address")]);
}

const LOCAL: [(NetworkId, &str); 2] = [(INGRESS, "10.0.0.4/24"), (APP, "10.0.1.4/24")];
const REMOTE: [(NetworkId, &str); 2] = [(INGRESS, "10.0.0.5/24"), (APP, "10.0.1.5/24")];

fn set() -> AssignmentSet {
    let rows = vec![
        Assignment::Network(Box::new(network(INGRESS, "ingress", "10.0.0.0/24", |spec| spec.ingress = true))),
        Assignment::Network(Box::new(network(APP, "app", "10.0.1.0/24", |spec| {
            spec.options.insert(NetworkSpec::MTU_OPTION.into(), "1400".into());
        }))),
        Assignment::Network(Box::new(network(BACK, "back", "10.0.2.0/24", |spec| spec.internal = true))),
        Assignment::Service(ServiceView {
            id: WEB,
            name: "web".into(),
            endpoint: Endpoint {
                mode: EndpointMode::Vip,
                ports: ports(),
                vips: vec![
                    (APP, Ipv4Addr::new(10, 0, 1, 2)),
                    (NetworkId::from_bits(999), Ipv4Addr::LOCALHOST),
                ],
            },
            dsr: true,
            aliases: vec![(APP, vec!["www".into()]), (BACK, vec![])],
        }),
        endpoint(1, ME, &LOCAL),
        endpoint(2, OTHER, &REMOTE),
        peer(ME, 11),
        peer(OTHER, 12),
    ];
    let mut set = AssignmentSet::default();
    let generation = Generation { epoch: 1, index: 42 };
    set.apply(AssignmentUpdate::Complete { generation, set: rows }).expect("applied");
    set
}

fn shown(view: &dp::NodeView) -> String {
    let mut text = String::new();
    let mut line = |row: String| writeln!(text, "{row}").expect("a string");
    let (epoch, index) = (view.generation.epoch, view.generation.index);
    line(format!("view {} of {epoch}.{index} at {}:{}", view.revision, view.vtep, view.vxlan_port));
    for (key, n) in &view.networks {
        let ingress = if view.ingress == Some(*key) { " ingress" } else { "" };
        let internal = if n.internal { " internal" } else { "" };
        let (vni, mtu) = (n.vni.get(), n.mtu_bytes);
        line(format!(
            "network {} {} vni={vni} gw={} mtu={mtu:?}{ingress}{internal}",
            n.name, n.subnet, n.gateway
        ));
    }
    for sandbox in view.sandboxes.values() {
        let ports = sandbox.host_ports.iter().map(|p| format!("{}>{}/{}", p.published, p.target, p.protocol));
        let ports = ports.collect::<Vec<_>>().join(",");
        line(format!(
            "sandbox {} host={} egress={} [{ports}]",
            sandbox.task_name, sandbox.hostname, sandbox.egress
        ));
        for a in &sandbox.attachments {
            line(format!("  at {} in {} as {:?}", a.address, a.network.0, a.aliases));
        }
    }
    for ((network, address), e) in &view.remote_endpoints {
        line(format!("remote {address} in {} at {} {} {:?}", network.0, e.vtep, e.task_name, e.aliases));
    }
    for s in view.services.values() {
        let ports = s.ingress_ports.iter().map(|p| format!("{}>{}/{}", p.published, p.target, p.protocol));
        let dsr = if s.dsr { " dsr" } else { "" };
        line(format!("service {} [{}]{dsr}", s.name, ports.collect::<Vec<_>>().join(",")));
        s.vips.iter().for_each(|(network, vip)| line(format!("  vip {vip} in {}", network.0)));
        s.aliases.iter().for_each(|(network, names)| line(format!("  also {names:?} in {}", network.0)));
        for ((network, address), b) in &s.backends {
            let ready = if b.ready { "ready" } else { "not ready" };
            let weight =
                if b.weight == dp::FULL_WEIGHT { String::new() } else { format!(" weight {}", b.weight) };
            line(format!(
                "  backend {address} in {} at {} {} {ready}{weight}",
                network.0, b.vtep, b.task_name
            ));
        }
    }
    for (vtep, p) in &view.peers {
        line(format!("peer {vtep} {} {:?}", p.hostname, p.addresses));
    }
    text
}

fn view_of(tasks: &[(&Task, Phase)]) -> dp::NodeView {
    ViewMaker::new(context()).next(&set(), tasks.iter().copied()).expect("the first").clone()
}

#[test]
fn a_small_cluster_as_text() {
    let (both, inside) = (task(1, &LOCAL), task(3, &[(BACK, "10.0.2.9/24")]));
    let tasks = [(&both, Phase::Running), (&inside, Phase::Ready)];
    let expected = "\
view 0 of 1.42 at 198.18.0.11:4789
network ingress 10.0.0.0/24 vni=4100 gw=10.0.0.1 mtu=None ingress
network app 10.0.1.0/24 vni=4101 gw=10.0.1.1 mtu=Some(1400)
network back 10.0.2.0/24 vni=4102 gw=10.0.2.1 mtu=None internal
sandbox web.1.0000000000000000000000001 host=000000000000 egress=true [9090>90/6]
  at 10.0.0.4 in 100 as [\"alias-100\", \"000000000000\"]
  at 10.0.1.4 in 101 as [\"alias-101\", \"000000000000\"]
sandbox web.3.0000000000000000000000003 host=000000000000 egress=false [9090>90/6]
  at 10.0.2.9 in 102 as [\"alias-102\", \"000000000000\"]
remote 10.0.0.5 in 100 at 198.18.0.12 web.2 [\"alias-100\", \"000000000000\"]
remote 10.0.1.5 in 101 at 198.18.0.12 web.2 [\"alias-101\", \"000000000000\"]
service web [8080>80/6] dsr
  vip 10.0.1.2 in 101
  also [\"www\"] in 101
  also [] in 102
  backend 10.0.0.4 in 100 at 198.18.0.11 web.1 ready
  backend 10.0.0.5 in 100 at 198.18.0.12 web.2 ready weight 40
  backend 10.0.1.4 in 101 at 198.18.0.11 web.1 ready
  backend 10.0.1.5 in 101 at 198.18.0.12 web.2 ready weight 40
peer 198.18.0.12 n2 [198.18.0.12]
";
    assert_eq!(shown(&view_of(&tasks)), expected);
    assert_eq!(view_of(&tasks), view_of(&tasks), "the same inputs give the same view");
}

#[test]
fn who_is_in_internal_networks_alone_has_no_way_out_though_it_is_published() {
    let has_way_out = |attached: &[(NetworkId, &str)]| {
        let view = view_of(&[(&task(1, attached), Phase::Running)]);
        view.sandboxes.values().map(|sandbox| sandbox.egress).collect::<Vec<_>>()
    };
    assert_eq!(has_way_out(&[(INGRESS, "10.0.0.4/24"), (BACK, "10.0.2.4/24")]), [false]);
    assert_eq!(has_way_out(&[(INGRESS, "10.0.0.4/24")]), [true], "published, and in no network of a user's");
    assert_eq!(has_way_out(&[(APP, "10.0.1.4/24"), (BACK, "10.0.2.4/24")]), [true]);
    assert_eq!(has_way_out(&[]), [true], "in no network at all");
}

#[test]
fn dns_gets_what_the_specs_say() {
    let mut own = task(1, &LOCAL);
    let dns = &mut own.spec.container.dns;
    dns.nameservers = vec![IpAddr::from([192, 0, 2, 53])];
    dns.options = vec!["ndots:2".into()];
    let view = view_of(&[(&own, Phase::Running)]);
    let sandbox = view.sandboxes.values().next().expect("one sandbox");
    assert_eq!(sandbox.dns_servers, [IpAddr::from([192, 0, 2, 53])]);
    assert_eq!(sandbox.dns_options, ["ndots:2"]);
    let service = view.services.values().next().expect("one service");
    let ports: Vec<_> = service.ports.iter().map(|port| (port.protocol, port.target)).collect();
    assert_eq!(ports, [(6, 80), (17, 53), (6, 90)], "however they are published");
}

#[test]
fn an_own_task_is_ready_only_while_it_runs() {
    let own = task(1, &LOCAL);
    for (phase, ready) in [
        (Phase::Starting, false),
        (Phase::Running, true),
        (Phase::Draining, false),
        (Phase::Stopping, false),
        (Phase::Ended, false),
    ] {
        let view = view_of(&[(&own, phase)]);
        let service = view.services.values().next().expect("one service");
        let of = |address: Ipv4Addr| service.backends[&(dp::NetworkKey(101), address)].ready;
        assert_eq!(of(Ipv4Addr::new(10, 0, 1, 4)), ready, "{phase:?}");
        assert!(of(Ipv4Addr::new(10, 0, 1, 5)), "another node's task is the managers' word alone");
    }
}

#[test]
fn a_sandbox_keeps_the_networks_that_left_the_set() {
    let own = task(1, &LOCAL);
    let n_attachments = |view: Option<&dp::NodeView>| {
        let view = view.expect("something changed");
        view.sandboxes.values().map(|sandbox| sandbox.attachments.len()).collect::<Vec<_>>()
    };
    let (mut set, mut maker) = (set(), ViewMaker::new(context()));
    assert_eq!(n_attachments(maker.next(&set, [(&own, Phase::Running)])), [2]);
    set.networks.remove(&APP).expect("it was there");
    assert_eq!(n_attachments(maker.next(&set, [(&own, Phase::Stopping)])), [2], "it is still in it");
    let view = maker.next(&set, []).expect("the task is gone");
    assert!(!view.networks.contains_key(&dp::NetworkKey(APP.bits())), "nobody is");
    assert_eq!(n_attachments(maker.next(&set, [(&own, Phase::Ready)])), [1], "and it is not known any more");
}

/// The peers' addresses, by their last byte: those of each tunnel's end.
fn owned(nodes: Vec<Peer>) -> Vec<(u8, String, Vec<u8>)> {
    let mut set = set();
    set.peers = nodes.into_iter().map(|peer| (peer.id, peer)).collect();
    let mut maker = ViewMaker::new(context());
    let view = maker.next(&set, []).expect("the first").clone();
    let last = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => panic!("{address}"),
    };
    let row = |(vtep, peer): (IpAddr, dp::Peer)| {
        (last(&vtep), peer.hostname, peer.addresses.iter().map(last).collect())
    };
    view.peers.into_iter().map(row).collect()
}

#[test]
fn a_peers_mtu_is_what_it_has_said() {
    let mut set = set();
    let said = |mtu| Peer { underlay_mtu_bytes: mtu, ..node(OTHER, 12, &[], 5, true) };
    let mut maker = ViewMaker::new(context());
    let mut seen = |mtu| {
        set.peers.insert(OTHER, said(mtu));
        maker
            .next(&set, [])
            .expect("it changed")
            .peers
            .values()
            .map(|peer| peer.mtu_bytes)
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(Some(1400)), [Some(1400)]);
    assert_eq!(seen(Some(9000)), [Some(9000)]);
    assert_eq!(seen(None), [None]);
}

#[test]
fn an_address_that_two_nodes_claim_is_the_living_ones_else_the_newer_ones() {
    let [a, b] = [2, 3].map(NodeId::from_bits);
    // Both ways round: neither ids nor addresses decide.
    for (a, b) in [(a, b), (b, a)] {
        let owned = |a_alive, b_alive| {
            let rows = owned(vec![node(a, 12, &[200], 5, a_alive), node(b, 13, &[200], 6, b_alive)]);
            rows.into_iter().map(|(_, _, addresses)| addresses).collect::<Vec<_>>()
        };
        assert_eq!(owned(true, true), [vec![12], vec![13, 200]], "b has said so last");
        assert_eq!(owned(false, true), [vec![12], vec![13, 200]]);
        assert_eq!(owned(true, false), [vec![12, 200], vec![13]]);
        assert_eq!(owned(false, false), [vec![12], vec![13, 200]]);
    }
    assert_eq!(
        owned(vec![node(a, 12, &[200], 5, false)]),
        [(12, "n2".into(), vec![12, 200])],
        "nobody else has it"
    );
}

#[test]
fn a_node_that_joined_anew_takes_the_place_of_the_one_that_it_was() {
    let [a, b] = [2, 3].map(NodeId::from_bits);
    for (old, new) in [(a, b), (b, a)] {
        let rows = owned(vec![node(old, 12, &[200], 5, false), node(new, 12, &[], 9, true)]);
        assert_eq!(
            rows,
            [(12, format!("n{}", new.bits()), vec![200, 12])],
            "the old one's address is not lost"
        );
    }
    assert_eq!(owned(vec![node(ME, 11, &[200], 9, true), node(a, 12, &[200], 5, true)])[0].2, [12, 200]);
}

#[test]
fn gossip_takes_backends_out_of_rotation_and_gives_them_back() {
    let set = set();
    let mut maker = ViewMaker::new(context());
    let before = maker.next(&set, []).expect("the first").clone();
    let ready = |view: &dp::NodeView| {
        let backends = view.services.values().flat_map(|service| service.backends.values());
        backends
            .filter(|backend| backend.ready)
            .map(|backend| backend.task_name.clone())
            .collect::<BTreeSet<_>>()
    };
    let mut after = |opinion: Opinion| {
        maker.hear(Arc::new(opinion));
        maker.next(&set, []).cloned()
    };
    let remote = ready(&before);
    assert!(!remote.is_empty());
    let silent = after(Opinion { silent_paths: [OTHER].into(), ..Opinion::default() }).expect("another view");
    let gone: BTreeSet<String> = remote.difference(&ready(&silent)).cloned().collect();
    assert!(!gone.is_empty(), "those of the silent node");
    assert_eq!(silent.remote_endpoints, before.remote_endpoints, "flows that they have go on");
    assert_eq!(after(Opinion::default()), Some(before.clone()), "a false alarm");

    let one =
        set.endpoints.values().find(|endpoint| gone.contains(&endpoint.name)).expect("it is in the set");
    let ended =
        after(Opinion { ended: Arc::new([one.task].into()), ..Opinion::default() }).expect("another view");
    let expected: BTreeSet<String> = remote.iter().filter(|name| **name != one.name).cloned().collect();
    assert_eq!(ready(&ended), expected);
    assert_eq!(
        after(Opinion { silent_agents: [OTHER].into(), ..Opinion::default() }),
        Some(before),
        "agents alone take nothing"
    );
}
