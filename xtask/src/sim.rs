//! `cargo xtask sim`: many seeds of the simulation, or one with all that happens in it.

use anyhow::Result;
use clap::Args;

use crate::sh::{cargo_command, show};

/// Which seeds of what.
#[derive(Args)]
pub struct SimOptions {
    /// A range of seeds, FIRST..END; without it, what every change must pass
    #[arg(long)]
    seeds: Option<String>,
    /// One seed, with a line for everything that happens
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// One kind of trouble: calm, crashes, partitions, runtimes, clocks or storm; or raft
    #[arg(long)]
    scenario: Option<String>,
}

/// Runs the seeds, optimised.
pub fn run(options: &SimOptions) -> Result<()> {
    let mut test = cargo_command();
    test.args(["test", "--release", "--quiet", "-p", "control-sim"]);
    match options.scenario.as_deref() {
        Some("raft") => drop(test.args(["--test", "raft"])),
        Some(name) => drop(test.args(["--test", "seeds"]).env("SIM_SCENARIO", name)),
        None => drop(test.args(["--test", "seeds", "--test", "raft"])),
    }
    if let Some(range) = &options.seeds {
        test.env("SIM_SEEDS", range);
    }
    if let Some(seed) = options.seed {
        test.env("SIM_SEED", seed.to_string()).env("SIM_TRACE", "1");
    }
    test.args(["--", "--nocapture"]);
    show(&mut test)
}
