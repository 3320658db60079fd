//! The clocks, read in one place.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use control_model::{EvenClock, Timestamp};

/// Now, UTC. A clock before 1970 or after 2262 reads as the epoch.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or_default())
}

/// A clock that never jumps, for spans between two readings: not a time of day.
pub fn monotonic() -> Timestamp {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    /// So that a time before the start is no negative number.
    const OFFSET: Duration = Duration::from_hours(1);
    Timestamp(0).after(START.elapsed() + OFFSET)
}

/// Now, by a clock that follows the wall clock and never jumps: for stamps that spans are measured between, by the leader's
/// loops and of what is written.
pub fn even() -> Timestamp {
    even_clock().read(now(), monotonic())
}

/// As [`even`], and from now on after `stamp`: another manager's clock may be ahead, and what it stamped is not to be in the
/// future.
pub fn even_after(stamp: Timestamp) -> Timestamp {
    even_clock().advance_to(stamp);
    even()
}

fn even_clock() -> MutexGuard<'static, EvenClock> {
    static CLOCK: LazyLock<Mutex<EvenClock>> =
        LazyLock::new(|| Mutex::new(EvenClock::new(now(), monotonic())));
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
