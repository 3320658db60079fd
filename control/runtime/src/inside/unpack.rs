//! An archive put into a directory. Each of its entries is looked for anew from the root: a link in its way leads where it would
//! inside the container.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
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
        for entry in Archive::new(decompressed(from)?).entries()? {
            let mut entry = entry?;
            let below = plain(&entry.path_bytes())?;
            let Some((parent, name)) = below.parent().zip(below.file_name()) else { continue };
            if !is_kept(entry.header().entry_type()) {
                continue;
            }
            let parent = Path::new(dir).join(parent);
            let place = Place { parent: self.made(&parent)?, name: name.into() };
            let is_dir = entry.header().entry_type() == EntryType::Directory;
            if !place.make_room(is_dir, overwriting)? {
                self.put(dir, &place, &mut entry)?;
            }
            let dress = Dress::of(&entry, owner)?;
            match entry.header().entry_type() {
                // Another name of a file makes it no other one.
                EntryType::Link => {}
                EntryType::Directory => {
                    place.put_on(&dress)?;
                    // It changes with each file in it.
                    times.push((parent.join(name), dress.modified_s));
                }
                _ => {
                    place.put_on(&dress)?;
                    place.set_time(dress.modified_s)?;
                }
            }
        }
        for (path, modified_s) in times.into_iter().rev() {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let place = Place { parent: self.made(parent)?, name: name.into() };
            place.set_time(modified_s)?;
        }
        Ok(())
    }

    /// Makes what the entry is, where nothing is.
    fn put<R: Read>(&self, dir: &str, place: &Place, entry: &mut Entry<'_, R>) -> Result<(), CopyError> {
        let (parent, name) = (&place.parent, place.name.as_path());
        // Nobody but its owner has it before it is dressed.
        let mode = Mode::from_bits_truncate(0o600);
        let of_kind = entry.header().entry_type();
        match of_kind {
            EntryType::Directory => mkdirat(parent, name, NEW_DIR)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(os(&target), parent, name)?;
            }
            EntryType::Link => {
                let target = plain(&entry.link_name_bytes().unwrap_or_default())?;
                let target = Path::new(dir).join(target);
                let source = self.open_at(&target, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
                linkat(AT_FDCWD, path_of(&source).as_str(), parent, name, AtFlags::AT_SYMLINK_FOLLOW)?;
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
            _ => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let mut file = File::from(openat(parent, name, flags | OFlag::O_CLOEXEC, mode)?);
                io::copy(entry, &mut file)?;
            }
        }
        Ok(())
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

    fn put_on(&self, dress: &Dress) -> Result<(), CopyError> {
        let Dress { uid, gid, mode, kind: wanted, .. } = *dress;
        fchownat(&self.parent, &self.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if wanted == SFlag::S_IFLNK {
            return Ok(());
        }
        // Its directory is the container's: another file may have taken its place since it was made.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.parent, &self.name, flags, Mode::empty())?;
        let there = fstat(&fd)?;
        if kind(&there) != wanted || (there.st_uid, there.st_gid) != (uid.as_raw(), gid.as_raw()) {
            return Err(CopyError::Refused(format!("{} was replaced meanwhile", self.name.display())));
        }
        fchmodat(AT_FDCWD, path_of(&fd).as_str(), mode, FchmodatFlags::FollowSymlink)?;
        Ok(())
    }

    fn set_time(&self, modified_s: i64) -> Result<(), CopyError> {
        let time = TimeSpec::new(modified_s, 0);
        utimensat(&self.parent, &self.name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }
}

/// What an entry says of its file.
struct Dress {
    kind: SFlag,
    uid: Uid,
    gid: Gid,
    mode: Mode,
    modified_s: i64,
}

impl Dress {
    fn of<R: Read>(entry: &Entry<'_, R>, owner: Owner) -> Result<Self, CopyError> {
        let header = entry.header();
        let id = |number: u64| u32::try_from(number).map_err(io::Error::other);
        let (uid, gid) = match owner {
            Owner::Archives => (id(header.uid()?)?, id(header.gid()?)?),
            Owner::These { uid, gid } => (uid, gid),
        };
        Ok(Self {
            kind: match header.entry_type() {
                EntryType::Directory => SFlag::S_IFDIR,
                EntryType::Symlink => SFlag::S_IFLNK,
                EntryType::Fifo => SFlag::S_IFIFO,
                EntryType::Char => SFlag::S_IFCHR,
                EntryType::Block => SFlag::S_IFBLK,
                _ => SFlag::S_IFREG,
            },
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
            modified_s: i64::try_from(header.mtime()?).unwrap_or(0),
        })
    }
}

/// Those that a file system keeps.
fn is_kept(of_kind: EntryType) -> bool {
    matches!(
        of_kind,
        EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Fifo
            | EntryType::Char
            | EntryType::Block
    )
}

/// By how it begins.
fn decompressed<'r>(from: impl Read + 'r) -> Result<Box<dyn Read + 'r>, CopyError> {
    let mut from = BufReader::new(from);
    let begin = from.fill_buf()?;
    let refused = |what| {
        Err(CopyError::Refused(format!("archives compressed by {what} are not supported by this daemon")))
    };
    if begin.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(MultiGzDecoder::new(from)));
    }
    for (magic, what) in
        [(&b"BZh"[..], "bzip2"), (&b"\xfd7zXZ\0"[..], "xz"), (&[0x28, 0xb5, 0x2f, 0xfd][..], "zstd")]
    {
        if begin.starts_with(magic) {
            return refused(what);
        }
    }
    Ok(Box::new(from))
}

/// Leads to what the descriptor is of.
fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
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
