//! Collecting flows that have ended, and translations of sockets that are closed, beside everything else: by handles of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ebpf_abi::SocketNatKey;

use crate::bpf::{PinDir, Tables};
use crate::net::NodeSockets;
use crate::seam::{KernelError, Pause, Sweeper};

/// One sweep in so many looks at sockets too: that lists all of the node's and of each sandbox's, and what it finds can wait.
const SWEEPS_PER_LOOK: u32 = 6;

/// The pinned tables of a node's flows.
pub struct LinuxSweeper {
    bpffs_dir: PathBuf,
    sockets: NodeSockets,
    /// Translations whose sockets the last look has not found.
    missed: BTreeSet<SocketNatKey>,
    /// Sweeps until the next look.
    n_to_look: u32,
}

impl LinuxSweeper {
    pub(super) fn new(bpffs_dir: PathBuf, sockets: NodeSockets) -> Self {
        Self { bpffs_dir, sockets, missed: BTreeSet::new(), n_to_look: 0 }
    }

    /// Nobody's sockets are listed where none is translated.
    fn sweep_sockets(&mut self, tables: &mut Tables, pause: &Pause) -> Result<(), KernelError> {
        if self.n_to_look > 0 {
            self.n_to_look -= 1;
            return Ok(());
        }
        self.n_to_look = SWEEPS_PER_LOOK - 1;
        if !tables.has_socket_nats().map_err(|error| KernelError::of(&error))? {
            return Ok(());
        }
        let Some(open) = self.sockets.cookies(pause)? else { return Ok(()) };
        match tables.sweep_socket_nats(&open, &mut self.missed) {
            Err(error) if !error.is_break() => Err(KernelError::of(&error)),
            _ => Ok(()),
        }
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
        let mut reasons: Vec<String> = failed.map(|error| KernelError::of(&error).0).collect();
        reasons.extend(self.sweep_sockets(&mut tables, pause).err().map(|error| error.0));
        if reasons.is_empty() { Ok(()) } else { Err(KernelError(reasons.join("; "))) }
    }
}
