//! What of the log is in memory: where every entry is, and the newest ones themselves.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;

use crate::types::TypeConfig;

/// All that the file will hold when the jobs under way are done, but for the bodies of older entries.
#[derive(Default)]
pub(super) struct Memory {
    entries: BTreeMap<u64, Stored>,
    /// Below this index no entry's body is here.
    first_here: u64,
    /// Encoded size of the bodies that are here.
    here_bytes: usize,
    /// What [`Memory::here_bytes`] may be.
    limit_bytes: usize,
    /// Encoded size of all entries.
    len_bytes: usize,
    last: Option<LogIdOf<TypeConfig>>,
    pub(super) purged: Option<LogIdOf<TypeConfig>>,
    pub(super) vote: Option<VoteOf<TypeConfig>>,
    pub(super) committed: Option<LogIdOf<TypeConfig>>,
}

struct Stored {
    /// `None`: in the file alone, or on its way there.
    entry: Option<EntryOf<TypeConfig>>,
    encoded_len: usize,
}

/// Consecutive entries: first those that have to be read from the file, then those that were here.
#[derive(Default)]
pub(super) struct Found {
    pub(super) in_file: Vec<u64>,
    pub(super) here: Vec<EntryOf<TypeConfig>>,
}

impl Memory {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The last entry's id, or that of the last one that was cut off.
    pub(super) fn last(&self) -> Option<LogIdOf<TypeConfig>> {
        self.last.or(self.purged)
    }

    /// Adds an entry at the end. The oldest bodies make room for its own.
    pub(super) fn push(&mut self, entry: EntryOf<TypeConfig>, encoded_len: usize) {
        let index = entry.index();
        self.last = Some(entry.log_id());
        self.len_bytes += encoded_len;
        self.here_bytes += encoded_len;
        if let Some(replaced) = self.entries.insert(index, Stored { entry: Some(entry), encoded_len }) {
            self.forget(&BTreeMap::from([(index, replaced)]));
        }
        self.first_here = self.first_here.min(index);
        while self.here_bytes > self.limit_bytes
            && let Some((oldest, stored)) = self.entries.range_mut(self.first_here..).next()
        {
            self.here_bytes -= stored.entry.take().map_or(0, |_| stored.encoded_len);
            self.first_here = *oldest + 1;
        }
    }

    /// The entries of `range` as far as they take `limit_bytes`; one at least.
    pub(super) fn find(&self, range: impl RangeBounds<u64>, limit_bytes: usize) -> Found {
        let mut found = Found::default();
        let mut bytes = 0;
        for (index, stored) in self.entries.range(range) {
            let is_first = bytes == 0;
            bytes += stored.encoded_len;
            if bytes > limit_bytes && !is_first {
                break;
            }
            match &stored.entry {
                Some(entry) => found.here.push(entry.clone()),
                None => found.in_file.push(*index),
            }
        }
        found
    }

    /// Removes what follows `last`.
    pub(super) fn truncate_after(&mut self, last: Option<LogIdOf<TypeConfig>>) {
        let from = last.map_or(0, |last| last.index() + 1);
        let removed = self.entries.split_off(&from);
        self.forget(&removed);
        self.first_here = self.first_here.min(from);
        self.last = if self.entries.is_empty() { None } else { self.last.min(last) };
    }

    /// Removes what is not beyond `upto`.
    pub(super) fn purge(&mut self, upto: LogIdOf<TypeConfig>) {
        let kept = self.entries.split_off(&(upto.index() + 1));
        let removed = std::mem::replace(&mut self.entries, kept);
        self.forget(&removed);
        self.purged = Some(upto);
        if self.entries.is_empty() {
            self.last = None;
        }
    }

    fn forget(&mut self, removed: &BTreeMap<u64, Stored>) {
        for stored in removed.values() {
            self.len_bytes -= stored.encoded_len;
            self.here_bytes -= stored.entry.as_ref().map_or(0, |_| stored.encoded_len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogIdOf<TypeConfig> {
        openraft::testing::log_id::<TypeConfig>(1, 1, index)
    }

    fn memory(indexes: std::ops::Range<u64>) -> Memory {
        let mut memory = Memory::new(25);
        for index in indexes {
            memory.push(entry(index), 10);
        }
        memory
    }

    fn entry(index: u64) -> EntryOf<TypeConfig> {
        EntryOf::<TypeConfig>::new_blank(id(index))
    }

    /// Indexes in the file, and in memory.
    fn found(memory: &Memory, range: impl RangeBounds<u64>, limit_bytes: usize) -> (Vec<u64>, Vec<u64>) {
        let Found { in_file, here } = memory.find(range, limit_bytes);
        (in_file, here.iter().map(RaftEntry::index).collect())
    }

    #[test]
    fn only_the_newest_bodies_are_here() {
        let memory = memory(1..11);
        assert_eq!((memory.here_bytes, memory.len_bytes()), (20, 100));
        assert_eq!(found(&memory, 7.., usize::MAX), (vec![7, 8], vec![9, 10]));
        assert_eq!(found(&memory, 7.., 30), (vec![7, 8], vec![9]));
        assert_eq!(found(&memory, 2..9, 5), (vec![2], vec![]));
        assert_eq!(memory.last(), Some(id(10)));
    }

    #[test]
    fn what_is_cut_off_at_either_end_is_forgotten() {
        let mut memory = memory(1..11);
        memory.truncate_after(Some(id(11)));
        assert_eq!(memory.last(), Some(id(10)), "there is nothing to remove");
        memory.truncate_after(Some(id(5)));
        assert_eq!((memory.here_bytes, memory.len_bytes(), memory.last()), (0, 50, Some(id(5))));
        memory.push(entry(6), 10);
        assert_eq!(found(&memory, 4.., usize::MAX), (vec![4, 5], vec![6]));
        memory.purge(id(5));
        assert_eq!((memory.here_bytes, memory.len_bytes(), memory.last()), (10, 10, Some(id(6))));
        memory.purge(id(6));
        assert_eq!((memory.here_bytes, memory.len_bytes(), memory.last()), (0, 0, Some(id(6))));
        memory.push(entry(7), 10);
        memory.truncate_after(Some(id(6)));
        assert_eq!((memory.here_bytes, memory.len_bytes(), memory.last()), (0, 0, Some(id(6))));
    }
}
