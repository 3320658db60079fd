//! Datagrams of a node's own processes, and of tasks outside the ingress network, to published ports. The servers are bound to
//! the wildcard address, as most are: their kernel chooses the address that they answer from. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane_kernel::bpf::{PinDir, Tables};
use ebpf_abi::{ForwardKey, Ip};
use lab::{Lab, NODE_A, NODE_B, Ns, view};

/// All of them lead to one of the two backends in 1 of 2^39 runs.
const N_TRIES: usize = 40;
/// The published port, and its target.
const PUBLISHED: u16 = 8080;
const TARGET: u16 = 80;

fn lab_with_servers() -> Lab {
    let lab = Lab::new(|_| {});
    let mut with_lone = view::of_node(1, NODE_A);
    view::add_lone_task(&mut with_lone, 9);
    lab.a.converge(with_lone);
    lab.b.converge(view::of_node(1, NODE_B));
    for (node, task, name) in [(&lab.a, 5, "five"), (&lab.b, 6, "six")] {
        lab::serve_udp(&node.sandbox(task), TARGET, name);
    }
    lab
}

/// Who answers sockets of their own, until both backends have; each answer says that `client` asked.
fn answered(ns: &Ns, client: Ipv4Addr, ask: impl Fn() -> String + Send + Copy + 'static) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for _ in 0..N_TRIES {
        let answer = ns.run(ask);
        let (name, peer) = answer.split_once(' ').unwrap();
        assert_eq!(peer.parse::<SocketAddr>().unwrap().ip(), client, "{answer}");
        names.insert(name.to_owned());
        if names.len() == 2 {
            break;
        }
    }
    names
}

fn bound_for(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Asks twice: the second datagram goes on with what the first one began.
fn ask_connected(to: SocketAddr) -> String {
    let socket = bound_for(to);
    socket.connect(to).unwrap();
    let mut answers = [(); 2].map(|()| {
        let mut answer = [0; 64];
        socket.send(b"?").unwrap();
        let n_bytes = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{to}, connected: {error}"));
        String::from_utf8_lossy(&answer[..n_bytes]).into_owned()
    });
    assert_eq!(answers[0], answers[1]);
    std::mem::take(&mut answers[0])
}

fn ask_unconnected(to: SocketAddr) -> String {
    let (socket, mut answer) = (bound_for(to), [0; 64]);
    socket.send_to(b"?", to).unwrap();
    let received = socket.recv_from(&mut answer);
    let (n_bytes, from) = received.unwrap_or_else(|error| panic!("{to}, unconnected: {error}"));
    assert_eq!(from, to, "who was asked answers");
    String::from_utf8_lossy(&answer[..n_bytes]).into_owned()
}

fn both() -> BTreeSet<String> {
    BTreeSet::from(["five".to_owned(), "six".to_owned()])
}

#[test]
fn datagrams_of_the_nodes_own_processes_are_answered() {
    let lab = lab_with_servers();
    let at = |address: IpAddr| SocketAddr::new(address, PUBLISHED);

    for to in [at(Ipv4Addr::LOCALHOST.into()), at(NODE_A.into()), at(NODE_B.into())] {
        assert_eq!(answered(&lab.a.ns, NODE_A, move || ask_connected(to)), both(), "{to}");
        assert_eq!(answered(&lab.a.ns, NODE_A, move || ask_unconnected(to)), both(), "{to}");
    }
    for to in [at(Ipv6Addr::LOCALHOST.into()), at(NODE_A.to_ipv6_mapped().into())] {
        assert_eq!(answered(&lab.a.ns, NODE_A, move || ask_connected(to)), both(), "{to}");
    }
    let mapped = at(NODE_A.to_ipv6_mapped().into());
    assert_eq!(answered(&lab.a.ns, NODE_A, move || ask_unconnected(mapped)), both());
    has_flow_of_process(&lab);
}

/// What the node remembers of them names the process's node, and the task by its own address.
fn has_flow_of_process(lab: &Lab) {
    let tables = Tables::open(&PinDir::new(&lab.a.options.bpffs_dir)).unwrap();
    let (flows, task) = (tables.flows.rows().unwrap(), Ip::from(IpAddr::from(view::ingress(5))));
    let of_process = |key: &&ForwardKey| key.client == Ip::from(IpAddr::from(NODE_A)) && key.service == task;
    let row = flows.keys().find(of_process).expect("there is a row");
    assert_eq!(row.service_port.get(), TARGET);
}

#[test]
fn datagrams_of_tasks_outside_the_ingress_network_are_answered() {
    let lab = lab_with_servers();
    let lone = lab.a.sandbox(9);

    for node in [NODE_A, NODE_B] {
        let to = SocketAddr::from((node, PUBLISHED));
        assert_eq!(answered(&lone, NODE_A, move || ask_connected(to)), both(), "{to}");
        assert_eq!(answered(&lone, NODE_A, move || ask_unconnected(to)), both(), "{to}");
    }
}

/// The task sees two flows: one that it was asked by the node's own process, one that came like a client's.
#[test]
fn one_socket_asks_by_both_ways() {
    let lab = lab_with_servers();

    let answers = lab.a.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        [NODE_A, NODE_B, NODE_A, NODE_B].map(|node| {
            let mut answer = [0; 64];
            socket.send_to(b"?", (node, PUBLISHED)).unwrap();
            let (_, from) = socket.recv_from(&mut answer).unwrap();
            (node, from.ip())
        })
    });

    for (asked, from) in answers {
        assert_eq!(IpAddr::from(asked), from);
    }
}
