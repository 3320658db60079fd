//! An archive of what is at a path, as `docker cp` gets it: owners, times, links, hard links and devices included.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use nix::sys::statfs::{self, FsType};
use tar::{Builder, EntryType, Header};

use super::{CopyError, Found, Root, bytes_of, kind, os, patiently, reopen};

/// Names that are longer stand in an entry of their own before (GNU tar).
const MAX_NAME_LEN: usize = 100;
/// What the kernel shows of itself in a running container is none of its files.
const KERNELS: [FsType; 6] = [
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
    // `MQUEUE_MAGIC` of `ipc/mqueue.c`.
    FsType(0x1980_0202),
    statfs::DEVPTS_SUPER_MAGIC,
];

impl Root {
    /// Writes the archive of what is at `path`; gives back where it was written to.
    pub fn pack<W: Write>(&self, path: &str, to: W) -> Result<W, CopyError> {
        let Found { fd, stat, name } = self.find(path)?;
        let mut packing = Packing { archive: Builder::new(to), known: BTreeMap::new() };
        if kind(&stat) != SFlag::S_IFDIR {
            packing.add(&name, &fd, &stat)?;
            return Ok(packing.archive.into_inner()?);
        }
        // By their paths below the top, opened from there: however deep it is, no more than two are open.
        let mut dirs = vec![PathBuf::from(".")];
        while let Some(below) = dirs.pop() {
            let Some(dir) = there(beneath(&fd, &below))? else { continue };
            let stat = fstat(&dir)?;
            let is_kernels = KERNELS.contains(&statfs::fstatfs(&dir)?.filesystem_type());
            // Read before anything waits for the client: it may go meanwhile.
            let entries = if is_kernels { Vec::new() } else { names(&dir).unwrap_or_default() };
            packing.add(&full_name(&name, &below), &dir, &stat)?;
            for entry in entries {
                let at = below.join(os(&entry));
                let Some(entry) = there(beneath(&fd, &at))? else { continue };
                let stat = fstat(&entry)?;
                if kind(&stat) == SFlag::S_IFDIR {
                    dirs.push(at);
                } else {
                    packing.add(&full_name(&name, &at), &entry, &stat)?;
                }
            }
        }
        Ok(packing.archive.into_inner()?)
    }
}

struct Packing<W: Write> {
    archive: Builder<W>,
    /// Files with several names, by device and inode.
    known: BTreeMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packing<W> {
    fn add(&mut self, name: &[u8], fd: &OwnedFd, stat: &FileStat) -> Result<(), CopyError> {
        let mut header = header_of(stat);
        let of_kind = kind(stat);
        // One with a single name is no other, whoever had its number before.
        let first = self.known.get(&(stat.st_dev, stat.st_ino)).filter(|_| stat.st_nlink > 1).cloned();
        match of_kind {
            SFlag::S_IFDIR => {
                header.set_entry_type(EntryType::Directory);
                let name = if name.ends_with(b"/") { name.to_vec() } else { [name, b"/"].concat() };
                self.write(&mut header, &name, None, io::empty())
            }
            SFlag::S_IFLNK => {
                header.set_entry_type(EntryType::Symlink);
                let target = bytes_of(readlinkat(fd, "")?);
                self.write(&mut header, name, Some(&target), io::empty())
            }
            _ if first.is_some() => {
                header.set_entry_type(EntryType::Link);
                self.write(&mut header, name, first.as_deref(), io::empty())
            }
            SFlag::S_IFREG => {
                let file = match reopen(fd, OFlag::O_RDONLY) {
                    Ok(file) => File::from(file),
                    // What can't be read is left out, as Docker does.
                    Err(errno) => {
                        tracing::warn!(name = %String::from_utf8_lossy(name), %errno, "left out of an archive");
                        return Ok(());
                    }
                };
                if stat.st_nlink > 1 {
                    self.known.insert((stat.st_dev, stat.st_ino), name.to_vec());
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                // Whatever is written or cut off meanwhile: as many bytes as are announced.
                self.write(&mut header, name, None, file.chain(io::repeat(0)).take(size))
            }
            SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK => {
                header.set_entry_type(match of_kind {
                    SFlag::S_IFIFO => EntryType::Fifo,
                    SFlag::S_IFCHR => EntryType::Char,
                    _ => EntryType::Block,
                });
                header.set_device_major(u32::try_from(major(stat.st_rdev)).unwrap_or(0))?;
                header.set_device_minor(u32::try_from(minor(stat.st_rdev)).unwrap_or(0))?;
                self.write(&mut header, name, None, io::empty())
            }
            // An archive has no sockets.
            _ => Ok(()),
        }
    }

    fn write(
        &mut self,
        header: &mut Header,
        name: &[u8],
        link: Option<&[u8]>,
        content: impl Read,
    ) -> Result<(), CopyError> {
        let gnu = header.as_gnu_mut().expect("made as one");
        for (kind, text, field) in [
            (EntryType::GNULongName, Some(name), &mut gnu.name),
            (EntryType::GNULongLink, link, &mut gnu.linkname),
        ] {
            let Some(text) = text else { continue };
            if text.len() > MAX_NAME_LEN {
                self.archive.append(&long_name(kind, text), [text, b"\0"].concat().as_slice())?;
            }
            let n = text.len().min(MAX_NAME_LEN);
            field[..n].copy_from_slice(&text[..n]);
        }
        header.set_cksum();
        Ok(self.archive.append(header, content)?)
    }
}

/// `None` of what has gone meanwhile, has become another kind, or can't be reached.
fn there(found: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, CopyError> {
    match found {
        Err(
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ELOOP
            | Errno::EXDEV
            | Errno::EACCES
            | Errno::ENAMETOOLONG,
        ) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn long_name(kind: EntryType, text: &[u8]) -> Header {
    let mut header = Header::new_gnu();
    let name = b"././@LongLink";
    header.as_gnu_mut().expect("made as one").name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(text.len() as u64 + 1);
    header.set_cksum();
    header
}

fn header_of(stat: &FileStat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// What is there, itself; nothing that a link leads to.
fn beneath(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    patiently(|| openat2(top, path, how))
}

fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut dir = Dir::from_fd(reopen(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
    let mut all = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            all.push(name.to_vec());
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Names begin with that of the top; what is asked for by a dot has none.
fn full_name(top: &[u8], below: &Path) -> Vec<u8> {
    let below = below.strip_prefix(".").unwrap_or(below);
    let below = bytes_of(below.as_os_str().to_owned());
    match (top, below.is_empty()) {
        (_, true) => top.to_vec(),
        (b".", false) => below,
        (b"/", false) => [b"/", below.as_slice()].concat(),
        (_, false) => [top, b"/", below.as_slice()].concat(),
    }
}
