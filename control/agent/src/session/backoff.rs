//! Pauses between attempts to open a session.

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
}
