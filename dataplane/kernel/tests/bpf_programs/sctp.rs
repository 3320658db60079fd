//! Associations of real sockets through the routing mesh, where the kernel has SCTP: Debian's has, in the test guest, which
//! sets `MESH_NEEDS_SCTP` so that none is left out there.
//!
//! A server answers each message with its sender's address and its own, and as many bytes.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;

use dataplane_kernel::inspect;
use ebpf_abi::{Endpoint, EndpointKey, FrontendKey, Ip, Ip4, Port, TargetPort, TargetPortKey, protocol};
use nix::sys::socket::{self, Backlog, SockaddrIn, SockaddrIn6, SockaddrLike, sockopt};
use nix::sys::time::TimeVal;

use crate::support::lab::{
    CLIENT, CLIENT6, INGRESS_PREFIX, INGRESS_VNI, Lab, NODES, NODES6, RING, TASKS, tc_mode,
};
use crate::support::namespace::Namespace;
use crate::support::traffic::{PATIENCE, wait_until};

const PUBLISHED: u16 = 9999;
const TARGET: u16 = 7;
/// Of several chunks and packets; no more than a socket buffer takes at once.
const LONG: usize = 40_000;

/// A one-to-one socket (RFC 6458 section 4), which is used like one of TCP.
fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(socket)
}

/// False, said why, if this kernel has none; a failure where it must have.
fn has_sctp() -> bool {
    match socket(libc::AF_INET) {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("MESH_NEEDS_SCTP").is_none(), "no socket of SCTP: {error}");
            println!("skipped: this kernel has no SCTP: {error}");
            false
        }
    }
}

fn serve(namespace: &Namespace, family: libc::c_int) {
    let listener = namespace.run(|| {
        let socket = socket(family).unwrap();
        if family == libc::AF_INET {
            bind(&socket, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TARGET)));
        } else {
            bind(&socket, &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, TARGET, 0, 0)));
        }
        socket::listen(&socket, Backlog::new(16).unwrap()).unwrap();
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 0)).unwrap();
        TcpListener::from(socket)
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
}

fn bind(socket: &OwnedFd, address: &impl SockaddrLike) {
    socket::bind(socket.as_raw_fd(), address).unwrap();
}

/// Until the association ends.
fn answer(mut stream: TcpStream) {
    let addresses =
        format!("{} {}\n", plain(stream.peer_addr().unwrap()), plain(stream.local_addr().unwrap()));
    let mut message = vec![0; LONG];
    while let Ok(len @ 1..) = stream.read(&mut message) {
        if stream.write_all(addresses.as_bytes()).and_then(|()| stream.write_all(&message[..len])).is_err() {
            return;
        }
    }
}

fn plain(seen: SocketAddr) -> SocketAddr {
    SocketAddr::new(seen.ip().to_canonical(), seen.port())
}

/// An association of the client, from this port, or from any for 0.
fn associate(lab: &Lab, source: u16, to: Ip) -> io::Result<TcpStream> {
    lab.client.run(|| {
        let stream = if to.is_v4() {
            let socket = socket(libc::AF_INET)?;
            bind(&socket, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, source)));
            let to = SocketAddrV4::new(to.low().into(), PUBLISHED);
            socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
            socket
        } else {
            let socket = socket(libc::AF_INET6)?;
            bind(&socket, &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, source, 0, 0)));
            let to = SocketAddrV6::new(to.0.into(), PUBLISHED, 0, 0);
            socket::connect(socket.as_raw_fd(), &SockaddrIn6::from(to))?;
            socket
        };
        Ok(TcpStream::from(stream))
    })
}

/// Whom a server has seen, and which address it has itself.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    client: SocketAddr,
    task: SocketAddr,
}

/// Sends `len` bytes and expects them back.
#[track_caller]
fn exchange(stream: &mut TcpStream, len: usize) -> Seen {
    let message: Vec<u8> = (0..=250).cycle().take(len).collect();
    stream.write_all(&message).unwrap();
    let (mut addresses, mut returned) = (String::new(), Vec::<u8>::new());
    // A long message may be read, and answered, in several pieces.
    while returned.len() < len {
        let mut bytes = vec![0; 2 * LONG];
        let n_read = stream.read(&mut bytes).unwrap_or_else(|error| {
            panic!("after {} of {len} bytes: {error}", returned.len());
        });
        assert_ne!(n_read, 0, "the association ended after {} bytes", returned.len());
        match bytes[..n_read].strip_suffix(b"\n").map(|line| std::str::from_utf8(line)) {
            Some(Ok(line)) if line.contains(' ') => line.clone_into(&mut addresses),
            _ => returned.extend(&bytes[..n_read]),
        }
    }
    assert_eq!(returned, message);
    let (client, task) = addresses.split_once(' ').unwrap();
    Seen { client: client.parse().unwrap(), task: task.parse().unwrap() }
}

/// The addresses of one family.
struct Side {
    client: Ip,
    nodes: [Ip; 2],
    tasks: [Ip; 2],
}

fn v4() -> Side {
    Side { client: CLIENT.into(), nodes: NODES.map(Ip::from), tasks: TASKS.map(Ip::from) }
}

fn v6() -> Side {
    Side { client: CLIENT6, nodes: NODES6, tasks: TASKS.map(|task| INGRESS_PREFIX.address(task)) }
}

impl Side {
    fn seen(&self, port: u16, task: usize) -> Seen {
        let task = SocketAddr::new(self.tasks[task].into(), TARGET);
        Seen { client: SocketAddr::new(self.client.into(), port), task }
    }
}

/// By the node of the task, and by the other one; also what is longer than the tunnel takes.
fn clients_are_served(lab: &Lab, side: &Side) {
    for node in side.nodes {
        let mut stream = associate(lab, 0, node).unwrap_or_else(|error| panic!("{node}: {error}"));
        let port = stream.local_addr().unwrap().port();
        for len in [1, 1400, LONG] {
            assert_eq!(exchange(&mut stream, len), side.seen(port, 0), "{len} bytes through {node}");
        }
    }
}

/// The backend of an association leaves all rings and serves no more; its node is not the one that the client's packets enter
/// by, and that forgets it. New associations go to the other backend.
fn associations_live_through_a_drain(lab: &Lab, side: &Side) {
    for (node, (before, after)) in side.nodes.into_iter().zip([(0, 1), (1, 0)]) {
        lab.swap_ring(&[TASKS[before]]);
        let mut old = associate(lab, 0, node).unwrap();
        let port = old.local_addr().unwrap().port();
        assert_eq!(exchange(&mut old, 10), side.seen(port, before));

        lab.swap_ring(&[TASKS[after]]);
        serves(lab, TASKS[before], false);
        lab.empty_caches();

        assert_eq!(exchange(&mut old, LONG), side.seen(port, before), "through {node}");
        let mut new = associate(lab, 0, node).unwrap();
        let port = new.local_addr().unwrap().port();
        assert_eq!(exchange(&mut new, 10), side.seen(port, after), "through {node}");
        serves(lab, TASKS[before], true);
    }
    lab.swap_ring(&[TASKS[0]]);
}

fn serves(lab: &Lab, task: Ip4, is_serving: bool) {
    for node in 0..2 {
        lab.with_tables(node, |tables| {
            let key = EndpointKey { vni: INGRESS_VNI, address: task };
            let row: Endpoint = tables.endpoints.get(&key).unwrap().unwrap();
            tables.endpoints.insert(&key, &row.serving(is_serving)).unwrap();
        });
    }
}

/// One port of the client through two nodes to one task: the second gets another port, and a checksum to it.
fn colliding_associations_are_told_apart(lab: &Lab, side: &Side, source: u16) {
    let mut first = associate(lab, source, side.nodes[0]).unwrap();
    let mut second = associate(lab, source, side.nodes[1]).unwrap();
    assert_eq!(exchange(&mut first, LONG), side.seen(source, 0));
    let seen = exchange(&mut second, LONG);
    assert_eq!((seen.client.ip(), seen.task), (side.client.into(), side.seen(source, 0).task));
    assert_ne!(seen.client.port(), source);
}

/// Both sides see how an association ends: a shutdown, and an abort.
fn ends_are_seen(lab: &Lab, side: &Side) {
    for aborts in [false, true] {
        let mut stream = associate(lab, 0, side.nodes[0]).unwrap();
        let port = stream.local_addr().unwrap().port();
        exchange(&mut stream, 10);
        assert_eq!(state(lab, port), "established");
        if aborts {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            socket::setsockopt(&stream, sockopt::Linger, &now).unwrap();
        }
        drop(stream);
        wait_until("the end of an association", || state(lab, port) == "closed");
    }
}

/// As `meshctl flows` tells of the client's flow from this port, on the node of task 0.
fn state(lab: &Lab, port: u16) -> String {
    let report = inspect::flows(&lab.node_pins(1), 1000).unwrap();
    let is_it =
        |flow: &&dataplane_model::inspect::KeptFlow| flow.protocol == "sctp" && flow.client.port() == port;
    report.kept.iter().find(is_it).map(|flow| flow.state.clone()).unwrap_or_default()
}

fn walk(lab: &Lab, has_ipv6: bool) {
    for (side, source) in [(v4(), 40_077), (v6(), 40_078)].into_iter().take(1 + usize::from(has_ipv6)) {
        println!("a client {}", side.client);
        clients_are_served(lab, &side);
        associations_live_through_a_drain(lab, &side);
        colliding_associations_are_told_apart(lab, &side, source);
        ends_are_seen(lab, &side);
    }
    println!("{:?}", lab.check_counters());
}

/// Two nodes that publish the tasks' port.
fn lab() -> (Lab, bool) {
    let lab = Lab::new(tc_mode());
    let has_ipv6 = lab.enable_ipv6();
    for task in &lab.tasks {
        serve(task, if has_ipv6 { libc::AF_INET6 } else { libc::AF_INET });
    }
    lab.start();
    for node in 0..2 {
        lab.with_tables(node, |tables| {
            for (key, row) in tables.frontends.rows().unwrap().into_iter().filter(|(_, row)| row.ring == RING)
            {
                let key = FrontendKey::new(key.address, Port::new(PUBLISHED), protocol::SCTP);
                let row = ebpf_abi::Frontend::new(row.ring, Port::new(TARGET));
                tables.frontends.insert(&key, &row).unwrap();
            }
            let key = TargetPortKey::new(TASKS[1 - node], Port::new(PUBLISHED), protocol::SCTP);
            tables.target_ports.insert(&key, &TargetPort::new(Port::new(TARGET))).unwrap();
        });
    }
    (lab, has_ipv6)
}

/// Packets get their checksum from the device that they leave by, or never: they don't leave this machine.
#[test]
fn associations_whose_checksums_devices_make() {
    if has_sctp() {
        let (lab, has_ipv6) = lab();
        (0..2).for_each(|node| lab.allow_own_headers(node));
        walk(&lab, has_ipv6);
    }
}

/// Senders make the checksums, and receivers check them.
#[test]
fn associations_whose_checksums_are_there() {
    if has_sctp() {
        let (lab, has_ipv6) = lab();
        lab.client.sh("ethtool -K up0 tx-checksum-sctp off");
        for task in &lab.tasks {
            task.sh("ethtool -K eth0 tx-checksum-sctp off");
        }
        walk(&lab, has_ipv6);
    }
}
