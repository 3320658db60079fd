//! The files of a container's output. conmon writes one, and begins the next under the same name when that is long; what it was
//! called before is lost. So the one that is being written has a second name here, and with it becomes the former one.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

/// conmon begins anew at this share of what is kept: the former file is as long.
pub(super) const N_FILES: u64 = 2;

/// Where they are.
#[derive(Debug, Clone)]
pub(super) struct LogFiles {
    /// conmon's name.
    current: PathBuf,
}

/// One of them, open at its beginning.
#[derive(Debug)]
pub(super) struct LogFile {
    pub file: File,
    pub id: u64,
    pub len: u64,
}

impl LogFiles {
    pub fn new(current: &Path) -> Self {
        Self { current: current.to_owned() }
    }

    /// The second name of the one that is being written.
    fn held(&self) -> PathBuf {
        self.current.with_extension("held")
    }

    fn former(&self) -> PathBuf {
        self.current.with_extension("1")
    }

    /// Keeps the file that conmon has left behind since the last look, if there is one. Two of them between two looks, and the first
    /// is lost: 8 MiB in a second, unless somebody reads along.
    pub fn keep(&self) -> io::Result<()> {
        let _looking = self.looking();
        self.keep_alone()
    }

    /// One look at a container's files at a time: two would take the new file for the one that was left.
    fn looking(&self) -> MutexGuard<'static, ()> {
        static LOOKING: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
        let mut hasher = DefaultHasher::new();
        self.current.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % 64).expect("small");
        LOOKING[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_alone(&self) -> io::Result<()> {
        let Some(current) = found(std::fs::metadata(&self.current))? else { return Ok(()) };
        match found(std::fs::metadata(self.held()))? {
            Some(held) if id(&held) == id(&current) => return Ok(()),
            Some(_) => std::fs::rename(self.held(), self.former())?,
            None => {}
        }
        found(std::fs::hard_link(&self.current, self.held())).map(drop)
    }

    /// The oldest first; none of a container that has not begun.
    pub fn open(&self) -> io::Result<Vec<LogFile>> {
        let _looking = self.looking();
        self.keep_alone()?;
        let mut all: Vec<LogFile> = Vec::with_capacity(2);
        // conmon may begin the next one right now: the one before has its second name.
        for path in [self.former(), self.held(), self.current.clone()] {
            let Some(file) = found(File::open(path))? else { continue };
            let there = file.metadata()?;
            if all.iter().all(|other| other.id != id(&there)) {
                all.push(LogFile { id: id(&there), len: there.len(), file });
            }
        }
        Ok(all)
    }

    /// The one behind that with this id, or the oldest behind one that is not kept any more.
    pub fn behind(&self, own: u64) -> io::Result<Option<LogFile>> {
        let mut all = self.open()?;
        let next = all.iter().position(|file| file.id == own).map_or(0, |at| at + 1);
        Ok((next < all.len()).then(|| all.swap_remove(next)))
    }
}

/// Names a file also when its inode's number is used again.
fn id(there: &Metadata) -> u64 {
    let born = there.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    there.ino() ^ (born.as_secs() << 32) ^ (u64::from(born.subsec_nanos()) << 16)
}

/// `None` of what is not there.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
