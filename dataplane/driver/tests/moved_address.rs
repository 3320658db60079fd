//! An address that comes to a node is served at once, and gets its frontends because the kernel says so, whatever the time; and
//! so all that depends on the underlay's MTU follows that. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};

use dataplane_model::kernel_state::{AttachmentRole, Device, LinkName, Singleton};
use dataplane_model::{KernelState, change_rows};
use lab::seam::Say;
use lab::{Lab, NODE_A, NODE_B, PATIENCE, ask_tcp, serve_greetings, serve_tcp, view};

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

/// Does all that depends on the underlay's MTU follow it?
fn follows(held: &KernelState, mtu_bytes: u32) -> bool {
    let inside = mtu_bytes - 50;
    let device = held.devices.get(&LinkName::vxlan());
    let legs: Vec<_> = held.sandboxes.values().flat_map(|sandbox| &sandbox.legs).collect();
    matches!(device, Some(Device::Vxlan { mtu_bytes, .. }) if *mtu_bytes == inside)
        && held.settings.get(&Singleton).is_some_and(|settings| settings.underlay_mtu_bytes == mtu_bytes)
        && legs.len() == 3
        && legs.iter().all(|leg| leg.mtu_bytes == if leg.bridge.is_some() { mtu_bytes } else { inside })
        && held
            .attachments
            .values()
            .all(|row| row.mtu_bytes == if row.role == AttachmentRole::WayOut { mtu_bytes } else { inside })
}

#[test]
fn the_news_of_another_mtu_reaches_all_that_depends_on_it() {
    let mut lab = Lab::new(|_| {});
    lab.a.kill();
    lab.a.start_with(Say { by_news_alone: true, ..Say::default() });
    lab.a.converge(view::of_node(1, NODE_A));
    lab.b.converge(view::of_node(1, NODE_B));
    for (node, task) in [(&lab.a, 5), (&lab.b, 6)] {
        serve_greetings(&node.sandbox(task), 80, "held");
        serve_tcp(&node.sandbox(task), 81, "bulk");
    }
    let to_other = view::app(6);
    let mut held: Vec<TcpStream> = vec![
        lab.client.run(|| TcpStream::connect((NODE_A, 8080)).unwrap()),
        lab.a.sandbox(5).run(move || TcpStream::connect((to_other, 80)).unwrap()),
    ];
    for stream in &held {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for mtu_bytes in [1400, 1500] {
        lab.a.ns.shell(&format!("ip link set up0 mtu {mtu_bytes}"));
        lab::wait_until(
            "all follow",
            || follows(&lab.a.driver().held_state(), mtu_bytes),
            || format!("{mtu_bytes}: {}", lab.a.driver().held_state()),
        );
        let inside = mtu_bytes - 50;
        for (ns, link) in [(&lab.a.ns, "mesh-vx"), (&lab.a.sandbox(5), "eth0")] {
            let shown = ns.shell(&format!("ip link show {link}"));
            assert!(shown.contains(&format!(" mtu {inside} ")), "{shown}");
        }
        for stream in &mut held {
            stream.write_all(b"still there?").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
        }
        ask_tcp(&lab.a.sandbox(5), (to_other, 81), 1 << 20).unwrap();
        ask_tcp(&lab.b.sandbox(6), (view::app(5), 81), 1 << 20).unwrap();
        ask_tcp(&lab.client, (NODE_A, 8081), 1 << 20).unwrap();
    }
}
