//! The whole system in a lab: real daemons, the real `docker` CLI, real HTTP. Scenarios run in order on one cluster;
//! each prints what it measured. Run by `cargo xtask test`, or alone:
//! `cargo xtask test --only cluster`; `MESH_SCENARIO=update` picks those whose name contains the word.

mod backup;
mod bad_input;
mod commands;
mod direct;
mod dns;
mod failures;
mod forming;
mod gossip;
mod health;
mod hosted;
mod identity;
mod ingress;
mod inspection;
mod ipv6;
mod jobs;
mod left_behind;
mod logs;
mod long_lived;
mod mesh;
mod moving;
mod quorum;
mod rebalance;
mod registry;
mod replaced;
mod schedule;
mod secrets;
mod slow_start;
mod stacks;
mod standalone;
mod support;
mod traces;
mod underlay6;
mod words;

use std::process::ExitCode;
use std::time::Instant;

use support::{Bench, Outcome};

/// A scenario: works on the shared cluster, and leaves it healthy. One that fails leaves it anyhow; the next gets a new one.
type Scenario = (&'static str, fn(&mut Bench) -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("the cluster forms", forming::cluster_forms),
    ("every node answers with the client's address", mesh::every_node_answers),
    ("nodes and localhost reach the mesh", mesh::nodes_reach_the_mesh),
    ("curl reaches every node by IPv6", mesh::curl_by_ipv6),
    ("curl reaches an IPv4 service by IPv6", mesh::curl_by_ipv6_to_ipv4),
    ("networks of both families", ipv6::networks_of_both_families),
    ("udp goes the same way", mesh::udp_goes_the_same_way),
    ("health checks decide who serves", health::health_decides_who_serves),
    ("health checks of images decide who serves", health::images_check_decides),
    ("jobs run to their end", jobs::run_to_their_end),
    ("a replacement waits for its turn", jobs::replacement_waits),
    ("answers go straight if a service wants it", direct::answers_go_straight),
    ("tasks start slowly", slow_start::tasks_start_slowly),
    ("names and virtual addresses", mesh::names_and_virtual_addresses),
    ("a service's own resolver", dns::own_resolver),
    ("secrets and configs are files of tasks", secrets::files_of_tasks),
    ("logs of every node", logs::of_every_node),
    ("a stack is deployed, changed and removed", stacks::deployed_changed_and_removed),
    ("a stack of the voting app", stacks::voting::voting_app),
    ("a stack of WordPress and its database", stacks::wordpress::with_its_database),
    ("a stack of configs and secrets", stacks::visits::configs_and_secrets),
    ("containers are run by Docker Engines", hosted::by_docker_engines),
    ("containers of docker run live beside the swarm", standalone::beside_the_swarm),
    ("managers tell of every node", inspection::of_every_node),
    ("traces agree with packets", traces::agree_with_packets),
    ("the way out is masqueraded", mesh::way_out_is_masqueraded),
    ("ports of the node itself", mesh::ports_of_the_node),
    ("docker prints Docker's words", words::inspect_and_lists),
    ("every command of the checklist", commands::of_the_checklist),
    ("bad input gets Docker's errors and changes nothing", bad_input::refused),
    ("twenty replicas converge", forming::twenty_replicas_converge),
    ("drain empties a node, active brings nothing back", forming::drain_and_active),
    ("tasks move to a node that is active again", rebalance::tasks_move_back),
    ("a global service follows nodes that join", forming::global_follows_joining_nodes),
    ("roles change back and forth", forming::roles_change_back_and_forth),
    ("the root is rotated", identity::root_is_rotated),
    ("managers lock themselves", identity::managers_lock),
    ("workers pull from a registry", forming::workers_pull_from_a_registry),
    ("a rolling update under load", mesh::rolling_update_under_load),
    ("rolling updates fail no request", long_lived::updates_fail_nothing),
    ("long downloads live on", long_lived::downloads_live_on),
    ("a worker's agent dies", failures::agent_dies),
    ("a node goes dark", failures::node_goes_dark),
    ("a daemon stands still", gossip::daemons_stall),
    ("a false alarm is given back", gossip::false_alarm),
    ("a node dies while no manager lives", gossip::node_dies_without_managers),
    ("the leader dies", failures::leader_dies),
    ("the leader can not probe", failures::leader_can_not_probe),
    ("all daemons die", failures::all_daemons_die),
    ("faults follow each other", schedule::faults_follow_each_other),
    ("downloads follow an address that moves", long_lived::downloads_follow_their_address),
    ("downloads follow an IPv6 address that moves", long_lived::downloads_follow_their_address6),
    ("the ingress network is made anew", ingress::made_anew),
    ("two of three managers are lost", quorum::two_managers_are_lost),
    ("a dead manager is replaced", replaced::a_dead_manager),
    ("a cluster is restored elsewhere", backup::restored_elsewhere),
    (
        "old managers are called by a cluster that was restored elsewhere",
        left_behind::old_managers_are_called,
    ),
    ("managers' addresses change", moving::managers_move),
    ("nodes that have IPv6 alone", underlay6::nodes_of_ipv6),
    ("other hooks do the same", mesh::other_hooks_do_the_same),
    ("every packet is accounted for", mesh::every_packet_is_accounted_for),
];

fn main() -> ExitCode {
    let wanted = std::env::var("MESH_SCENARIO").unwrap_or_default();
    let mut bench = match Bench::up() {
        Ok(bench) => bench,
        Err(error) => {
            eprintln!("the lab did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (mut n_passed, mut n_failed, mut is_healthy) = (0, 0, true);
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains(&wanted)) {
        println!("• {name}");
        if !is_healthy && let Err(error) = bench.begin_anew() {
            n_failed += 1;
            println!("  the lab did not come up again: {error:#}; what follows is left out");
            break;
        }
        let start = Instant::now();
        let outcome = scenario(&mut bench);
        is_healthy = outcome.is_ok();
        match outcome {
            Ok(()) => {
                n_passed += 1;
                println!("  ok, {:.1} s", start.elapsed().as_secs_f64());
            }
            Err(error) => {
                n_failed += 1;
                println!("  FAILED after {:.1} s: {error:#}", start.elapsed().as_secs_f64());
                bench.print_diagnosis();
            }
        }
    }
    if let Err(error) = bench.down() {
        n_failed += 1;
        println!("the lab did not go down: {error:#}");
    }
    println!("{n_passed} passed, {n_failed} failed");
    if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
