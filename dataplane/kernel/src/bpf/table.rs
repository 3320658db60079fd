//! One map as a table with typed rows.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use ebpf_abi::limits;

use super::pins::PinDir;
use super::{batch, sys};
use crate::seam::Pause;

/// What failed, and on which table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the map {name} can't be opened (pinned by another version?)")]
    Open { name: &'static str, source: MapError },
    #[error("the map {name} can't be read")]
    Read { name: &'static str, source: MapError },
    #[error("the rows of the map {name} can't be read")]
    Dump { name: &'static str, source: io::Error },
    #[error("the map {name} can't be written")]
    Write { name: &'static str, source: MapError },
    #[error("the map {name} is full (ebpf_abi::limits)")]
    Full { name: &'static str },
    #[error("a ring of {n_places} places is larger than the largest, {}", limits::MAX_RING_PLACES)]
    RingTooLarge { n_places: usize },
    #[error("the places of a ring can't be read or written")]
    Ring(#[source] io::Error),
    #[error("there was no more time")]
    Break,
}

impl TableError {
    /// Nothing is wrong: the work was told to end.
    pub const fn is_break(&self) -> bool {
        matches!(self, Self::Break)
    }
}

/// A hash map.
pub struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    /// The same map, for reading it whole.
    fd: OwnedFd,
    /// Asked between the batches of [`Table::visit`].
    pause: Option<Pause>,
}

/// An array of one element.
pub struct Single<V: Pod> {
    name: &'static str,
    map: Array<MapData, V>,
}

pub(super) fn open<M>(pins: &PinDir, name: &'static str) -> Result<M, TableError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let opened = MapData::from_pin(pins.map(name)).and_then(Map::from_map_data).and_then(M::try_from);
    opened.map_err(|source| TableError::Open { name, source })
}

impl<K: Pod + Ord, V: Pod> Table<K, V> {
    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, TableError> {
        let map = open(pins, name)?;
        let fd = sys::open_pin(&pins.map(name)).map_err(|source| TableError::Dump { name, source })?;
        Ok(Self { name, map, fd, pause: None })
    }

    /// Asks `pause` for its turn after every few thousand rows that [`Table::visit`] shows.
    #[must_use]
    pub(super) fn in_turns(self, pause: &Pause) -> Self {
        Self { pause: Some(Arc::clone(pause)), ..self }
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(TableError::Read { name: self.name, source }),
        }
    }

    /// Writes one row, new or not.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        let name = self.name;
        self.map.insert(key, value, 0).map_err(|source| {
            if error_code(&source) == Some(libc::E2BIG) {
                TableError::Full { name }
            } else {
                TableError::Write { name, source }
            }
        })
    }

    /// Removes one row; one that is absent is success.
    pub fn remove(&mut self, key: &K) -> Result<(), TableError> {
        match self.map.remove(key) {
            Err(source) if !is_absent(&source) => Err(TableError::Write { name: self.name, source }),
            _ => Ok(()),
        }
    }

    /// Shows every row, in no order; what is written meanwhile may be missing or twice.
    pub fn visit(&self, mut work: impl FnMut(K, V) -> Result<(), TableError>) -> Result<(), TableError> {
        let take = |rows: Vec<(K, V)>| {
            rows.into_iter().try_for_each(|(key, value)| work(key, value))?;
            let goes_on = self.pause.as_ref().is_none_or(|pause| pause().is_continue());
            if goes_on { Ok(()) } else { Err(TableError::Break) }
        };
        batch::visit(self.fd.as_fd(), take).map_err(|source| TableError::Dump { name: self.name, source })?
    }

    /// All rows, in order of their keys.
    pub fn rows(&self) -> Result<BTreeMap<K, V>, TableError> {
        let rows =
            batch::dump(self.fd.as_fd()).map_err(|source| TableError::Dump { name: self.name, source })?;
        Ok(rows.into_iter().collect())
    }
}

impl<V: Pod> Single<V> {
    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, TableError> {
        open(pins, name).map(|map| Self { name, map })
    }

    /// All zero until it is set.
    pub fn get(&self) -> Result<V, TableError> {
        self.map.get(&0, 0).map_err(|source| TableError::Read { name: self.name, source })
    }

    pub fn set(&mut self, value: &V) -> Result<(), TableError> {
        self.map.set(0, value, 0).map_err(|source| TableError::Write { name: self.name, source })
    }
}

pub(super) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || error_code(error) == Some(libc::ENOENT)
}

fn error_code(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
