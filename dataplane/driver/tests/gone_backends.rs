//! What becomes of sockets whose backend is gone, or drains. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_model::{NodeView, change_rows};
use lab::{Lab, NODE_A, NODE_B, Ns, view};

/// Where backends say who they are, as long as they are asked.
const GREETINGS: u16 = 81;
/// More tries than it takes to meet both backends: all of them lead to one in 1 of 2^39 runs.
const N_TRIES: usize = 40;

/// A socket of each way to reach a backend, by the backend's name.
struct Connected {
    streams: BTreeMap<String, Vec<(&'static str, TcpStream)>>,
    datagrams: Vec<(String, UdpSocket)>,
}

/// Both backends serve; task 5, a task outside all networks and the node itself are connected to both of them.
fn connected() -> (Lab, Connected) {
    let lab = Lab::new(|_| {});
    lab.a.converge(with_lone_task(view::of_node(1, NODE_A)));
    lab.b.converge(view::of_node(1, NODE_B));
    for (node, task, name) in [(&lab.a, 5, "five"), (&lab.b, 6, "six")] {
        lab::serve_greetings(&node.sandbox(task), GREETINGS, name);
        lab::serve_udp(&node.sandbox(task), 80, name);
    }
    let (five, lone) = (lab.a.sandbox(5), lab.a.sandbox(9));
    let mapped = |task| SocketAddr::from((view::app(task).to_ipv6_mapped(), GREETINGS));
    let ways: [(&'static str, &Ns, SocketAddr); 5] = [
        ("by the virtual address", &five, (view::VIP, GREETINGS).into()),
        ("from the node", &lab.a.ns, (NODE_A, GREETINGS + 8_000).into()),
        ("from the node by localhost", &lab.a.ns, (Ipv4Addr::LOCALHOST, GREETINGS + 8_000).into()),
        ("by the published port", &five, (NODE_A, GREETINGS + 8_000).into()),
        ("by the published port from outside the network", &lone, (NODE_A, GREETINGS + 8_000).into()),
    ];
    let mut streams: BTreeMap<String, Vec<(&'static str, TcpStream)>> = BTreeMap::new();
    for (way, from, to) in ways {
        let mut met: BTreeMap<String, TcpStream> = BTreeMap::new();
        (0..N_TRIES).any(|_| {
            let (name, stream) = from.run(move || greeted(to));
            met.insert(name, stream);
            met.len() == 2
        });
        assert_eq!(met.len(), 2, "{way}: {met:?}");
        for (name, stream) in met {
            streams.entry(name).or_default().push((way, stream));
        }
    }
    let (name, stream) = five.run(move || greeted(mapped(6)));
    streams.entry(name).or_default().push(("by an IPv6 socket", stream));
    let datagrams = (0..N_TRIES).map(|_| five.run(asked)).collect();
    (lab, Connected { streams, datagrams })
}

fn with_lone_task(mut view: NodeView) -> NodeView {
    view::add_lone_task(&mut view, 9);
    view
}

/// A connection, and who is at its other end.
fn greeted(to: SocketAddr) -> (String, TcpStream) {
    let mut stream = TcpStream::connect_timeout(&to, lab::PATIENCE).unwrap();
    stream.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    let name = greet(&mut stream);
    (name, stream)
}

fn greet(stream: &mut TcpStream) -> String {
    stream.write_all(b"who?").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).trim().to_owned()
}

/// A connected socket for datagrams to the virtual address, and who answers.
fn asked() -> (String, UdpSocket) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    socket.connect((view::VIP, 80)).unwrap();
    let name = ask(&socket).unwrap();
    (name, socket)
}

fn ask(socket: &UdpSocket) -> Result<String, ErrorKind> {
    let mut answer = [0; 64];
    let received = socket.send(b"?").and_then(|_| socket.recv(&mut answer));
    let n_bytes = received.map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&answer[..n_bytes]).split(' ').next().unwrap().to_owned())
}

#[test]
fn sockets_to_a_backend_that_is_gone_are_reset() {
    let (lab, mut sockets) = connected();
    assert!(sockets.datagrams.iter().any(|(name, _)| name == "six"));

    // The backend itself lives on and is as silent as one that is gone: nobody else ends these connections.
    lab.a.converge(with_lone_task(view::without_task(2, NODE_A, 6)));

    check_reset(&mut sockets);
}

/// Those to "six" are reset within [`lab::PATIENCE`], those to "five" go on.
fn check_reset(sockets: &mut Connected) {
    let six = sockets.streams.remove("six").unwrap();
    assert_eq!(six.len(), 6);
    for (way, mut stream) in six {
        let outcome = stream.read(&mut [0; 4]).map_err(|error| error.kind());
        assert_eq!(outcome, Err(ErrorKind::ConnectionAborted), "{way}");
    }
    for (way, mut stream) in sockets.streams.remove("five").unwrap() {
        assert_eq!(greet(&mut stream), "five", "{way}");
    }
    for (name, socket) in &sockets.datagrams {
        let outcome = if name == "six" {
            socket.recv(&mut [0; 64]).map(|_| String::new()).map_err(|error| error.kind())
        } else {
            ask(socket)
        };
        let expected = if name == "six" { Err(ErrorKind::ConnectionAborted) } else { Ok(name.clone()) };
        assert_eq!(outcome, expected);
    }
}

/// Each datagram of a socket without a peer asks the ring. One with a peer that is gone has none until it is connected again.
#[test]
fn datagrams_find_another_backend() {
    let (lab, Connected { datagrams, .. }) = connected();
    let five = lab.a.sandbox(5);
    let alone: Vec<UdpSocket> = (0..N_TRIES).map(|_| five.run(unconnected)).collect();
    assert!(alone.iter().any(|socket| ask_by_address(socket) == "six"));

    lab.a.converge(with_lone_task(view::without_task(2, NODE_A, 6)));

    for socket in alone {
        assert_eq!(ask_by_address(&socket), "five");
    }
    for (_, socket) in datagrams.into_iter().filter(|(name, _)| name == "six") {
        let outcome = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(outcome, Err(ErrorKind::ConnectionAborted));
        let connected_again = five.run(move || {
            socket.connect((view::VIP, 80)).unwrap();
            ask(&socket)
        });
        assert_eq!(connected_again, Ok("five".to_owned()));
    }
}

fn unconnected() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    socket
}

/// Who answers; by the virtual address, as the socket sees it.
fn ask_by_address(socket: &UdpSocket) -> String {
    let mut answer = [0; 64];
    socket.send_to(b"?", (view::VIP, 80)).unwrap();
    let (n_bytes, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, (view::VIP, 80).into());
    String::from_utf8_lossy(&answer[..n_bytes]).split(' ').next().unwrap().to_owned()
}

/// The row is gone, and so is the driver that would have reset the sockets.
#[test]
fn sockets_that_a_killed_driver_left_are_reset_by_the_next() {
    let (mut lab, mut sockets) = connected();
    lab.a.kill();
    let mut tables = Tables::open(&PinDir::new(&lab.a.options.bpffs_dir)).unwrap();
    for (key, _) in tables.endpoints.rows().unwrap() {
        if Ipv4Addr::from(key.address).octets()[3] == 6 {
            tables.endpoints.remove(&key).unwrap();
        }
    }

    lab.a.start();
    lab.a.converge(with_lone_task(view::without_task(2, NODE_A, 6)));

    check_reset(&mut sockets);
}

#[test]
fn sockets_to_a_backend_that_drains_stay() {
    let (lab, sockets) = connected();
    let mut drained = with_lone_task(view::of_node(2, NODE_A));
    change_rows(&mut drained.services, |service| {
        service
            .backends
            .iter_mut()
            .for_each(|((_, address), backend)| backend.ready = address.octets()[3] != 6);
    });

    lab.a.converge(drained);

    for (name, streams) in sockets.streams {
        for (way, mut stream) in streams {
            assert_eq!(greet(&mut stream), name, "{way}");
        }
    }
}
