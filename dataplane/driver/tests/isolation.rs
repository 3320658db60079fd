//! What tasks must not reach. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod frames;
#[expect(dead_code, reason = "others use the rest")]
mod lab;

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_model::PublishedPort;
use ebpf_abi::{DropReason, ProgramId};
use frames::{Ear, End, advertisement, arp, mac_of, udp4, udp6};
use lab::{
    CLIENT, Lab, NODE_A, NODE_B, Ns, ask_tcp, ask_udp, serve_tcp, serve_tcp_at, serve_udp_at, view,
    wait_until,
};
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

/// A task in none of its networks goes by the node to what the routing mesh publishes, and by no other port.
#[test]
fn tasks_reach_the_routing_meshs_endpoints_by_published_ports_alone() {
    const UNPUBLISHED: u16 = 5432;
    let lab = Lab::new(|_| {});
    let mut view = view::of_node(1, NODE_A);
    view::add_lone_task(&mut view, 9);
    lab.a.converge(view);
    lab.b.converge(view::of_node(1, NODE_B));
    for (node, task, name) in [(&lab.a, 5, "five"), (&lab.b, 6, "six")] {
        let sandbox = node.sandbox(task);
        for port in [80, UNPUBLISHED] {
            serve_tcp(&sandbox, port, name);
            serve_udp_at(&sandbox, (view::ingress(task), port), name);
        }
    }
    let nine = lab.a.sandbox(9);

    for (task, name) in [(5, "five"), (6, "six")] {
        let answer = ask_tcp(&nine, (view::ingress(task), 80), 10).unwrap();
        assert!(answer.starts_with(&format!("{name} {NODE_A}:")), "{answer}");
        ask_udp(&nine, (view::ingress(task), 80)).unwrap();
        let refused = ask_tcp(&nine, (view::ingress(task), UNPUBLISHED), 10).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "TCP, {name}");
        let refused = ask_udp(&nine, (view::ingress(task), UNPUBLISHED)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "UDP, {name}");
    }
    for node in [NODE_A, NODE_B] {
        ask_tcp(&nine, (node, 8080), 10).unwrap();
    }

    // The port is published now, and the other one no more.
    let mut view = view::of_node(2, NODE_A);
    view::add_lone_task(&mut view, 9);
    view::publish(&mut view, &[PublishedPort { protocol: 6, published: 8082, target: UNPUBLISHED }]);
    lab.a.converge(view);
    ask_tcp(&nine, (view::ingress(5), UNPUBLISHED), 10).unwrap();
    let refused = ask_tcp(&nine, (view::ingress(5), 80), 10).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
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

/// What comes to it by the routing mesh it answers there, from whatever node.
#[test]
fn a_task_of_internal_networks_answers_by_the_routing_mesh_and_does_not_get_out() {
    let lab = Lab::new(|_| {});
    let mut internal = view::of_node(1, NODE_A);
    view::change_sandbox(&mut internal, 5, |sandbox| sandbox.egress = false);
    lab.a.converge(internal);
    lab.b.converge(view::of_node(1, NODE_B));
    serve_tcp(&lab.client, 9000, "outside");
    let five = lab.a.sandbox(5);
    serve_tcp(&five, 80, "five");
    serve_tcp(&lab.b.sandbox(6), 80, "six");

    for node in [NODE_A, NODE_B] {
        let answers: Vec<String> = (0..40).map(|_| ask_tcp(&lab.client, (node, 8080), 10).unwrap()).collect();
        assert!(answers.iter().any(|answer| answer.starts_with(&format!("five {CLIENT}:"))), "{answers:?}");
    }
    let refused = ask_tcp(&five, (CLIENT, 9000), 10).unwrap_err();
    assert!([ErrorKind::NetworkUnreachable, ErrorKind::TimedOut].contains(&refused.kind()), "{refused}");
}

/// Addresses of the node and its client, for ports by IPv6.
const NODE_A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 11);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 100);

/// Two tasks of internal networks on one node, whose leg at the gateway bridge is for a host port.
struct Bridged {
    lab: Lab,
    nine: Ns,
}

/// Where packets from behind the bridge go.
const OUTSIDE: u16 = 9000;

impl Bridged {
    fn new() -> Self {
        let lab = Lab::new(|_| {});
        for (ns, address) in [(&lab.client, CLIENT6), (&lab.a.ns, NODE_A6)] {
            ns.shell(&format!("ip addr add {address}/64 dev up0 nodad"));
        }
        let mut alone = view::of_node(1, NODE_A);
        for (task, published) in [(8, 8091), (9, 8090)] {
            view::add_lone_task(&mut alone, task);
            view::change_sandbox(&mut alone, task, |sandbox| {
                sandbox.egress = false;
                sandbox.host_ports = vec![PublishedPort { protocol: 6, published, target: 80 }];
            });
        }
        lab.a.converge(alone);
        for (task, name) in [(8, "eight"), (9, "nine")] {
            let sandbox = lab.a.sandbox(task);
            serve_tcp_at(&sandbox, (Ipv6Addr::UNSPECIFIED, 80), name);
        }
        let nine = lab.a.sandbox(9);
        Self { lab, nine }
    }

    /// Everybody's own host port answers, by both families.
    fn check_ports(&self) {
        for (published, name) in [(8090, "nine"), (8091, "eight")] {
            for node in [IpAddr::from(NODE_A), NODE_A6.into()] {
                let answer = ask_tcp(&self.lab.client, (node, published), 10).unwrap();
                assert!(answer.starts_with(name), "{node} {published}: {answer}");
            }
        }
    }

    fn n_spoofed(&self) -> u64 {
        let pins = PinDir::new(&self.lab.a.options.bpffs_dir);
        let row = Tables::open(&pins).unwrap().counters.program(ProgramId::MeshTask).unwrap();
        row.drops[DropReason::SourceAddress.number() as usize]
    }
}

/// Where a task's leg at the bridge is, in both families.
fn ends(ns: &Ns, interface: &'static str) -> (End<[u8; 4]>, End<[u8; 16]>) {
    let (mac, v4, v6) = ns.run(move || {
        let address = |family: &str| -> IpAddr {
            let shown = lab::shell(&format!("ip -o {family} addr show dev {interface} scope global"));
            let text = shown.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
            text.parse().unwrap()
        };
        (mac_of(interface), address("-4"), address("-6"))
    });
    match (v4, v6) {
        (IpAddr::V4(v4), IpAddr::V6(v6)) => {
            (End { mac, address: v4.octets() }, End { mac, address: v6.octets() })
        }
        other => unreachable!("{other:?}"),
    }
}

/// A task may send raw packets: with another's address it would get out, and with another task's get what is for that.
#[test]
fn a_task_sends_by_its_way_out_as_itself_alone() {
    let bridged = Bridged::new();
    let (lab, nine) = (&bridged.lab, &bridged.nine);
    let (own, own6) = ends(nine, "eth0");
    let (other, other6) = ends(&lab.a.sandbox(8), "eth0");
    let (bridge, bridge6) = ends(&lab.a.ns, "docker_gwbridge");
    let client = End { mac: bridge.mac, address: CLIENT.octets() };
    let client6 = End { mac: bridge.mac, address: CLIENT6.octets() };
    let nobody = End { address: [172, 18, 200, 200], ..own };
    let nobody6 = End { address: with_last(own6.address, 0x77), ..own6 };
    let outside = lab.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, OUTSIDE)).unwrap());
    outside.set_nonblocking(true).unwrap();
    let ear = Ear::new(&lab.a.ns, "docker_gwbridge");
    bridged.check_ports();

    let forged = vec![
        udp4(nobody, client, OUTSIDE),
        udp4(End { address: other.address, ..own }, client, OUTSIDE),
        udp4(other, client, OUTSIDE),
        arp(nobody),
        arp(End { address: other.address, ..own }),
        arp(End { address: bridge.address, ..own }),
        udp6(nobody6, client6, OUTSIDE),
        udp6(End { address: other6.address, ..own6 }, client6, OUTSIDE),
        advertisement(own6, bridge6, nobody6.address),
        advertisement(own6, bridge6, other6.address),
    ];
    let before = bridged.n_spoofed();
    frames::send(nine, "eth0", forged.clone());
    let is_dropped = || bridged.n_spoofed() >= before + forged.len() as u64;
    wait_until("all are dropped", is_dropped, || bridged.n_spoofed().to_string());
    let sound = udp4(own, client, OUTSIDE);
    frames::send(nine, "eth0", vec![sound.clone()]);

    let heard = RefCell::new(Vec::new());
    let is_heard = || {
        heard.borrow_mut().extend(ear.heard());
        heard.borrow().contains(&sound)
    };
    wait_until("its own is heard", is_heard, String::new);
    for frame in &forged {
        assert!(!heard.borrow().contains(frame), "{frame:02x?}");
    }
    let reached = outside.recv(&mut [0; 16]);
    assert_eq!(reached.unwrap_err().kind(), ErrorKind::WouldBlock, "an internal task got out");
    bridged.check_ports();
}

fn with_last(mut address: [u8; 16], last: u8) -> [u8; 16] {
    address[15] ^= last;
    address
}
