//! Gossip's own sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};

use crate::core::message::MAX_MESSAGE_BYTES;
use crate::seal::OVERHEAD;

/// Largest datagram.
pub(super) const MAX_DATAGRAM: usize = MAX_MESSAGE_BYTES + OVERHEAD;
/// Datagrams taken in one go.
pub(super) const MAX_BATCH: usize = 256;
/// After an error of the socket, so that it keeps no processor busy.
pub(super) const IDLE_PAUSE: Duration = Duration::from_millis(10);

/// UDP and TCP on the same port.
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Listens at `addr`. Needs a tokio runtime.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let tcp = std::net::TcpListener::bind(addr)?;
        tcp.set_nonblocking(true)?;
        let udp = open_udp(tcp.local_addr()?)?;
        Ok(Self { udp, tcp: TcpListener::from_std(tcp)? })
    }

    /// Where they listen.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A socket for datagrams.
pub(super) fn open_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The address as the socket's family writes it: one of IPv6 that takes both reaches IPv4 by mapped addresses.
pub(super) fn for_socket(socket: &UdpSocket, addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if socket.local_addr().is_ok_and(|local| local.is_ipv6()) => {
            SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port())
        }
        _ => addr,
    }
}
