//! A clock for spans that are measured between stamps which users see too.

use std::time::Duration;

use crate::time::Timestamp;

/// It runs so much faster or slower at most, as a share of the time that passes: an hour is caught up in four.
const CATCH_UP: i64 = 4;
/// What is further off is no clock that was put right, but one that was never set: it is taken over at once.
const NEVER_SET: Duration = Duration::from_hours(24);

/// Follows a wall clock, and never jumps. What two readings are apart has passed, to within a quarter; where the wall clock
/// does not jump, exactly.
#[derive(Debug, Clone, Copy)]
pub struct EvenClock {
    at: Timestamp,
    steady: Timestamp,
}

impl EvenClock {
    /// Agrees with the wall clock. `steady` is one that never jumps, from any beginning.
    pub fn new(wall: Timestamp, steady: Timestamp) -> Self {
        Self { at: wall, steady }
    }

    /// Now. Never before an earlier reading, but for a wall clock that was off by more than a day.
    pub fn read(&mut self, wall: Timestamp, steady: Timestamp) -> Timestamp {
        let passed = steady.since(self.steady);
        self.steady = self.steady.max(steady);
        let at = self.at.after(passed);
        let off = wall.0.saturating_sub(at.0);
        self.at = if Duration::from_nanos(off.unsigned_abs()) > NEVER_SET {
            wall
        } else {
            let most = i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX) / CATCH_UP;
            Timestamp(at.0.saturating_add(off.clamp(-most, most)))
        };
        self.at
    }

    /// Goes on from `stamp`, where that is later: of what was stamped before nothing is to be in the future.
    pub fn advance_to(&mut self, stamp: Timestamp) {
        self.at = self.at.max(stamp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Timestamp = Timestamp(1_700_000_000_000_000_000);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn steady(at: u64) -> Timestamp {
        Timestamp(0).after(secs(at))
    }

    #[test]
    fn without_a_jump_it_is_the_wall_clock() {
        let mut clock = EvenClock::new(BEGIN, steady(7));
        for passed in [0, 1, 1, 50, 3600] {
            let wall = BEGIN.after(secs(passed));
            assert_eq!(clock.read(wall, steady(7 + passed)), wall);
        }
    }

    #[test]
    fn a_jump_is_caught_up_within_four_times_its_length_and_spans_stay_what_they_are() {
        for (jump, slowest, fastest) in [(3600, 1250, 1250), (-3600, 750, 750)] {
            let mut clock = EvenClock::new(BEGIN, steady(0));
            let mut before = BEGIN;
            for passed in 1..4 * 3600 {
                let true_time = BEGIN.after(secs(passed));
                let wall = Timestamp(true_time.0 + jump * 1_000_000_000);
                let at = clock.read(wall, steady(passed));
                let ms = at.since(before).as_millis();
                assert!((slowest..=fastest).contains(&ms), "{jump}: {ms} ms at {passed} s");
                before = at;
            }
            let wall = Timestamp(BEGIN.after(secs(4 * 3600)).0 + jump * 1_000_000_000);
            assert_eq!(clock.read(wall, steady(4 * 3600)), wall);
        }
    }

    #[test]
    fn a_clock_that_was_never_set_is_taken_over_at_once() {
        let mut clock = EvenClock::new(Timestamp(0), steady(0));
        assert_eq!(clock.read(BEGIN, steady(1)), BEGIN);
    }

    #[test]
    fn it_goes_on_from_a_later_stamp() {
        let mut clock = EvenClock::new(BEGIN, steady(0));
        clock.advance_to(BEGIN.after(secs(100)));
        clock.advance_to(BEGIN);
        assert_eq!(clock.read(BEGIN.after(secs(4)), steady(4)), BEGIN.after(secs(103)));
    }
}
