//! openraft's own suite of what storage must do.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::crypt::Key;
use crate::limits::LOG_MEMORY_BYTES;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::snapshot::SnapshotFile;
use crate::types::TypeConfig;

struct Builder {
    memory_bytes: usize,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::random();
        let log = LogStore::create(&dir.path().join("log.redb"), key.clone(), self.memory_bytes).unwrap();
        let machine = Machine::open(SnapshotFile::new(dir.path(), key)).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_does_what_openraft_expects() {
    Suite::test_all(Builder { memory_bytes: LOG_MEMORY_BYTES }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_does_the_same_when_every_entry_is_in_the_file_alone() {
    Suite::test_all(Builder { memory_bytes: 0 }).await.unwrap();
}

/// The suite makes members of nothing.
impl Default for crate::Member {
    fn default() -> Self {
        Self { node_id: control_model::NodeId::from_bits(0), addr: "127.0.0.1:1".parse().unwrap() }
    }
}
