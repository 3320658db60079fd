//! Network namespaces that live as files, and threads that enter them.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::NetError;

/// File system of namespaces (`linux/magic.h`).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Socket option (`asm-generic/socket.h`), since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// For documentation (RFC 5737, RFC 3849): no route but a default one leads there.
const FAR4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An open network namespace. Keeps it alive: hold it no longer than a step takes.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// `None` if there is no file, or nothing is mounted on it (the machine was restarted).
    pub fn open(path: &Path) -> Result<Option<Self>, NetError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NetError::file("open", path, error)),
        };
        let stat = nix::sys::statfs::fstatfs(&file)
            .map_err(|error| NetError::file("look at", path, error.into()))?;
        Ok((stat.filesystem_type().0 == NSFS_MAGIC).then_some(Self { file }))
    }

    /// Makes a namespace, runs `prepare` in it, and mounts it at `path`.
    pub fn create(
        path: &Path,
        prepare: impl FnOnce() -> Result<(), NetError> + Send,
    ) -> Result<Self, NetError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|error| NetError::file("make directory", dir, error))?;
        }
        File::create(path).map_err(|error| NetError::file("make", path, error))?;
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetError::io("make a network namespace", error.into()))?;
            prepare()?;
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|error| NetError::file("mount a network namespace on", path, error.into()))
        })?;
        Self::open(path)?.ok_or_else(|| NetError::NoNamespace { path: path.display().to_string() })
    }

    /// Takes the namespace that somebody else has mounted at `given`, if there is one, runs `prepare` in it, and mounts it at `path`
    /// too.
    pub fn adopt(
        path: &Path,
        given: &Path,
        prepare: impl FnOnce() -> Result<(), NetError> + Send,
    ) -> Result<Option<Self>, NetError> {
        let Some(namespace) = Self::open(given)? else { return Ok(None) };
        namespace.run(prepare)?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|error| NetError::file("make directory", dir, error))?;
        }
        File::create(path).map_err(|error| NetError::file("make", path, error))?;
        mount(Some(given), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| NetError::file("mount a network namespace on", path, error.into()))?;
        Ok(Some(namespace))
    }

    /// Unmounts and removes the file. The namespace itself goes when its last process and socket are gone.
    pub fn remove(path: &Path) -> Result<(), NetError> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: nothing is mounted there.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(NetError::file("unmount", path, error.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetError::file("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Runs `work` on a thread inside the namespace. The calling thread stays where it is.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetError::io("enter a network namespace", error.into()))?;
            work()
        })
    }

    /// The number that BPF programs know the namespace by: never 0, never given again while the machine runs.
    pub fn cookie(&self) -> Result<u64, NetError> {
        self.run(own_cookie)
    }

    /// The source that its kernel gives to what is sent to far addresses by IPv4; `None` where no route leads there.
    pub fn far_source4(&self) -> Result<Option<Ipv4Addr>, NetError> {
        let source = self.run(|| Ok(source_to(FAR4.into())))?;
        Ok(source.and_then(|source| if let IpAddr::V4(source) = source { Some(source) } else { None }))
    }

    /// The same by IPv6.
    pub fn far_source6(&self) -> Result<Option<Ipv6Addr>, NetError> {
        let source = self.run(|| Ok(source_to(FAR6.into())))?;
        Ok(source.and_then(|source| if let IpAddr::V6(source) = source { Some(source) } else { None }))
    }
}

/// A connected datagram socket has its source, and has sent nothing.
fn source_to(far: IpAddr) -> Option<IpAddr> {
    let any = if far.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Cookie of the calling thread's namespace.
pub fn own_cookie() -> Result<u64, NetError> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| NetError::io("open a socket", error))?;
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the pointers are to locals that live through the call, and `size` says how large the first one is.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(NetError::io("ask for the namespace's cookie", io::Error::last_os_error()))
    }
}

/// Runs `work` on a thread of its own: entering a namespace is for the thread's whole life.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| NetError::io("start a thread", error))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
