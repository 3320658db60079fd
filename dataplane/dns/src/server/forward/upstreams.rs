//! Who is asked for the names of the world outside, and from where.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpSocket, UdpSocket};

use crate::server::netns::{SandboxSockets, SocketKind};

/// Resolvers that are asked for one name; glibc's resolver takes as many.
const MAX_RESOLVERS: usize = 3;

/// Port of DNS.
pub const DNS_PORT: u16 = 53;

/// Some resolvers, seen from one namespace. What they say is kept apart from what others say.
#[derive(Debug)]
pub struct Upstreams {
    /// No other value of this process has it.
    pub id: u64,
    pub resolvers: Vec<SocketAddr>,
    pub origin: Origin,
}

/// From where they are asked.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The namespace of this process: the node's.
    Node,
    Sandbox(Arc<SandboxSockets>),
}

impl Upstreams {
    pub fn new(resolvers: impl IntoIterator<Item = SocketAddr>, origin: Origin) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, resolvers: resolvers.into_iter().take(MAX_RESOLVERS).collect(), origin }
    }

    /// A task's own resolvers.
    pub fn of_sandbox(servers: &[IpAddr], sockets: Arc<SandboxSockets>) -> Self {
        let resolvers = servers.iter().map(|address| SocketAddr::new(*address, DNS_PORT));
        Self::new(resolvers, Origin::Sandbox(sockets))
    }
}

impl Origin {
    /// A socket connected to `resolver` from a port that the kernel picks at random: nothing else is heard on it (RFC
    /// 5452 section 9.2).
    pub async fn connect_udp(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = match (self, resolver) {
            (Self::Node, SocketAddr::V4(_)) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
            (Self::Node, SocketAddr::V6(_)) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
            (Self::Sandbox(sockets), _) => {
                let opened = sockets.open(SocketKind::Udp, resolver.is_ipv6()).await?;
                UdpSocket::from_std(opened.into())?
            }
        };
        socket.connect(resolver).await?;
        Ok(socket)
    }

    pub async fn tcp_socket(&self, resolver: SocketAddr) -> io::Result<TcpSocket> {
        match (self, resolver) {
            (Self::Node, SocketAddr::V4(_)) => TcpSocket::new_v4(),
            (Self::Node, SocketAddr::V6(_)) => TcpSocket::new_v6(),
            (Self::Sandbox(sockets), _) => {
                let opened = sockets.open(SocketKind::Tcp, resolver.is_ipv6()).await?;
                Ok(TcpSocket::from_std_stream(opened.into()))
            }
        }
    }
}
