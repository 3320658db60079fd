//! Counts of values by their size: what openraft keeps statistics with, in place of the published crate of this name.
//!
//! That one builds tables for sixteen resolutions when the first histogram is made, 26 MB in every manager, of which
//! openraft reads one. Here a bucket's bounds are computed. Only what openraft calls is here.
#![forbid(unsafe_code)]

use std::fmt;

/// Buckets per doubling: a value is known to a quarter of its size.
const PER_DOUBLING: u64 = 4;
/// log2 of [`PER_DOUBLING`].
const SHIFT: u32 = PER_DOUBLING.trailing_zeros();
/// Values below [`PER_DOUBLING`] have a bucket each; every doubling above has so many.
const N_BUCKETS: usize = ((u64::BITS - SHIFT + 1) as usize) << SHIFT;
/// Characters of the longest bar of a chart.
const BAR_WIDTH: u64 = 40;

/// How often values of each size were seen. `T` is what openraft's type names; nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    buckets: Vec<u64>,
    of: std::marker::PhantomData<T>,
}

/// Sizes below which this share of the values lies, each rounded down to its bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

/// Several histograms as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

/// [`AsciiChart::detailed`].
#[derive(Debug)]
pub struct DetailedDisplay<'a>(&'a AsciiChart);

impl<T> Histogram<T> {
    /// One that has seen nothing.
    pub fn new() -> Self {
        Self { buckets: vec![0; N_BUCKETS], of: std::marker::PhantomData }
    }

    /// Counts `value`.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` as often as this.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.buckets[bucket_of(value)];
        *count = count.saturating_add(times);
    }

    /// Number of values counted.
    pub fn total(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The shares that openraft shows.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }

    /// Lower bound of the bucket that holds the value at `share`/1000 of all, in order; 0 of none.
    fn permille(&self, share: u64) -> u64 {
        let rank = (u128::from(self.total()) * u128::from(share)).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return lower_bound(bucket);
            }
        }
        0
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(f, "{samples} values, P0.1 {p0_1}, P1 {p1}, P5 {p5}, P10 {p10}, ")?;
        write!(f, "P50 {p50}, P90 {p90}, P99 {p99}, P99.9 {p99_9}")
    }
}

/// The first values have buckets of their own; then the two bits after the highest choose within the doubling.
fn bucket_of(value: u64) -> usize {
    let doubling = (u64::BITS - value.leading_zeros()).saturating_sub(SHIFT + 1);
    let within = value >> doubling;
    usize::try_from(u64::from(doubling) * PER_DOUBLING + within).expect("a number of a bucket")
}

/// The smallest value of the bucket.
fn lower_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doubling = (bucket / PER_DOUBLING).saturating_sub(1);
    (bucket - doubling * PER_DOUBLING) << doubling
}

impl AsciiChart {
    /// An empty chart.
    pub fn new() -> Self {
        Self::default()
    }

    /// The chart with one histogram more.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.0.push((name.to_owned(), histogram));
        self
    }

    /// Every bucket that is not empty, with a bar.
    pub fn detailed(&self) -> DetailedDisplay<'_> {
        DetailedDisplay(self)
    }
}

impl fmt::Display for DetailedDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.0.0 {
            writeln!(f, "{name}: {} values", histogram.total())?;
            let largest = histogram.buckets.iter().max().copied().unwrap_or(0).max(1);
            for (bucket, count) in histogram.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
                let length = u128::from(*count) * u128::from(BAR_WIDTH) / u128::from(largest);
                let bar = "#".repeat(usize::try_from(length.max(1)).expect("at most a bar's width"));
                writeln!(f, "{:>20} {bar} {count}", lower_bound(bucket))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket() {
        for value in (0..10_000).chain([u64::MAX / 3, u64::MAX - 1, u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(bucket < N_BUCKETS, "{value}");
            assert!(lower_bound(bucket) <= value, "{value}");
            assert!(bucket + 1 == N_BUCKETS || value < lower_bound(bucket + 1), "{value}");
            assert!(value - lower_bound(bucket) <= value / PER_DOUBLING, "{value}");
        }
        assert_eq!(bucket_of(u64::MAX), N_BUCKETS - 1);
    }

    /// It is all that a histogram has: nothing is computed ahead.
    #[test]
    fn a_histogram_is_small() {
        assert!(Histogram::<()>::new().buckets.capacity() * size_of::<u64>() <= 4096);
    }

    #[test]
    fn percentiles_are_in_order_and_those_of_the_values() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        for value in 1..=1000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1), (1000, 1));
        assert_eq!((stats.p1, stats.p10, stats.p50, stats.p99), (10, 96, 448, 896));
        assert!(stats.to_string().ends_with("P50 448, P90 896, P99 896, P99.9 896"), "{stats}");
        histogram.record_n(u64::MAX, 2);
        assert_eq!(histogram.total(), 1002);
    }

    #[test]
    fn a_chart_has_a_bar_for_each_size() {
        let mut histogram = Histogram::new();
        for value in [1, 1, 100] {
            histogram.record(value);
        }
        let text = AsciiChart::new().add("waiting", histogram).detailed().to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with("waiting: 3 values\n") && text.contains("96 "), "{text}");
    }
}
