//! Servers and clients. A TCP server reads to the end, then answers with its peer's address and as many bytes; a UDP
//! server answers each datagram with its sender's address, padded to the same size.

use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
    UdpSocket,
};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ebpf_abi::Ip;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike};

use super::namespace::Namespace;

/// What fits into an IPv4 packet.
const LARGEST_DATAGRAM: usize = 65_507;

/// What a client waits before it calls a packet lost. An emulated machine that shares its processors is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Of both families, where the kernel has both.
fn any() -> IpAddr {
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// An address of this family that means any.
fn any_like(address: Ip) -> SocketAddr {
    if address.is_v4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

/// As a socket of its own family sees it.
fn plain(seen: SocketAddr) -> SocketAddr {
    SocketAddr::new(seen.ip().to_canonical(), seen.port())
}

#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: this never came");
    }
}

pub fn serve_tcp(namespace: &Namespace, port: u16) {
    serve_tcp_at(namespace, any(), port);
}

pub fn serve_tcp_at(namespace: &Namespace, address: IpAddr, port: u16) {
    let listener = namespace.run(|| TcpListener::bind((address, port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
}

fn answer(mut stream: TcpStream) {
    let peer = plain(stream.peer_addr().unwrap());
    let mut received = Vec::new();
    if stream.read_to_end(&mut received).is_ok() {
        let _ = stream.write_all(format!("{peer}\n").as_bytes());
        let _ = stream.write_all(&received);
    }
}

pub fn serve_udp(namespace: &Namespace, port: u16) {
    serve_udp_at(namespace, any(), port);
}

pub fn serve_udp_at(namespace: &Namespace, address: IpAddr, port: u16) {
    let socket = namespace.run(|| UdpSocket::bind((address, port)).unwrap());
    thread::spawn(move || {
        let mut datagram = vec![0; LARGEST_DATAGRAM];
        while let Ok((size, from)) = socket.recv_from(&mut datagram) {
            let seen = plain(from).to_string();
            let answer = format!("{seen}{:width$}", "", width = size.saturating_sub(seen.len()));
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    });
}

/// Closes a socket in `namespace` for good. A process that another test starts has copies of all sockets until it executes its
/// program: so long the port would stay open.
pub fn close(namespace: &Namespace, socket: UdpSocket) {
    let address = socket.local_addr().unwrap();
    let any =
        if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    drop(socket);
    let is_free = || namespace.run(|| UdpSocket::bind((any, address.port()))).is_ok();
    wait_until("a port is free again", is_free);
}

/// Sends `payload` and expects it back. Returns whom the server saw.
pub fn tcp(from: &Namespace, to: impl Into<Ip>, port: u16, payload: &[u8]) -> std::io::Result<SocketAddr> {
    let to = address(to, port);
    from.run(|| exchange(TcpStream::connect_timeout(&to, PATIENCE)?, payload))
}

/// The same from a chosen source port.
pub fn connect_from(namespace: &Namespace, source: u16, to: impl Into<Ip>, port: u16) -> TcpStream {
    match address(to, port) {
        SocketAddr::V4(to) => {
            let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, source);
            connect_between(namespace, AddressFamily::Inet, (&source.into(), &SockaddrIn::from(to)))
        }
        SocketAddr::V6(to) => {
            let source = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, source, 0, 0);
            connect_between(namespace, AddressFamily::Inet6, (&source.into(), &SockaddrIn6::from(to)))
        }
    }
}

fn connect_between<A: SockaddrLike + Sync>(
    namespace: &Namespace,
    family: AddressFamily,
    (source, to): (&A, &A),
) -> TcpStream {
    namespace.run(|| {
        let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        socket::setsockopt(&socket, socket::sockopt::ReuseAddr, &true).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        socket::bind(fd, source).unwrap();
        socket::connect(fd, to).unwrap();
        TcpStream::from(socket)
    })
}

/// Sends `payload`, and expects the peer's address as the server sees it, and the payload.
pub fn exchange(mut stream: TcpStream, payload: &[u8]) -> std::io::Result<SocketAddr> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = stream.try_clone()?;
    let reading = thread::spawn(move || {
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).map(|_| answer)
    });
    stream.write_all(payload)?;
    stream.shutdown(Shutdown::Write)?;
    let answer = reading.join().unwrap()?;
    let end = answer.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    assert!(answer.get(end + 1..) == Some(payload), "the server's answer differs");
    Ok(std::str::from_utf8(&answer[..end]).unwrap().parse().unwrap())
}

/// Sends a datagram from an unconnected socket. Returns whom the server saw, and who seems to answer.
pub fn udp(
    from: &Namespace,
    to: impl Into<Ip>,
    port: u16,
    size: usize,
) -> std::io::Result<(SocketAddr, SocketAddr)> {
    let to = to.into();
    from.run(|| {
        let socket = UdpSocket::bind(any_like(to))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&vec![7; size], address(to, port))?;
        receive(&socket)
    })
}

/// The same from a connected one, which hears of ICMP errors.
pub fn udp_connected(
    from: &Namespace,
    to: impl Into<Ip>,
    port: u16,
) -> std::io::Result<(SocketAddr, SocketAddr)> {
    let to = to.into();
    from.run(|| {
        let socket = UdpSocket::bind(any_like(to))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(address(to, port))?;
        assert_eq!(socket.peer_addr()?, address(to, port), "getpeername");
        socket.send(b"hello")?;
        receive(&socket)
    })
}

/// The same from an IPv6 socket, connected or not, also to mapped addresses.
pub fn udp_by_ipv6_socket(
    from: &Namespace,
    to: SocketAddr,
    is_connected: bool,
) -> std::io::Result<(SocketAddr, SocketAddr)> {
    from.run(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if is_connected {
            socket.connect(to)?;
            assert_eq!(socket.peer_addr()?, to, "getpeername");
            socket.send(b"hello")?;
        } else {
            socket.send_to(b"hello", to)?;
        }
        receive(&socket)
    })
}

/// Sends a datagram of `size` bytes, and returns how long a packet may be by what the kernel knows then.
pub fn udp_path_mtu(from: &Namespace, to: impl Into<Ip>, port: u16, size: usize) -> i32 {
    let to = to.into();
    from.run(|| {
        let socket = UdpSocket::bind(any_like(to)).unwrap();
        socket.connect(address(to, port)).unwrap();
        socket.send(&vec![7; size]).unwrap();
        path_mtu(&socket)
    })
}

/// What the kernel knows of the way to a connected socket's peer.
pub fn path_mtu(socket: &UdpSocket) -> i32 {
    let (level, option) = if socket.peer_addr().unwrap().is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let (mut mtu, mut len) = (0_i32, 4);
    // SAFETY: the kernel writes four bytes at most, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            level,
            option,
            (&raw mut mtu).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    mtu
}

fn receive(socket: &UdpSocket) -> std::io::Result<(SocketAddr, SocketAddr)> {
    let mut datagram = vec![0; LARGEST_DATAGRAM];
    let (size, from) = socket.recv_from(&mut datagram)?;
    Ok((std::str::from_utf8(&datagram[..size]).unwrap().trim_end().parse().unwrap(), from))
}

/// Does `to` answer an echo request?
pub fn ping(from: &Namespace, to: impl Into<Ip>) -> bool {
    // Code 0, checksum of 8 bytes that are otherwise identifier 0x1234 and sequence 1. The kernel sums up ICMPv6 itself.
    const REQUEST: [u8; 8] = [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
    const REQUEST6: [u8; 8] = [128, 0, 0, 0, 0x12, 0x34, 0, 1];
    const ECHO_REPLY: u8 = 0;
    const ECHO_REPLY6: u8 = 129;
    match address(to, 0) {
        SocketAddr::V4(to) => {
            let protocol = (AddressFamily::Inet, socket::SockProtocol::Icmp);
            is_answered(from, protocol, (&REQUEST, &SockaddrIn::from(to)), (20, ECHO_REPLY))
        }
        SocketAddr::V6(to) => {
            let protocol = (AddressFamily::Inet6, socket::SockProtocol::IcmpV6);
            is_answered(from, protocol, (&REQUEST6, &SockaddrIn6::from(to)), (0, ECHO_REPLY6))
        }
    }
}

/// Sends a request by a raw socket. What is received has so many bytes of IP header in front of the message, whose answer is
/// of this type.
fn is_answered<A: SockaddrLike + Sync>(
    from: &Namespace,
    (family, protocol): (AddressFamily, socket::SockProtocol),
    (request, to): (&[u8; 8], &A),
    (header_len, answer): (usize, u8),
) -> bool {
    from.run(|| {
        let socket = socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        let patience = nix::sys::time::TimeVal::new(5, 0);
        socket::setsockopt(&socket, socket::sockopt::ReceiveTimeout, &patience).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        socket::sendto(fd, request, to, socket::MsgFlags::empty()).unwrap();
        let mut packet = [0; 64];
        // The request itself may be heard first, where the socket is its own neighbour.
        while let Ok(size) = socket::recv(fd, &mut packet, socket::MsgFlags::empty()) {
            let message = &packet[header_len..size];
            if message[..2] == [answer, 0] && message[4..] == request[4..] {
                return true;
            }
        }
        false
    })
}

fn address(to: impl Into<Ip>, port: u16) -> SocketAddr {
    SocketAddr::from((IpAddr::from(to.into()), port))
}
