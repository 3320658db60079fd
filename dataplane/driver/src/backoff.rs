//! When a step that failed is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dataplane_model::Op;

/// After the first failure: most are races with something that is just going away.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// At most: an operator who has removed the cause should not wait long.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Steps that failed, by their text: a step that says something else is another step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failed: BTreeMap<String, Failed>,
}

/// A failed step.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub n_failures: u32,
    pub reason: String,
    retry_at: Instant,
}

impl Backoff {
    /// `false` if the step failed so lately that its time has not come.
    pub(crate) fn is_due(&self, step: &Op, now: Instant) -> bool {
        self.get(step).is_none_or(|failed| failed.retry_at <= now)
    }

    pub(crate) fn note_failure(&mut self, step: &Op, reason: String, now: Instant) {
        let n_failures = self.get(step).map_or(0, |failed| failed.n_failures) + 1;
        let retry_at = now + delay(n_failures);
        self.failed.insert(step.to_string(), Failed { n_failures, reason, retry_at });
    }

    pub(crate) fn get(&self, step: &Op) -> Option<&Failed> {
        // The text of a step is long: it is not made where nothing has failed.
        if self.failed.is_empty() { None } else { self.failed.get(&step.to_string()) }
    }

    /// Forgets all steps but those that failed in the pass that just ended.
    pub(crate) fn keep<'a>(&mut self, failing: impl Iterator<Item = &'a Op>) {
        let failing: BTreeSet<String> = failing.map(ToString::to_string).collect();
        self.failed.retain(|step, _| failing.contains(step));
    }

    /// When the first failed step is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.retry_at).min()
    }
}

/// Before the next try of what has failed so often.
pub(crate) fn delay(n_failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(n_failures.saturating_sub(1));
    FIRST_DELAY.saturating_mul(factor).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dataplane_model::kernel_state::Change;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<u128> = (1..10).map(|n| delay(n).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(delay(u32::MAX), LONGEST_DELAY);
    }

    #[test]
    fn a_failed_step_is_due_again_and_forgotten_when_it_works() {
        let start = Instant::now();
        let step = |last| Op::Peer(Change::Delete(Ipv4Addr::new(198, 18, 0, last).into()));
        let mut backoff = Backoff::default();

        backoff.note_failure(&step(1), "why".into(), start);
        assert!(!backoff.is_due(&step(1), start));
        assert!(backoff.is_due(&step(2), start));
        assert_eq!(backoff.next(), Some(start + FIRST_DELAY));
        assert!(backoff.is_due(&step(1), start + FIRST_DELAY));

        backoff.keep([].into_iter());
        assert_eq!(backoff.next(), None);
    }
}
