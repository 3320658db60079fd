//! The one thread that has the log's file: jobs that wait are written in one transaction, and what is no longer in memory
//! is read in its turn among them.

use std::io;
use std::ops::RangeInclusive;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use openraft::alias::EntryOf;
use openraft::storage::IOFlushed;
use redb::{Database, Durability, ReadableDatabase as _, TableDefinition};
use tokio::sync::oneshot;

use super::open::unseal;
use crate::crypt::Key;
use crate::limits::MAX_GROUP_COMMIT;
use crate::types::TypeConfig;

/// Entries by index, sealed.
pub(super) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// Vote and marks by name, sealed.
pub(super) const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");

/// The place that an entry is sealed for.
pub(super) fn entry_place(index: u64) -> Vec<u8> {
    [b"entry ".as_slice(), &index.to_be_bytes()].concat()
}

/// The place that a mark is sealed for.
pub(super) fn mark_place(name: &str) -> Vec<u8> {
    [b"mark ", name.as_bytes()].concat()
}

/// What one job writes, in this order.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) remove: Option<RangeInclusive<u64>>,
    pub(super) records: Vec<(u64, Vec<u8>)>,
    pub(super) mark: Option<(&'static str, Vec<u8>)>,
}

/// Who waits for a job.
pub(super) enum Done {
    Flushed(IOFlushed<TypeConfig>),
    Answer(oneshot::Sender<io::Result<()>>),
    /// Nobody: it need not be on disk before the next job is.
    Nobody,
}

pub(super) struct Job {
    pub(super) writes: Writes,
    pub(super) done: Done,
}

enum Message {
    Job(Job),
    Read(Read),
    Close,
}

/// Consecutive entries that someone waits for.
struct Read {
    indexes: Vec<u64>,
    done: oneshot::Sender<io::Result<Vec<EntryOf<TypeConfig>>>>,
}

/// The thread's handle.
pub(super) struct Writer {
    jobs: mpsc::Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The log was closed, or its thread ended.
pub(super) fn closed() -> io::Error {
    io::Error::other("the raft log is closed")
}

impl Writer {
    pub(super) fn start(database: Database, key: Key) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || run(&database, &key, &receiver))?;
        Ok(Self { jobs, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(Message::Job(job)).map_err(|_| closed())
    }

    /// The entries as they are after every job that was sent before.
    pub(super) fn read(
        &self,
        indexes: Vec<u64>,
    ) -> io::Result<oneshot::Receiver<io::Result<Vec<EntryOf<TypeConfig>>>>> {
        let (done, reading) = oneshot::channel();
        self.jobs.send(Message::Read(Read { indexes, done })).map_err(|_| closed())?;
        Ok(reading)
    }

    /// Returns when the thread has ended and the file is closed.
    pub(super) async fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An error means that the thread has ended already.
        drop(self.jobs.send(Message::Close));
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the raft log's thread panicked");
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.send(Message::Close));
    }
}

fn run(database: &Database, key: &Key, jobs: &mpsc::Receiver<Message>) {
    let mut failed = None;
    let mut open = true;
    while open && let Ok(first) = jobs.recv() {
        let mut batch = Vec::new();
        let mut read = None;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Job(job) => batch.push(job),
                Message::Read(asked) => read = Some(asked),
                Message::Close => open = false,
            }
            let goes_on = open && read.is_none() && batch.len() < MAX_GROUP_COMMIT;
            next = if goes_on { jobs.try_recv().ok() } else { None };
        }
        // After a failure the file's content is unknown: nothing more is written or acknowledged.
        if failed.is_none() && !batch.is_empty() {
            failed = commit(database, key, &batch).err().map(|error| error.to_string());
        }
        for job in batch {
            job.done.tell(failed.as_deref());
        }
        if let Some(Read { indexes, done }) = read {
            let entries = match &failed {
                Some(error) => Err(io::Error::other(error.clone())),
                None => load(database, key, &indexes),
            };
            // The one who asked may have gone.
            drop(done.send(entries));
        }
    }
}

impl Done {
    fn tell(self, failed: Option<&str>) {
        let result = failed.map_or(Ok(()), |error| Err(io::Error::other(error.to_owned())));
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            // The one who asked may have gone: the write stands.
            Self::Answer(sender) => drop(sender.send(result)),
            Self::Nobody => {}
        }
    }
}

pub(super) fn commit(database: &Database, key: &Key, batch: &[Job]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    if batch.iter().all(|job| matches!(job.done, Done::Nobody)) {
        transaction.set_durability(Durability::None)?;
    }
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut marks = transaction.open_table(MARKS)?;
        for Job { writes, .. } in batch {
            if let Some(range) = &writes.remove {
                entries.retain_in(range.clone(), |_, _| false)?;
            }
            for (index, record) in &writes.records {
                entries.insert(index, key.seal(&entry_place(*index), record).as_slice())?;
            }
            if let Some((name, mark)) = &writes.mark {
                marks.insert(name, key.seal(&mark_place(name), mark).as_slice())?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

pub(super) fn load(database: &Database, key: &Key, indexes: &[u64]) -> io::Result<Vec<EntryOf<TypeConfig>>> {
    let transaction = database.begin_read().map_err(io::Error::other)?;
    let entries = transaction.open_table(ENTRIES).map_err(io::Error::other)?;
    let one = |index: &u64| {
        let sealed = entries.get(index).map_err(io::Error::other)?;
        let sealed = sealed.ok_or_else(|| io::Error::other(format!("entry {index} is missing")))?;
        unseal(key, &entry_place(*index), sealed.value()).map_err(io::Error::other)
    };
    indexes.iter().map(one).collect()
}
