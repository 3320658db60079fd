//! Health checks decide who serves: a task enters rotation with its first success, and leaves it before it is stopped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bench_lab::{Traffic, wait_until};

use crate::support::{Bench, Outcome, SETTLE, counts};

const PORT: u16 = 8096;
const STACK: &str = "health";
const SERVICE: &str = "health_web";

/// Two replicas by `docker stack deploy`. Each is healthy while its slot's directory has the file.
pub fn health_decides_who_serves(bench: &mut Bench) -> Outcome {
    let dir = tempfile::tempdir()?;
    for slot in ["1", "2"] {
        std::fs::create_dir(dir.path().join(slot))?;
    }
    let word = |slot: &str| dir.path().join(slot).join("good");
    std::fs::write(word("1"), "")?;
    let file = compose_file(dir.path())?;
    bench.docker(&["stack", "deploy", "--resolve-image", "never", "-c", &file.to_string_lossy(), STACK])?;
    bench.wait_running(SERVICE, 1, |task| task.name == format!("{SERVICE}.1"))?;
    let targets: Vec<_> =
        bench.lab.nodes().iter().map(|node| SocketAddr::new(node.address.into(), PORT)).collect();
    wait_until("the other to wait for its first success", SETTLE, || {
        let states = states(bench)?;
        Ok(states.contains(&format!("{SERVICE}.2 Starting")).then_some(()))
    })?;
    one_serves(bench, &targets, 1)?;

    std::fs::write(word("2"), "")?;
    bench.wait_running(SERVICE, 2, |_| true)?;
    wait_until("both to serve", SETTLE, || {
        Ok((counts(&bench.ask("client", &targets, 40)?, "task").len() == 2).then_some(()))
    })?;
    let sick = bench.running(SERVICE)?.into_iter().next().context("no task")?;
    let listed = bench.lab.docker(&sick.node, &["ps", "--filter", "health=healthy"])?;
    ensure!(listed.contains(&sick.name) && listed.contains("(healthy)"), "{listed}");

    let traffic = Traffic::start(&bench.lab, &targets, 100)?;
    wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 50).then_some(())))?;
    std::fs::remove_file(word("1"))?;
    wait_until("the sick one to be replaced", SETTLE, || {
        let states = states(bench)?;
        let failed = format!("{SERVICE}.1 Failed dockerexec: unhealthy container");
        Ok((states.contains(&failed) && states.contains(&format!("{SERVICE}.1 Starting"))).then_some(()))
    })?;
    let report = traffic.stop()?;
    println!("  {} requests while a sick task was replaced, {} failed", report.n_sent, report.n_failed);
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    one_serves(bench, &targets, 2)?;

    std::fs::write(word("1"), "")?;
    bench.wait_running(SERVICE, 2, |task| task.id != sick.id)?;
    bench.docker(&["stack", "rm", STACK])?;
    wait_until("the stack's tasks to be gone", SETTLE, || {
        let containers =
            bench.lab.docker(&sick.node, &["ps", "--filter", &format!("name={SERVICE}"), "-q"])?;
        Ok(containers.trim().is_empty().then_some(()))
    })?;
    Ok(())
}

/// A service that says nothing of its health: its image does. `--no-healthcheck` puts an end to that.
pub fn images_check_decides(bench: &mut Bench) -> Outcome {
    const CHECK: &str = "HEALTHCHECK --interval=300ms --retries=2 --start-period=10m --start-interval=300ms \
                         CMD [\"/whoami\", \"healthcheck\", \"--file\", \"/health/good\"]";
    let dir = tempfile::tempdir()?;
    let good = dir.path().join("good");
    for node in bench.lab.nodes() {
        bench.import_with(&node.name, "whoami:checked", &["ENTRYPOINT [\"/whoami\"]", CHECK])?;
    }
    let mount = format!("type=bind,source={},target=/health,readonly", dir.path().display());
    let delay = ["--restart-delay", "100ms"];
    let create = ["service", "create", "-d", "--no-resolve-image", "--name", SERVICE, "--mount", &mount];
    bench.docker(&[&create[..], &delay, &["whoami:checked"]].concat())?;
    wait_until("it to wait for its first success", SETTLE, || {
        Ok(states(bench)?.contains(&format!("{SERVICE}.1 Starting")).then_some(()))
    })?;
    std::fs::write(&good, "")?;
    bench.wait_running(SERVICE, 1, |_| true)?;
    std::fs::remove_file(&good)?;
    wait_until("the sick one to be replaced", SETTLE, || {
        let states = states(bench)?;
        let failed = format!("{SERVICE}.1 Failed dockerexec: unhealthy container");
        Ok((states.contains(&failed) && states.contains(&format!("{SERVICE}.1 Starting"))).then_some(()))
    })?;
    bench.docker(&["service", "update", "--quiet", "--no-resolve-image", "--no-healthcheck", SERVICE])?;
    bench.wait_running(SERVICE, 1, |_| true)?;
    bench.docker(&["service", "rm", SERVICE])?;
    for node in bench.lab.nodes() {
        wait_until("its containers to be gone", SETTLE, || {
            let left =
                bench.lab.docker(&node.name, &["ps", "-aq", "--filter", &format!("name={SERVICE}")])?;
            Ok(left.trim().is_empty().then_some(()))
        })?;
        bench.lab.docker(&node.name, &["rmi", "whoami:checked"])?;
    }
    Ok(())
}

/// All answers are of the task in this slot.
fn one_serves(bench: &Bench, targets: &[SocketAddr], slot: u8) -> Outcome {
    let answers = bench.ask("client", targets, 40)?;
    let tasks = counts(&answers, "task");
    ensure!(tasks.keys().all(|task| task.starts_with(&format!("{SERVICE}.{slot}."))), "{tasks:?}");
    Ok(())
}

/// `<task> <state>[ <error>]` of all tasks, ended ones too.
fn states(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let format = "{{.Name}} {{.CurrentState}}|{{.Error}}";
    let rows = bench.docker(&["service", "ps", "--no-trunc", SERVICE, "--format", format])?;
    let rows = rows.lines().filter_map(|row| {
        let (task, error) = row.trim_start_matches("\\_ ").split_once('|')?;
        let (name, state) = task.split_once(' ')?;
        let state = state.split(' ').next()?;
        Some(format!("{name} {state} {}", error.trim_matches('"')).trim_end().to_owned())
    });
    Ok(rows.collect())
}

fn compose_file(dir: &Path) -> anyhow::Result<PathBuf> {
    let text = format!(
        r#"version: "3.8"
services:
  web:
    image: whoami:1
    environment: {{ TASK: "{{{{.Task.Name}}}}" }}
    ports: ["{PORT}:80"]
    volumes:
      - {{ type: bind, source: "{dir}/{{{{.Task.Slot}}}}", target: /health, read_only: true }}
    healthcheck:
      test: ["CMD", "/whoami", "healthcheck", "--file", "/health/good"]
      interval: 300ms
      retries: 2
      start_period: 10m
    deploy: {{ replicas: 2, restart_policy: {{ delay: 100ms }} }}
"#,
        dir = dir.display()
    );
    let file = dir.join("compose.yml");
    std::fs::write(&file, text)?;
    Ok(file)
}
