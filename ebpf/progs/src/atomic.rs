//! Additions that nobody else's undo: other CPUs', or those of a program that takes this one's CPU. The target has no atomic types, but
//! the instruction (RFC 9669 section 5.3).

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// # Safety
/// `number` must point to a number in a map, which others change in this way alone.
#[inline(always)]
pub unsafe fn add<T: Copy>(number: *mut T, n: T) {
    // SAFETY: the caller's. What was there before is not asked for: so it is an instruction that all kernels know.
    let _ = unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(number, n) };
}
