//! Collecting the translations of sockets that are closed. No hook tells of a socket's end, so they are those of no socket that the
//! kernel lists.

use std::collections::BTreeSet;

use ebpf_abi::SocketNatKey;

use super::flows::{FlowSweep, SweepError};
use super::table::TableError;
use super::tables::Tables;

impl Tables {
    /// Whether any socket has been translated.
    pub fn has_socket_nats(&self) -> Result<bool, TableError> {
        match self.socket_nat.visit(|_, _| Err(TableError::Break)) {
            Ok(()) => Ok(false),
            Err(error) if error.is_break() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes translations of sockets that are none of `open` and were `missed` the last time too, and leaves in `missed` those
    /// that are none now: a socket has its translation a moment before the kernel lists it. Numbers of sockets never come again.
    pub fn sweep_socket_nats(
        &mut self,
        open: &BTreeSet<u64>,
        missed: &mut BTreeSet<SocketNatKey>,
    ) -> Result<FlowSweep, SweepError> {
        let (mut sweep, mut missing) = (FlowSweep::default(), BTreeSet::new());
        self.socket_nat.visit(|key: SocketNatKey, _| {
            if open.contains(&key.socket_cookie) {
                sweep.n_kept += 1;
            } else {
                missing.insert(key);
            }
            Ok(())
        })?;
        for key in missing.intersection(missed) {
            self.socket_nat.remove(key)?;
            sweep.n_removed += 1;
        }
        sweep.n_kept += missing.len() - sweep.n_removed;
        missing.retain(|key| !missed.contains(key));
        *missed = missing;
        Ok(sweep)
    }
}
