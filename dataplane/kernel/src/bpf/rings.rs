//! Rings: inner arrays of different sizes, each swapped whole. What a swap replaces stays as an earlier ring.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{HashOfMaps, MapData, MapError};
use ebpf_abi::limits::MAX_RING_PLACES;
use ebpf_abi::names::map;
use ebpf_abi::ring::EARLIER_RINGS;
use ebpf_abi::{Ip4, RingKey, ring};

use super::pins::PinDir;
use super::table::{TableError, is_absent, open};
use super::{batch, sys};

const NAME: &str = map::RINGS;

/// Rings written in one call: each has a descriptor until the call is done, and one per earlier ring.
const BATCH: usize = 64;

/// What [`Rings::swap_all`] does with the rings that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// They are the ring's earlier ones from now on: for rings that place packets, not sockets.
    Stay,
    Go,
}

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

    /// Replaces a ring by `places`, at once for every packet; what was replaced stays as an earlier ring. No place at all
    /// is a ring without a backend.
    pub fn swap(&mut self, key: &RingKey, places: &[Ip4]) -> Result<(), TableError> {
        self.swap_all(&[(*key, places.to_vec())], |_| Replaced::Stay)
    }

    /// Replaces many rings. The kernel waits once per batch for the programs that run, not once per ring. After an error
    /// some are replaced.
    pub fn swap_all(
        &mut self,
        rings: &[(RingKey, Vec<Ip4>)],
        replaced: impl Fn(&RingKey) -> Replaced,
    ) -> Result<(), TableError> {
        for batch in rings.chunks(BATCH) {
            let mut writes = Writes::default();
            for (key, places) in batch {
                if replaced(key) == Replaced::Stay {
                    self.age(key, &mut writes)?;
                }
                writes.keys.push(*key);
                writes.inner.push(Inner::New(filled(places)?));
            }
            let inner: Vec<BorrowedFd<'_>> = writes.inner.iter().map(Inner::as_fd).collect();
            batch::put_maps(self.fd.as_fd(), &writes.keys, &inner).map_err(TableError::Ring)?;
        }
        Ok(())
    }

    /// Adds the writes by which each ring under `key` becomes the one of the next age; the oldest goes.
    fn age(&self, key: &RingKey, writes: &mut Writes) -> Result<(), TableError> {
        let mut rings = Vec::new();
        for age in 0..EARLIER_RINGS {
            let Some(inner) = self.inner(&key.earlier(age))? else { break };
            rings.push((key.earlier(age + 1), inner));
        }
        // The oldest first: a packet in between finds one ring twice rather than one not at all.
        for (key, inner) in rings.into_iter().rev() {
            writes.keys.push(key);
            writes.inner.push(Inner::Replaced(inner));
        }
        Ok(())
    }

    /// Removes a ring and its earlier ones; one that is absent is success.
    pub fn remove(&mut self, key: &RingKey) -> Result<(), TableError> {
        for age in 0..=EARLIER_RINGS {
            match self.map.remove(&key.earlier(age)) {
                Err(source) if !is_absent(&source) => return Err(TableError::Write { name: NAME, source }),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes many rings and their earlier ones. After an error, also that one is absent, some are removed.
    pub fn remove_all(&mut self, keys: &[RingKey]) -> Result<(), TableError> {
        let meant: BTreeSet<RingKey> = keys.iter().copied().collect();
        let all = self.all_keys()?;
        let all: Vec<RingKey> = all.into_iter().filter(|key| meant.contains(&key.earlier(0))).collect();
        batch::remove(self.fd.as_fd(), &all).map_err(TableError::Ring)
    }

    /// The keys of all rings in use, in order.
    pub fn keys(&self) -> Result<Vec<RingKey>, TableError> {
        let mut keys = self.all_keys()?;
        keys.retain(|key| key.age == 0);
        keys.sort_unstable();
        Ok(keys)
    }

    fn all_keys(&self) -> Result<Vec<RingKey>, TableError> {
        let keys = self.map.keys().collect::<Result<Vec<RingKey>, MapError>>();
        keys.map_err(|source| TableError::Read { name: NAME, source })
    }

    fn inner(&self, key: &RingKey) -> Result<Option<MapData>, TableError> {
        match self.map.get(key, 0) {
            Ok(inner) => Ok(Some(inner)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(TableError::Read { name: NAME, source }),
        }
    }

    /// The places of a ring; `None` if there is no such ring.
    pub fn places(&self, key: &RingKey) -> Result<Option<Vec<Ip4>>, TableError> {
        let Some(inner) = self.inner(key)? else { return Ok(None) };
        let size = inner.info().map_err(|source| TableError::Read { name: NAME, source })?.max_entries();
        let values = batch::read(inner.fd().as_fd(), size).map_err(TableError::Ring)?;
        Ok(Some(values.into_iter().skip(1).map(Ip4::from_be_u32).collect()))
    }
}

/// One batch: keys, and what is put under each.
#[derive(Default)]
struct Writes {
    keys: Vec<RingKey>,
    inner: Vec<Inner>,
}

enum Inner {
    New(OwnedFd),
    Replaced(MapData),
}

impl Inner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::New(fd) => fd.as_fd(),
            Self::Replaced(map) => map.fd().as_fd(),
        }
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
