//! Rings: inner arrays of different sizes, each swapped whole, with the rings that were in use before.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{HashOfMaps, MapData, MapError};
use ebpf_abi::limits::MAX_RING_PLACES;
use ebpf_abi::names::map;
use ebpf_abi::{Ip4, RingBlock, RingKey};

use super::pins::PinDir;
use super::ring_blocks::{self, Places};
use super::table::{TableError, is_absent, open};
use super::{batch, sys};

const NAME: &str = map::RINGS;

/// Rings written in one call: each has a descriptor until the call is done.
const BATCH: usize = 256;

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

    /// Replaces many rings, each with its earlier ones in one write; a ring that is as it should be is not written. Where
    /// the kernel can (6.8 and newer), it waits once per batch for the programs that run, not once per ring. After an error
    /// some are replaced.
    pub fn swap_all(
        &mut self,
        rings: &[(RingKey, Vec<Ip4>)],
        replaced: impl Fn(&RingKey) -> Replaced,
    ) -> Result<(), TableError> {
        for batch in rings.chunks(BATCH) {
            let (mut keys, mut inner) = (Vec::new(), Vec::new());
            for (key, places) in batch {
                let before = self.all(key)?;
                if before.first() == Some(places) {
                    continue;
                }
                let before = if replaced(key) == Replaced::Stay { before } else { Vec::new() };
                keys.push(*key);
                inner.push(filled(&ring_blocks::successor(places, before))?);
            }
            if !keys.is_empty() {
                let inner: Vec<BorrowedFd<'_>> = inner.iter().map(OwnedFd::as_fd).collect();
                batch::put_maps(self.fd.as_fd(), &keys, &inner).map_err(TableError::Ring)?;
            }
        }
        Ok(())
    }

    /// Removes a ring and its earlier ones; one that is absent is success.
    pub fn remove(&mut self, key: &RingKey) -> Result<(), TableError> {
        match self.map.remove(key) {
            Err(source) if !is_absent(&source) => Err(TableError::Write { name: NAME, source }),
            _ => Ok(()),
        }
    }

    /// Removes many rings and their earlier ones. After an error, also that one is absent, some are removed.
    pub fn remove_all(&mut self, keys: &[RingKey]) -> Result<(), TableError> {
        batch::remove(self.fd.as_fd(), keys).map_err(TableError::Ring)
    }

    /// The keys of all rings, in order.
    pub fn keys(&self) -> Result<Vec<RingKey>, TableError> {
        let keys = self.map.keys().collect::<Result<Vec<RingKey>, MapError>>();
        let mut keys = keys.map_err(|source| TableError::Read { name: NAME, source })?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The places of the ring in use; `None` if there is no such ring.
    pub fn places(&self, key: &RingKey) -> Result<Option<Places>, TableError> {
        let Some(inner) = self.inner(key)? else { return Ok(None) };
        let header: Vec<RingBlock> = batch::read(inner.fd().as_fd(), 1).map_err(TableError::Ring)?;
        let n_blocks = header.first().map_or(1, ring_blocks::n_blocks_in_use).min(n_blocks(&inner)?);
        Ok(ring_blocks::decode(&read(&inner, n_blocks)?, 1).pop())
    }

    /// The places of the ring in use and of the earlier ones, youngest first; nothing if there is no such ring.
    pub fn all(&self, key: &RingKey) -> Result<Vec<Places>, TableError> {
        let Some(inner) = self.inner(key)? else { return Ok(Vec::new()) };
        Ok(ring_blocks::decode(&read(&inner, n_blocks(&inner)?)?, usize::MAX))
    }

    fn inner(&self, key: &RingKey) -> Result<Option<MapData>, TableError> {
        match self.map.get(key, 0) {
            Ok(inner) => Ok(Some(inner)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(TableError::Read { name: NAME, source }),
        }
    }
}

fn n_blocks(inner: &MapData) -> Result<u32, TableError> {
    Ok(inner.info().map_err(|source| TableError::Read { name: NAME, source })?.max_entries())
}

fn read(inner: &MapData, n_blocks: u32) -> Result<Vec<RingBlock>, TableError> {
    batch::read(inner.fd().as_fd(), n_blocks).map_err(TableError::Ring)
}

/// A new inner array of rings, the one in use first.
fn filled(rings: &[Places]) -> Result<OwnedFd, TableError> {
    let largest = rings.iter().map(Vec::len).max().unwrap_or(0);
    if largest > MAX_RING_PLACES as usize {
        return Err(TableError::RingTooLarge { n_places: largest });
    }
    let blocks = ring_blocks::encode(rings);
    let inner = sys::create_inner_array::<RingBlock>(blocks.len()).map_err(TableError::Ring)?;
    batch::write(inner.as_fd(), &blocks).map_err(TableError::Ring)?;
    Ok(inner)
}
