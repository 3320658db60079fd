//! Each law can be found broken: the simulation's own glue does one thing wrong, and some seed shows it.

use control_sim::{Mutation, Run, Scenario};

/// Seeds until a fault must have been found.
const SEEDS: u64 = 200;

/// The law that `mutation` breaks first, in one of the seeds.
fn broken_by(mutation: Mutation, scenario: Scenario, law: &str) {
    let runs = (0..SEEDS).map(|seed| Run { scenario, seed, mutation: Some(mutation), is_traced: false });
    let mut found: Vec<String> = Vec::new();
    for run in runs {
        match run.run() {
            Err(broken) if broken.law == law => return,
            Err(broken) => found.push(broken.to_string()),
            Ok(_) => {}
        }
    }
    panic!("{mutation:?} broke other laws than \"{law}\": {found:?}");
}

#[test]
fn a_task_of_another_node() {
    broken_by(Mutation::ForeignTask, Scenario::Crashes, "nobody gets a task that is not its own");
}

#[test]
fn a_secret_of_other_nodes() {
    broken_by(Mutation::ForeignSecret, Scenario::Crashes, "nobody has a secret that none of its tasks needs");
}

#[test]
fn removals_that_are_lost() {
    broken_by(Mutation::LostRemovals, Scenario::Calm, "all is as asked once nothing fails");
}

#[test]
fn a_data_plane_that_acknowledges_early() {
    broken_by(Mutation::EarlyAcknowledgement, Scenario::Calm, "drain comes before the signal");
}

#[test]
fn a_replica_that_forgets_an_entry() {
    broken_by(Mutation::ForgottenEntry, Scenario::Calm, "all is as asked once nothing fails");
}

#[test]
fn a_status_that_nobody_gave() {
    broken_by(Mutation::InventedStatus, Scenario::Calm, "what has ended has no process");
}

#[test]
fn a_process_that_runs_on() {
    broken_by(Mutation::LateStop, Scenario::Calm, "what has ended has no process");
}

#[test]
fn tasks_of_jobs_that_nobody_asked_for() {
    broken_by(Mutation::Twins, Scenario::Jobs, "a job keeps its limits");
}

#[test]
fn more_moves_than_the_label_allows() {
    broken_by(Mutation::Twins, Scenario::Rebalance, "so many tasks are moved at once as the label says");
}

#[test]
fn nodes_that_do_not_hear_gossip() {
    broken_by(Mutation::DeafToGossip, Scenario::Gossip, "a dead node is out of every load balancer");
}

#[test]
fn heartbeats_that_are_lost() {
    broken_by(Mutation::LostHeartbeats, Scenario::Stalls, "who lives is not called dead");
}

#[test]
fn clocks_that_jump() {
    broken_by(Mutation::JumpingClocks, Scenario::Clocks, "drain comes before the signal");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for scenario in Scenario::ALL {
        let run = Run { scenario, seed: 7, mutation: None, is_traced: false };
        assert_eq!(run.run().ok(), run.run().ok(), "{}", scenario.name());
    }
}
