//! When whom to probe: each node once a period, in bursts that are spread over it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use control_model::Timestamp;

use super::PROBE_PERIOD;

/// Most probes that go out at once, so that their answers come at once: few enough for every queue on the way, and in
/// all but large clusters the leader wakes up once a period.
const MAX_BURST: usize = 64;

/// The present round over all targets, and what is left of it.
#[derive(Debug)]
pub struct Rounds<T> {
    left: VecDeque<T>,
    burst: usize,
    pause: Duration,
    next: Timestamp,
}

impl<T> Rounds<T> {
    /// The first burst is due at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { left: VecDeque::new(), burst: 0, pause: PROBE_PERIOD, next: now }
    }

    /// When the next burst is due.
    pub fn next_burst(&self) -> Timestamp {
        self.next
    }

    /// Nothing of the round is left: the next burst begins a new one.
    pub fn is_complete(&self) -> bool {
        self.left.is_empty()
    }

    /// The targets to be probed now; `all` are those of a new round. After a stall the next burst is the only one
    /// that comes early: what was missed is not made up for.
    pub fn burst(&mut self, now: Timestamp, all: impl FnOnce() -> Vec<T>) -> impl Iterator<Item = T> {
        if self.left.is_empty() {
            self.left = all().into();
            let n_bursts = self.left.len().div_ceil(MAX_BURST).max(1);
            self.burst = self.left.len().div_ceil(n_bursts);
            self.pause = PROBE_PERIOD / u32::try_from(n_bursts).unwrap_or(u32::MAX);
        }
        self.next = self.next.after(self.pause).max(now);
        self.left.drain(..self.burst.min(self.left.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at_ms(ms: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_millis(ms))
    }

    /// The times of all probes of each of `n` targets until `end`, ms, with the bursts taken when they are due.
    fn times(n: usize, end: u64) -> BTreeMap<usize, Vec<u128>> {
        let mut rounds = Rounds::new(at_ms(0));
        let mut times = BTreeMap::<usize, Vec<u128>>::new();
        while rounds.next_burst() < at_ms(end) {
            let now = rounds.next_burst();
            let burst: Vec<_> = rounds.burst(now, || (0..n).collect()).collect();
            assert!(burst.len() <= MAX_BURST);
            for target in burst {
                times.entry(target).or_default().push(now.since(at_ms(0)).as_millis());
            }
        }
        times
    }

    #[test]
    fn a_thousand_nodes_are_probed_once_a_period_each_and_evenly_over_it() {
        let times = times(1000, 3000);
        assert_eq!(times.len(), 1000);
        let firsts: std::collections::BTreeSet<u128> = times.values().map(|list| list[0]).collect();
        assert_eq!(firsts.len(), 16, "bursts of the first round");
        assert!(firsts.last() < Some(&300) && firsts.last() >= Some(&280));
        for list in times.values() {
            assert_eq!(list.len(), 10);
            assert!(list.windows(2).all(|pair| (299..=301).contains(&(pair[1] - pair[0]))), "{list:?}");
        }
    }

    #[test]
    fn few_nodes_are_one_burst_a_period_and_none_are_asked_for_again() {
        assert_eq!(times(5, 900).into_values().collect::<Vec<_>>(), vec![vec![0, 300, 600]; 5]);
        let mut rounds = Rounds::<u8>::new(at_ms(0));
        assert_eq!(rounds.burst(at_ms(0), Vec::new).count(), 0);
        assert_eq!((rounds.next_burst(), rounds.is_complete()), (at_ms(300), true));
    }

    #[test]
    fn a_stall_is_not_made_up_for() {
        let mut rounds = Rounds::new(at_ms(0));
        let mut burst = |ms| {
            rounds.burst(at_ms(ms), || vec![1]).for_each(drop);
            rounds.next_burst()
        };
        assert_eq!(burst(0), at_ms(300));
        assert_eq!(burst(5000), at_ms(5000));
        assert_eq!(burst(5000), at_ms(5300));
    }
}
