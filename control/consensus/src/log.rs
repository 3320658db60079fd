//! The log of Raft: entries, vote and marks, encrypted in redb, with a copy of the entries in memory.

mod open;
mod writer;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::crypt::Key;
use crate::error::OpenError;
use crate::limits::MAX_APPEND_BYTES;
use crate::types::TypeConfig;
use writer::{Done, Job, Writer, Writes};

/// Names of the sealed marks.
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The log. Clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    memory: Arc<Mutex<Memory>>,
    writer: Arc<Writer>,
}

/// All that the file holds, but for jobs under way.
#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Stored>,
    purged: Option<LogIdOf<TypeConfig>>,
    vote: Option<VoteOf<TypeConfig>>,
    committed: Option<LogIdOf<TypeConfig>>,
}

struct Stored {
    entry: EntryOf<TypeConfig>,
    encoded_len: usize,
}

impl LogStore {
    /// Opens or makes the log at `path`. Every record is opened: one that can't be is an error, never skipped.
    pub(crate) fn open(path: &Path, key: Key) -> Result<Self, OpenError> {
        let (database, memory) = open::open(path, &key)?;
        let writer = Writer::start(database, key)?;
        Ok(Self { memory: Arc::new(Mutex::new(memory)), writer: Arc::new(writer) })
    }

    /// Index up to which entries are known to be committed.
    pub(crate) fn committed(&self) -> Option<u64> {
        self.memory().committed.map(|id| id.index())
    }

    /// Bytes of all encoded entries.
    pub(crate) fn len_bytes(&self) -> usize {
        self.memory().entries.values().map(|stored| stored.encoded_len).sum()
    }

    /// Finishes what was given to the writer and closes the file. Later calls fail.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, and returns when they are on disk.
    async fn write(&self, writes: Writes) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.writer.send(Job { writes, done: Done::Answer(sender) })?;
        receiver.await.map_err(|_| writer::closed())?
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
        Ok(self.memory().entries.range(range).map(|(_, stored)| stored.entry.clone()).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let memory = self.memory();
        let mut bytes = 0;
        let limited = memory.entries.range(start..end).take_while(|(_, stored)| {
            let first = bytes == 0;
            bytes += stored.encoded_len;
            first || bytes <= MAX_APPEND_BYTES
        });
        Ok(limited.map(|(_, stored)| stored.entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<TypeConfig>>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory();
        let last = memory.entries.last_key_value().map(|(_, stored)| stored.entry.log_id());
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> io::Result<()> {
        self.memory().vote = Some(*vote);
        self.write(Writes { mark: Some((VOTE, encode(vote))), ..Writes::default() }).await
    }

    /// Not waited for: it is written with the next transaction. Lost, it costs a restarted node the knowledge
    /// of what was committed until it hears a leader.
    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        self.memory().committed = committed;
        let writes = Writes { mark: Some((COMMITTED, encode(&committed))), ..Writes::default() };
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
        {
            let mut memory = self.memory();
            for entry in entries {
                let (index, encoded) = (entry.index(), encode(&entry));
                memory.entries.insert(index, Stored { entry, encoded_len: encoded.len() });
                records.push((index, encoded));
            }
        }
        let writes = Writes { records, ..Writes::default() };
        self.writer.send(Job { writes, done: Done::Flushed(callback) })
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index() + 1);
        drop(self.memory().entries.split_off(&from));
        self.write(Writes { remove: Some(from..=u64::MAX), ..Writes::default() }).await
    }

    async fn purge(&mut self, upto: LogIdOf<TypeConfig>) -> io::Result<()> {
        {
            let mut memory = self.memory();
            let kept = memory.entries.split_off(&(upto.index() + 1));
            memory.entries = kept;
            memory.purged = Some(upto);
        }
        let writes = Writes {
            remove: Some(0..=upto.index()),
            mark: Some((PURGED, encode(&upto))),
            ..Writes::default()
        };
        self.write(writes).await
    }
}
