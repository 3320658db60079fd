//! What a leader has to do in a large cluster: `cargo xtask sim --scale 1000`. Figures for docs/design/scale.md.
//!
//! `SIM_SCALE=n` is the number of nodes; without it a small one is tried, so that this goes on working.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use control_sim::ScaleRun;
use control_store::State;

const TASKS_PER_NODE: usize = 50;
const SMALL: usize = 20;

fn clock() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Of this process, bytes.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn a_large_cluster_comes_to_rest() {
    let asked = std::env::var("SIM_SCALE").ok().filter(|word| !word.is_empty());
    let n_nodes = asked.map_or(SMALL, |word| word.parse().expect("SIM_SCALE is a number of nodes"));
    let run = ScaleRun { n_nodes, tasks_per_node: TASKS_PER_NODE, clock };
    let (spans, state) = run.run().unwrap_or_else(|broken| panic!("{broken}"));
    println!("{n_nodes} nodes, {TASKS_PER_NODE} tasks on each");
    for span in spans {
        let per_second = span.leader.as_secs_f64() / span.span.as_secs_f64().max(0.001);
        println!(
            "{:38} {:8.1} s virtual, leader {:8.3} s of this machine ({:.4} cores), {} messages of assignments, {} kB",
            span.what,
            span.span.as_secs_f64(),
            span.leader.as_secs_f64(),
            per_second,
            span.n_updates,
            span.update_bytes / 1000,
        );
    }
    let image = state.to_snapshot();
    drop(state);
    let before = resident();
    let again = State::from_snapshot(&image).expect("what was written is read");
    let grown = resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    println!(
        "{} tasks: snapshot {} kB, a replica {} kB resident",
        again.tasks().len(),
        image.len() / 1000,
        grown.unwrap_or_default() / 1000
    );
}
