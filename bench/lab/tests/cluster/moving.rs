//! Machines of managers get other addresses, as by DHCP, while everything runs.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use bench_lab::{Role, wait_until};

use crate::support::{Bench, Outcome, PORT, SETTLE};

/// Enough that none of six replicas is left out by chance.
const N_REQUESTS: usize = 120;

pub fn managers_move(_: &mut Bench) -> Outcome {
    let bench = Bench::with("moved", (3, 1), &[], false)?;
    let outcome = follower_and_leader(&bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn follower_and_leader(bench: &Bench) -> Outcome {
    let leader = bench.leader()?;
    let mut followers = bench.lab.nodes().iter().filter(|n| n.role == Role::Manager && n.name != leader);
    let (first, second) = followers.next().zip(followers.next()).context("three managers")?;
    let (first, second) = (first.name.clone(), second.name.clone());
    let running = bench.running("whoami")?;
    let mut targets = bench.targets();
    for (node, via) in [(&first, &leader), (&leader, &second)] {
        let (before, now) = move_machine(bench, node)?;
        is_found(bench, node, via, now)?;
        for target in targets.iter_mut().filter(|target| target.ip() == before) {
            *target = SocketAddr::new(now.into(), PORT);
        }
        wait_until("every node to answer for every task", SETTLE, || {
            let Ok(answers) = bench.ask("client", &targets, N_REQUESTS) else { return Ok(None) };
            let tasks = crate::support::counts(&answers, "task");
            Ok((tasks.len() == running.len()).then_some(()))
        })?;
    }
    ensure!(bench.running("whoami")? == running, "tasks were restarted");
    // Two of three: those that have moved decide.
    bench.lab.kill(&second)?;
    bench.lab.docker(&first, &["node", "update", "--label-add", "moved=yes", &leader])?;
    Ok(())
}

/// Takes the node's address away and gives it another. Returns both.
fn move_machine(bench: &Bench, node: &str) -> anyhow::Result<(Ipv4Addr, Ipv4Addr)> {
    let before = bench.lab.node(node)?.address;
    let [a, b, c, d] = before.octets();
    let now = Ipv4Addr::new(a, b, c, d + 40);
    for (verb, address) in [("del", before), ("add", now)] {
        let address = format!("{address}/24");
        let done = bench.lab.exec(node, "ip", &["addr", verb, &address, "dev", "eth0"])?;
        ensure!(done.success(), "{}", done.text());
    }
    Ok((before, now))
}

/// The other managers know where it is, and it takes part.
fn is_found(bench: &Bench, node: &str, via: &str, now: Ipv4Addr) -> Outcome {
    let format = "{{.ManagerStatus.Addr}} {{.ManagerStatus.Reachability}} {{.Status.State}}";
    let ((), took) = wait_until(&format!("{node} to be found at {now}"), SETTLE, || {
        let shown = bench.lab.docker(via, &["node", "inspect", node, "--format", format])?;
        ensure!(shown == format!("{now}:2377 reachable ready"), "{shown}");
        Ok(bench
            .lab
            .try_docker(node, &["node", "update", "--label-add", "at=here", node])?
            .success()
            .then_some(()))
    })?;
    println!("  {node} took part again {:.1} s after its address had changed", took.as_secs_f64());
    Ok(())
}
