//! Named steps, each timed; the run ends at the first that fails.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Runs steps and remembers how long each took.
#[derive(Default)]
pub struct Steps {
    only: Option<String>,
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Only the steps whose name contains `only`.
    pub fn new(only: Option<String>) -> Self {
        Self { only, done: Vec::new() }
    }

    /// Runs one step.
    pub fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return Ok(());
        }
        println!("── {name}");
        let start = Instant::now();
        work().with_context(|| format!("step failed: {name}"))?;
        self.done.push((name.to_owned(), start.elapsed()));
        Ok(())
    }

    /// Prints the table of times.
    pub fn finish(self) {
        println!("──");
        let total: Duration = self.done.iter().map(|(_, time)| *time).sum();
        for (name, time) in &self.done {
            println!("{:>8.1} s  {name}", time.as_secs_f64());
        }
        println!("{:>8.1} s  in all: green", total.as_secs_f64());
    }
}
