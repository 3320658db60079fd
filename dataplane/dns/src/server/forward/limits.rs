//! What one sandbox may cost the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::places::Taken;

/// Queries of one sandbox that wait for other resolvers at a time; one more is told to try again.
pub const MAX_WAITING: usize = 512;

/// Look-ups that one sandbox may start, on average: a thousand a second. Answers from the cache don't count. A host's
/// resolver takes some ten thousand; one sandbox must not use it up.
const LOOKUP_PERIOD: Duration = Duration::from_millis(1);

/// Look-ups that it may start at once after a pause, as time.
const LOOKUP_BURST: Duration = Duration::from_secs(1);

/// One sandbox's share.
#[derive(Debug)]
pub struct ClientLimits {
    /// Look-ups that it asked for and that run.
    pub running: Taken,
    waiting: Arc<Semaphore>,
    budget: Mutex<Option<Instant>>,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            running: Taken::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            budget: Mutex::new(None),
        }
    }
}

impl ClientLimits {
    /// A place among the waiting queries; `None` if all are taken.
    pub fn wait(&self) -> Option<OwnedSemaphorePermit> {
        self.waiting.clone().try_acquire_owned().ok()
    }

    /// Whether one more look-up may be started at `now` (GCRA, ITU-T I.371).
    pub fn take_lookup(&self, now: Instant) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let used_until = budget.map_or(now, |until| until.max(now));
        if used_until.duration_since(now) + LOOKUP_PERIOD > LOOKUP_BURST {
            return false;
        }
        *budget = Some(used_until + LOOKUP_PERIOD);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_may_start_a_thousand_lookups_at_once_and_one_per_millisecond_after() {
        let (limits, start) = (ClientLimits::default(), Instant::now());
        let started = |at: Instant| (0..5000).filter(|_| limits.take_lookup(at)).count();
        assert_eq!(started(start), 1000);
        assert_eq!(started(start + Duration::from_millis(5)), 5);
        assert_eq!(started(start + Duration::from_mins(1)), 1000, "no more is saved up");
    }

    #[test]
    fn only_so_many_queries_wait_at_a_time() {
        let limits = ClientLimits::default();
        let mut places: Vec<_> = std::iter::from_fn(|| limits.wait()).take(MAX_WAITING + 1).collect();
        assert_eq!(places.len(), MAX_WAITING);
        places.pop();
        assert!(limits.wait().is_some(), "a place is given back");
    }
}
