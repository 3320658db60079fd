//! Peers measured in turns: whatever else the machine does in that minute hits all of them.

use anyhow::Result;
use serde::Serialize;

use crate::interrupt;

/// How much is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    /// Samples per row.
    pub runs: u32,
    /// Length of a sample of a rate, seconds.
    pub seconds: u32,
}

/// What is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

/// One way to do the thing, and how to measure it once.
pub struct Peer<'a> {
    name: &'static str,
    sample: Box<dyn FnMut() -> Result<f64> + 'a>,
    most_samples: usize,
}

impl<'a> Peer<'a> {
    pub fn new(name: &'static str, sample: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name, sample: Box::new(sample), most_samples: usize::MAX }
    }

    /// The same with fewer samples: those of a slow peer take long.
    pub fn at_most(mut self, samples: usize) -> Self {
        self.most_samples = samples;
        self
    }

    /// A peer that is there or says why it is not.
    pub fn maybe<T>(
        name: &'static str,
        peer: &'a Result<T>,
        mut sample: impl FnMut(&T) -> Result<f64> + 'a,
    ) -> Self {
        Self::new(name, move || match peer {
            Ok(peer) => sample(peer),
            Err(error) => anyhow::bail!("{error:#}"),
        })
    }
}

/// What a row is to reach.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goal {
    pub row: &'static str,
    pub bound: Bound,
}

/// How far; another row is one of the same table.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// This many times another row or more.
    AtLeast { share: f64, of: &'static str },
    /// This many times another row or less.
    AtMost { share: f64, of: &'static str },
    /// Another row and this much more, or less.
    Within { more: f64, of: &'static str },
    /// This much or less.
    Below(f64),
    /// This much or more.
    Above(f64),
    /// This much or less in each sample.
    Worst(f64),
}

/// A table: one metric, a row per peer.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub metric: Metric,
    pub rows: Vec<Row>,
    pub goals: Vec<Goal>,
}

impl Comparison {
    /// The same with goals; each names rows of the table.
    pub fn aiming_at(mut self, goals: &[Goal]) -> Self {
        self.goals = goals.to_vec();
        self
    }

    /// The median of a row; `None` if it is absent or was not measured.
    pub fn median_of(&self, row: &str) -> Option<f64> {
        self.row(row)?.median
    }

    /// How a row relates to another: the median of what the two samples of each turn say. What the machine does besides
    /// changes from turn to turn, and within one hits both.
    pub fn relation(&self, row: &str, of: &str, relate: fn(f64, f64) -> f64) -> Option<f64> {
        let turns = self.row(row)?.samples.iter().zip(&self.row(of)?.samples);
        let relations: Vec<f64> = turns.map(|(value, other)| relate(*value, *other)).collect();
        median(&relations)
    }

    /// The largest sample of a row; `None` if it has none.
    pub fn most_of(&self, row: &str) -> Option<f64> {
        self.row(row)?.samples.iter().copied().max_by(f64::total_cmp)
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|candidate| candidate.peer == name)
    }
}

/// A peer's samples.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub peer: &'static str,
    pub samples: Vec<f64>,
    /// Of the samples; `None` if there is none.
    pub median: Option<f64>,
    /// Why there are fewer samples than asked for.
    pub error: Option<String>,
}

impl Row {
    pub fn new(peer: &'static str, samples: Vec<f64>, error: Option<String>) -> Self {
        Self { peer, median: median(&samples), samples, error }
    }
}

/// Samples every peer once, then every peer again, until each has its samples or has failed.
pub fn compare(metric: Metric, plan: Plan, mut peers: Vec<Peer<'_>>) -> Comparison {
    let mut rows: Vec<Row> = peers.iter().map(|peer| Row::new(peer.name, Vec::new(), None)).collect();
    for _ in 0..plan.runs {
        let wanted =
            |peer: &Peer<'_>, row: &Row| row.error.is_none() && row.samples.len() < peer.most_samples;
        for (peer, row) in peers.iter_mut().zip(&mut rows).filter(|(peer, row)| wanted(peer, row)) {
            match interrupt::check().and_then(|()| (peer.sample)()) {
                Ok(sample) => {
                    eprintln!("   {}: {} {sample:.1} {}", metric.name, row.peer, metric.unit);
                    row.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("   {}: {} failed: {error:#}", metric.name, row.peer);
                    row.error = Some(format!("{error:#}"));
                }
            }
        }
    }
    for row in &mut rows {
        row.median = median(&row.samples);
    }
    Comparison { metric, rows, goals: Vec::new() }
}

/// The middle sample; the mean of the two in the middle where their number is even.
fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric { name: "speed", unit: "1/s", better: Better::Higher };

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn rows_are_related_turn_by_turn() {
        let row = |peer, samples: &[f64]| Row::new(peer, samples.to_vec(), None);
        let rows = vec![row("a", &[1.0, 8.0, 3.0]), row("b", &[2.0, 8.0, 4.0, 9.0])];
        let comparison = Comparison { metric: METRIC, rows, goals: Vec::new() };
        assert_eq!(comparison.relation("a", "b", |a, b| a / b), Some(0.75));
        assert_eq!(comparison.relation("a", "c", |a, b| a / b), None);
    }

    #[test]
    fn peers_take_turns_and_one_that_fails_is_not_asked_again() {
        let order = std::cell::RefCell::new(String::new());
        let ask = |name: char, fails: bool| {
            order.borrow_mut().push(name);
            if fails { Err(anyhow::anyhow!("broken")) } else { Ok(1.0) }
        };
        let peers = vec![Peer::new("a", || ask('a', false)), Peer::new("b", || ask('b', true))];
        let comparison = compare(METRIC, Plan { runs: 3, seconds: 1 }, peers);
        assert_eq!(order.into_inner(), "abaa");
        assert_eq!((comparison.rows[0].samples.len(), comparison.rows[0].median), (3, Some(1.0)));
        assert_eq!((comparison.rows[1].median, comparison.rows[1].error.as_deref()), (None, Some("broken")));
    }
}
