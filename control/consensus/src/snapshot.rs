//! The newest snapshot, sealed in one file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
        let corrupt = || OpenError::Corrupt("snapshot".to_owned());
        let plain = self.key.open(PLACE, &sealed).map_err(|_| corrupt())?;
        rmp_serde::from_slice(&plain).map(Some).map_err(|_| corrupt())
    }
}
