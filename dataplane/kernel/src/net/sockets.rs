//! Sockets of others: found by their peer's address and ended, through the kernel's socket diagnosis (`sock_diag(7)`).
//! Their owners get `ECONNABORTED`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use dataplane_model::{SandboxId, endpoint_of};
use ipnetwork::{Ipv4Network, Ipv6Network};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::namespace::Namespace;
use super::sock_diag::{self, Answer, Found, KINDS, Kind, Wanted};
use super::{NetError, netns_path, sandbox};
use crate::seam::{KernelError, Pause, Sockets};

/// Most peers that the kernel is asked to compare with: it compares each of its sockets with each of them, and checks the
/// comparison in time that grows with their square. With more, all sockets are listed.
const PEERS_PER_DUMP: usize = 256;

/// The sockets of the node and its sandboxes.
#[derive(Debug, Clone)]
pub struct NodeSockets {
    netns_dir: PathBuf,
    can_reset: bool,
}

impl NodeSockets {
    pub(super) fn new(netns_dir: &Path, can_reset: bool) -> Self {
        Self { netns_dir: netns_dir.to_owned(), can_reset }
    }

    /// The cookies of all sockets of the node and its sandboxes that may have been translated; `None` where the kernel doesn't
    /// tell, or the pause between two sandboxes says that it's enough.
    pub fn cookies(&self, pause: &Pause) -> Result<Option<BTreeSet<u64>>, KernelError> {
        if !self.can_reset {
            return Ok(None);
        }
        let mut found = self.within(None, cookies)?;
        for id in sandbox::ids(&self.netns_dir).map_err(|error| KernelError::of(&error))? {
            if pause().is_break() {
                return Ok(None);
            }
            found.append(&mut self.within(Some(&id), cookies)?);
        }
        Ok(Some(found))
    }

    /// Nothing where there is no such sandbox, or where sockets can't be reset.
    fn within<T: Default + Send>(
        &self,
        sandbox: Option<&SandboxId>,
        work: impl FnOnce() -> Result<T, NetError> + Send,
    ) -> Result<T, KernelError> {
        let run = || match sandbox {
            _ if !self.can_reset => Ok(T::default()),
            None => work(),
            Some(id) => match Namespace::open(&netns_path(&self.netns_dir, id))? {
                Some(namespace) => namespace.run(work),
                None => Ok(T::default()),
            },
        };
        run().map_err(|error| KernelError::of(&error))
    }
}

impl Sockets for NodeSockets {
    fn reset(&self, sandbox: Option<&SandboxId>, peers: &BTreeSet<Ipv4Addr>) -> Result<(), KernelError> {
        let n_reset = self.within(sandbox, || reset(peers, &Families::of(sandbox)?))?;
        if n_reset > 0 {
            tracing::debug!(n_reset, ?sandbox, "sockets to tasks that are gone were reset");
        }
        Ok(())
    }

    fn peers(&self, sandbox: Option<&SandboxId>) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
        self.within(sandbox, || peers(&Families::of(sandbox)?))
    }
}

/// A socket to the kernel's socket diagnosis.
struct Diagnosis(Socket);

/// Ends all TCP sockets and connected UDP sockets of the calling thread's namespace with a peer among `gone`; says how many.
fn reset(gone: &BTreeSet<Ipv4Addr>, families: &Families) -> Result<usize, NetError> {
    let diagnosis = Diagnosis::open_here()?;
    let named: Vec<Ipv4Addr> = gone.iter().copied().collect();
    let mut n_reset = 0;
    for kind in KINDS {
        // One dump of all sockets costs less than many with a comparison; and only IPv4 addresses are compared.
        let all = gone.len() > PEERS_PER_DUMP || (kind.is_ipv6() && !families.0.is_empty());
        let wanted = if all { Wanted::All } else { Wanted::With(&named) };
        let found = diagnosis.list(kind, wanted).map_err(|error| NetError::io("list sockets", error))?;
        // The kernel may have compared already; a reset that hits someone else's socket would be worse than none.
        let is_gone = |socket: &&Found| families.peer(socket).is_some_and(|peer| gone.contains(&peer));
        for socket in found.iter().filter(is_gone) {
            let is_reset = diagnosis.destroy(kind, socket);
            n_reset += usize::from(is_reset.map_err(|error| NetError::io("reset a socket", error))?);
        }
    }
    Ok(n_reset)
}

/// The peers of all TCP sockets and connected UDP sockets of the calling thread's namespace.
fn peers(families: &Families) -> Result<BTreeSet<Ipv4Addr>, NetError> {
    let diagnosis = Diagnosis::open_here()?;
    let mut peers = BTreeSet::new();
    for kind in KINDS {
        let found = diagnosis.list(kind, Wanted::All).map_err(|error| NetError::io("list sockets", error))?;
        peers.extend(found.iter().filter_map(|socket| families.peer(socket)));
    }
    Ok(peers)
}

/// Of the calling thread's namespace.
fn cookies() -> Result<BTreeSet<u64>, NetError> {
    let diagnosis = Diagnosis::open_here()?;
    let mut cookies = BTreeSet::new();
    for kind in KINDS {
        let found =
            diagnosis.list(kind, Wanted::EvenAlone).map_err(|error| NetError::io("list sockets", error))?;
        cookies.extend(found.iter().map(Found::cookie));
    }
    Ok(cookies)
}

/// Can this kernel end sockets of others?
pub(super) fn can_reset() -> bool {
    let probe = || -> io::Result<bool> {
        let diagnosis = Diagnosis::open()?;
        for kind in KINDS {
            // A kind whose module is missing answers like a socket that is: only listing tells them apart.
            diagnosis.list(kind, Wanted::With(&[]))?;
            diagnosis.destroy(kind, &Found::NONE)?;
        }
        Ok(true)
    };
    probe().unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel can't reset sockets: those to tasks that are gone stay silent");
        false
    })
}

/// The subnets of both families of a sandbox's links, loopback apart: what gives an IPv6 peer its name.
#[derive(Default)]
struct Families(Vec<(Ipv4Network, Ipv6Network)>);

impl Families {
    /// Of the calling thread's namespace, which is the sandbox's. The node's links are not ours, and a peer with some host
    /// number there is nobody's endpoint: its processes reach tasks by IPv4.
    fn of(sandbox: Option<&SandboxId>) -> Result<Self, NetError> {
        if sandbox.is_none() { Ok(Self::default()) } else { Self::here() }
    }

    fn here() -> Result<Self, NetError> {
        let failed = |error: nix::Error| NetError::io("list addresses", error.into());
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for link in getifaddrs().map_err(failed)? {
            let (Some(address), Some(mask)) = (link.address, link.netmask) else { continue };
            if link.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
                continue;
            }
            let name = link.interface_name;
            if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
                v4.extend(Ipv4Network::with_netmask(address.ip(), mask.ip()).map(|subnet| (name, subnet)));
            } else if let (Some(address), Some(mask)) = (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
                v6.extend(Ipv6Network::with_netmask(address.ip(), mask.ip()).map(|subnet| (name, subnet)));
            }
        }
        let beside = |(name, subnet6): &(String, Ipv6Network)| {
            let subnet6 = *subnet6;
            let same_link = v4.iter().filter(move |(of, _)| of == name);
            same_link.map(move |(_, subnet)| (*subnet, subnet6)).collect::<Vec<_>>()
        };
        Ok(Self(v6.iter().flat_map(beside).collect()))
    }

    /// The peer by its IPv4 address: that which a mapped address stands for, or which has the same host number.
    fn peer(&self, socket: &Found) -> Option<Ipv4Addr> {
        match socket.peer() {
            IpAddr::V4(peer) => Some(peer),
            IpAddr::V6(peer) => Ipv6Addr::to_ipv4_mapped(&peer)
                .or_else(|| self.0.iter().find_map(|(subnet, subnet6)| endpoint_of(*subnet, *subnet6, peer))),
        }
    }
}

impl Diagnosis {
    fn open() -> io::Result<Self> {
        Socket::new(NETLINK_SOCK_DIAG).map(Self)
    }

    fn open_here() -> Result<Self, NetError> {
        Self::open().map_err(|error| NetError::io("open a netlink socket", error))
    }

    /// At most those that exist when the dump begins.
    fn list(&self, kind: Kind, wanted: Wanted<'_>) -> io::Result<Vec<Found>> {
        self.0.send(&sock_diag::list(kind, wanted), 0)?;
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
    use std::net::{SocketAddrV6, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd as _;
    use std::process::Command;
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, connect, socket};

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

    /// Compared by the kernel, and too many for it.
    #[test]
    fn sockets_with_these_peers_are_reset_and_no_others() {
        for n_gone in [PEERS_PER_DUMP, PEERS_PER_DUMP + 1] {
            check_reset(n_gone);
        }
    }

    /// A connection from the task's address: by itself the kernel would take the peer's, which is its own too.
    fn from_task(peer: &str) -> TcpStream {
        let address = |ip: &str, port| SockaddrIn6::from(SocketAddrV6::new(ip.parse().unwrap(), port, 0, 0));
        let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(socket.as_raw_fd(), &address("fd00:9::2", 0)).unwrap();
        connect(socket.as_raw_fd(), &address(peer, 80)).unwrap();
        socket.into()
    }

    /// The kernel answers for a new IPv6 address before it has its route, which it adds from a work queue.
    fn wait_for_local_routes(n: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let routes = Command::new("ip").args(["-6", "route", "show", "table", "local"]).output().unwrap();
            let routes = String::from_utf8(routes.stdout).unwrap();
            if routes.lines().filter(|route| route.starts_with("local fd00:")).count() == n {
                return;
            }
            assert!(Instant::now() < deadline, "{routes}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A task in a network of both families, whose peers are on its loopback interface.
    #[test]
    fn sockets_with_the_same_peers_by_ipv6_are_reset_too() {
        alone(|| {
            for command in [
                "link add eth0 type veth peer name eth1",
                "link set eth0 up",
                "link set eth1 up",
                "addr add 10.0.9.2/24 dev eth0",
                "addr add fd00:9::2/64 dev eth0 nodad",
                "addr add fd00:9::5/128 dev lo nodad",
                "addr add fd00:9::6/128 dev lo nodad",
                "addr add fd00:8::5/128 dev lo nodad",
            ] {
                assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "{command}");
            }
            wait_for_local_routes(4);
            let _listener = TcpListener::bind("[::]:80").unwrap();
            let (gone, alive, foreign) =
                (from_task("fd00:9::5"), from_task("fd00:9::6"), from_task("fd00:8::5"));
            let datagrams = UdpSocket::bind("[::]:0").unwrap();
            datagrams.connect(("fd00:9::5", 53)).unwrap();
            let names = [Ipv4Addr::new(10, 0, 9, 5), Ipv4Addr::new(10, 0, 9, 6)];

            let (families, none) = (Families::here().unwrap(), Families::of(None).unwrap());
            assert!(names.iter().all(|name| peers(&families).unwrap().contains(name)));
            assert!(names.iter().all(|name| !peers(&none).unwrap().contains(name)), "not in the node");
            let n_reset = reset(&[names[0]].into(), &families).unwrap();

            assert_eq!(n_reset, 2);
            assert_eq!(outcome(&gone), io::ErrorKind::ConnectionAborted);
            assert_eq!(outcome(&alive), io::ErrorKind::WouldBlock);
            assert_eq!(outcome(&foreign), io::ErrorKind::WouldBlock);
        });
    }

    fn check_reset(n_gone: usize) {
        alone(move || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            let met = [0, n_gone / 2, n_gone - 1];
            let gone = met.map(|n| TcpStream::connect((peer(n), 80)).unwrap());
            let mapped = TcpStream::connect((peer(1).to_ipv6_mapped(), 80)).unwrap();
            let alive = TcpStream::connect((peer(n_gone), 80)).unwrap();
            let datagrams = [peer(2), peer(n_gone)].map(|peer| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect((peer, 53)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            });

            let expected = [0, 1, 2, n_gone / 2, n_gone - 1, n_gone].map(peer);
            assert!(expected.iter().all(|peer| peers(&Families::default()).unwrap().contains(peer)));
            let n_reset = reset(&(0..n_gone).map(peer).collect(), &Families::default()).unwrap();

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
