//! Files inside a container's root, from outside: found, packed and unpacked, so that no link of the container's leads out of it,
//! whatever it changes meanwhile. Everything here blocks.

mod pack;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat};

pub use unpack::Overwriting;
pub(crate) use unpack::Owner;

/// As many links in a row are a circle (`MAXSYMLINKS` in the kernel).
const MAX_LINKS: usize = 40;
/// Nothing is renamed that often in a row.
const MAX_LOOKS: usize = 1000;

/// A root that paths are looked for in.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// A file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// `O_PATH`: of a link, the link.
    fd: OwnedFd,
    stat: FileStat,
    /// How an archive calls it.
    name: Vec<u8>,
}

/// What `docker cp` asks of a path first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    pub name: String,
    pub size_bytes: u64,
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    /// Nanoseconds since the epoch.
    pub modified_ns: i64,
    /// Of a link: where it leads inside the root, absolute; else empty.
    pub link_target: String,
}

/// Why nothing was copied, or not all.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("there is no such file")]
    NotFound,
    #[error("extraction point is not a directory")]
    NotADirectory,
    #[error("container rootfs is marked read-only")]
    ReadOnly,
    #[error("the container's file system is not mounted any more")]
    NotMounted,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for CopyError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => Self::NotFound,
            Errno::EROFS => Self::ReadOnly,
            other => Self::Io(other.into()),
        }
    }
}

impl From<OwnedFd> for Root {
    /// Of its directory.
    fn from(dir: OwnedFd) -> Self {
        Self(dir)
    }
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(std::fs::File::open(path)?.into()))
    }

    /// What is at `path`. A link at its end is what is found, unless a slash, or a dot, is behind it.
    pub fn find(&self, path: &str) -> Result<Found, CopyError> {
        let is_followed = path.ends_with('/') || path.ends_with("/.");
        let mut flags = OFlag::O_PATH;
        if !is_followed {
            flags |= OFlag::O_NOFOLLOW;
        }
        let fd = self.open_at(Path::new(path), flags)?;
        let stat = fstat(&fd).map_err(CopyError::from)?;
        if is_followed && kind(&stat) != SFlag::S_IFDIR {
            return Err(CopyError::NotFound);
        }
        Ok(Found { fd, stat, name: archive_name(path) })
    }

    pub fn stat(&self, path: &str) -> Result<PathStat, CopyError> {
        let found = self.find(path)?;
        let stat = found.stat;
        let link_target = match kind(&stat) {
            SFlag::S_IFLNK => self.target_of(Path::new(path))?,
            _ => PathBuf::new(),
        };
        Ok(PathStat {
            name: String::from_utf8_lossy(&found.name).into_owned(),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            modified_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            link_target: link_target.to_string_lossy().into_owned(),
        })
    }

    fn open_at(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        patiently(|| openat2(&self.0, path, how))
    }

    /// Where the link at `path` leads, link after link; also to what is not there.
    fn target_of(&self, path: &Path) -> Result<PathBuf, CopyError> {
        let mut at = normal(Path::new("/"), path);
        for _ in 0..MAX_LINKS {
            let Ok(fd) = self.open_at(&at, OFlag::O_PATH | OFlag::O_NOFOLLOW) else { return Ok(at) };
            if kind(&fstat(&fd)?) != SFlag::S_IFLNK {
                return Ok(at);
            }
            let target = readlinkat(&fd, "")?;
            at = normal(at.parent().unwrap_or(Path::new("/")), Path::new(&target));
        }
        Err(Errno::ELOOP.into())
    }
}

/// The kernel gives up a look through `..` while anything on the host is renamed or mounted (`openat2(2)`, EAGAIN).
pub(crate) fn patiently(mut look: impl FnMut() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let mut found = look();
    for _ in 0..MAX_LOOKS {
        if !matches!(found, Err(Errno::EAGAIN)) {
            break;
        }
        found = look();
    }
    found
}

/// `path` from `base` on, without dots; nothing is above the root.
fn normal(base: &Path, path: &Path) -> PathBuf {
    let mut at = if path.is_absolute() { PathBuf::from("/") } else { base.to_owned() };
    for part in path.components() {
        match part {
            Component::ParentDir => drop(at.pop()),
            Component::Normal(name) => at.push(name),
            _ => {}
        }
    }
    at
}

/// Go's `filepath.Base` of the path without detours, by which the CLI knows what it has asked for.
fn archive_name(path: &str) -> Vec<u8> {
    if path.ends_with("/.") {
        return b".".to_vec();
    }
    let clean = normal(Path::new("/"), Path::new(path));
    clean.file_name().map_or_else(|| b"/".to_vec(), |name| name.as_bytes().to_vec())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Opens again, to read, what is known by its `O_PATH` descriptor.
fn reopen(fd: &impl AsFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::open(path.as_str(), flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn bytes_of(text: OsString) -> Vec<u8> {
    text.into_vec()
}

#[cfg(test)]
mod tests;
