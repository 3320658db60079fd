//! What was measured, as JSON for programs and as Markdown for people.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::compare::{Better, Bound, Comparison, Goal, Plan, Row};

/// All of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub title: &'static str,
    /// How it was measured, where that is not for all to know; may be empty.
    pub method: &'static str,
    pub machine: Machine,
    pub plan: Plan,
    pub comparisons: Vec<Comparison>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    /// `release`, or `debug`: then our figures say little.
    pub build: &'static str,
    /// Programs that ran or wanted to in the minute before, on average.
    pub load: String,
}

impl Machine {
    pub fn here() -> Result<Self> {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        })
    }
}

impl Report {
    /// Writes `<name>.json` and `<name>.md` into the directory.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(directory.join(format!("{name}.json")), json)?;
        std::fs::write(directory.join(format!("{name}.md")), self.markdown())?;
        Ok(())
    }

    pub fn markdown(&self) -> String {
        let Machine { kernel, processor, cores, build, load } = &self.machine;
        let mut out = format!("# {}\n\n", self.title);
        let runs = self.plan.runs;
        writeln!(
            out,
            "Linux {kernel}, {cores} × {processor}, {build} build, load {load} at the start; medians of {runs} samples, in \
             turns. What is to be reached is compared within each turn: the median of those comparisons counts."
        )
        .expect("a string takes all");
        if !self.method.is_empty() {
            writeln!(out, "\n{}", self.method).expect("a string takes all");
        }
        for comparison in &self.comparisons {
            write_comparison(&mut out, comparison);
        }
        out
    }
}

/// The first row is what the others are compared with.
fn write_comparison(out: &mut String, comparison: &Comparison) {
    let metric = comparison.metric;
    let better = match metric.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let reference = comparison.rows.first().and_then(|row| row.median);
    writeln!(out, "\n## {} ({}, {better})\n", metric.name, metric.unit).expect("a string takes all");
    out.push_str("| | median | least – most | of the first |\n|---|---:|---:|---:|\n");
    for row in &comparison.rows {
        out.push_str(&line(row, reference));
    }
    if !comparison.goals.is_empty() {
        out.push_str("\n| to reach | measured | |\n|---|---:|---|\n");
    }
    for goal in &comparison.goals {
        out.push_str(&goal_line(comparison, goal));
    }
}

/// What was to be reached, what was, and whether that is enough.
fn goal_line(comparison: &Comparison, goal: &Goal) -> String {
    let (row, unit) = (goal.row, comparison.metric.unit);
    let times = |of| comparison.relation(row, of, |value, other| value / other);
    let (text, measured) = match goal.bound {
        Bound::AtLeast { share, of } => (
            format!("{row}: at least {share:.2} × {of}"),
            times(of).map(|times| (format!("{times:.2} ×"), times >= share)),
        ),
        Bound::AtMost { share, of } => (
            format!("{row}: at most {share:.2} × {of}"),
            times(of).map(|times| (format!("{times:.2} ×"), times <= share)),
        ),
        Bound::Within { more, of } => {
            let above = comparison.relation(row, of, |value, other| value - other);
            (
                format!("{row}: at most {more} {unit} above {of}"),
                above.map(|above| (figure(above), above <= more)),
            )
        }
        Bound::Below(most) => (
            format!("{row}: at most {most} {unit}"),
            comparison.median_of(row).map(|value| (figure(value), value <= most)),
        ),
        Bound::Above(least) => (
            format!("{row}: at least {least} {unit}"),
            comparison.median_of(row).map(|value| (figure(value), value >= least)),
        ),
        Bound::Worst(most) => (
            format!("{row}: at most {most} {unit} in each sample"),
            comparison.most_of(row).map(|value| (figure(value), value <= most)),
        ),
    };
    match measured {
        Some((measured, true)) => format!("| {text} | {measured} | reached |\n"),
        Some((measured, false)) => format!("| {text} | {measured} | **not reached** |\n"),
        None => format!("| {text} | not measured | |\n"),
    }
}

fn line(row: &Row, reference: Option<f64>) -> String {
    let Some(median) = row.median else {
        let error = row.error.as_deref().unwrap_or("no samples").replace(['\n', '|'], " ");
        return format!("| {} | not measured: {error} | | |\n", row.peer);
    };
    let least = row.samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = row.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let share = reference.filter(|reference| *reference > 0.0).map(|reference| 100.0 * median / reference);
    let share = share.map_or_else(String::new, |share| format!("{share:.0} %"));
    format!("| {} | {} | {} – {} | {share} |\n", row.peer, figure(median), figure(least), figure(most))
}

/// Three figures that count, or the whole number.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Metric;

    #[test]
    fn a_table_compares_with_its_first_row() {
        let row = |peer, samples: &[f64], median, error: Option<&str>| Row {
            peer,
            samples: samples.to_vec(),
            median,
            error: error.map(str::to_owned),
        };
        let comparison = Comparison {
            metric: Metric { name: "stream", unit: "Gbit/s", better: Better::Higher },
            rows: vec![
                row("mesh", &[14.5, 12.0, 15.0], Some(14.5), None),
                row("underlay", &[29.0], Some(29.0), Some("broke")),
                row("other", &[], None, Some("no|such\nthing")),
            ],
            goals: vec![
                Goal { row: "mesh", bound: Bound::AtLeast { share: 0.5, of: "underlay" } },
                Goal { row: "mesh", bound: Bound::Within { more: 1.0, of: "underlay" } },
                Goal { row: "mesh", bound: Bound::Below(14.0) },
                Goal { row: "mesh", bound: Bound::Above(14.0) },
                Goal { row: "mesh", bound: Bound::Worst(14.0) },
                Goal { row: "mesh", bound: Bound::AtMost { share: 1.0, of: "other" } },
            ],
        };
        let mut out = String::new();
        write_comparison(&mut out, &comparison);
        let expected = "\n## stream (Gbit/s, more is better)\n\n| | median | least – most | of the first |\n\
            |---|---:|---:|---:|\n| mesh | 14.5 | 12.0 – 15.0 | 100 % |\n| underlay | 29.0 | 29.0 – 29.0 | 200 % |\n\
            | other | not measured: no such thing | | |\n\n| to reach | measured | |\n|---|---:|---|\n\
            | mesh: at least 0.50 × underlay | 0.50 × | reached |\n\
            | mesh: at most 1 Gbit/s above underlay | -14.5 | reached |\n\
            | mesh: at most 14 Gbit/s | 14.5 | **not reached** |\n\
            | mesh: at least 14 Gbit/s | 14.5 | reached |\n\
            | mesh: at most 14 Gbit/s in each sample | 15.0 | **not reached** |\n\
            | mesh: at most 1.00 × other | not measured | |\n";
        assert_eq!(out, expected);
    }
}
