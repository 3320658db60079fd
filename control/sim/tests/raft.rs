//! Seeds of the real openraft: one leader per term, the same entries everywhere, nothing acknowledged is ever lost.
//!
//! `SIM_SEED=n`, `SIM_SEEDS=a..b` and `SIM_TRACE=1` as for the other seeds.

use control_sim::raft::RaftRun;

/// Seeds of a usual run of the tests, and with `MESH_TEST_LONG=1`.
const SEEDS: u64 = 12;
const LONG_SEEDS: u64 = 2000;

fn word(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|word| !word.is_empty())
}

fn number(word: &str) -> u64 {
    word.parse().expect("a seed is a number")
}

#[test]
fn what_is_acknowledged_is_never_lost() {
    let usual = if word("MESH_TEST_LONG").is_some() { LONG_SEEDS } else { SEEDS };
    let mut seeds = 0..usual;
    if let Some(seed) = word("SIM_SEED") {
        seeds = number(&seed)..number(&seed) + 1;
    } else if let Some(range) = word("SIM_SEEDS") {
        let (first, end) = range.split_once("..").expect("SIM_SEEDS is a range, a..b");
        seeds = number(first)..number(end);
    }
    let (mut n_acknowledged, mut n_reads, mut n_crashes, mut broken) = (0, 0, 0, Vec::new());
    for seed in seeds.clone() {
        match (RaftRun { seed, forgets: false, is_traced: word("SIM_TRACE").is_some() }).run() {
            Ok(outcome) => {
                n_acknowledged += outcome.n_acknowledged;
                n_reads += outcome.n_reads;
                n_crashes += outcome.n_crashes;
            }
            Err(error) => {
                println!("{error}\n  SIM_SEED={seed} cargo test -p control-sim --test raft");
                broken.push(seed);
            }
        }
    }
    println!("{seeds:?}: {n_acknowledged} acknowledged writes, {n_reads} reads, {n_crashes} crashes");
    assert!(n_reads > n_acknowledged / 10, "hardly anything was read");
    assert!(broken.is_empty(), "{} seeds broke a law: {broken:?}", broken.len());
}

#[test]
fn a_disk_that_forgets_is_found() {
    let mut runs = (0..30).map(|seed| RaftRun { seed, forgets: true, is_traced: false });
    assert!(runs.any(|run| run.run().is_err()), "a disk loses what it has synced, and nothing shows it");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = RaftRun { seed: 3, forgets: false, is_traced: false };
    assert_eq!(run.run().ok(), run.run().ok());
}
