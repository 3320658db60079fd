//! The log's file on a disk that loses its power at any write: of what was not synced each sector is there or not, in any
//! order. What was committed before is found again, and nothing that was never written.
//!
//! `TORN_SEED=7` tries one seed, `TORN_SEEDS=5000` more of them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_model::Timestamp;
use control_model::change::{Entry, RequestId};
use openraft::EntryPayload;
use openraft::alias::{CommittedLeaderIdOf, EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::{Database, StorageBackend};
use tokio::sync::oneshot;

use super::memory::Memory;
use super::open::open_made;
use super::writer::{Done, Job, Writes, commit, load};
use super::{COMMITTED, PURGED, VOTE, encode};
use crate::crypt::Key;
use crate::types::{Batch, Proposal, TypeConfig};

const SEEDS: u64 = 60;
/// What a disk writes whole, bytes.
const SECTOR: usize = 512;
/// Powers lost by one disk.
const LIVES: usize = 6;
const MAX_WRITES_OF_LIFE: usize = 60;

/// What the process has asked the disk for since it was last synced.
#[derive(Debug, Clone)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug)]
struct Sectors {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Calls until the power goes.
    left: usize,
}

#[derive(Debug, Clone)]
struct Disk(Arc<Mutex<Sectors>>);

impl Disk {
    fn new(synced: Vec<u8>, left: usize) -> Self {
        Self(Arc::new(Mutex::new(Sectors { seen: synced.clone(), synced, unsynced: Vec::new(), left })))
    }

    fn lock(&self) -> MutexGuard<'_, Sectors> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call of the process; the power may go with it.
    fn call(&self) -> io::Result<MutexGuard<'_, Sectors>> {
        let mut sectors = self.lock();
        if sectors.left == 0 {
            return Err(io::Error::other("no power"));
        }
        sectors.left -= 1;
        Ok(sectors)
    }

    /// What is found when the power is back.
    fn after_power_loss(&self, random: &mut StdRng) -> Vec<u8> {
        let sectors = self.lock();
        let mut found = sectors.synced.clone();
        for asked in &sectors.unsynced {
            match asked {
                Unsynced::Len(len) if random.random_bool(0.5) => found.resize(*len, 0),
                Unsynced::Len(_) => {}
                Unsynced::Write(offset, data) => write_torn(&mut found, *offset, data, random),
            }
        }
        found
    }
}

/// Each sector that a write touches is there or not. One beyond the end is not.
fn write_torn(found: &mut [u8], offset: usize, data: &[u8], random: &mut StdRng) {
    let mut at = offset;
    while at < offset + data.len() {
        let end = ((at / SECTOR + 1) * SECTOR).min(offset + data.len());
        if random.random_bool(0.5)
            && let Some(place) = found.get_mut(at..end)
        {
            place.copy_from_slice(&data[at - offset..end - offset]);
        }
        at = end;
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let sectors = self.lock();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let from = sectors.seen.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut sectors = self.call()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        sectors.seen.resize(len, 0);
        sectors.unsynced.push(Unsynced::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut sectors = self.call()?;
        sectors.synced = sectors.seen.clone();
        sectors.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut sectors = self.call()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        sectors.seen[at..at + data.len()].copy_from_slice(data);
        sectors.unsynced.push(Unsynced::Write(at, data.to_vec()));
        Ok(())
    }
}

/// What a log holds, as it is compared.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    entries: Vec<EntryOf<TypeConfig>>,
    vote: Option<VoteOf<TypeConfig>>,
    committed: Option<LogIdOf<TypeConfig>>,
    purged: Option<LogIdOf<TypeConfig>>,
}

impl Content {
    fn next_index(&self) -> u64 {
        let last = self.entries.last().map(RaftEntry::log_id).or(self.purged);
        last.map_or(0, |last| last.index() + 1)
    }

    fn read(database: &Database, memory: &Memory, key: &Key) -> Self {
        let first = memory.purged.map_or(0, |purged| purged.index() + 1);
        let end = memory.last().map_or(0, |last| last.index() + 1);
        let indexes: Vec<u64> = (first..end).collect();
        Self {
            entries: load(database, key, &indexes).expect("what was found when it was opened"),
            vote: memory.vote,
            committed: memory.committed,
            purged: memory.purged,
        }
    }

    /// Does something to the log; what is to be written for it.
    fn change(&mut self, random: &mut StdRng) -> Writes {
        match random.random_range(0..10) {
            5 => {
                let vote = VoteOf::<TypeConfig>::new(random.random_range(1..50), random.random_range(1..4));
                self.vote = Some(vote);
                Writes { mark: Some((VOTE, encode(&vote))), ..Writes::default() }
            }
            6 | 7 => {
                self.committed = self.entries.last().map(RaftEntry::log_id);
                Writes { mark: Some((COMMITTED, encode(&self.committed))), ..Writes::default() }
            }
            8 if !self.entries.is_empty() => {
                let from = self.entries[random.random_range(0..self.entries.len())].index();
                self.entries.retain(|entry| entry.index() < from);
                Writes { remove: Some(from..=u64::MAX), ..Writes::default() }
            }
            9 if !self.entries.is_empty() => {
                let upto = self.entries[random.random_range(0..self.entries.len())].log_id();
                self.entries.retain(|entry| entry.index() > upto.index());
                self.purged = Some(upto);
                let mark = Some((PURGED, encode(&upto)));
                Writes { remove: Some(0..=upto.index()), mark, ..Writes::default() }
            }
            // Half of the numbers at least.
            _ => self.append(random),
        }
    }

    fn append(&mut self, random: &mut StdRng) -> Writes {
        let mut records = Vec::new();
        for _ in 0..random.random_range(1..5) {
            let id = LogIdOf::<TypeConfig>::new(CommittedLeaderIdOf::<TypeConfig>::new(1), self.next_index());
            let request = RequestId(random.random());
            let proposal = Proposal::new(Entry { request, at: Timestamp(0), changes: Vec::new() });
            let proposal = proposal.expect("small");
            let entry = EntryOf::<TypeConfig>::new(
                id,
                EntryPayload::Normal(Batch { at: Timestamp(0), writes: vec![proposal] }),
            );
            records.push((entry.index(), encode(&entry)));
            self.entries.push(entry);
        }
        Writes { records, ..Writes::default() }
    }
}

/// One disk through some losses of power.
fn try_seed(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let key = Key::new([7; 32]);
    let mut image = Vec::new();
    // What may be found: the last one that was synced, and those after it.
    let mut possible = vec![Content::default()];
    for life in 0..LIVES {
        let disk = Disk::new(image, usize::MAX);
        let (make, len) = (disk.clone(), disk.clone());
        let make = || Database::builder().create_with_backend(make);
        let opened = open_made(make, || len.len(), &key, usize::MAX);
        let (database, memory) =
            opened.unwrap_or_else(|error| panic!("seed {seed}, life {life}: not opened: {error}"));
        let found = Content::read(&database, &memory, &key);
        assert!(possible.contains(&found), "seed {seed}, life {life}: {found:?} was never committed");
        disk.lock().left = random.random_range(0..MAX_WRITES_OF_LIFE);
        possible = live(&database, &key, found, &mut random);
        image = disk.after_power_loss(&mut random);
        // As the kernel ends a process: nothing more is written.
        drop(database);
    }
}

/// Commits until the power goes; what may be found then.
fn live(database: &Database, key: &Key, found: Content, random: &mut StdRng) -> Vec<Content> {
    let mut present = found;
    let mut possible = vec![present.clone()];
    loop {
        let n_jobs = random.random_range(1..4);
        let batch: Vec<Job> = (0..n_jobs).map(|_| job(present.change(random))).collect();
        let is_durable = !batch.iter().all(|job| matches!(job.done, Done::Nobody));
        let committed = commit(database, key, &batch);
        possible.push(present.clone());
        match committed {
            Ok(()) if is_durable => drop(possible.drain(..possible.len() - 1)),
            Ok(()) => {}
            Err(_) => return possible,
        }
    }
}

/// Nobody waits for what was committed, as in the log.
fn job(writes: Writes) -> Job {
    let is_mark = writes.mark.as_ref().is_some_and(|(name, _)| *name == COMMITTED);
    let done = if is_mark { Done::Nobody } else { Done::Answer(oneshot::channel().0) };
    Job { writes, done }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|word| word.parse().expect("a number"))
}

#[test]
fn what_was_committed_is_found_after_any_loss_of_power() {
    let seeds = number("TORN_SEED").map_or(0..number("TORN_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    seeds.for_each(try_seed);
}
