//! Slow start: a task that begins gets a part of its share of new flows, which grows in steps to the whole.
//!
//! How far a task has come is in the state, so that all nodes have the same rings, and no change of the leader sends it back.

use std::time::Duration;

/// Of a task that has just begun to serve, percent of its share.
pub const FIRST_WEIGHT: u8 = 10;
/// Of a task that takes its whole share.
pub const FULL_WEIGHT: u8 = 100;

/// Of all steps. Few of them, since each makes another ring on every node, and a node asks the last eight for connections
/// that it doesn't know: with these, those from before the task are still found when it has come to the end.
const WEIGHTS: [u8; 6] = [FIRST_WEIGHT, 20, 40, 60, 80, FULL_WEIGHT];
const N_STEPS: u32 = 5;
const _: () = assert!(WEIGHTS.len() == N_STEPS as usize + 1, "a step leads from each weight to the next");

/// A shorter one would end before the rings of the first step are everywhere.
const MIN_PERIOD: Duration = Duration::from_secs(1);
/// A longer one is a slip of the pen: it would hold back an update's new tasks for as long.
const MAX_PERIOD: Duration = Duration::from_hours(1);

/// The weight `n_steps` steps after `weight`.
pub fn raised(weight: u8, n_steps: u32) -> u8 {
    let taken = WEIGHTS.iter().take_while(|of_step| **of_step <= weight).count().saturating_sub(1);
    let wanted = taken.saturating_add(usize::try_from(n_steps).unwrap_or(usize::MAX));
    WEIGHTS.get(wanted).copied().unwrap_or(FULL_WEIGHT)
}

/// For rows from before there were weights.
pub(crate) fn full_weight() -> u8 {
    FULL_WEIGHT
}

/// How long a task has one weight before it gets the next, if it has `period` for all.
pub fn step_period(period: Duration) -> Duration {
    period / N_STEPS
}

/// `90s`, `1m30s`, `1500ms`: whole numbers, each with its unit (ms, s, m, h). `None` for what is none, or out of bounds.
pub fn parse_period(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut period = Duration::ZERO;
    while !rest.is_empty() {
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(n_digits);
        let n_letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(n_letters);
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let part = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(ms)?);
        period = period.checked_add(part)?;
        rest = tail;
    }
    (MIN_PERIOD..=MAX_PERIOD).contains(&period).then_some(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_grow_to_the_whole() {
        let all: Vec<u8> = (0..=N_STEPS).map(|n_steps| raised(FIRST_WEIGHT, n_steps)).collect();
        assert_eq!(all, WEIGHTS);
        assert!(all.is_sorted_by(|a, b| a < b));
        assert_eq!((raised(FIRST_WEIGHT, 6), raised(60, u32::MAX), raised(FULL_WEIGHT, 1)), (100, 100, 100));
        assert_eq!((raised(60, 1), raised(59, 1), raised(0, 0)), (80, 60, FIRST_WEIGHT));
        assert_eq!(step_period(Duration::from_secs(30)), Duration::from_secs(6));
    }

    #[test]
    fn periods_are_read_as_the_cli_writes_them() {
        for (text, ms) in
            [("1s", 1_000), ("30s", 30_000), ("1m30s", 90_000), ("1500ms", 1_500), ("1h", 3_600_000)]
        {
            assert_eq!(parse_period(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "0s",
            "999ms",
            "1h1ms",
            "1d",
            "1.5s",
            "1s ",
            "ä",
            "1ä",
            "9999999999999999h",
        ] {
            assert_eq!(parse_period(text), None, "{text}");
        }
    }
}
