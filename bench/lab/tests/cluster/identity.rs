//! Who opens a manager's disk, and whose word nodes take, on a running cluster.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bench_lab::{Traffic, wait_until};

use crate::support::{Bench, Outcome, SETTLE};

const RATE_PER_S: u32 = 100;
const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used.";

/// A manager that restarts is locked until it has the key, while the others and all tasks go on; one that was away while
/// the key was rotated opens with the key that it knew, and takes the new one.
pub fn managers_lock(bench: &mut Bench) -> Outcome {
    let leader = bench.leader()?;
    let managers = ["m1", "m2", "m3"].map(|name| format!("test-{name}"));
    let node = managers.iter().find(|name| **name != leader).context("one manager only")?.clone();
    let ask = |args: &[&str]| bench.lab.docker(&leader, args);
    let shown = ask(&["swarm", "update", "--autolock=true"])?;
    let first = ask(&["swarm", "unlock-key", "-q"])?;
    ensure!(shown.contains(&first), "the update shows {shown}");

    bench.lab.stop(&node)?;
    bench.lab.start(&node)?;
    ensure!(state(bench, &node)? == "locked", "{node} is not locked after its restart");
    let refused = bench.lab.try_docker(&node, &["service", "ls"])?;
    ensure!(!refused.success() && refused.text().contains(LOCKED), "service ls says {}", refused.text());
    wait_until(&format!("{node} to be seen as down"), SETTLE, || {
        let format = "{{.Status.State}} {{.ManagerStatus.Reachability}}";
        Ok((ask(&["node", "inspect", &node, "--format", format])? == "down unreachable").then_some(()))
    })?;
    // Its tasks are none of the lock's: every node's mesh answers, through the locked one too.
    bench.ask("client", &bench.targets(), 40)?;

    let second = ask(&["swarm", "unlock-key", "--rotate", "-q"])?;
    ensure!(second != first, "the key was not rotated");
    ensure!(
        unlock(bench, &node, &second)?.contains("invalid key provided"),
        "it opened with a key that it never heard of"
    );
    ensure!(unlock(bench, &node, &first)?.is_empty(), "its own key did not open it");
    let ((), took) = wait_until(&format!("{node} to be back"), SETTLE, || {
        let format = "{{.Status.State}} {{.ManagerStatus.Reachability}}";
        Ok((ask(&["node", "inspect", &node, "--format", format])? == "ready reachable").then_some(()))
    })?;
    println!("  {node} was ready {:.1} s after it was unlocked", took.as_secs_f64());
    bench.lab.docker(&node, &["service", "ls"])?;

    bench.lab.stop(&node)?;
    bench.lab.start(&node)?;
    ensure!(unlock(bench, &node, &first)?.contains("invalid key provided"), "the old key still opens it");
    ensure!(unlock(bench, &node, &second)?.is_empty(), "the new key does not open it");

    ask(&["swarm", "update", "--autolock=false"])?;
    wait_until(&format!("{node} to have heard that"), SETTLE, || {
        let autolock = "{{.Swarm.Cluster.Spec.EncryptionConfig.AutoLockManagers}}";
        Ok((bench.lab.docker(&node, &["info", "--format", autolock])? == "false").then_some(()))
    })?;
    bench.lab.stop(&node)?;
    bench.lab.start(&node)?;
    wait_until(&format!("{node} to be active without a key"), SETTLE, || {
        Ok(bench.lab.try_docker(&node, &["node", "ls", "-q"])?.success().then_some(()))
    })?;
    Ok(())
}

/// All nodes go over to a new root under load; one whose daemon is dead holds that up until it is back.
pub fn root_is_rotated(bench: &mut Bench) -> Outcome {
    let before = bench.docker(&["swarm", "ca"])?;
    let tasks = bench.running("whoami")?;
    let traffic = Traffic::start(&bench.lab, &bench.targets(), RATE_PER_S)?;
    let start = Instant::now();
    // Without --detach: the CLI follows the nodes to the end.
    let shown = bench.docker(&["swarm", "ca", "--rotate"])?;
    println!(
        "  {} nodes had certificates of a new root after {:.1} s",
        bench.lab.nodes().len(),
        start.elapsed().as_secs_f64()
    );
    let after = bench.docker(&["swarm", "ca"])?;
    ensure!(after != before && shown.trim_end().ends_with(after.trim_end()), "the CLI shows {shown}");
    all_have_new_certificates(bench)?;

    let worker = "w1";
    bench.lab.kill(worker)?;
    bench.docker(&["swarm", "ca", "--rotate", "--detach"])?;
    let in_progress = || bench.docker(&["info", "--format", "{{.Swarm.Cluster.RootRotationInProgress}}"]);
    let behind = format!("{} Needs Rotation", bench.lab.node(worker)?.name);
    wait_until(&format!("{worker} alone to be behind"), SETTLE, || {
        let rows = tls_rows(bench)?;
        Ok(rows.iter().filter(|row| !row.ends_with(" Ready")).eq([&behind]).then_some(()))
    })?;
    ensure!(
        in_progress()? == "true" && bench.docker(&["swarm", "ca"])? == after,
        "it did not wait for {worker}"
    );
    bench.lab.start(worker)?;
    wait_until("the rotation to end", SETTLE, || Ok((in_progress()? == "false").then_some(())))?;
    all_have_new_certificates(bench)?;
    ensure!(bench.running("whoami")? == tasks, "tasks were replaced");
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

fn tls_rows(bench: &Bench) -> Result<Vec<String>> {
    let rows = bench.docker(&["node", "ls", "--format", "{{.Hostname}} {{.TLSStatus}}"])?;
    Ok(rows.lines().map(str::to_owned).collect())
}

fn all_have_new_certificates(bench: &Bench) -> Outcome {
    wait_until("every node to say that it has followed", SETTLE, || {
        Ok(tls_rows(bench)?.iter().all(|row| row.ends_with(" Ready")).then_some(()))
    })?;
    Ok(())
}

fn state(bench: &Bench, node: &str) -> Result<String> {
    bench.lab.docker(node, &["info", "--format", "{{.Swarm.LocalNodeState}}"])
}

/// What the CLI complains of; nothing if the node was unlocked.
fn unlock(bench: &Bench, node: &str, key: &str) -> Result<String> {
    let line = format!(
        "printf %s '{key}' | docker -H unix://{} swarm unlock 2>&1 >/dev/null",
        bench.lab.socket(node)?.display()
    );
    Ok(bench_lab::try_run("sh", &["-c", &line])?.text())
}
