//! Jobs: tasks that are to end; and replacements of tasks that ended, which wait for their turn.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, SETTLE};

/// Ends with 0 where the file is, else with 1.
const ENDS_WELL: [&str; 4] = ["whoami:1", "healthcheck", "--file", "/whoami"];
const FAILS: [&str; 4] = ["whoami:1", "healthcheck", "--file", "/nothing"];

fn create(bench: &Bench, args: &[&str], command: &[&str]) -> Outcome {
    let begin = ["service", "create", "--quiet", "--no-resolve-image"];
    let all: Vec<&str> = begin.iter().chain(args).chain(command).copied().collect();
    bench.docker(&all).map(drop)
}

fn listed(bench: &Bench, name: &str) -> anyhow::Result<String> {
    let filter = format!("name={name}");
    let rows =
        bench.docker(&["service", "ls", "--filter", &filter, "--format", "{{.Mode}} {{.Replicas}}"])?;
    Ok(rows.trim().to_owned())
}

/// Both kinds, to the end that the CLI waits for; then once more.
pub fn run_to_their_end(bench: &mut Bench) -> Outcome {
    let replicated =
        ["--name", "work", "--mode", "replicated-job", "--replicas", "6", "--max-concurrent", "2"];
    let start = Instant::now();
    create(bench, &replicated, &ENDS_WELL)?;
    println!("  6 tasks of a job, two at a time: {:.1} s", start.elapsed().as_secs_f64());
    ensure!(listed(bench, "work")? == "replicated job 0/2 (6/6 completed)", "{}", listed(bench, "work")?);
    bench.docker(&["service", "update", "--quiet", "--force", "work"])?;
    ensure!(listed(bench, "work")? == "replicated job 0/2 (6/6 completed)", "{}", listed(bench, "work")?);
    let iteration =
        bench.docker(&["service", "inspect", "--format", "{{.JobStatus.JobIteration.Index}}", "work"])?;
    ensure!(iteration.trim() == "1", "{iteration}");

    create(bench, &["--name", "each", "--mode", "global-job"], &ENDS_WELL)?;
    let n_nodes = bench.lab.nodes().len();
    let expected = format!("global job 0/0 ({n_nodes}/{n_nodes} completed)");
    ensure!(listed(bench, "each")? == expected, "{}", listed(bench, "each")?);
    for node in bench.lab.nodes() {
        let left =
            bench.lab.docker(&node.name, &["ps", "-aq", "--filter", "name=work", "--filter", "name=each"])?;
        ensure!(left.trim().is_empty(), "containers that have ended stay on {}: {left}", node.name);
    }
    bench.docker(&["service", "rm", "work", "each"]).map(drop)
}

/// A task that fails is followed by another after the restart delay, as often as it is allowed; the job is not complete.
pub fn replacement_waits(bench: &mut Bench) -> Outcome {
    const DELAY: Duration = Duration::from_secs(3);
    let args = [
        "-d",
        "--name",
        "flaky",
        "--mode",
        "replicated-job",
        "--replicas",
        "1",
        "--restart-max-attempts",
        "1",
    ];
    create(bench, &[&args[..], &["--restart-delay", "3s"]].concat(), &FAILS)?;
    let failures = |count: usize| {
        wait_until(&format!("failure {count}"), SETTLE, || {
            let rows = bench.docker(&["service", "ps", "--no-trunc", "flaky", "--format", "{{.Error}}"])?;
            let failed = rows.lines().filter(|row| row.contains("task: non-zero exit (1)")).count();
            Ok((failed >= count).then(Instant::now))
        })
        .map(|(at, _)| at)
    };
    let first = failures(1)?;
    let waited = failures(2)?.duration_since(first);
    println!("  restart delay of {} s: {:.1} s", DELAY.as_secs(), waited.as_secs_f64());
    // The first was seen up to one look late.
    ensure!(waited + Duration::from_millis(500) > DELAY, "it began after {waited:?}");
    std::thread::sleep(DELAY + Duration::from_secs(1));
    let tasks = bench.docker(&["service", "ps", "-q", "flaky"])?;
    ensure!(tasks.lines().count() == 2, "{tasks}");
    ensure!(listed(bench, "flaky")? == "replicated job 0/1 (0/1 completed)", "{}", listed(bench, "flaky")?);
    bench.docker(&["service", "rm", "flaky"]).map(drop)
}
