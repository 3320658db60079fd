//! What the programs tell of single packets: a switch, and a ring buffer with one reader.

use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{MapData, MapError, PerCpuArray, RingBuf};
use ebpf_abi::names::map;
use ebpf_abi::{FlowEvent, Sampling, TellingRow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pins::PinDir;
use super::table::{Single, TableError, open};

/// The switch and the buffer. Two readers would take each other's events.
pub struct Events {
    sampling: Single<Sampling>,
    ring: RingBuf<MapData>,
    telling: PerCpuArray<MapData, TellingRow>,
}

impl Events {
    pub fn open(pins: &PinDir) -> Result<Self, TableError> {
        Ok(Self {
            sampling: Single::open(pins, map::SAMPLING)?,
            ring: open(pins, map::EVENTS)?,
            telling: open(pins, map::TELLING)?,
        })
    }

    /// From now on the programs tell of these packets; what an earlier reader left is gone.
    pub fn switch(&mut self, sampling: &Sampling) -> Result<(), TableError> {
        while self.ring.next().is_some() {}
        self.sampling.set(sampling)
    }

    /// The next event, if there is one. What has another length than an event is none.
    pub fn take(&mut self) -> Option<FlowEvent> {
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<FlowEvent>() {
                // SAFETY: as many bytes as an event has, and any bytes are one.
                return Some(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
        }
        None
    }

    /// Waits until there may be an event, but no longer than `limit`.
    pub fn wait(&self, limit: Duration) {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // A signal ends the wait early: who waits looks at the time anyhow.
        let _ = poll(&mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)], limit);
    }

    /// Events that found no room, since the maps were made.
    pub fn n_lost(&self) -> Result<u64, TableError> {
        let read = |source: MapError| TableError::Read { name: map::TELLING, source };
        Ok(self.telling.get(&0, 0).map_err(read)?.iter().map(|row| row.n_lost).sum())
    }
}
