//! What many nodes do together. `GOSSIP_SEED=n` runs one seed, `GOSSIP_SEEDS=n` so many; a failing test prints its seed.

mod sim;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use control_gossip::seal::Refusal;
use control_model::TaskId;
use control_model::gossip::GossipKeys;
use sim::{Sim, ms, node};

/// Runs `test` with seeds.
fn seeds(n: u64, test: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let list: Vec<u64> = match number("GOSSIP_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("GOSSIP_SEEDS").unwrap_or(n)).collect(),
    };
    for seed in list {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("failed; again by GOSSIP_SEED={seed} cargo test -p control-gossip --test simulation");
            resume_unwind(panic);
        }
    }
}

/// A cluster at rest.
fn settled(n: usize, seed: u64, sealed: bool) -> Sim {
    let mut sim = Sim::new(n, seed, sealed);
    // Each path has answered each node once: with 200 nodes a turn takes 20 s.
    sim.run(Duration::from_secs(3) + ms(110) * u32::try_from(n).expect("some hundreds"), |_| {});
    sim
}

fn all_think_nothing(sim: &Sim) -> bool {
    sim.live().all(|at| {
        let opinion = sim.opinion(at);
        opinion.silent_paths.is_empty() && opinion.silent_agents.is_empty()
    })
}

#[test]
fn a_dead_node_is_out_of_every_load_balancer_in_a_second_and_a_half() {
    for (n, n_seeds, lost_of_1000) in [(3, 10, 0), (5, 10, 20), (50, 4, 0), (50, 4, 20), (200, 1, 0)] {
        seeds(n_seeds, |seed| {
            let mut sim = settled(n, seed, false);
            sim.net.lost_of_1000 = lost_of_1000;
            sim.nodes[1].host_up = false;
            let out = |sim: &Sim| sim.live().all(|at| sim.opinion(at).silent_paths.contains(&node(1)));
            let took = sim.until(ms(3000), out).expect("the path is silent");
            assert!(took <= ms(1500), "{n} nodes, {lost_of_1000}/1000 lost: {took:?}");
            let silent = |sim: &Sim| sim.live().all(|at| sim.opinion(at).silent_agents.contains(&node(1)));
            let more = sim.until(ms(5000), silent).expect("the agent is silent");
            println!("{n} nodes, {lost_of_1000}/1000 lost: out after {took:?}, agent silent {more:?} later");
            assert!(took + more <= ms(4500), "{n} nodes: {more:?} later");
        });
    }
}

#[test]
fn a_daemon_that_is_killed_takes_no_backend_along() {
    seeds(10, |seed| {
        let mut sim = settled(10, seed, true);
        sim.nodes[1].daemon_up = false;
        sim.run(Duration::from_secs(20), |sim| {
            for at in sim.live() {
                assert!(sim.opinion(at).silent_paths.is_empty(), "its data path lives");
            }
        });
        assert!(sim.live().all(|at| sim.opinion(at).silent_agents == [node(1)].into()));
        sim.restart(1, 2);
        assert!(sim.until(ms(3000), all_think_nothing).is_some(), "it is heard again");
    });
}

/// Nobody is taken for dead, agent and path, who lives: no task would be moved.
#[test]
fn stalls_of_daemons_and_lost_packets_kill_nobody() {
    seeds(3, |seed| {
        let mut sim = settled(12, seed, false);
        sim.net.lost_of_1000 = 50;
        let (mut alarms, mut looks) = (0_u64, 0_u64);
        for _ in 0..60 {
            let at = sim.dice.below(12);
            sim.nodes[at].stalled_until = sim.now.after(ms(2000));
            sim.run(Duration::from_secs(5), |sim| {
                for at in sim.live() {
                    let opinion = sim.opinion(at);
                    looks += 1;
                    alarms += u64::from(!opinion.silent_paths.is_empty());
                    let dead: Vec<_> = opinion.silent_paths.intersection(&opinion.silent_agents).collect();
                    assert!(dead.is_empty(), "{dead:?} by {at}");
                }
            });
        }
        assert!(alarms * 1000 < looks, "false alarms are rare and short: {alarms} of {looks} looks");
        sim.net.lost_of_1000 = 0;
        assert!(sim.until(ms(5000), all_think_nothing).is_some());
    });
}

#[test]
fn views_converge_after_partitions_of_both_kinds() {
    seeds(20, |seed| {
        let mut sim = settled(12, seed, true);
        for round in 0..3 {
            let n_cut = 1 + sim.dice.below(6);
            let one_way = sim.dice.below(2) == 0;
            for cut in 0..n_cut {
                for other in n_cut..12 {
                    sim.net.cut.insert((cut, other));
                    if !one_way {
                        sim.net.cut.insert((other, cut));
                    }
                }
            }
            sim.end_task(0, 100 + round);
            sim.end_task(11, 200 + round);
            sim.run(Duration::from_secs(8), |_| {});
            let paths = sim.opinion(0).silent_paths;
            assert_eq!(paths, (n_cut..12).map(node).collect(), "whoever can't be reached both ways");
            sim.net.cut.clear();
            let whole = |sim: &Sim| {
                let knows = |at: usize| sim.opinion(at).ended.len() as u128;
                all_think_nothing(sim) && (1..11).all(|at| knows(at) == 2 * (round + 1))
            };
            let took = sim.until(Duration::from_secs(20), whole).expect("they agree again");
            assert!(took <= Duration::from_secs(15), "{took:?}");
        }
    });
}

#[test]
fn no_record_is_lost_for_good() {
    seeds(5, |seed| {
        let mut sim = settled(30, seed, false);
        sim.net.lost_of_1000 = 100;
        for task in 0..1000 {
            sim.end_task((task % 10) as usize, task);
        }
        let all = |sim: &Sim| sim.live().skip(10).all(|at| sim.opinion(at).ended.len() == 1000);
        assert!(sim.until(Duration::from_mins(1), all).is_some());
    });
}

#[test]
fn one_ended_task_is_known_to_all_in_half_a_second() {
    for n in [5, 50, 200] {
        seeds(3, |seed| {
            let mut sim = settled(n, seed, false);
            sim.end_task(1, 7);
            let knows =
                |sim: &Sim, at: usize| at == 1 || *sim.opinion(at).ended == [TaskId::from_bits(7)].into();
            let took = sim.until(ms(5000), |sim| sim.live().all(|at| knows(sim, at))).expect("told");
            assert!(took <= ms(500), "{n} nodes: {took:?}");
        });
    }
}

/// Also when its clock was set back meanwhile.
#[test]
fn a_node_that_begins_anew_says_what_it_has_to_say() {
    seeds(5, |seed| {
        let mut sim = settled(5, seed, true);
        for life in [7, 3] {
            sim.restart(1, life);
            sim.end_task(1, u128::from(life));
            let ended = sim.nodes[1].said.ended.clone();
            let knows = |sim: &Sim, at: usize| at == 1 || *sim.opinion(at).ended == ended;
            assert!(sim.until(Duration::from_secs(15), |sim| sim.live().all(|at| knows(sim, at))).is_some());
        }
    });
}

#[test]
fn a_rotation_loses_no_datagram() {
    seeds(5, |seed| {
        let mut sim = settled(8, seed, true);
        let mut ring = GossipKeys::default().rotated(|| [7; 32], sim.now);
        for round in 0..6_u8 {
            let before = ring.clone();
            ring = ring.rotated(|| [round + 10; 32], sim.now);
            // Nodes hear of it one after another, and one of them only just before the next rotation.
            let late = sim.dice.below(8);
            for at in 0..8 {
                let keys = if at == late { before.clone() } else { ring.clone() };
                sim.nodes[at].envelopes.set_keys(keys);
                sim.run(ms(500), |_| {});
            }
            sim.nodes[late].envelopes.set_keys(ring.clone());
        }
        assert_eq!(sim.refused, [].into(), "all were opened");
        assert!(sim.live().all(|at| sim.opinion(at).silent_agents.is_empty()));
    });
}

#[test]
fn recorded_datagrams_change_nothing() {
    seeds(5, |seed| {
        let mut sim = settled(5, seed, true);
        sim.recorded = Some(Vec::new());
        // What is recorded says that a node is silent, and that its paths are doubted.
        sim.nodes[2].host_up = false;
        sim.run(Duration::from_secs(6), |_| {});
        sim.nodes[2].host_up = true;
        sim.restart(2, 2);
        assert!(sim.until(Duration::from_secs(10), all_think_nothing).is_some());
        sim.restart(3, 2);
        sim.run(Duration::from_secs(5), |_| {});
        let recorded = sim.recorded.take().expect("kept");
        let before: BTreeSet<_> = sim.refused.keys().copied().collect();
        assert!(!before.contains(&Refusal::Forged));
        for (to, bytes) in recorded {
            sim.replay(to, bytes);
        }
        sim.run(Duration::from_secs(3), |sim| assert!(all_think_nothing(sim)));
        assert!(sim.refused[&Refusal::Replayed] > 100);
    });
}
