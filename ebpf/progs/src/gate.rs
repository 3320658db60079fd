//! What a flood of packets that begin flows, with whatever source addresses, may take of the tables: a part of them that is
//! small enough for all the others.

use aya_ebpf::helpers::bpf_map_pop_elem;
use ebpf_abi::limits::MAX_NEW_CACHED_FLOWS;
use ebpf_abi::{ForwardKey, GateRow};

use crate::maps::{self, GATE, HALF_OPEN};
use crate::track;

/// May the cache have another row? While nobody counts the seconds the answer becomes no, and nobody changes rings either:
/// a flow finds its backend by them.
#[inline(always)]
pub fn admits_to_cache() -> bool {
    let Some(row) = row() else { return false };
    let tick = maps::tick();
    if row.tick != tick {
        row.tick = tick;
        row.n_new = 0;
    }
    if row.n_new >= MAX_NEW_CACHED_FLOWS {
        row.n_unremembered += 1;
        return false;
    }
    row.n_new += 1;
    true
}

/// Lines up a flow that begins. The oldest of a full line leaves it, and is forgotten unless it is established by now, and not
/// over: so flows make room for each other while nobody sweeps. Where CPUs are at it at the same time a flow may miss the line: it
/// is swept when it has been silent for a minute.
#[inline(always)]
pub fn line_up(key: &ForwardKey) {
    if HALF_OPEN.push(key, 0).is_ok() {
        return;
    }
    if let Some(row) = row() {
        if pop(&mut row.oldest) && track::forget_unless_open(&row.oldest, &mut row.oldest_reply) {
            row.n_displaced += 1;
        }
        let _ = HALF_OPEN.push(key, 0);
    }
}

/// Takes the oldest off the line; false if there is none.
#[inline(always)]
fn pop(oldest: &mut ForwardKey) -> bool {
    let line = &raw const HALF_OPEN;
    // SAFETY: the kernel writes a whole key, or nothing.
    unsafe { bpf_map_pop_elem(line.cast_mut().cast(), (&raw mut *oldest).cast()) == 0 }
}

#[inline(always)]
fn row() -> Option<&'static mut GateRow> {
    // SAFETY: the row belongs to this CPU, which a program does not leave before it ends.
    GATE.get_ptr_mut(0).map(|row| unsafe { &mut *row })
}
