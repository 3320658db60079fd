//! Things die, and what must go on goes on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_lab::{Role, Traffic, wait_until};

use crate::support::{Bench, Outcome, PORT, RunningTask, SETTLE, counts};

const RATE_PER_S: u32 = 100;
/// Between two looks at who is in the rings.
const LOOK_AT_RINGS: Duration = Duration::from_secs(2);
/// A lost node's backends are out of all rings long before this, on a busy machine too.
const BACKENDS_LEAVE_LIMIT: Duration = Duration::from_secs(10);

pub fn agent_dies(bench: &mut Bench) -> Outcome {
    let node = worker_with_task(bench)?;
    let before = bench.running("whoami")?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    bench.lab.kill(&node)?;
    let address = SocketAddr::new(bench.lab.node(&node)?.address.into(), PORT);
    bench.ask("client", &[address], 100)?;
    bench.lab.start(&node)?;
    wait_ready(bench, &node)?;
    // It takes its tasks over.
    ensure!(bench.running("whoami")? == before, "tasks changed");
    let report = traffic.stop()?;
    println!(
        "  {} requests, {} failed while the agent of {node} was dead and came back",
        report.n_sent, report.n_failed
    );
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

pub fn node_goes_dark(bench: &mut Bench) -> Outcome {
    let node = worker_with_task(bench)?;
    let n = bench.running("whoami")?.len();
    let lost = bench.lab.node(&node)?.address;
    let others: Vec<SocketAddr> =
        bench.targets().into_iter().filter(|t| t.ip() != IpAddr::V4(lost)).collect();
    let traffic = Traffic::start(&bench.lab, &others, RATE_PER_S)?;
    wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 100).then_some(())))?;
    bench.lab.isolate(&node)?;
    let took = bench.wait_running("whoami", n, |t| t.node != node)?;
    println!("  its tasks ran elsewhere {:.1} s after the plug was pulled", took.as_secs_f64());
    let report = traffic.stop()?;
    let (first, last) = report.failed_between.unwrap_or_default();
    println!(
        "  {} requests to the other nodes, {} failed within {:.1} s, slowest answer {:.1} s",
        report.n_sent,
        report.n_failed,
        last.saturating_sub(first).as_secs_f64(),
        report.slowest.as_secs_f64()
    );
    ensure!(
        last.saturating_sub(first) <= BACKENDS_LEAVE_LIMIT,
        "lost backends lingered: {:?}",
        report.failures
    );
    bench.ask("client", &others, 100).context("after its backends left")?;
    bench.lab.heal(&node)?;
    wait_ready(bench, &node)?;
    bench.wait_running("whoami", n, |_| true)?;
    bench.ask("client", &bench.targets(), 100).context("after it came back")?;
    Ok(())
}

pub fn leader_dies(bench: &mut Bench) -> Outcome {
    let leader = bench.leader()?;
    let before = bench.running("whoami")?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    bench.lab.kill(&leader)?;
    let other = bench.live_manager()?;
    let (new, took) =
        wait_until("a new leader", SETTLE, || Ok(bench.lab.leader(&other)?.filter(|name| *name != leader)))?;
    println!("  {new} led {:.1} s after {leader} was killed", took.as_secs_f64());
    bench.docker(&["node", "update", "--label-add", "seen=yes", &new])?;
    bench.lab.start(&leader)?;
    wait_ready(bench, &leader)?;
    ensure!(bench.running("whoami")? == before, "tasks were restarted");
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

/// The leader's probes are lost, and nothing else: it hears no data path, and would condemn all but its own.
pub fn leader_can_not_probe(bench: &mut Bench) -> Outcome {
    let leader = bench.leader()?;
    let other = bench.lab.nodes().iter().find(|n| n.role == Role::Manager && n.name != leader);
    let other = other.context("one manager only")?.name.clone();
    let n = bench.running("whoami")?.len();
    let nft = |script: &str| {
        let done = bench.lab.exec(&leader, "nft", &[script])?;
        ensure!(done.success(), "{}", done.text());
        Ok(())
    };
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    // Probes come from a socket of root's, what goes through the tunnel from none.
    nft("add table inet no_probes; \
         add chain inet no_probes out { type filter hook output priority 0; }; \
         add rule inet no_probes out meta skuid 0 udp dport 4789 drop")?;
    let (mut fewest, mut next_look) = (n, Instant::now());
    let (new, took) = wait_until("another manager to lead", SETTLE, || {
        if Instant::now() >= next_look {
            next_look += LOOK_AT_RINGS;
            let answers = bench.ask("client", &bench.targets(), 20 * n)?;
            fewest = fewest.min(counts(&answers, "task").len());
        }
        Ok(bench.lab.leader(&other)?.filter(|name| *name != leader))
    })?;
    println!("  {new} led {:.1} s after {leader} could not probe any more", took.as_secs_f64());
    nft("delete table inet no_probes")?;
    ensure!(fewest == n, "only {fewest} of {n} tasks were in the rings");
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

pub fn all_daemons_die(bench: &mut Bench) -> Outcome {
    let id = bench.docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])?;
    let before = bench.running("whoami")?;
    let processes = task_processes(bench)?;
    let services = bench.docker(&["service", "ls", "-q"])?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    let names: Vec<String> = bench.lab.nodes().iter().map(|n| n.name.clone()).collect();
    for name in &names {
        bench.lab.kill(name)?;
    }
    bench.ask("client", &bench.targets(), 200).context("while control is down")?;
    for name in &names {
        bench.lab.start(name)?;
    }
    let (now, took) = wait_until("the cluster to be back", SETTLE, || {
        let now = bench.docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])?;
        let ready = bench.docker(&["node", "ls", "--format", "{{.Status}}"])?;
        Ok(ready.lines().all(|s| s == "Ready").then_some(now))
    })?;
    println!("  all nodes ready again {:.1} s after the last start", took.as_secs_f64());
    ensure!(now == id, "the cluster id changed from {id} to {now}");
    ensure!(bench.docker(&["service", "ls", "-q"])? == services, "services changed");
    bench.wait_running("whoami", before.len(), |_| true)?;
    ensure!(bench.running("whoami")? == before, "tasks changed");
    ensure!(task_processes(bench)? == processes, "containers were restarted");
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    bench.docker(&["service", "scale", "--detach", "whoami=7"])?;
    bench.wait_running("whoami", 7, |_| true)?;
    bench.docker(&["service", "scale", "--detach", "whoami=6"])?;
    bench.wait_running("whoami", 6, |_| true)?;
    Ok(())
}

/// Processes of the service's tasks on all nodes, with the start times that the kernel gives them.
fn task_processes(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for node in bench.lab.nodes() {
        let names = bench.lab.docker(&node.name, &["ps", "--no-trunc", "--format", "{{.Names}}"])?;
        for name in names.lines().filter(|name| name.starts_with("whoami.")) {
            let pid = bench.lab.docker(
                &node.name,
                &["inspect", "--type", "container", "--format", "{{.State.Pid}}", name],
            )?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("{name}: {pid}"))?;
            // proc(5): field 22 is the start time; the name in field 2 may hold blanks, so count from its end.
            let fields = stat.rsplit_once(')').context("no process name")?.1;
            let start = fields.split_whitespace().nth(19).context("no start time")?;
            found.push(format!("{name} {pid} {start}"));
        }
    }
    found.sort();
    Ok(found)
}

pub fn wait_ready(bench: &Bench, node: &str) -> Outcome {
    let ((), took) = wait_until(&format!("{node} to be Ready"), SETTLE, || {
        let state = bench.docker(&["node", "inspect", node, "--format", "{{.Status.State}}"])?;
        Ok((state == "ready").then_some(()))
    })?;
    if took > Duration::from_secs(1) {
        println!("  {node} was Ready after {:.1} s", took.as_secs_f64());
    }
    Ok(())
}

pub fn worker_with_task(bench: &Bench) -> anyhow::Result<String> {
    let running: Vec<RunningTask> = bench.running("whoami")?;
    let mut workers = bench.lab.nodes().iter().filter(|n| n.role == Role::Worker);
    let worker = workers.find(|n| running.iter().any(|t| t.node == n.name));
    Ok(worker.context("no worker has a task")?.name.clone())
}
