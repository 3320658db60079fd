//! Seeds of all scenarios: no law is broken, and once nothing fails everything is as asked.
//!
//! `SIM_SEED=n` replays one seed, `SIM_SEEDS=a..b` tries a range, `SIM_SCENARIO=name` one kind of trouble; `SIM_TRACE=1`
//! prints what happens.

use std::ops::Range;

use control_sim::{Run, Scenario};

/// Seeds of each scenario in a usual run of the tests, and with `MESH_TEST_LONG=1`.
const SEEDS: u64 = 20;
const LONG_SEEDS: u64 = 2000;

fn word(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|word| !word.is_empty())
}

fn seeds() -> Range<u64> {
    let number = |word: &str| word.parse::<u64>().expect("a seed is a number");
    if let Some(seed) = word("SIM_SEED") {
        let seed = number(&seed);
        return seed..seed + 1;
    }
    match word("SIM_SEEDS") {
        Some(range) => {
            let (first, end) = range.split_once("..").expect("SIM_SEEDS is a range, a..b");
            number(first)..number(end)
        }
        None if word("MESH_TEST_LONG").is_some() => 0..LONG_SEEDS,
        None => 0..SEEDS,
    }
}

fn try_all(scenario: Scenario) {
    if word("SIM_SCENARIO").is_some_and(|word| word.parse::<Scenario>().expect("a scenario") != scenario) {
        return;
    }
    let (mut n_runs, mut n_events, mut broken) = (0, 0, Vec::new());
    for seed in seeds() {
        let run = Run { scenario, seed, mutation: None, is_traced: word("SIM_TRACE").is_some() };
        n_runs += 1;
        match run.run() {
            Ok(outcome) => n_events += outcome.n_events,
            Err(error) => {
                let name = scenario.name();
                println!(
                    "{error}\n  SIM_SCENARIO={name} SIM_SEED={seed} cargo test -p control-sim --test seeds"
                );
                broken.push(seed);
            }
        }
    }
    println!("{}: {n_runs} seeds, {n_events} events", scenario.name());
    assert!(
        broken.is_empty(),
        "{}: {} of {n_runs} seeds broke a law: {broken:?}",
        scenario.name(),
        broken.len()
    );
}

#[test]
fn calm() {
    try_all(Scenario::Calm);
}

#[test]
fn crashes() {
    try_all(Scenario::Crashes);
}

#[test]
fn partitions() {
    try_all(Scenario::Partitions);
}

#[test]
fn runtimes() {
    try_all(Scenario::Runtimes);
}

#[test]
fn clocks() {
    try_all(Scenario::Clocks);
}

#[test]
fn jobs() {
    try_all(Scenario::Jobs);
}

#[test]
fn rebalance() {
    try_all(Scenario::Rebalance);
}

#[test]
fn gossip() {
    try_all(Scenario::Gossip);
}

#[test]
fn stalls() {
    try_all(Scenario::Stalls);
}

#[test]
fn storm() {
    try_all(Scenario::Storm);
}
