use std::fmt::Write as _;
use std::path::Path;

use dataplane_model::{NodeView, SandboxId, change_rows};

use super::*;
use crate::testing::node_view;

/// Zones as text: a line per name.
fn text(zones: &Zones) -> String {
    let mut out = String::new();
    for zone in zones.networks.values() {
        writeln!(out, "network {} {}", zone.name, zone.subnets[0]).unwrap();
        for (name, addresses) in &zone.names {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            writeln!(out, "  {name} = {}", addresses.join(" ")).unwrap();
        }
        for (name, ports) in &zone.ports {
            let ports: Vec<String> = ports
                .iter()
                .map(|port| format!("_{}._{} {}", port.label, port.protocol, port.port))
                .collect();
            writeln!(out, "  ports of {name}: {}", ports.join(", ")).unwrap();
        }
        for (address, name) in &zone.reverse {
            writeln!(out, "  {address} is {name}").unwrap();
        }
    }
    for (id, sandbox) in &zones.sandboxes {
        let networks: Vec<&str> =
            sandbox.networks.iter().map(|key| zones.networks[key].name.as_str()).collect();
        writeln!(out, "sandbox {} {} {networks:?} {:?}", id.0, sandbox.netns.display(), sandbox.forwarding)
            .unwrap();
    }
    out
}

#[test]
fn a_view_gives_these_names() {
    let zones = zones_from_view(&node_view(), Path::new("/run/meshd/netns"), TtlPolicy::new(3));
    assert_eq!(text(&zones), include_str!("golden.txt"));
    assert_eq!((zones.revision, zones.ttl), (7, TtlPolicy { found_s: 3, denied_s: 2 }));
}

#[test]
fn times_are_short_and_within_bounds() {
    assert_eq!(TtlPolicy::default(), TtlPolicy { found_s: 5, denied_s: 2 });
    assert_eq!(TtlPolicy::new(0), TtlPolicy { found_s: 0, denied_s: 0 });
    assert_eq!(TtlPolicy::new(1_000_000), TtlPolicy { found_s: MAX_TTL_S, denied_s: 2 });
}

#[test]
fn a_service_without_tasks_and_addresses_exists_in_its_networks() {
    let mut view = node_view();
    change_rows(&mut view.services, |service| {
        if service.name == "rr" {
            service.backends.clear();
            service.aliases.values_mut().for_each(Vec::clear);
        }
    });
    let zones = of(&view);
    let names = &zones.networks[&crate::testing::APP].names;
    assert_eq!((names["rr"].len(), names["tasks.rr"].len()), (0, 0));
    assert!(!zones.networks[&crate::testing::BACK].names.contains_key("rr"));
}

#[test]
fn names_of_a_network_with_ipv6_have_addresses_of_both_families() {
    let mut view = node_view();
    let app = view.networks.get_mut(&crate::testing::APP).unwrap();
    app.subnet6 = Some("fd00:1::/64".parse().unwrap());
    let zones = of(&view);
    let zone = &zones.networks[&crate::testing::APP];
    let addresses =
        |name: &str| zone.names[name].iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");

    assert_eq!(addresses("web"), "10.0.1.2 fd00:1::2", "the virtual address");
    assert_eq!(addresses("tasks.web"), "10.0.1.5 10.0.1.6 fd00:1::5 fd00:1::6");
    assert_eq!(
        addresses("rr"),
        "10.0.1.8 10.0.1.9 fd00:1::8 fd00:1::9",
        "all tasks of a service without one"
    );
    assert_eq!(addresses("www"), addresses("web"), "an alias of the service");
    assert_eq!(addresses("client-alias"), "10.0.1.4 fd00:1::4", "an alias of a task");
    assert_eq!(addresses("web.2.b"), "10.0.1.6 fd00:1::6", "a task of another node");
    assert_eq!(zone.reverse[&"fd00:1::2".parse::<IpAddr>().unwrap()], "web");
    assert_eq!(zone.reverse[&"fd00:1::6".parse::<IpAddr>().unwrap()], "web.2.b");
    assert_eq!(zone.subnets.len(), 2);
    let back = &zones.networks[&crate::testing::BACK];
    assert!(back.names.values().flatten().all(IpAddr::is_ipv4), "a network without");
}

fn of(view: &NodeView) -> Zones {
    zones_from_view(view, Path::new("/n"), TtlPolicy::default())
}

#[test]
fn a_service_wins_over_an_endpoint_of_the_same_name() {
    let mut view = node_view();
    change_rows(&mut view.sandboxes, |sandbox| sandbox.hostname = "WEB".to_owned());
    let zones = of(&view);
    assert_eq!(zones.networks[&crate::testing::APP].names["web"], vec![crate::testing::ip(1, 2)]);
    assert_eq!(zones.networks[&crate::testing::BACK].names["web"].len(), 2);
}

#[test]
fn own_servers_are_asked_only_where_there_is_a_way_out() {
    let mut view = node_view();
    let server: IpAddr = "192.0.2.53".parse().unwrap();
    change_rows(&mut view.sandboxes, |sandbox| sandbox.dns_servers = vec![server]);
    let zones = of(&view);
    let forwarding: Vec<_> = zones.sandboxes.values().map(|zone| zone.forwarding.clone()).collect();
    assert_eq!(forwarding, [Forwarding::Servers(vec![server]), Forwarding::Forbidden]);
}

#[test]
fn the_service_dns_itself_is_no_resolver() {
    let mut view = node_view();
    let servers = ["127.0.0.11".parse().unwrap(), "192.0.2.53".parse().unwrap()];
    change_rows(&mut view.sandboxes, |sandbox| sandbox.dns_servers = servers.to_vec());
    let client = of(&view).sandboxes[&SandboxId("client".to_owned())].clone();
    assert_eq!(client.forwarding, Forwarding::Servers(vec![servers[1]]));
}

#[test]
fn ndots_keeps_short_names_inside() {
    let keeps = |options: &[&str]| {
        let mut view = node_view();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        change_rows(&mut view.sandboxes, |sandbox| sandbox.dns_options.clone_from(&options));
        of(&view).sandboxes.values().all(|zone| zone.keeps_short_names)
    };
    assert!(!keeps(&[]));
    assert!(!keeps(&["ndots:0", "timeout:3"]));
    assert!(!keeps(&["ndots:many"]));
    assert!(keeps(&["rotate", "ndots:2"]));
    assert!(!keeps(&["ndots:2", "ndots:0"]), "the last one counts");
}

fn backends(view: &mut NodeView, change: impl Fn(&mut dataplane_model::Backend)) {
    change_rows(&mut view.services, |service| service.backends.values_mut().for_each(&change));
}

/// What may change, in any order.
const CHANGES: [fn(&mut NodeView); 9] = [
    |view| backends(view, |backend| backend.ready = !backend.ready),
    |view| backends(view, |backend| backend.task_name.push('x')),
    |view| change_rows(&mut view.remote_endpoints, |endpoint| endpoint.aliases.push("more".into())),
    |view| change_rows(&mut view.services, |service| service.name.push('x')),
    |view| change_rows(&mut view.sandboxes, |sandbox| sandbox.hostname.push('x')),
    |view| change_rows(&mut view.sandboxes, |sandbox| sandbox.egress = !sandbox.egress),
    |view| drop(view.networks.remove(&crate::testing::APP)),
    |view| view.networks = node_view().networks,
    |view| view.ingress = view.ingress.is_none().then_some(crate::testing::INGRESS),
];

#[test]
fn zones_that_follow_others_are_as_from_nothing() {
    for (first, then) in
        (0..CHANGES.len()).flat_map(|first| (0..CHANGES.len()).map(move |then| (first, then)))
    {
        let (mut maker, mut view) = (ZoneMaker::default(), node_view());
        assert!(maker.take(&view), "the first");
        for change in [first, then] {
            let before = of(&view);
            CHANGES[change](&mut view);
            let may_differ = maker.take(&view);
            let now = of(&view);
            assert_eq!(maker.zones(Path::new("/n"), TtlPolicy::default()), now, "{first} then {then}");
            assert!(may_differ || now == before, "{first} then {then}: nobody would be told");
        }
    }
}

#[test]
fn what_nobody_here_can_ask_for_makes_no_zones() {
    let (mut maker, mut view) = (ZoneMaker::default(), node_view());
    maker.take(&view);
    assert!(!maker.take(&view));
    let elsewhere = (crate::testing::INGRESS, crate::testing::ip(0, 99));
    let remote = view.remote_endpoints.values().next().unwrap().clone();
    view.remote_endpoints.insert(elsewhere, remote);
    assert!(!maker.take(&view), "a task elsewhere, in the ingress network");
    let mut service = view.services.values().next().unwrap().clone();
    let backend = service.backends.values().next().unwrap().clone();
    (service.name, service.vips, service.aliases) = ("elsewhere".into(), BTreeMap::new(), BTreeMap::new());
    service.backends = BTreeMap::from([(elsewhere, backend)]);
    view.services.insert(dataplane_model::ServiceKey(u128::MAX), service);
    assert!(!maker.take(&view), "its service");
}
