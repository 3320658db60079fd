//! The newest snapshot, sealed in one file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_store::State;
use openraft::alias::{LogIdOf, SnapshotMetaOf};
use serde::{Deserialize, Serialize};

use crate::crypt::Key;
use crate::error::OpenError;
use crate::key_file::write_atomically;
use crate::types::TypeConfig;

const NAME: &str = "snapshot.sealed";
const PLACE: &[u8] = b"snapshot";

/// Where the snapshot is kept. Clones are the same place.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    key: Key,
    /// What the file covers. Held while it is written.
    newest: Arc<Mutex<Option<LogIdOf<TypeConfig>>>>,
}

/// A snapshot: what it covers, and the state.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
    /// [`control_store::State::to_snapshot`].
    #[serde(with = "serde_bytes")]
    pub(crate) image: Vec<u8>,
}

impl Stored {
    /// What [`Self::image`] says.
    pub(crate) fn state(&self) -> Result<State, OpenError> {
        State::from_snapshot(&self.image)
            .map_err(|error| OpenError::OtherVersion(format!("snapshot: {error}")))
    }
}

impl SnapshotFile {
    pub(crate) fn new(dir: &Path, key: Key) -> Self {
        Self { path: dir.join(NAME), key, newest: Arc::default() }
    }

    /// Replaces an older snapshot, durably. Blocks. One that was built while a newer one was installed is dropped.
    pub(crate) fn write(&self, stored: &Stored) -> io::Result<()> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if *newest > stored.meta.last_log_id {
            return Ok(());
        }
        let plain = rmp_serde::to_vec_named(stored).expect("raft types serialize without error");
        write_atomically(&self.path, &self.key.seal(PLACE, &plain))?;
        *newest = stored.meta.last_log_id;
        Ok(())
    }

    /// The snapshot, if there is one. Blocks.
    pub(crate) fn read(&self) -> Result<Option<Stored>, OpenError> {
        let sealed = match fs::read(&self.path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let what = || "snapshot".to_owned();
        let plain = self.key.open(PLACE, &sealed).map_err(|_| OpenError::Corrupt(what()))?;
        rmp_serde::from_slice(&plain).map(Some).map_err(|_| OpenError::OtherVersion(what()))
    }
}

/// What a snapshot costs.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotTimes {
    /// From the state to a file that outlives the machine's power.
    pub written: Duration,
    /// From the file to a state.
    pub read: Duration,
}

impl SnapshotTimes {
    /// Writes a snapshot of `state` into `dir` as a manager does, sealed with a key of its own, and reads it back.
    pub fn take(state: &State, dir: &Path) -> Result<Self, OpenError> {
        let file = SnapshotFile::new(dir, Key::random());
        let start = Instant::now();
        file.write(&Stored { meta: SnapshotMetaOf::<TypeConfig>::default(), image: state.to_snapshot() })?;
        let written = start.elapsed();
        let start = Instant::now();
        let read = file.read()?.map(|stored| State::from_snapshot(&stored.image));
        let read_in = start.elapsed();
        match read {
            Some(Ok(read)) if read.index() == state.index() => Ok(Self { written, read: read_in }),
            _ => Err(OpenError::Corrupt("snapshot".to_owned())),
        }
    }
}
