//! An archive put into a directory. Each of its entries is looked for anew from the root: a link in its way leads where it would
//! inside the container.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::{CopyError, Root, kind, os};

const NEW_DIR: Mode = Mode::from_bits_truncate(0o755);

/// Whose files are what was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// As the archive says.
    Archives,
    These {
        uid: u32,
        gid: u32,
    },
}

/// May a directory take the place of a file, and a file that of an empty directory?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwriting {
    AnyKind,
    SameKind,
}

impl Root {
    /// Unpacks into the directory at `dir`.
    pub fn unpack(
        &self,
        dir: &str,
        owner: Owner,
        overwriting: Overwriting,
        from: impl Read,
    ) -> Result<(), CopyError> {
        let top = self.open_at(Path::new(dir), OFlag::O_PATH)?;
        if kind(&fstat(&top)?) != SFlag::S_IFDIR {
            return Err(CopyError::NotADirectory);
        }
        let mut times = Vec::new();
        for entry in Archive::new(from).entries()? {
            let mut entry = entry?;
            let below = plain(&entry.path_bytes())?;
            let Some((parent, name)) = below.parent().zip(below.file_name()) else { continue };
            let place = Place { parent: self.made(&Path::new(dir).join(parent))?, name: name.into() };
            if !self.put(dir, &place, &mut entry, overwriting)? {
                continue;
            }
            // Another name of a file makes it no other one.
            if entry.header().entry_type() == EntryType::Link {
                continue;
            }
            place.dress(&entry, owner)?;
            let modified = i64::try_from(entry.header().mtime()?).unwrap_or(0);
            // That of a directory changes with each of its files.
            if entry.header().entry_type() == EntryType::Directory {
                times.push((place, modified));
            } else {
                place.set_time(modified)?;
            }
        }
        times.into_iter().rev().try_for_each(|(place, modified)| place.set_time(modified))
    }

    /// Makes what the entry is. False of what no file system keeps.
    fn put<R: Read>(
        &self,
        dir: &str,
        place: &Place,
        entry: &mut Entry<'_, R>,
        overwriting: Overwriting,
    ) -> Result<bool, CopyError> {
        let of_kind = entry.header().entry_type();
        let is_dir = of_kind == EntryType::Directory;
        if place.make_room(is_dir, overwriting)? {
            return Ok(true);
        }
        let (parent, name) = (&place.parent, place.name.as_path());
        let mode = Mode::from_bits_truncate(0o600);
        match of_kind {
            EntryType::Directory => mkdirat(parent, name, NEW_DIR)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let mut file = File::from(openat(parent, name, flags | OFlag::O_CLOEXEC, mode)?);
                io::copy(entry, &mut file)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(os(&target), parent, name)?;
            }
            EntryType::Link => {
                let target = plain(&entry.link_name_bytes().unwrap_or_default())?;
                let target = Path::new(dir).join(target);
                let source = self.open_at(&target, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
                let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&source));
                linkat(AT_FDCWD, source.as_str(), parent, name, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0).into();
                let device = makedev(number(header.device_major()), number(header.device_minor()));
                let kind = match of_kind {
                    EntryType::Fifo => SFlag::S_IFIFO,
                    EntryType::Char => SFlag::S_IFCHR,
                    _ => SFlag::S_IFBLK,
                };
                mknodat(parent, name, kind, mode, device)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The directory at `path`, made with those above it where there is none.
    fn made(&self, path: &Path) -> Result<OwnedFd, CopyError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open_at(path, flags) {
            Err(Errno::ENOENT) => {}
            other => return Ok(other?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(CopyError::NotFound);
        };
        let parent = self.made(parent)?;
        match mkdirat(&parent, Path::new(name), NEW_DIR) {
            Ok(()) | Err(Errno::EEXIST) => Ok(self.open_at(path, flags)?),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A name in a directory.
struct Place {
    parent: OwnedFd,
    name: PathBuf,
}

impl Place {
    /// Takes away what is in the way of a new one; true of a directory that is to be one.
    fn make_room(&self, is_dir: bool, overwriting: Overwriting) -> Result<bool, CopyError> {
        let there = match fstatat(&self.parent, &self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(false),
            other => kind(&other?) == SFlag::S_IFDIR,
        };
        let name = self.name.display();
        match (there, is_dir) {
            (true, true) => return Ok(true),
            (true, false) if overwriting == Overwriting::SameKind => {
                return Err(CopyError::Refused(format!(
                    "cannot overwrite directory \"{name}\" with non-directory \"{name}\""
                )));
            }
            (false, true) if overwriting == Overwriting::SameKind => {
                return Err(CopyError::Refused(format!(
                    "cannot overwrite non-directory \"{name}\" with directory \"{name}\""
                )));
            }
            _ => {}
        }
        let flag = if there { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(&self.parent, &self.name, flag)?;
        Ok(false)
    }

    /// Owner and permissions.
    fn dress<R: Read>(&self, entry: &Entry<'_, R>, owner: Owner) -> Result<(), CopyError> {
        let header = entry.header();
        let id = |number: u64| u32::try_from(number).map_err(io::Error::other);
        let (uid, gid) = match owner {
            Owner::Archives => (id(header.uid()?)?, id(header.gid()?)?),
            Owner::These { uid, gid } => (uid, gid),
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(&self.parent, &self.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if header.entry_type() == EntryType::Symlink {
            return Ok(());
        }
        // Its directory is the container's: a link may have taken its place since it was made, and is not to be followed.
        let fd = openat(
            &self.parent,
            &self.name,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        if kind(&fstat(&fd)?) == SFlag::S_IFLNK {
            return Err(CopyError::Refused(format!("{} was replaced meanwhile", self.name.display())));
        }
        let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        fchmodat(AT_FDCWD, itself.as_str(), mode, FchmodatFlags::FollowSymlink)?;
        Ok(())
    }

    fn set_time(&self, modified_s: i64) -> Result<(), CopyError> {
        let time = TimeSpec::new(modified_s, 0);
        utimensat(&self.parent, &self.name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }
}

/// A path below; nothing leads up.
fn plain(path: &[u8]) -> Result<PathBuf, CopyError> {
    let mut below = PathBuf::new();
    for part in Path::new(os(path)).components() {
        match part {
            Component::Normal(name) => below.push(name),
            Component::ParentDir => {
                let path = String::from_utf8_lossy(path);
                return Err(CopyError::Refused(format!(
                    "{path:?} is outside of the directory that it is for"
                )));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(below)
}
