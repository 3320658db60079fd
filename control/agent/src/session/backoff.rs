//! Pauses between attempts to open a session, and between descriptions of the node.

use std::time::Duration;

/// Upper bound of the first pauses: a leader's election and a daemon's restart take about as long.
const FIRST_MAX: Duration = Duration::from_secs(2);
/// Upper bound of all further pauses.
const LAST_MAX: Duration = Duration::from_secs(8);
/// Attempts before the bound begins to grow: one round over the managers of a usual cluster.
const QUICK_ATTEMPTS: u32 = 5;
/// Never at once again: a manager that refuses must not be flooded.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Random pauses whose bound grows while attempts fail, so that agents don't come all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// A session has lasted.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The pause before the next attempt. The first one after a session is short: another manager is there.
    pub fn pause(&mut self) -> Duration {
        let bound = bound(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        PAUSE_MIN + bound.mul_f64(rand::random::<f64>())
    }
}

/// A description that was true for so long is no flapping one.
const CALM: Duration = Duration::from_secs(30);

/// Bounds how often a node whose description flaps tells it: each time is a write of the managers, and a session with a
/// complete set.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    quick_changes: u32,
}

impl Flaps {
    /// How long the next session stays with what it says, now that one has `lasted` until the description changed.
    /// Nothing else of the session waits for that.
    pub fn hold(&mut self, lasted: Duration) -> Duration {
        if lasted >= CALM {
            self.quick_changes = 0;
            return Duration::ZERO;
        }
        let hold = bound(self.quick_changes);
        self.quick_changes = self.quick_changes.saturating_add(1);
        hold
    }
}

fn bound(attempts: u32) -> Duration {
    if attempts < QUICK_ATTEMPTS {
        return (PAUSE_MIN * 4u32.pow(attempts)).min(FIRST_MAX);
    }
    (FIRST_MAX * 2u32.saturating_pow(attempts - QUICK_ATTEMPTS + 1)).min(LAST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_to_the_last() {
        let bounds: Vec<u128> = (0..8).map(|attempt| bound(attempt).as_millis()).collect();
        assert_eq!(bounds, [50, 200, 800, 2000, 2000, 4000, 8000, 8000]);
        assert_eq!(bound(u32::MAX), LAST_MAX);
    }

    #[test]
    fn a_description_that_flaps_is_told_less_and_less_often_and_one_that_changes_now_and_then_at_once() {
        let (mut flaps, mut lasted, mut at_ms) = (Flaps::default(), Duration::ZERO, Vec::new());
        for _ in 0..9 {
            // The session sees the next change as soon as it looks.
            lasted = flaps.hold(lasted);
            at_ms.push(lasted.as_millis());
        }
        assert_eq!(at_ms, [50, 200, 800, 2000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(flaps.hold(CALM), Duration::ZERO);
        assert_eq!(flaps.hold(Duration::from_secs(1)).as_millis(), 50, "it begins anew");
    }
}
