//! Counting, on this CPU's own row: no locks, no shared cache lines. A packet's program runs to its end before another one begins on
//! its CPU. Those of sockets don't: the kernel keeps them on their CPU, but lets others preempt them, so they count in one
//! instruction each.

use ebpf_abi::limits::MAX_DROP_REASONS;
use ebpf_abi::next_hop::PACKETS_PER_LOOK;
use ebpf_abi::{CounterRow, DropReason, ProgramId};

use crate::maps::COUNTERS;
use crate::{atomic, sample};

/// One program's row.
pub struct Account(Option<*mut CounterRow>);

impl Account {
    /// Counts a packet in.
    #[inline(always)]
    pub fn receive(program: ProgramId) -> Self {
        let account = Self(COUNTERS.get_ptr_mut(program.number()));
        account.with(|row| row.received += 1);
        account
    }

    /// How many packets this CPU has had.
    #[inline(always)]
    pub fn n_received(&self) -> u64 {
        // SAFETY: as in `with`.
        self.0.map_or(0, |row| unsafe { (*row).received })
    }

    /// This packet is the one of [`PACKETS_PER_LOOK`] that asks the kernel for the next hop again.
    #[inline(always)]
    pub fn is_to_look(&self) -> bool {
        const { assert!(PACKETS_PER_LOOK.is_power_of_two()) };
        self.n_received() & (PACKETS_PER_LOOK - 1) == 0
    }

    #[inline(always)]
    pub fn passed(&self) {
        self.with(|row| row.passed += 1);
    }

    #[inline(always)]
    pub fn forwarded(&self) {
        self.with(|row| row.forwarded += 1);
    }

    #[inline(always)]
    pub fn dropped(&self, reason: DropReason) {
        sample::note(reason);
        let number = reason.number();
        // SAFETY: reads what was just written. The compiler knows how many reasons there are and would leave the check out;
        // the verifier of kernel 6.1 has forgotten by then, and insists on it.
        let number = unsafe { core::ptr::read_volatile(&raw const number) } as usize;
        self.with(|row| {
            if number < MAX_DROP_REASONS {
                row.drops[number] += 1;
            }
        });
    }

    #[inline(always)]
    fn with(&self, change: impl FnOnce(&mut CounterRow)) {
        if let Some(row) = self.0 {
            // SAFETY: the row belongs to this CPU, which a program does not leave before it ends.
            change(unsafe { &mut *row });
        }
    }
}

/// One program's row, of a program that others may preempt.
pub struct SocketAccount(Option<*mut CounterRow>);

impl SocketAccount {
    /// Counts a call in.
    #[inline(always)]
    pub fn receive(program: ProgramId) -> Self {
        let account = Self(COUNTERS.get_ptr_mut(program.number()));
        account.count(|row| &raw mut row.received);
        account
    }

    #[inline(always)]
    pub fn passed(&self) {
        self.count(|row| &raw mut row.passed);
    }

    #[inline(always)]
    pub fn forwarded(&self) {
        self.count(|row| &raw mut row.forwarded);
    }

    /// The reason is known when the program is compiled.
    #[inline(always)]
    pub fn dropped(&self, reason: DropReason) {
        self.count(|row| &raw mut row.drops[reason.number() as usize]);
    }

    #[inline(always)]
    fn count(&self, which: impl FnOnce(&mut CounterRow) -> *mut u64) {
        if let Some(row) = self.0 {
            // SAFETY: the row belongs to this CPU and program, which counts there in this way alone.
            unsafe { atomic::add(which(&mut *row), 1) }
        }
    }
}
