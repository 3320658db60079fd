//! Collecting flows that have ended, beside everything else: by handles of its own.

use std::path::PathBuf;

use crate::bpf::{PinDir, Tables};
use crate::seam::{KernelError, Pause, Sweeper};

/// The pinned tables of a node's flows.
pub struct LinuxSweeper {
    bpffs_dir: PathBuf,
}

impl LinuxSweeper {
    pub(super) fn new(bpffs_dir: PathBuf) -> Self {
        Self { bpffs_dir }
    }
}

impl Sweeper for LinuxSweeper {
    /// Opens the pins anew: they may be others by now, and are kept by nobody who has nothing to do with them. As long as there
    /// are those of another version, whose flows these are too, our tables may not tell yet which tasks there are.
    fn sweep(&mut self, pause: &Pause) -> Result<(), KernelError> {
        let pins = PinDir::new(&self.bpffs_dir);
        let others = pins.others().map_err(|error| KernelError::of(&error))?;
        if !pins.has_tables() || !others.is_empty() {
            return Ok(());
        }
        let mut tables = Tables::open(&pins).map_err(|error| KernelError::of(&error))?.in_turns(pause);
        // Each is tried whatever becomes of the other.
        let sweeps = [tables.sweep_flows(), tables.sweep_vip_flows()];
        let failed = sweeps.into_iter().filter_map(Result::err).filter(|error| !error.is_break());
        let reasons: Vec<String> = failed.map(|error| KernelError::of(&error).0).collect();
        if reasons.is_empty() { Ok(()) } else { Err(KernelError(reasons.join("; "))) }
    }
}
