use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_model::kernel_state::{LinkName, PacketFilter};

use super::text;

fn filter() -> PacketFilter {
    PacketFilter {
        bridge: LinkName::gateway_bridge(),
        subnet: "172.18.0.0/16".parse().unwrap(),
        subnet6: Some("fd00:18::/64".parse().unwrap()),
        tunnel_port: 4789,
        node: Some(Ipv4Addr::new(198, 18, 0, 11)),
        guarded: BTreeSet::from([LinkName::new("up0").unwrap()]),
        guarded6: BTreeSet::from(["up0", "up1"].map(|name| LinkName::new(name).unwrap())),
        no_egress: BTreeSet::from([Ipv4Addr::new(172, 18, 0, 7)]),
        host_ports: BTreeMap::from([((6, 8080), (Ipv4Addr::new(172, 18, 0, 7), 80))]),
        targets: Arc::new(BTreeSet::from([(6, 80), (17, 53), (132, 9)])),
    }
}

#[test]
fn the_comments_give_the_filter_back() {
    let rendered = text::render(&filter());

    assert_eq!(text::parse(&rendered), Some(filter()));
    let without_address = PacketFilter { node: None, ..filter() };
    let rendered_without = text::render(&without_address);
    assert!(!rendered_without.contains("snat") && rendered.contains("snat ip to 198.18.0.11"));
    assert_eq!(text::parse(&rendered_without), Some(without_address));
    let of_ipv4 = PacketFilter { subnet6: None, ..filter() };
    let rendered_of_ipv4 = text::render(&of_ipv4);
    assert!(!rendered_of_ipv4.contains("dnat ip6") && rendered.contains("dnat ip6 to [fd00:18::7]:80"));
    assert_eq!(text::parse(&rendered_of_ipv4), Some(of_ipv4));
    assert_eq!(text::parse(&rendered.replace("host-port 6/8080", "host-port 6/8081")), None);
    assert_eq!(text::parse(&rendered.replace("17 . 53", "17 . 54")), None);
    assert_eq!(text::parse(&rendered.replace("17 . 53", "udp . ")), None);
    assert_eq!(text::parse(&rendered.replace("17 . 53,", "17 . 53,\n\t\t\t    ")), Some(filter()));
    let without_targets = PacketFilter { targets: Arc::default(), ..filter() };
    assert_eq!(text::parse(&text::render(&without_targets)), Some(without_targets));
    assert_eq!(text::parse("table inet meshd {\n}\n"), None);
    assert_ne!(PacketFilter::spoiled(), filter());
}

#[test]
fn whatever_nft_prints_is_read_without_panic() {
    for listed in [
        "",
        "comment \"",
        "comment \"bridge\"",
        "comment \"bridge x\"",
        "comment \"subnet6 x\"",
        "comment \"host-port 6 a\"",
        "\u{0}",
    ] {
        assert_eq!(text::parse(listed), None);
    }
}
