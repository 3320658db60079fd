//! A manager's machine is lost for good: Docker's procedure to replace it, and what becomes of it when it is back.

use anyhow::ensure;
use bench_lab::{Traffic, wait_until};

use crate::support::{Bench, Outcome, SETTLE};

const RATE_PER_S: u32 = 50;
const ROWS: &str = "{{.Hostname}} {{.Status}} {{.ManagerStatus}}";

pub fn a_dead_manager(_: &mut Bench) -> Outcome {
    let bench = Bench::with("replace", (3, 2), &[], false)?;
    let outcome = replace(&bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn replace(bench: &Bench) -> Outcome {
    // The one that leads: another has to take over first.
    let dead = bench.leader()?;
    let left: Vec<String> =
        ["m1", "m2", "m3"].map(|name| format!("replace-{name}")).into_iter().filter(|n| *n != dead).collect();
    let targets: Vec<_> = bench.targets();
    let lost = bench.lab.node(&dead)?.address;
    let others: Vec<_> = targets.into_iter().filter(|to| to.ip() != std::net::IpAddr::V4(lost)).collect();
    bench.lab.isolate(&dead)?;
    bench.lab.kill(&dead)?;
    shows(bench, &left[0], &format!("{dead} Down Unreachable"))?;
    bench.wait_running("whoami", 6, |task| task.node != dead)?;

    let traffic = Traffic::start(&bench.lab, &others, RATE_PER_S)?;
    bench.lab.docker(&left[0], &["node", "demote", &dead])?;
    shows(bench, &left[0], &format!("{dead} Down"))?;
    bench.lab.docker(&left[0], &["node", "rm", &dead])?;
    bench.lab.docker(&left[0], &["node", "promote", "replace-w1"])?;
    shows(bench, "w1", "replace-w1 Ready Reachable")?;

    // Three again: one more may be lost.
    bench.lab.kill(&left[1])?;
    wait_until("a leader among those that are left", SETTLE, || {
        Ok(bench.lab.leader("w1")?.filter(|leader| *leader != left[1]))
    })?;
    bench.lab.docker("w1", &["service", "scale", "--detach", "whoami=7"])?;
    bench.wait_running("whoami", 7, |_| true)?;
    bench.lab.start(&left[1])?;
    shows(bench, "w1", &format!("{} Ready Reachable", left[1]))?;

    // The lost one is back, as it was: nobody takes it for a manager or a node any more.
    bench.lab.heal(&dead)?;
    bench.lab.start(&dead)?;
    let state = ["info", "--format", "{{.Swarm.LocalNodeState}}"];
    wait_until("the removed manager to know it", SETTLE, || {
        let said = bench.lab.try_docker(&dead, &state)?;
        Ok((said.text().trim() == "error").then_some(()))
    })?;
    let rows = bench.lab.docker("w1", &["node", "ls", "--format", ROWS])?;
    ensure!(!rows.contains(&dead) && rows.lines().count() == 4, "{rows}");
    let refused = bench.lab.try_docker(&dead, &["service", "scale", "--detach", "whoami=1"])?;
    ensure!(!refused.success(), "it commands: {}", refused.text());
    let format = ["--format", "{{.CurrentState}}", "--filter", "desired-state=running"];
    let states = bench.lab.docker("w1", &[&["service", "ps", "whoami"], &format[..]].concat())?;
    ensure!(states.lines().filter(|state| state.starts_with("Running")).count() == 7, "{states}");
    let report = traffic.stop()?;
    println!("  {} requests, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    Ok(())
}

/// Waits until a manager's `node ls` has the row.
fn shows(bench: &Bench, manager: &str, row: &str) -> Outcome {
    let shown = || {
        let rows = bench.lab.try_docker(manager, &["node", "ls", "--format", ROWS])?;
        Ok(rows.text().lines().any(|shown| shown.trim_end() == row).then_some(()))
    };
    wait_until(&format!("{manager} to show {row}"), SETTLE, shown).map(drop)
}
