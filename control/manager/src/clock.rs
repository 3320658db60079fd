//! The wall clock, read in one place.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use control_model::Timestamp;

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
