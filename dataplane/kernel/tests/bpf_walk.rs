//! The whole packet walk between two nodes, with real sockets at both ends.

mod bpf_support;

use std::net::IpAddr;

use bpf_support::lab::{CLIENT, Lab, NODES, TASKS_OVERLAY, VIP};
use bpf_support::traffic::{connect_from, exchange, ping, serve_tcp, serve_udp, tcp, udp, udp_connected};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::Ip4;

/// More than any socket buffer: segmentation offload and checksum offload are at work.
const BULK: usize = 8 << 20;

fn lab(mode: HookMode) -> Lab {
    let lab = Lab::new(mode);
    for task in &lab.tasks {
        serve_tcp(task, 80);
        serve_udp(task, 53);
    }
    lab.start();
    lab
}

fn ip(address: Ip4) -> IpAddr {
    IpAddr::V4(address.into())
}

/// A client outside reaches the task through either node, and is seen as itself.
fn clients_are_served(lab: &Lab) {
    let bulk: Vec<u8> = (0..BULK).map(|index| (index % 251) as u8).collect();
    for node in NODES {
        for payload in [&b""[..], b"hello", &bulk] {
            let seen = tcp(&lab.client, node, 8080, payload).unwrap_or_else(|error| panic!("{node}: {error}"));
            assert_eq!(seen.ip(), ip(CLIENT));
        }
        for size in [1, 1400, 1472] {
            let (seen, from) = udp(&lab.client, node, 5353, size).unwrap_or_else(|error| panic!("{node} {size}: {error}"));
            assert_eq!((seen.ip(), from.ip(), from.port()), (ip(CLIENT), ip(node), 5353));
        }
        udp_connected(&lab.client, node, 5353).unwrap();
    }
}

/// Processes of the nodes reach published ports on own addresses and localhost.
fn nodes_are_served(lab: &Lab) {
    for (index, node) in NODES.into_iter().enumerate() {
        for address in [node, Ip4::LOCALHOST] {
            let seen = tcp(&lab.nodes[index], address, 8080, b"hello").unwrap();
            assert_eq!(seen.ip(), ip(node), "through {address}");
            let (seen, from) = udp(&lab.nodes[index], address, 5353, 5).unwrap();
            assert_eq!((seen.ip(), from.ip(), from.port()), (ip(node), ip(address), 5353));
            udp_connected(&lab.nodes[index], address, 5353).unwrap();
        }
        let seen = tcp(&lab.nodes[index], NODES[1 - index], 8080, b"hello").unwrap();
        assert_eq!(seen.ip(), ip(node), "through the other node");
    }
}

/// Tasks reach each other across nodes, by address and by the service's virtual address.
fn tasks_are_served(lab: &Lab) {
    let bulk = vec![3; BULK];
    let seen = tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, &bulk).unwrap();
    assert_eq!(seen.ip(), ip(TASKS_OVERLAY[1]));
    let seen = tcp(&lab.tasks[1], Ip4(VIP), 80, &bulk).unwrap();
    assert_eq!(seen.ip(), ip(TASKS_OVERLAY[1]));
    let (seen, from) = udp(&lab.tasks[1], Ip4(VIP), 53, 5).unwrap();
    assert_eq!((seen.ip(), from.ip()), (ip(TASKS_OVERLAY[1]), ip(Ip4(VIP))));
    udp_connected(&lab.tasks[1], Ip4(VIP), 53).unwrap();
    for address in [Ip4(VIP), TASKS_OVERLAY[0], Ip4([10, 0, 1, 1]), Ip4([10, 0, 0, 1])] {
        assert!(ping(&lab.tasks[1], address), "{address} does not answer a ping");
    }
}

/// One client port through two nodes to one task: two flows.
fn colliding_flows_are_told_apart(lab: &Lab) {
    let first = connect_from(&lab.client, 40_077, NODES[0], 8080);
    let second = connect_from(&lab.client, 40_077, NODES[1], 8080);
    let first = exchange(first, b"first").unwrap();
    let second = exchange(second, b"second").unwrap();
    assert_eq!((first.ip(), second.ip()), (ip(CLIENT), ip(CLIENT)));
    assert_eq!(first.port(), 40_077);
    assert_ne!(second.port(), 40_077);
}

fn errors_reach_clients(lab: &Lab) {
    for node in NODES {
        let error = udp_connected(&lab.client, node, 9999).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "a closed target port through {node}");
        let error = tcp(&lab.client, node, 8082, b"").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "no backend, through {node}");
    }
    let error = tcp(&lab.nodes[0], Ip4::LOCALHOST, 8082, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "no backend, at the socket");
}

fn walk(lab: &Lab) {
    clients_are_served(lab);
    nodes_are_served(lab);
    tasks_are_served(lab);
    colliding_flows_are_told_apart(lab);
    errors_reach_clients(lab);
    let drops = lab.check_counters();
    println!("{drops:?}");
}

#[test]
fn walk_by_tcx() {
    walk(&lab(HookMode::Tcx));
}

#[test]
fn walk_by_clsact() {
    walk(&lab(HookMode::Clsact));
}
