//! An address that comes to a node is served at once, and gets its frontends because the kernel says so, whatever the time.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::net::{IpAddr, Ipv4Addr};

use dataplane_model::change_rows;
use lab::seam::Say;
use lab::{Lab, NODE_A, NODE_B, ask_tcp, serve_tcp, view};

/// Further addresses, which come one after the other.
const MOVED: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 18, 0, 50), Ipv4Addr::new(198, 18, 0, 51), Ipv4Addr::new(198, 18, 0, 52)];

#[test]
fn the_news_of_an_address_brings_its_frontends() {
    let mut lab = Lab::new(|_| {});
    lab.a.kill();
    lab.a.start_with(Say { by_news_alone: true, ..Say::default() });
    lab.a.converge(view::of_node(1, NODE_A));
    // The other node's answers find the way back: the managers know already whose the addresses are.
    let mut seen_from_b = view::of_node(1, NODE_B);
    change_rows(&mut seen_from_b.peers, |peer| peer.addresses.extend(MOVED.map(IpAddr::from)));
    lab.b.converge(seen_from_b);
    serve_tcp(&lab.a.sandbox(5), 80, "five");
    serve_tcp(&lab.b.sandbox(6), 80, "six");
    let is_served = |address: Ipv4Addr| {
        let held = lab.a.driver().held_state();
        held.frontends.keys().any(|key| key.address == address)
    };

    for address in MOVED {
        lab.a.ns.shell(&format!("ip addr add {address}/24 dev up0"));
        lab::wait_until("it is served", || is_served(address), || format!("{address}"));
        ask_tcp(&lab.client, (address, 8080), 10).unwrap();
    }
    for address in MOVED {
        lab.a.ns.shell(&format!("ip addr del {address}/24 dev up0"));
        lab::wait_until("it is served no more", || !is_served(address), || format!("{address}"));
    }
}

/// Neither node's driver has a say in it: the programs know already that the address is a node's.
#[test]
fn an_address_is_served_by_its_new_node_before_its_driver_knows() {
    let mut lab = Lab::new(|_| {});
    let moved = MOVED[0];
    lab.b.ns.shell(&format!("ip addr add {moved}/24 dev up0"));
    let mut seen_from_a = view::of_node(1, NODE_A);
    change_rows(&mut seen_from_a.peers, |peer| peer.addresses.push(moved.into()));
    lab.a.converge(seen_from_a);
    lab.b.converge(view::of_node(1, NODE_B));
    serve_tcp(&lab.a.sandbox(5), 80, "five");
    serve_tcp(&lab.b.sandbox(6), 80, "six");
    ask_tcp(&lab.client, (moved, 8080), 10).unwrap();

    lab.a.kill();
    lab.b.kill();
    lab.b.ns.shell(&format!("ip addr del {moved}/24 dev up0"));
    lab.a.ns.shell(&format!("ip addr add {moved}/24 dev up0"));
    lab.client.shell("ip neigh flush dev up0");
    ask_tcp(&lab.client, (moved, 8080), 10).unwrap();
}
