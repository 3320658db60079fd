//! How the daemon's allocator (glibc's) gives memory back.
//!
//! A burst, such as a list of ten thousand tasks as JSON, leaves pages with nothing in them all over the heap; glibc keeps
//! them, and by default a heap for each thread besides.

use std::thread;
use std::time::Duration;

/// Heaps for all threads together. Small blocks come from a cache of each thread, so that two are enough.
const MAX_ARENAS: libc::c_int = 2;
/// Blocks from this size on are mappings of their own and go back when they are freed. Set, it stays: by default it grows
/// with the largest block that was freed.
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;
/// Free memory at a heap's end from this size on is given back at once.
const TRIM_BYTES: libc::c_int = 1 << 20;
/// How often empty pages within the heaps are given back: some milliseconds for a heap of 100 MB.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// To be called before there are other threads.
#[expect(unsafe_code, reason = "mallopt and malloc_trim have no other caller")]
pub fn keep_small() {
    let settings = [
        (libc::M_ARENA_MAX, MAX_ARENAS),
        (libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_BYTES),
    ];
    for (name, value) in settings {
        // SAFETY: it sets a number of the allocator, under its own lock.
        if unsafe { libc::mallopt(name, value) } == 0 {
            tracing::warn!(name, value, "the allocator refuses a setting");
        }
    }
    let trim = || loop {
        thread::sleep(TRIM_EVERY);
        // SAFETY: it takes the allocator's locks, and touches free memory only.
        unsafe { libc::malloc_trim(0) };
    };
    if let Err(error) = thread::Builder::new().name("trim".to_owned()).spawn(trim) {
        tracing::warn!(%error, "free memory is not given back");
    }
}
