//! Two of three managers are lost: what can be read, what is refused, and the way back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_lab::{Traffic, wait_until};

use crate::support::{Bench, Outcome, SETTLE};

const RATE_PER_S: u32 = 50;
/// On an idle machine a refusal takes less than a second; these are shared.
const REFUSAL_LIMIT: Duration = Duration::from_secs(3);
/// Docker's procedure on this machine took 2.6 s, its own waits included.
const FORCE_LIMIT: Duration = Duration::from_secs(20);

/// Of the manager that is left.
const LEFT: &str = "m3";

pub fn two_managers_are_lost(_: &mut Bench) -> Outcome {
    let bench = Bench::with("quorum", (3, 2), &[], false)?;
    let outcome = lose_and_force(&bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn lose_and_force(bench: &Bench) -> Outcome {
    let before = identity(bench)?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    for manager in ["m1", "m2"] {
        bench.lab.kill(manager)?;
    }
    without_a_quorum(bench)?;
    let began = Instant::now();
    let said = bench.lab.docker(LEFT, &["swarm", "init", "--force-new-cluster"])?;
    println!("  the new cluster took {:.1} s", began.elapsed().as_secs_f64());
    ensure!(began.elapsed() < FORCE_LIMIT);
    ensure!(said.contains("Swarm initialized: current node"), "{said}");
    ensure!(identity(bench)? == before, "{:?} was {before:?}", identity(bench)?);
    ensure!(header(bench)?.is_empty(), "reads are still marked as old");
    wait_until("the lost managers to be down", SETTLE, || {
        let rows = bench.lab.docker(LEFT, &["node", "ls", "--format", "{{.Status}}"])?;
        Ok((rows.lines().filter(|status| *status == "Down").count() == 2).then_some(()))
    })?;
    bench.lab.docker(LEFT, &["service", "scale", "--detach", "whoami=7"])?;
    bench.wait_running("whoami", 7, |_| true)?;
    for worker in ["w1", "w2"] {
        ensure!(
            epoch(bench, worker)? == epoch(bench, LEFT)?,
            "{worker} has not seen the new cluster's epoch"
        );
    }
    old_managers_come_back(bench)?;
    let report = traffic.stop()?;
    println!("  {} requests, {} failed all the while", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

/// What must be the same in the new cluster.
fn identity(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let commands: [&[&str]; 5] = [
        &["info", "--format", "{{.Swarm.NodeID}} {{.Swarm.Cluster.ID}}"],
        &["swarm", "join-token", "-q", "worker"],
        &["swarm", "join-token", "-q", "manager"],
        &["service", "ls", "--format", "{{.ID}} {{.Name}} {{.Ports}}"],
        &["network", "ls", "--format", "{{.ID}} {{.Name}}"],
    ];
    commands.iter().map(|args| bench.lab.docker(LEFT, args)).collect()
}

/// The value of the header that marks old answers; empty without one.
fn header(bench: &Bench) -> anyhow::Result<String> {
    let socket = bench.lab.socket(LEFT)?.to_string_lossy().into_owned();
    let curl = ["-sS", "-D", "-", "-o", "/dev/null", "--unix-socket", &socket, "http://docker/nodes"];
    let headers = bench_lab::run("curl", &curl)?;
    ensure!(headers.starts_with("HTTP/1.1 200"), "{headers}");
    let mut lines = headers.lines().map(str::to_ascii_lowercase);
    let value = lines.find_map(|line| line.strip_prefix("mesh-stale:").map(|value| value.trim().to_owned()));
    Ok(value.unwrap_or_default())
}

fn without_a_quorum(bench: &Bench) -> Outcome {
    wait_until("the last manager to know that it is alone", SETTLE, || {
        Ok((header(bench)? == "true").then_some(()))
    })?;
    let nodes = bench.lab.docker(LEFT, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    for manager in ["m1", "m2"] {
        ensure!(nodes.contains(&format!("quorum-{manager} Unreachable")), "{nodes}");
    }
    ensure!(bench.lab.docker(LEFT, &["service", "ls", "--format", "{{.Name}}"])? == "whoami");
    let began = Instant::now();
    let refused = bench.lab.try_docker(LEFT, &["service", "scale", "--detach", "whoami=7"])?;
    let took = began.elapsed();
    println!("  a write was refused after {:.2} s: {}", took.as_secs_f64(), refused.text().trim());
    ensure!(!refused.success() && took < REFUSAL_LIMIT);
    for words in [
        "rpc error: code = Unknown desc = The swarm does not have a leader.",
        "1 of 3 managers answer, 2 are needed",
        "quorum-m1 at ",
        "quorum-m2 at ",
        "docker swarm init --force-new-cluster",
    ] {
        ensure!(refused.text().contains(words), "{words}: {}", refused.text());
    }
    let refused = bench.lab.try_docker(LEFT, &["swarm", "init"])?;
    ensure!(refused.text().contains("This node is already part of a swarm."), "{}", refused.text());
    Ok(())
}

/// The highest fencing epoch that a node has on disk.
fn epoch(bench: &Bench, node: &str) -> anyhow::Result<String> {
    let log = bench.lab.log_file(node)?;
    let path = log.parent().context("it is in the state directory")?.join("swarm/epoch");
    std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
}

/// They have a majority of the old cluster, and find out that it was given up.
fn old_managers_come_back(bench: &Bench) -> Outcome {
    for manager in ["m1", "m2"] {
        bench.lab.start(manager)?;
    }
    let format = "{{.Hostname}} {{.Status}} {{.ManagerStatus}}";
    let ((), took) = wait_until("the old managers to be workers", SETTLE, || {
        let rows = bench.lab.docker(LEFT, &["node", "ls", "--format", format])?;
        let is_worker = |name: &str| rows.lines().any(|row| row.trim_end() == format!("quorum-{name} Ready"));
        let refused = bench.lab.try_docker("m1", &["node", "ls"])?;
        let refuses = refused.text().contains("This node is not a swarm manager");
        Ok((is_worker("m1") && is_worker("m2") && refuses).then_some(()))
    })?;
    println!("  the old managers were workers {:.1} s after their start", took.as_secs_f64());
    bench.lab.docker(LEFT, &["node", "promote", "quorum-m1"])?;
    wait_until("one to be a manager again", SETTLE, || {
        let rows = bench.lab.docker("m1", &["node", "ls", "--format", format])?;
        Ok(rows.lines().any(|row| row == "quorum-m1 Ready Reachable").then_some(()))
    })?;
    ensure!(epoch(bench, "m1")? == epoch(bench, LEFT)?, "it has not seen the new cluster's epoch");
    ensure!(bench.running("whoami")?.len() == 7, "tasks are missing");
    Ok(())
}
