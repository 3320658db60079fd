//! A cluster whose nodes have IPv6 alone: control plane, probes and tunnels.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::ipv6::sandboxed;
use crate::support::{Bench, Outcome, SETTLE, counts};

/// Enough that none of six replicas is left out by chance.
const N_REQUESTS: usize = 120;
const N_REPLICAS: usize = 6;

pub fn nodes_of_ipv6(_: &mut Bench) -> Outcome {
    if !bench_lab::has_ipv6() {
        println!("  skipped: this kernel has no IPv6");
        return Ok(());
    }
    let bench = Bench::with("six", (1, 2), &[], true)?;
    let outcome = works(&bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn works(bench: &Bench) -> Outcome {
    the_cli_shows_ipv6(bench)?;
    clients_are_served(bench, &bench.targets6())?;
    tasks_are_served(bench)?;
    for node in bench.lab.nodes() {
        ensure!(n_outer_fragments(bench, &node.name)? == 0, "{} has cut up packets", node.name);
    }
    let mut lost = bench.running("whoami")?.into_iter().map(|task| task.node);
    let lost = lost.find(|node| bench.live_manager().is_ok_and(|manager| manager != *node));
    let lost = lost.context("no worker has a task")?;
    bench.lab.isolate(&lost)?;
    let took = bench.wait_running("whoami", N_REPLICAS, |task| task.node != lost)?;
    println!("  tasks ran elsewhere {:.1} s after a node was cut off", took.as_secs_f64());
    let lost = bench.lab.node_address(bench.lab.node(&lost)?);
    let others: Vec<SocketAddr> = bench.targets6().into_iter().filter(|to| to.ip() != lost).collect();
    clients_are_served(bench, &others)
}

fn the_cli_shows_ipv6(bench: &Bench) -> Outcome {
    let first = bench.lab.node_address(&bench.lab.nodes()[0]);
    let format = "{{.Swarm.NodeAddr}} {{range .Swarm.RemoteManagers}}{{.Addr}}{{end}}";
    let shown = bench.docker(&["info", "--format", format])?;
    ensure!(shown.trim() == format!("{first} {}", SocketAddr::new(first, 2377)), "docker info: {shown}");
    for node in bench.lab.nodes() {
        let shown = bench.docker(&["node", "inspect", "--format", "{{.Status.Addr}}", &node.name])?;
        let own = bench.lab.node_address(node).to_string();
        ensure!(shown.trim() == own, "node inspect {}: {shown} instead of {own}", node.name);
    }
    Ok(())
}

/// At every node, by tasks of all, which see the client.
fn clients_are_served(bench: &Bench, targets: &[SocketAddr]) -> Outcome {
    let answers = bench.ask("client", targets, N_REQUESTS)?;
    let client = Some(IpAddr::V6(bench.lab.client_address6()));
    ensure!(answers.iter().all(|answer| answer.peer() == client), "{:?}", counts(&answers, "peer"));
    let tasks = counts(&answers, "task");
    ensure!(tasks.len() == N_REPLICAS, "tasks that answered: {tasks:?}");
    Ok(())
}

/// By name and virtual address, on all nodes, in a network of IPv4.
fn tasks_are_served(bench: &Bench) -> Outcome {
    let guest = bench.running("whoami")?.into_iter().next().context("no task runs")?;
    let script = format!("for n in $(seq {N_REQUESTS}); do curl -sS --max-time 10 http://whoami/; done");
    let (answers, _) = wait_until("names to resolve", SETTLE, || Ok(sandboxed(bench, &guest, &script).ok()))?;
    let nodes: std::collections::BTreeSet<&str> =
        answers.lines().filter_map(|line| line.strip_prefix("node: ")).collect();
    ensure!(nodes.len() == bench.lab.nodes().len(), "{nodes:?} answered");
    Ok(())
}

fn n_outer_fragments(bench: &Bench, node: &str) -> anyhow::Result<u64> {
    let text = bench.lab.inside(node, || std::fs::read_to_string("/proc/thread-self/net/snmp6"))??;
    let line = text.lines().find(|line| line.starts_with("Ip6FragCreates")).context("no such counter")?;
    Ok(line.split_whitespace().last().context("no value")?.parse()?)
}
