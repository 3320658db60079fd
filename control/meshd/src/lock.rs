//! One daemon per state directory.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

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
    /// Takes `state_dir`, which is made if it is not there.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::Io(state_dir.to_owned(), error);
        fs::create_dir_all(state_dir).map_err(failed)?;
        let path = state_dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(LockError::Taken(state_dir.to_owned())),
            Err((_, error)) => return Err(failed(error.into())),
        };
        // For a person who asks who holds it.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
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
}
