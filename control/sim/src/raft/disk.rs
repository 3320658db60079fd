//! A manager's disk: what is written is lost with the power until it is synced; a sync takes its time.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::alias::{EntryOf, SnapshotMetaOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use openraft_rt::AsyncRuntime as _;
use openraft_rt_sim::{SimInstant, SimRuntime};

use super::types::{Config, LogId, sleep};
use crate::random::Random;

const SYNC: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(5));

/// What a log and its marks hold.
#[derive(Clone, Default)]
struct Content {
    entries: BTreeMap<u64, EntryOf<Config>>,
    vote: Option<VoteOf<Config>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

/// One write.
#[derive(Clone)]
enum Op {
    Append(Vec<EntryOf<Config>>),
    Vote(VoteOf<Config>),
    Committed(Option<LogId>),
    TruncateAfter(Option<LogId>),
    Purge(LogId),
}

impl Content {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(entries) => self.entries.extend(entries.iter().map(|e| (e.index(), e.clone()))),
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Committed(committed) => self.committed = *committed,
            Op::TruncateAfter(last) => {
                let from = last.map_or(0, |last| last.index() + 1);
                drop(self.entries.split_off(&from));
            }
            Op::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index() + 1));
                self.purged = Some(*upto);
            }
        }
    }
}

/// A snapshot's image and what it covers.
#[derive(Clone)]
pub struct Stored {
    pub meta: SnapshotMetaOf<Config>,
    pub image: Arc<Vec<u8>>,
}

struct Inner {
    /// As the process sees it.
    seen: Content,
    /// As it is found after a crash.
    synced: Content,
    written: Vec<Op>,
    snapshot: Option<Stored>,
    /// Counts crashes: what an earlier process began does nothing any more.
    life: u64,
    random: Random,
    /// Each sync takes so many times as long.
    slowness: u32,
    /// Virtual time at which the last sync ends.
    busy_until: Duration,
    /// Mutation: the newest synced entry is lost in a crash.
    forgets: bool,
}

/// A disk, as one process has it. Clones are the same process'.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
    life: u64,
}

fn lost() -> io::Error {
    io::Error::other("the machine has lost its power")
}

impl Disk {
    pub fn new(random: Random, forgets: bool) -> Self {
        let inner = Inner {
            seen: Content::default(),
            synced: Content::default(),
            written: Vec::new(),
            snapshot: None,
            life: 0,
            random,
            slowness: 1,
            busy_until: Duration::ZERO,
            forgets,
        };
        Self { inner: Arc::new(Mutex::new(inner)), life: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: of what was not synced some of the first writes are there, each whole or not at all.
    pub fn crash(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.life += 1;
        let n_kept = inner.random.below(inner.written.len() + 1);
        for op in inner.written.drain(..).take(n_kept) {
            inner.synced.apply(&op);
        }
        if inner.forgets {
            inner.synced.entries.pop_last();
        }
        inner.seen = inner.synced.clone();
    }

    /// As the next process finds it.
    pub fn open(&self) -> Self {
        Self { inner: self.inner.clone(), life: self.lock().life }
    }

    pub fn set_slowness(&self, times: u32) {
        self.lock().slowness = times;
    }

    pub fn snapshot(&self) -> Option<Stored> {
        self.lock().snapshot.clone()
    }

    /// Replaces the snapshot, at once and durably.
    pub async fn write_snapshot(&self, stored: Stored) -> io::Result<()> {
        sleep(self.sync_time()).await;
        let mut inner = self.lock();
        if inner.life != self.life {
            return Err(lost());
        }
        let is_newer =
            inner.snapshot.as_ref().is_none_or(|old| old.meta.last_log_id <= stored.meta.last_log_id);
        if is_newer {
            inner.snapshot = Some(stored);
        }
        Ok(())
    }

    /// How long the next sync takes: they end in the order in which they begin.
    fn sync_time(&self) -> Duration {
        let now = SimInstant::try_now().expect("inside the runtime").elapsed_since_start();
        let mut inner = self.lock();
        let slowness = inner.slowness;
        let takes = inner.random.between(SYNC.0, SYNC.1) * slowness;
        inner.busy_until = inner.busy_until.max(now) + takes;
        inner.busy_until.saturating_sub(now)
    }

    fn write(&self, op: Op) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.life != self.life {
            return Err(lost());
        }
        inner.seen.apply(&op);
        inner.written.push(op);
        Ok(())
    }

    /// Returns when all that was written before is synced.
    async fn sync(&self) -> io::Result<()> {
        let n_written = self.lock().written.len();
        sleep(self.sync_time()).await;
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.life != self.life {
            return Err(lost());
        }
        let n_synced = n_written.min(inner.written.len());
        for op in inner.written.drain(..n_synced) {
            inner.synced.apply(&op);
        }
        Ok(())
    }
}

impl RaftLogReader<Config> for Disk {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<EntryOf<Config>>> {
        Ok(self.lock().seen.entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Config>>> {
        Ok(self.lock().seen.vote)
    }
}

impl RaftLogStorage<Config> for Disk {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Config>> {
        let inner = self.lock();
        let last = inner.seen.entries.values().next_back().map(RaftEntry::log_id);
        Ok(LogState { last_purged_log_id: inner.seen.purged, last_log_id: last.or(inner.seen.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Config>) -> io::Result<()> {
        self.write(Op::Vote(*vote))?;
        self.sync().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.write(Op::Committed(committed))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.lock().seen.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Config>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.write(Op::Append(entries.into_iter().collect()))?;
        let disk = self.clone();
        drop(SimRuntime::spawn(async move {
            let synced = disk.sync().await;
            callback.io_completed(synced);
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.write(Op::TruncateAfter(last))?;
        self.sync().await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.write(Op::Purge(upto))?;
        self.sync().await
    }
}
