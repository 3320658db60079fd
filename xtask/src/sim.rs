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
    /// 2,000 seeds of each kind of trouble, and of raft
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    long: bool,
    /// One kind of trouble: calm, crashes, partitions, runtimes, clocks, jobs, rebalance, gossip, stalls or storm; or raft
    #[arg(long)]
    scenario: Option<String>,
    /// No seeds, but a cluster of so many nodes with 50 tasks on each: what its leader has to do
    #[arg(long, conflicts_with_all = ["seeds", "seed", "long", "scenario"])]
    scale: Option<usize>,
}

/// Runs the seeds, optimised.
pub fn run(options: &SimOptions) -> Result<()> {
    let mut test = cargo_command();
    test.args(["test", "--release", "--quiet", "-p", "control-sim"]);
    if let Some(n_nodes) = options.scale {
        test.args(["--test", "scale"]).env("SIM_SCALE", n_nodes.to_string());
        test.args(["--", "--nocapture"]);
        return show(&mut test);
    }
    match options.scenario.as_deref() {
        Some("raft") => drop(test.args(["--test", "raft"])),
        Some(name) => drop(test.args(["--test", "seeds"]).env("SIM_SCENARIO", name)),
        None => drop(test.args(["--test", "seeds", "--test", "raft"])),
    }
    if options.long {
        test.env("MESH_TEST_LONG", "1");
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
