//! What nodes tell each other without a manager.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench_lab::{Role, Traffic, wait_until};
use serde_json::Value;

use crate::failures::{wait_ready, worker_with_task};
use crate::support::{Bench, Outcome, PORT, SETTLE};

/// What is reached on a machine of one's own is a second and a half; this one is shared.
const OUT_WITHIN: Duration = Duration::from_secs(4);
const STALL: Duration = Duration::from_secs(2);
const RATE_PER_S: u32 = 100;

/// A node is lost while no manager lives: the others' load balancers let go of its tasks by themselves.
pub fn node_dies_without_managers(bench: &mut Bench) -> Outcome {
    let lost = worker_with_task(bench)?;
    let witness = other_worker(bench, &lost)?;
    let managers: Vec<String> =
        bench.lab.nodes().iter().filter(|n| n.role == Role::Manager).map(|n| n.name.clone()).collect();
    let before = bench.running("whoami")?;
    wait_until("the ring to have them all", SETTLE, || {
        Ok((in_ring(bench, &witness)?.len() == before.len()).then_some(()))
    })?;
    for manager in &managers {
        bench.lab.kill(manager)?;
    }
    bench.lab.isolate(&lost)?;
    let took = wait_until_out(bench, &witness, &lost)?;
    println!("  {witness} let go of {lost}'s tasks {:.2} s after the plug was pulled", took.as_secs_f64());
    let target = SocketAddr::new(bench.lab.node(&witness)?.address.into(), PORT);
    bench.ask("client", &[target], 50).context("after its backends left")?;
    bench.lab.heal(&lost)?;
    let ((), took) = wait_until("its backends to be back", SETTLE, || {
        Ok((in_ring(bench, &witness)?.len() == before.len()).then_some(()))
    })?;
    println!("  and had them back {:.2} s after it was put back", took.as_secs_f64());
    bench.ask("client", &[target], 50).context("after it came back")?;
    for manager in &managers {
        bench.lab.start(manager)?;
    }
    for node in bench.lab.nodes() {
        wait_ready(bench, &node.name)?;
    }
    ensure!(bench.running("whoami")? == before, "tasks were moved");
    Ok(())
}

/// Daemons that stand still for two seconds, one after another: no task is moved and no request fails.
pub fn daemons_stall(bench: &mut Bench) -> Outcome {
    let before = bench.running("whoami")?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    let leader = bench.leader()?;
    let names: Vec<String> =
        bench.lab.nodes().iter().map(|n| n.name.clone()).filter(|n| *n != leader).collect();
    for name in &names {
        let pid = bench.lab.pid(name)?.context("it runs")?.to_string();
        bench_lab::run("kill", &["-STOP", &pid])?;
        std::thread::sleep(STALL);
        bench_lab::run("kill", &["-CONT", &pid])?;
    }
    for name in &names {
        wait_ready(bench, name)?;
    }
    let report = traffic.stop()?;
    println!(
        "  {} requests, {} failed while {} daemons stood still",
        report.n_sent,
        report.n_failed,
        names.len()
    );
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    ensure!(bench.running("whoami")? == before, "tasks were moved");
    Ok(())
}

/// One node's probes of another are lost, and nothing else: it takes the other's tasks out of its own ring, gives them back
/// when the probes get through, and nothing is stopped.
pub fn false_alarm(bench: &mut Bench) -> Outcome {
    let suspect = worker_with_task(bench)?;
    let witness = other_worker(bench, &suspect)?;
    let before = bench.running("whoami")?;
    let address = bench.lab.node(&suspect)?.address;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    // Probes come from a socket of root's, what goes through the tunnel from none.
    nft(
        bench,
        &witness,
        &format!(
            "add table inet no_probes; \
         add chain inet no_probes out {{ type filter hook output priority 0; }}; \
         add rule inet no_probes out meta skuid 0 ip daddr {address} udp dport 4789 drop"
        ),
    )?;
    let took = wait_until_out(bench, &witness, &suspect)?;
    println!("  out of {witness}'s ring after {:.2} s", took.as_secs_f64());
    std::thread::sleep(STALL);
    nft(bench, &witness, "delete table inet no_probes")?;
    let ((), took) = wait_until("the tasks to be back in the ring", SETTLE, || {
        Ok((in_ring(bench, &witness)?.len() == before.len()).then_some(()))
    })?;
    println!("  back {:.2} s after the probes got through again", took.as_secs_f64());
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    ensure!(bench.running("whoami")? == before, "tasks were moved");
    Ok(())
}

fn nft(bench: &Bench, node: &str, script: &str) -> Outcome {
    let done = bench.lab.exec(node, "nft", &[script])?;
    ensure!(done.success(), "{}", done.text());
    Ok(())
}

fn other_worker(bench: &Bench, than: &str) -> Result<String> {
    let mut workers = bench.lab.nodes().iter().filter(|n| n.role == Role::Worker && n.name != than);
    Ok(workers.next().context("one worker only")?.name.clone())
}

/// How long it takes until no backend of the routing mesh's ring is on `lost`, as `witness` has it in its kernel.
fn wait_until_out(bench: &Bench, witness: &str, lost: &str) -> Result<Duration> {
    let start = Instant::now();
    let lost = bench.lab.node(lost)?.address.to_string();
    loop {
        let ring = in_ring(bench, witness)?;
        if !ring.is_empty() && ring.iter().all(|(_, vtep)| *vtep != lost) {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < OUT_WITHIN, "still there after {OUT_WITHIN:?}: {ring:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Address and tunnel's end of each backend of the routing mesh's ring on `node`.
fn in_ring(bench: &Bench, node: &str) -> Result<BTreeSet<(String, String)>> {
    let rings: Value = serde_json::from_str(&bench.meshctl(node, &["--json", "lb", "ring", "whoami"])?)?;
    let rings = rings.as_array().context("a list of rings")?;
    let published = format!(":{PORT}/tcp");
    let serves_port = |ring: &&Value| {
        let frontends = ring["frontends"].as_array().into_iter().flatten();
        frontends.filter_map(Value::as_str).any(|frontend| frontend.ends_with(&published))
    };
    let ring = rings.iter().find(serves_port).context("the routing mesh's ring")?;
    let backends = ring["rings"][0]["backends"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(backends
        .filter_map(|row| Some((text(&row["address"])?, text(&row["vtep"]).unwrap_or_default())))
        .collect())
}
