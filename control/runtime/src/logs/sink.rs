//! A connection to a log server.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use control_model::log_driver::Server;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream, lookup_host};

/// A server that takes nothing for so long is not there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a host's own log listens (`syslog(3)`'s, and those of older ones).
const LOCAL: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

#[derive(Debug)]
pub(crate) enum Sink {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Datagram(UnixDatagram),
    Stream(UnixStream),
}

impl Sink {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        in_time(async {
            match server {
                Server::Udp(host) => Ok(Self::Udp(udp(host).await?)),
                Server::Tcp(host) => Ok(Self::Tcp(tcp(host).await?)),
                Server::LocalStream(path) => Ok(Self::Stream(UnixStream::connect(path).await?)),
                Server::LocalDatagram(path) => Ok(Self::Datagram(datagram(path)?)),
                Server::Local => local().await,
            }
        })
        .await
    }

    /// Has the server gone since? What is written to one that has is lost without a word the first time.
    pub fn check(&self) -> io::Result<()> {
        let mut said = [0; 64];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut said),
            Self::Stream(stream) => stream.try_read(&mut said),
            Self::Udp(_) | Self::Datagram(_) => return Ok(()),
        };
        match read {
            Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        in_time(async {
            match self {
                Self::Udp(socket) => socket.send(message).await.map(drop),
                Self::Datagram(socket) => socket.send(message).await.map(drop),
                Self::Tcp(stream) => stream.write_all(message).await,
                Self::Stream(stream) => stream.write_all(message).await,
            }
        })
        .await
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// What a host that is gone has not acknowledged is an error after a while, and not after the kernel's quarter of an hour.
async fn tcp(host: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(host).await?;
    let patience_ms = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpUserTimeout, &patience_ms)?;
    Ok(stream)
}

async fn udp(host: &str) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host(host).await? {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let connected = async {
            let socket = UdpSocket::bind(any).await?;
            socket.connect(address).await?;
            io::Result::Ok(socket)
        };
        match connected.await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn datagram(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

async fn local() -> io::Result<Sink> {
    for path in LOCAL {
        if let Ok(socket) = datagram(Path::new(path)) {
            return Ok(Sink::Datagram(socket));
        }
        if let Ok(stream) = UnixStream::connect(path).await {
            return Ok(Sink::Stream(stream));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "this host has no system log (/dev/log)"))
}
