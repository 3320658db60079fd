//! Rings: inner arrays of different sizes, each swapped whole.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{HashOfMaps, MapData, MapError};
use ebpf_abi::limits::MAX_RING_PLACES;
use ebpf_abi::names::map;
use ebpf_abi::{Ip4, RingKey, ring};

use super::pins::PinDir;
use super::table::{TableError, is_absent, open};
use super::{batch, sys};

const NAME: &str = map::RINGS;

/// Rings written in one call: each has a descriptor until the call is done.
const BATCH: usize = 128;

/// The table of rings.
pub struct Rings {
    map: HashOfMaps<MapData, RingKey, MapData>,
    /// The same map, for writing many rings.
    fd: OwnedFd,
}

impl Rings {
    pub(super) fn open(pins: &PinDir) -> Result<Self, TableError> {
        let fd = sys::open_pin(&pins.map(NAME)).map_err(|source| TableError::Dump { name: NAME, source })?;
        Ok(Self { map: open(pins, NAME)?, fd })
    }

    /// Replaces a ring by `places`, at once for every packet. No place at all is a ring without a backend.
    pub fn swap(&mut self, key: &RingKey, places: &[Ip4]) -> Result<(), TableError> {
        let write_error = |source| TableError::Write { name: NAME, source };
        let inner = MapData::from_fd(filled(places)?).map_err(write_error)?;
        self.map.insert(key, &inner, 0).map_err(write_error)
    }

    /// Replaces many rings. The kernel waits once per batch for the programs that run, not once per ring. After an error
    /// some are replaced.
    pub fn swap_all(&mut self, rings: &[(RingKey, Vec<Ip4>)]) -> Result<(), TableError> {
        for batch in rings.chunks(BATCH) {
            let inner =
                batch.iter().map(|(_, places)| filled(places)).collect::<Result<Vec<OwnedFd>, _>>()?;
            let inner: Vec<BorrowedFd<'_>> = inner.iter().map(OwnedFd::as_fd).collect();
            let keys: Vec<RingKey> = batch.iter().map(|(key, _)| *key).collect();
            batch::put_maps(self.fd.as_fd(), &keys, &inner).map_err(TableError::Ring)?;
        }
        Ok(())
    }

    /// Removes a ring; one that is absent is success.
    pub fn remove(&mut self, key: &RingKey) -> Result<(), TableError> {
        match self.map.remove(key) {
            Err(source) if !is_absent(&source) => Err(TableError::Write { name: NAME, source }),
            _ => Ok(()),
        }
    }

    /// Removes many rings. After an error, also that one is absent, some are removed.
    pub fn remove_all(&mut self, keys: &[RingKey]) -> Result<(), TableError> {
        batch::remove(self.fd.as_fd(), keys).map_err(TableError::Ring)
    }

    /// All keys, in order.
    pub fn keys(&self) -> Result<Vec<RingKey>, TableError> {
        let mut keys = self
            .map
            .keys()
            .collect::<Result<Vec<RingKey>, MapError>>()
            .map_err(|source| TableError::Read { name: NAME, source })?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The places of a ring; `None` if there is no such ring.
    pub fn places(&self, key: &RingKey) -> Result<Option<Vec<Ip4>>, TableError> {
        let inner = match self.map.get(key, 0) {
            Ok(inner) => inner,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(source) => return Err(TableError::Read { name: NAME, source }),
        };
        let size = inner.info().map_err(|source| TableError::Read { name: NAME, source })?.max_entries();
        let values = batch::read(inner.fd().as_fd(), size).map_err(TableError::Ring)?;
        Ok(Some(values.into_iter().skip(1).map(Ip4::from_be_u32).collect()))
    }
}

/// A new inner array of `places`.
fn filled(places: &[Ip4]) -> Result<OwnedFd, TableError> {
    let n_places = u32::try_from(places.len()).ok().filter(|count| *count <= MAX_RING_PLACES);
    let n_places = n_places.ok_or(TableError::RingTooLarge { n_places: places.len() })?;
    let inner = sys::create_inner_array(ring::FIRST_PLACE_INDEX + n_places).map_err(TableError::Ring)?;
    let mut values = Vec::with_capacity(places.len() + 1);
    values.push(n_places);
    values.extend(places.iter().map(|address| address.to_be_u32()));
    batch::write(inner.as_fd(), &values).map_err(TableError::Ring)?;
    Ok(inner)
}
