//! What tasks must not reach. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "others use the rest")]
mod lab;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use dataplane_model::PublishedPort;
use lab::{CLIENT, Lab, NODE_A, NODE_B, Ns, ask_tcp, serve_tcp, view};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Longer than any answer takes in the lab; a packet that is dropped costs this.
const SILENCE: Duration = Duration::from_secs(2);

/// Connects from one of the addresses of `ns`, so by the leg that this belongs to.
fn connect_from(ns: &Ns, from: Ipv4Addr, to: (Ipv4Addr, u16)) -> nix::Result<TcpStream> {
    ns.run(move || {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        let patience = TimeVal::milliseconds(i64::try_from(SILENCE.as_millis()).unwrap());
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
        connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to.0, to.1)))?;
        Ok(TcpStream::from(fd))
    })
}

/// The ingress network is the tasks' way to answer, not to the nodes' own processes.
#[test]
fn a_task_reaches_no_process_of_a_node_through_the_ingress_network() {
    const ADMIN: u16 = 2222;
    let lab = Lab::new(|_| {});
    lab.converge(1);
    for node in [&lab.a, &lab.b] {
        serve_tcp(&node.ns, ADMIN, "admin");
    }
    let five = lab.a.sandbox(5);

    for node in [NODE_A, NODE_B] {
        let reached = connect_from(&five, view::ingress(5), (node, ADMIN));
        assert!(reached.is_err(), "{node} answered");
        // By the way out it may.
        ask_tcp(&five, (node, ADMIN), 10).unwrap();
    }
}

/// With a host port it has an address behind the bridge, which may answer.
#[test]
fn a_task_of_internal_networks_does_not_get_out() {
    let lab = Lab::new(|_| {});
    let mut alone = view::of_node(1, NODE_A);
    view::add_lone_task(&mut alone, 9);
    view::change_sandbox(&mut alone, 9, |sandbox| {
        sandbox.egress = false;
        sandbox.host_ports = vec![PublishedPort { protocol: 6, published: 8090, target: 80 }];
    });
    lab.a.converge(alone);
    serve_tcp(&lab.client, 9000, "outside");
    serve_tcp(&lab.a.ns, 9000, "node");
    let nine = lab.a.sandbox(9);
    serve_tcp(&nine, 80, "nine");

    let answer = ask_tcp(&lab.client, (NODE_A, 8090), 10).unwrap();
    assert!(answer.starts_with(&format!("nine {CLIENT}:")), "{answer}");
    for outside in [CLIENT, NODE_A] {
        let refused = ask_tcp(&nine, (outside, 9000), 10).unwrap_err();
        assert!(
            [ErrorKind::NetworkUnreachable, ErrorKind::TimedOut].contains(&refused.kind()),
            "{outside}: {refused}"
        );
    }
    // Not either when it makes the route that it lacks.
    nine.run(|| lab::shell("ip route add default via 172.18.0.1"));
    for outside in [CLIENT, NODE_A] {
        let refused = ask_tcp(&nine, (outside, 9000), 10).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{outside}: {refused}");
    }
}
