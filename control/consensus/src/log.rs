//! The log of Raft: entries, vote and marks, encrypted in redb, with the newest entries in memory too.

mod memory;
mod open;
#[cfg(test)]
mod torn;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use redb::Database;
use tokio::sync::oneshot;

use crate::crypt::Key;
use crate::error::OpenError;
use crate::limits::MAX_APPEND_BYTES;
use crate::types::TypeConfig;
use memory::{Found, Memory};
use writer::{Done, Job, Writer, Writes};

/// Names of the sealed marks.
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The log. Clones are the same log.
///
/// What the writer shall do is queued while the memory is locked: a read of the file, queued likewise, finds there what
/// the memory said.
#[derive(Clone)]
pub(crate) struct LogStore {
    memory: Arc<Mutex<Memory>>,
    writer: Arc<Writer>,
}

impl LogStore {
    /// Makes the log at `path`, or begins anew with what is there. Entries of `memory_bytes`, encoded, are kept in memory.
    pub(crate) fn create(path: &Path, key: Key, memory_bytes: usize) -> Result<Self, OpenError> {
        let (database, memory) = open::open(path, &key, memory_bytes)?;
        Self::start(database, key, memory)
    }

    /// Opens the log at `path`. Every record is opened: one that can't be is an error, never skipped. So is a log that is
    /// gone: this replica has voted and acknowledged, and must not do as if it had not.
    pub(crate) fn open(path: &Path, key: Key, memory_bytes: usize) -> Result<Self, OpenError> {
        if std::fs::metadata(path).map_or(0, |file| file.len()) == 0 {
            return Err(OpenError::Corrupt("the log's file is missing".to_owned()));
        }
        Self::create(path, key, memory_bytes)
    }

    fn start(database: Database, key: Key, memory: Memory) -> Result<Self, OpenError> {
        let writer = Writer::start(database, key)?;
        Ok(Self { memory: Arc::new(Mutex::new(memory)), writer: Arc::new(writer) })
    }

    /// Index up to which entries are known to be committed.
    pub(crate) fn committed(&self) -> Option<u64> {
        self.memory().committed.map(|id| id.index())
    }

    /// Bytes of all encoded entries.
    pub(crate) fn len_bytes(&self) -> usize {
        self.memory().len_bytes()
    }

    /// Finishes what was given to the writer and closes the file. Later calls fail.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the memory and has the file written; returns when it is on disk.
    async fn write(&self, change: impl FnOnce(&mut Memory), writes: Writes) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut memory = self.memory();
            change(&mut memory);
            self.writer.send(Job { writes, done: Done::Answer(sender) })?;
        }
        receiver.await.map_err(|_| writer::closed())?
    }

    /// The entries of `range` as far as they take `limit_bytes`; one at least.
    async fn read(
        &self,
        range: impl RangeBounds<u64>,
        limit_bytes: usize,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let (here, reading) = {
            let memory = self.memory();
            let Found { in_file, here } = memory.find(range, limit_bytes);
            if in_file.is_empty() {
                return Ok(here);
            }
            (here, self.writer.read(in_file)?)
        };
        let mut entries = reading.await.map_err(|_| writer::closed())??;
        entries.extend(here);
        Ok(entries)
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("raft types serialize without error")
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        self.read(start..end, MAX_APPEND_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<TypeConfig>>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> io::Result<()> {
        let writes = Writes { mark: Some((VOTE, encode(vote))), ..Writes::default() };
        self.write(|memory| memory.vote = Some(*vote), writes).await
    }

    /// Not waited for: it is written with the next transaction. Lost, it costs a restarted node the knowledge
    /// of what was committed until it hears a leader.
    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        let writes = Writes { mark: Some((COMMITTED, encode(&committed))), ..Writes::default() };
        let mut memory = self.memory();
        memory.committed = committed;
        self.writer.send(Job { writes, done: Done::Nobody })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<TypeConfig>>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut memory = self.memory();
        for entry in entries {
            let (index, encoded) = (entry.index(), encode(&entry));
            memory.push(entry, encoded.len());
            records.push((index, encoded));
        }
        let writes = Writes { records, ..Writes::default() };
        self.writer.send(Job { writes, done: Done::Flushed(callback) })
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index() + 1);
        let writes = Writes { remove: Some(from..=u64::MAX), ..Writes::default() };
        self.write(|memory| memory.truncate_after(last), writes).await
    }

    async fn purge(&mut self, upto: LogIdOf<TypeConfig>) -> io::Result<()> {
        let writes = Writes {
            remove: Some(0..=upto.index()),
            mark: Some((PURGED, encode(&upto))),
            ..Writes::default()
        };
        self.write(|memory| memory.purge(upto), writes).await
    }
}
