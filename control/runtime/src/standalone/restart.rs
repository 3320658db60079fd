//! What becomes of a container that has ended (moby `restartmanager`). Pure.

use std::time::Duration;

use control_model::standalone::RestartRule;

/// Before the first start of a container that ends at once; twice as long before each further one, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_mins(1);
/// One that ran so long has begun well: the next pause is the first one again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// What is known of the container when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub rule: RestartRule,
    pub code: i32,
    /// Its user wanted that.
    pub is_stopped: bool,
    pub n_restarts: u32,
}

impl End {
    /// It is to be started again.
    pub fn is_followed(self) -> bool {
        !self.is_stopped && self.rule_wants_it()
    }

    /// A daemon that begins, or a node that enters a swarm, is to start it.
    pub fn is_followed_later(self) -> bool {
        match self.rule {
            RestartRule::UnlessStopped => !self.is_stopped,
            RestartRule::OnFailure { .. } => self.is_followed(),
            RestartRule::No | RestartRule::Always => self.rule_wants_it(),
        }
    }

    fn rule_wants_it(self) -> bool {
        match self.rule {
            RestartRule::No => false,
            RestartRule::OnFailure { max_attempts } => {
                self.code != 0 && (max_attempts == 0 || self.n_restarts < max_attempts)
            }
            RestartRule::Always | RestartRule::UnlessStopped => true,
        }
    }
}

/// The pauses between the runs of one container.
#[derive(Debug, Default)]
pub(super) struct Pauses(Duration);

impl Pauses {
    /// The next one, behind a run of this length.
    pub fn next(&mut self, ran: Duration) -> Duration {
        self.0 = if self.0.is_zero() || ran >= GOOD_RUN { FIRST_PAUSE } else { LAST_PAUSE.min(self.0 * 2) };
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(rule: RestartRule, code: i32) -> End {
        End { rule, code, is_stopped: false, n_restarts: 0 }
    }

    #[test]
    fn rules_say_who_starts_again() {
        let on_failure = RestartRule::OnFailure { max_attempts: 2 };
        assert!(!end(RestartRule::No, 1).is_followed());
        assert!(end(RestartRule::Always, 0).is_followed());
        assert!(end(RestartRule::UnlessStopped, 0).is_followed());
        assert!(!end(on_failure, 0).is_followed());
        assert!(End { n_restarts: 1, ..end(on_failure, 7) }.is_followed());
        assert!(!End { n_restarts: 2, ..end(on_failure, 7) }.is_followed());
        let without_limit = RestartRule::OnFailure { max_attempts: 0 };
        assert!(End { n_restarts: 99, ..end(without_limit, 7) }.is_followed());
    }

    #[test]
    fn a_stop_holds_until_the_daemon_begins_anew() {
        let stopped = |rule| End { is_stopped: true, ..end(rule, 137) };
        for rule in
            [RestartRule::Always, RestartRule::UnlessStopped, RestartRule::OnFailure { max_attempts: 0 }]
        {
            assert!(!stopped(rule).is_followed(), "{rule:?}");
            assert_eq!(stopped(rule).is_followed_later(), rule == RestartRule::Always, "{rule:?}");
            assert!(end(rule, 137).is_followed_later(), "{rule:?}");
        }
        assert!(!end(RestartRule::No, 137).is_followed_later());
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_behind_a_good_run() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(1);
        let all: Vec<u128> = (0..12).map(|_| pauses.next(short).as_millis()).collect();
        assert_eq!(all[..4], [100, 200, 400, 800]);
        assert_eq!(all[9..], [51_200, 60_000, 60_000]);
        assert_eq!(pauses.next(Duration::from_secs(10)).as_millis(), 100);
        assert_eq!(pauses.next(short).as_millis(), 200);
    }
}
