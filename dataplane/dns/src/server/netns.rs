//! Sockets inside another network namespace: opened by a thread that goes there and ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Where containers are told to ask.
pub const DNS_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// Which namespace a path names: device and inode. A number is not given twice while a socket keeps its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetnsIdentity {
    device: u64,
    inode: u64,
}

/// One sandbox's sockets.
#[derive(Debug)]
pub struct Sockets {
    pub netns: NetnsIdentity,
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// The namespace that `path` names now.
pub fn identify(path: &Path) -> io::Result<NetnsIdentity> {
    let metadata = std::fs::metadata(path)?;
    Ok(NetnsIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// Opens [`DNS_ADDRESS`] in each of `paths`; the results come in the same order.
pub async fn open_all(paths: Vec<PathBuf>) -> Vec<io::Result<Sockets>> {
    let n_paths = paths.len();
    let (sender, receiver) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("dns-netns".to_owned()).spawn(move || {
        // The receiver is gone only when the server ends.
        let _ = sender.send(paths.iter().map(|path| open(path)).collect());
    });
    let failed = |error: io::Error| {
        (0..n_paths).map(|_| Err(io::Error::new(error.kind(), error.to_string()))).collect()
    };
    match spawned {
        Ok(_) => {
            receiver.await.unwrap_or_else(|_| failed(io::Error::other("the thread that opens sockets died")))
        }
        Err(error) => failed(error),
    }
}

/// Moves this thread into the namespace, for good.
fn open(path: &Path) -> io::Result<Sockets> {
    let netns = File::open(path)?;
    let metadata = netns.metadata()?;
    setns(&netns, CloneFlags::CLONE_NEWNET)?;
    let udp = UdpSocket::bind(DNS_ADDRESS)?;
    let tcp = TcpListener::bind(DNS_ADDRESS)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok(Sockets { netns: NetnsIdentity { device: metadata.dev(), inode: metadata.ino() }, udp, tcp })
}
