//! One daemon per state directory.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Longest wait for a holder that is on its way out: a killed process shows as gone before the kernel has
/// closed its files, and a supervisor starts the next one in that moment.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// Time between two looks in that wait.
const LEAVE_PERIOD: Duration = Duration::from_millis(10);

/// Why the state directory can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another meshd uses {0}")]
    Taken(PathBuf),
    #[error("can't lock {0}")]
    Io(PathBuf, #[source] io::Error),
}

/// Holds the state directory. The kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes `state_dir`, which is made if it is not there. A holder has [`LEAVE_LIMIT`] to leave.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::Io(state_dir.to_owned(), error);
        fs::create_dir_all(state_dir).map_err(failed)?;
        let path = state_dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let mut file = match lock_within(file, LEAVE_LIMIT) {
            Ok(file) => file,
            Err(nix::Error::EWOULDBLOCK) => return Err(LockError::Taken(state_dir.to_owned())),
            Err(error) => return Err(failed(error.into())),
        };
        // For a person who asks who holds it.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Locks `file` for this process alone.
fn lock_within(mut file: File, limit: Duration) -> nix::Result<Flock<File>> {
    let end = Instant::now() + limit;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, nix::Error::EWOULDBLOCK)) if Instant::now() < end => file = unlocked,
            Err((_, error)) => return Err(error),
        }
        thread::sleep(LEAVE_PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = StateLock::take(dir.path()).expect("free");
        assert!(matches!(StateLock::take(dir.path()), Err(LockError::Taken(_))));
        drop(first);
        StateLock::take(dir.path()).expect("free again");
    }

    #[test]
    fn a_holder_that_leaves_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = StateLock::take(dir.path()).expect("free");
        let (asked, ask) = std::sync::mpsc::channel();
        let leaver = thread::spawn(move || {
            ask.recv().expect("the second one asks");
            thread::sleep(LEAVE_PERIOD * 5);
            drop(first);
        });
        asked.send(()).expect("the first one listens");
        StateLock::take(dir.path()).expect("free once the first has left");
        leaver.join().expect("it left");
    }
}
