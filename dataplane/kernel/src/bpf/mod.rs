//! BPF programs and maps: loading, attaching, and the maps as typed tables.
//!
//! Everything is pinned: maps, and the links that hold programs in their hooks. Dropping [`Bpf`] changes nothing in the
//! kernel; opening it again finds the tables as they were and swaps each program for this build's without a gap.
//!
//! Which rows the tables should have is not decided here.

mod batch;
mod counters;
mod events;
mod filter;
mod flows;
mod hooks;
mod object;
mod pins;
mod preflight;
mod ring_blocks;
mod rings;
mod runs;
mod socket_nats;
mod sys;
mod table;
mod tables;
mod takeover;
mod test_run;
mod vip_flows;

use std::path::Path;

pub use counters::{Counters, Gate, GateCounts, read_drops};
pub use events::Events;
pub use flows::{FlowSweep, SweepError};
pub use hooks::{HookError, Hooks, remove_other_versions};
pub(crate) use hooks::{interface_name, is_alive};
pub use object::{LoadError, Programs, attach_pass};
pub use pins::{HookPin, PinDir, PinError};
pub use preflight::{Missing, cgroup2_root, check, has_tcx};
pub use ring_blocks::Places;
pub use rings::{Replaced, Rings};
pub use runs::{ProgramRuns, program_runs};
pub use table::{Single, Table, TableError};
pub use tables::Tables;
pub use test_run::{TestOutcome, TestPacket};

/// The node's programs and maps.
pub struct Bpf {
    pub tables: Tables,
    pub hooks: Hooks,
}

/// Why the programs and maps can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("this machine can't run the data plane")]
    Missing(#[from] Missing),
    #[error("can't prepare the pins")]
    Pins(#[from] PinError),
    #[error("can't load the BPF programs")]
    Load(#[from] LoadError),
    #[error("can't open the pinned maps")]
    Table(#[from] TableError),
    #[error("can't renew the pinned hooks")]
    Hooks(#[from] HookError),
}

impl Bpf {
    /// Loads the programs, and opens the maps under `pin_dir` or makes them there; flows of an older version stay. `pin_dir`
    /// must lie in a BPF file system, or where one can be mounted (`/sys/fs/bpf`). Hooks that are pinned there run this
    /// build's programs when this returns. The network namespace of the calling thread is the one whose interfaces are meant,
    /// here and later.
    pub fn open(pin_dir: &Path) -> Result<Self, OpenError> {
        check()?;
        let pins = PinDir::create(pin_dir)?;
        takeover::take_over(&pins)?;
        let programs = Programs::load(&pins)?;
        let tables = Tables::open(&pins)?;
        let mut hooks = Hooks::new(pins, programs);
        hooks.renew()?;
        Ok(Self { tables, hooks })
    }

    /// Takes all programs off and removes all pins: the maps go with the last program that uses them. For a node that
    /// leaves.
    pub fn release(mut self) -> Result<(), OpenError> {
        self.hooks.detach_all()?;
        Ok(self.hooks.into_pins().remove_all()?)
    }
}
