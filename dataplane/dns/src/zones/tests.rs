use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::testing::node_view;

/// Zones as text: a line per name.
fn text(zones: &Zones) -> String {
    let mut out = String::new();
    for zone in zones.networks.values() {
        writeln!(out, "network {} {}", zone.name, zone.subnet).unwrap();
        for (name, addresses) in &zone.names {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            writeln!(out, "  {name} = {}", addresses.join(" ")).unwrap();
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
    let zones = zones_from_view(&node_view(), Path::new("/run/meshd/netns"));
    assert_eq!(text(&zones), include_str!("golden.txt"));
    assert_eq!((zones.revision, zones.ttl_s), (7, DEFAULT_TTL_S));
}

#[test]
fn a_service_wins_over_an_endpoint_of_the_same_name() {
    let mut view = node_view();
    view.sandboxes.values_mut().for_each(|sandbox| sandbox.hostname = "WEB".to_owned());
    let zones = zones_from_view(&view, Path::new("/n"));
    assert_eq!(zones.networks[&crate::testing::APP].names["web"], vec![crate::testing::ip(1, 2)]);
    assert_eq!(zones.networks[&crate::testing::BACK].names["web"].len(), 2);
}

#[test]
fn own_servers_are_asked_only_where_there_is_a_way_out() {
    let mut view = node_view();
    let server: IpAddr = "192.0.2.53".parse().unwrap();
    view.sandboxes.values_mut().for_each(|sandbox| sandbox.dns_servers = vec![server]);
    let zones = zones_from_view(&view, Path::new("/n"));
    let forwarding: Vec<_> = zones.sandboxes.values().map(|zone| zone.forwarding.clone()).collect();
    assert_eq!(forwarding, [Forwarding::Servers(vec![server]), Forwarding::Forbidden]);
}
