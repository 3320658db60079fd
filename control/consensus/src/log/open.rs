//! Reads the log's file whole, and trusts nothing in it that does not open.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use openraft::alias::EntryOf;
use openraft::entry::RaftEntry;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};
use serde::de::DeserializeOwned;

use super::memory::Memory;
use super::writer::{ENTRIES, MARKS, entry_place, mark_place};
use super::{COMMITTED, PURGED, VOTE};
use crate::crypt::Key;
use crate::error::OpenError;
use crate::limits::{COMPACT_FILE_BYTES, FILE_CACHE_BYTES};
use crate::types::TypeConfig;

pub(super) fn open(path: &Path, key: &Key, memory_bytes: usize) -> Result<(Database, Memory), OpenError> {
    let make = || Database::builder().set_cache_size(FILE_CACHE_BYTES).create(path);
    let len_bytes = || Ok(std::fs::metadata(path)?.len());
    open_made(make, len_bytes, key, memory_bytes)
}

/// As [`open`], of whatever `make` opens; `len_bytes` is how long that is.
pub(super) fn open_made(
    make: impl FnOnce() -> Result<Database, DatabaseError>,
    len_bytes: impl FnOnce() -> io::Result<u64>,
    key: &Key,
    memory_bytes: usize,
) -> Result<(Database, Memory), OpenError> {
    // redb checks what it reads by assertion in places; a damaged file must be an error all the same.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = checked(make(), len_bytes)?;
        let memory = read(&database, key, memory_bytes)?;
        Ok((database, memory))
    }));
    opened.unwrap_or_else(|_| Err(OpenError::Corrupt("the log's file".to_owned())))
}

fn checked(
    opened: Result<Database, DatabaseError>,
    len_bytes: impl FnOnce() -> io::Result<u64>,
) -> Result<Database, OpenError> {
    let mut database = opened.map_err(|error| match error {
        DatabaseError::Storage(StorageError::Corrupted(what)) => OpenError::Corrupt(what),
        error => OpenError::Log(error.into()),
    })?;
    let intact = database.check_integrity().map_err(|error| OpenError::Corrupt(error.to_string()))?;
    if !intact {
        return Err(OpenError::Corrupt("the log's file".to_owned()));
    }
    if len_bytes()? > COMPACT_FILE_BYTES
        && let Err(error) = database.compact()
    {
        tracing::warn!(%error, "the raft log can't be compacted");
    }
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
    transaction.open_table(MARKS).map_err(redb::Error::from)?;
    transaction.commit().map_err(redb::Error::from)?;
    Ok(database)
}

fn read(database: &Database, key: &Key, memory_bytes: usize) -> Result<Memory, OpenError> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let marks = transaction.open_table(MARKS).map_err(redb::Error::from)?;
    let mut memory = Memory::new(memory_bytes);
    for item in marks.iter().map_err(redb::Error::from)? {
        let (name, sealed) = item.map_err(redb::Error::from)?;
        let (name, sealed) = (name.value(), sealed.value());
        match name {
            VOTE => memory.vote = Some(unseal(key, &mark_place(name), sealed)?),
            COMMITTED => memory.committed = unseal(key, &mark_place(name), sealed)?,
            PURGED => memory.purged = Some(unseal(key, &mark_place(name), sealed)?),
            other => return Err(OpenError::OtherVersion(format!("mark {other:?}"))),
        }
    }
    let entries = transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
    let first = memory.purged.map_or(0, |purged| purged.index() + 1);
    for (next, item) in (first..).zip(entries.iter().map_err(redb::Error::from)?) {
        let (index, sealed) = item.map_err(redb::Error::from)?;
        let (index, sealed) = (index.value(), sealed.value());
        let entry: EntryOf<TypeConfig> = unseal(key, &entry_place(index), sealed)?;
        if index != next || entry.index() != index {
            return Err(OpenError::Corrupt(format!("entry {next} is missing")));
        }
        let encoded_len = sealed.len() - crate::crypt::OVERHEAD;
        memory.push(entry, encoded_len);
    }
    Ok(memory)
}

pub(super) fn unseal<T: DeserializeOwned>(key: &Key, place: &[u8], sealed: &[u8]) -> Result<T, OpenError> {
    let record = || format!("record {:?}", String::from_utf8_lossy(place));
    let plain = key.open(place, sealed).map_err(|_| OpenError::Corrupt(record()))?;
    rmp_serde::from_slice(&plain).map_err(|_| OpenError::OtherVersion(record()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_and_not_understood_is_of_another_version() {
        let (key, place) = (Key::random(), entry_place(7));
        let mut sealed = key.seal(&place, &rmp_serde::to_vec("words").unwrap());
        let opened = unseal::<u64>(&key, &place, &sealed);
        assert!(
            matches!(opened, Err(OpenError::OtherVersion(record)) if record.starts_with("record \"entry "))
        );
        *sealed.last_mut().unwrap() ^= 1;
        assert!(matches!(unseal::<u64>(&key, &place, &sealed), Err(OpenError::Corrupt(_))));
    }
}
