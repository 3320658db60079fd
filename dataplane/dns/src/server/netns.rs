//! Sockets inside other network namespaces: opened by a thread that goes there, one after the other.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::oneshot;

use super::redirect;

/// Where containers are told to ask.
pub const DNS_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// Threads that open the sockets of many sandboxes at once.
const MAX_HELPERS: usize = 8;

/// Which namespace a path names: device and inode. A number is not given twice while a socket keeps its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetnsIdentity {
    device: u64,
    inode: u64,
}

/// The namespace that `path` names now.
pub fn identify(path: &Path) -> io::Result<NetnsIdentity> {
    std::fs::metadata(path).map(|metadata| identity(&metadata))
}

fn identity(metadata: &std::fs::Metadata) -> NetnsIdentity {
    NetnsIdentity { device: metadata.dev(), inode: metadata.ino() }
}

/// One sandbox's sockets, and the way to more.
#[derive(Debug)]
pub struct Sockets {
    pub netns: NetnsIdentity,
    pub udp: UdpSocket,
    pub tcp: TcpListener,
    pub more: SandboxSockets,
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    Udp,
    Tcp,
}

/// Opens sockets in one sandbox.
#[derive(Debug)]
pub struct SandboxSockets {
    netns: Arc<File>,
    opener: Opener,
}

impl SandboxSockets {
    /// A socket that blocks nobody and is bound to nothing.
    pub async fn open(&self, kind: SocketKind, ipv6: bool) -> io::Result<OwnedFd> {
        let netns = self.netns.clone();
        self.opener
            .run(move || {
                setns(&*netns, CloneFlags::CLONE_NEWNET)?;
                let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
                let socket_type = match kind {
                    SocketKind::Udp => SockType::Datagram,
                    SocketKind::Tcp => SockType::Stream,
                };
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                Ok(socket(family, socket_type, flags, None)?)
            })
            .await?
    }
}

/// The thread that goes from namespace to namespace. It ends with the last of its handles.
#[derive(Debug, Clone)]
pub struct Opener {
    work: mpsc::Sender<Work>,
}

type Work = Box<dyn FnOnce() + Send>;

impl Opener {
    pub fn start() -> io::Result<Self> {
        let (work, queue) = mpsc::channel::<Work>();
        let run = move || queue.into_iter().for_each(|work| work());
        std::thread::Builder::new().name("dns-netns".to_owned()).spawn(run)?;
        Ok(Self { work })
    }

    /// Opens what answers at [`DNS_ADDRESS`] in each of `paths`; the results come in the same order. A process that is
    /// started among many sandboxes has some helpers: most of the time goes by waiting for the kernel.
    pub async fn open_all(&self, paths: Vec<PathBuf>) -> Vec<io::Result<Sockets>> {
        let helpers: Vec<Self> =
            (1..MAX_HELPERS.min(paths.len())).filter_map(|_| Self::start().ok()).collect();
        let all: Vec<&Self> = helpers.iter().chain([self]).collect();
        let opening: Vec<_> = paths
            .into_iter()
            .zip(all.iter().cycle())
            .map(|(path, helper)| {
                let opener = self.clone();
                helper.begin(move || open(&path, opener))
            })
            .collect();
        let mut opened = Vec::with_capacity(opening.len());
        for socket in opening {
            opened.push(finish(socket).await.flatten());
        }
        opened
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        finish(self.begin(work)).await
    }

    /// Gives the thread something to do; what it comes to is sent back.
    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        // If the thread is gone the receiver hears of it.
        let _ = self.work.send(Box::new(move || {
            // Whoever asked may be gone by now.
            let _ = sender.send(work());
        }));
        receiver
    }
}

async fn finish<T>(receiver: oneshot::Receiver<T>) -> io::Result<T> {
    receiver.await.map_err(|_| io::Error::other("the thread that opens sockets died"))
}

/// Moves this thread into the namespace.
fn open(path: &Path, opener: Opener) -> io::Result<Sockets> {
    let netns = File::open(path)?;
    setns(&netns, CloneFlags::CLONE_NEWNET)?;
    let (udp, tcp) = redirect::listen()?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let netns_id = identity(&netns.metadata()?);
    Ok(Sockets { netns: netns_id, udp, tcp, more: SandboxSockets { netns: Arc::new(netns), opener } })
}
