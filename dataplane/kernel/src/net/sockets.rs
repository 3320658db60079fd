//! Sockets of others: found by their peer's address and ended, through the kernel's socket diagnosis (`sock_diag(7)`).
//! Their owners get `ECONNABORTED`. Works on the namespace of the calling thread.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::NetError;
use super::sock_diag::{self, Answer, Found, KINDS, Kind};

/// Peers asked for in one dump. The kernel compares each of its sockets with each of them, and checks the comparison in
/// time that grows with their square.
const PEERS_PER_DUMP: usize = 256;

/// A socket to the kernel's socket diagnosis.
struct Diagnosis(Socket);

/// Ends all TCP sockets and connected UDP sockets with a peer among `peers`; says how many.
pub(super) fn reset(peers: &BTreeSet<Ipv4Addr>) -> Result<usize, NetError> {
    let diagnosis = Diagnosis::open().map_err(|error| NetError::io("open a netlink socket", error))?;
    let all: Vec<Ipv4Addr> = peers.iter().copied().collect();
    let mut n_reset = 0;
    for (kind, peers) in
        KINDS.iter().flat_map(|kind| all.chunks(PEERS_PER_DUMP).map(move |peers| (*kind, peers)))
    {
        let found = diagnosis.list(kind, peers).map_err(|error| NetError::io("list sockets", error))?;
        for socket in found.iter().filter(|socket| is_connected_to(socket, peers)) {
            let is_reset = diagnosis.destroy(kind, socket);
            n_reset += usize::from(is_reset.map_err(|error| NetError::io("reset a socket", error))?);
        }
    }
    Ok(n_reset)
}

/// Can this kernel end sockets of others?
pub(super) fn can_reset() -> bool {
    let probe = || -> io::Result<bool> {
        let diagnosis = Diagnosis::open()?;
        for kind in KINDS {
            // A kind whose module is missing answers like a socket that is: only listing tells them apart.
            diagnosis.list(kind, &[])?;
            diagnosis.destroy(kind, &Found::NONE)?;
        }
        Ok(true)
    };
    probe().unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel can't reset sockets: those to tasks that are gone stay silent");
        false
    })
}

/// The kernel has compared already; a reset that hits someone else's socket would be worse than none.
fn is_connected_to(socket: &Found, peers: &[Ipv4Addr]) -> bool {
    let peer = match socket.peer() {
        IpAddr::V4(peer) => Some(peer),
        IpAddr::V6(peer) => Ipv6Addr::to_ipv4_mapped(&peer),
    };
    peer.is_some_and(|peer| peers.binary_search(&peer).is_ok())
}

impl Diagnosis {
    fn open() -> io::Result<Self> {
        Socket::new(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Sockets with a peer among `peers`; at most those that exist when the dump begins.
    fn list(&self, kind: Kind, peers: &[Ipv4Addr]) -> io::Result<Vec<Found>> {
        self.0.send(&sock_diag::list(kind, peers), 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            for answer in sock_diag::answers(&bytes) {
                match answer {
                    Answer::Socket(socket) => found.push(socket),
                    Answer::End(0) => return Ok(found),
                    Answer::End(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
    }

    /// `false` if the socket is gone already.
    fn destroy(&self, kind: Kind, socket: &Found) -> io::Result<bool> {
        self.0.send(&sock_diag::destroy(kind, socket), 0)?;
        let (bytes, _) = self.0.recv_from_full()?;
        match sock_diag::answers(&bytes).next() {
            Some(Answer::End(0)) => Ok(true),
            // Closed in between; ESTALE: another socket has its ports now.
            Some(Answer::End(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Some(Answer::End(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Answer::Socket(_)) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// In a namespace with a loopback interface and nothing else.
    fn alone<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            test()
        });
        thread.join().unwrap()
    }

    fn peer(n: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + u32::try_from(n).unwrap())
    }

    fn outcome(mut stream: &TcpStream) -> io::ErrorKind {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0; 8]).unwrap_err().kind()
    }

    #[test]
    fn this_kernel_can() {
        assert!(alone(can_reset));
    }

    #[test]
    fn sockets_with_these_peers_are_reset_and_no_others() {
        alone(|| {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            // The first and last of a dump, and the first of the next.
            let met = [0, PEERS_PER_DUMP - 1, PEERS_PER_DUMP];
            let gone = met.map(|n| TcpStream::connect((peer(n), 80)).unwrap());
            let mapped = TcpStream::connect((peer(1).to_ipv6_mapped(), 80)).unwrap();
            let alive = TcpStream::connect((peer(PEERS_PER_DUMP + 1), 80)).unwrap();
            let datagrams = [peer(2), peer(PEERS_PER_DUMP + 1)].map(|peer| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect((peer, 53)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            });

            let n_reset = reset(&(0..=PEERS_PER_DUMP).map(peer).collect()).unwrap();

            assert_eq!(n_reset, 5);
            for stream in gone.iter().chain([&mapped]) {
                assert_eq!(outcome(stream), io::ErrorKind::ConnectionAborted);
            }
            assert_eq!(outcome(&alive), io::ErrorKind::WouldBlock);
            let answers = datagrams.map(|socket| socket.recv(&mut [0; 8]).unwrap_err().kind());
            assert_eq!(answers, [io::ErrorKind::ConnectionAborted, io::ErrorKind::WouldBlock]);
            TcpStream::connect((peer(0), 80)).expect("who listens goes on");
            drop(listener);
        });
    }
}
