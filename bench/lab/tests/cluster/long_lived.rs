//! Connections that live long live on, whatever happens around them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use bench_lab::{Connections, Downloads, DownloadsReport, Role, Traffic, TrafficReport, wait_until};
use dataplane_kernel::bpf::{PinDir, Tables};

use crate::support::{Bench, Outcome, RunningTask, SETTLE, counts};

const N_DOWNLOADS: usize = 60;
const N_MOVED_DOWNLOADS: usize = 50;
/// Of each scenario.
const N_DOWNLOADS_LONG: usize = 200;
/// Host part of the address that moves: no node's, nor the client's.
const MOVED_HOST: u8 = 200;
/// Where the services of these scenarios are published.
const DOWNLOADS_PORT: u16 = 8081;
const UPDATES_PORT: u16 = 8082;
/// Longer than these downloads live: a task that leaves finishes what it has.
const GRACE_S: &str = "120";
const N_UPDATES: usize = 5;
const N_UPDATES_LONG: usize = 100;
const N_UPDATED_REPLICAS: usize = 10;
/// Of each kind of connection.
const UPDATE_RATE_PER_S: u32 = 100;
const UPDATE_RATE_PER_S_LONG: u32 = 250;

/// Downloads through every node, held while daemons die, the service is scaled, and the nodes forget what they cached.
pub fn downloads_live_on(bench: &mut Bench) -> Outcome {
    create_downloads(bench, 6, &[])?;
    let targets = targets(bench, DOWNLOADS_PORT);
    let n = if is_long() { N_DOWNLOADS_LONG } else { N_DOWNLOADS };
    let downloads = begin(bench, &targets, n)?;
    let step = |what: &str| println!("  {} broken after: {what}", downloads.n_broken());

    let leader = bench.leader()?;
    let worker = bench.lab.nodes().iter().find(|n| n.role == Role::Worker).context("no worker")?.name.clone();
    let running = bench.running("held")?;
    let backend = running.iter().find(|t| t.node != leader && t.node != worker).context("no backend")?;
    for node in [&worker, &backend.node, &leader] {
        bench.lab.kill(node)?;
        bench.lab.start(node)?;
    }
    wait_until("the managers to have a leader", SETTLE, || {
        let ready = bench.docker(&["node", "ls", "--format", "{{.Status}}"])?;
        Ok(ready.lines().all(|status| status == "Ready").then_some(bench.leader()?))
    })?;
    step("a worker's, a backend's and the leader's daemon were killed and started");

    for node in [&worker, &backend.node] {
        upgrade(bench, node)?;
    }
    step("the worker's and the backend's daemon found what an older version had left, and took over");

    let n_forgotten = forget_flows(bench)?;
    ensure!(n_forgotten >= n, "only {n_forgotten} flows were cached");
    step(&format!("{n_forgotten} cached flows were removed"));

    bench.docker(&["service", "scale", "--detach", "held=8"])?;
    bench.wait_running("held", 8, |_| true)?;
    step("scaled from 6 to 8");
    forget_flows(bench)?;
    step("cached flows were removed again, now that rings have changed");

    bench.docker(&["service", "scale", "--detach", "held=4"])?;
    bench.wait_running("held", 4, |_| true)?;
    wait_until("new connections to go to the tasks that stay", SETTLE, || {
        let answers = bench.ask("client", &targets, 40)?;
        Ok((counts(&answers, "task").len() == 4).then_some(()))
    })?;
    step("scaled from 8 to 4");
    finish(bench, downloads)
}

/// A daemon that is killed and started, and finds the pins of an older version in the place of its own.
fn upgrade(bench: &Bench, node: &str) -> Outcome {
    bench.lab.kill(node)?;
    let own = PinDir::new(&bench.lab.bpffs_dir(node)?);
    let older = own.of_version(own.version() - 1);
    fs::rename(own.versioned(), older.versioned())?;
    bench.lab.start(node)?;
    wait_until("the older version's pins to go", SETTLE, || {
        Ok((own.versioned().exists() && !older.versioned().exists()).then_some(()))
    })?;
    Ok(())
}

/// Downloads through one node's further address. The machine is lost, daemon and links, another node takes the address, and
/// they go on there: also while a node with backends is drained, and while all caches are emptied.
pub fn downloads_follow_their_address(bench: &mut Bench) -> Outcome {
    let [a, b, c, _] = bench.lab.client_address().octets();
    follow(bench, Ipv4Addr::new(a, b, c, MOVED_HOST).into())
}

/// The same with an IPv6 address.
pub fn downloads_follow_their_address6(bench: &mut Bench) -> Outcome {
    if !bench_lab::has_ipv6() {
        println!("  skipped: this kernel has no IPv6");
        return Ok(());
    }
    let [a, b, c, d, ..] = bench.lab.client_address6().segments();
    follow(bench, Ipv6Addr::new(a, b, c, d, 0, 0, 0, MOVED_HOST.into()).into())
}

fn follow(bench: &mut Bench, address: IpAddr) -> Outcome {
    let mut workers =
        bench.lab.nodes().iter().filter(|n| n.role == Role::Worker).map(|n| n.name.clone()).rev();
    let (lost, heir) = (workers.next().context("no worker")?, workers.next().context("one worker only")?);
    drop(workers);
    // A lost backend's downloads are lost, whatever becomes of addresses.
    create_downloads(bench, 6, &["--constraint", &format!("node.hostname!={lost}")])?;
    let target = SocketAddr::new(address, DOWNLOADS_PORT);
    set_address(bench, &lost, "add", address)?;
    let (_, took) =
        wait_until("the further address to answer", SETTLE, || bench.ask("client", &[target], 5).map(Some))?;
    println!("  {address} answered {:.1} s after {lost} had it", took.as_secs_f64());

    let downloads = begin(bench, &[target], if is_long() { N_DOWNLOADS_LONG } else { N_MOVED_DOWNLOADS })?;
    let step = |what: &str| {
        downloads.wait_for_bytes(SETTLE)?;
        println!("  {} broken after: {what}", downloads.n_broken());
        Ok::<(), anyhow::Error>(())
    };
    bench.lab.isolate(&lost)?;
    bench.lab.kill(&lost)?;
    set_address(bench, &heir, "add", address)?;
    // What the heir's gratuitous ARP, or its unsolicited advertisement, is for.
    bench.lab.exec("client", "ip", &["neigh", "flush", "to", &address.to_string()])?;
    step(&format!("{lost} was lost, {heir} took its address"))?;
    let drained = drain_a_backend(bench, &heir, target)?;
    step(&format!("{drained} was drained"))?;
    step(&format!("{} cached flows were removed", forget_flows(bench)?))?;
    finish(bench, downloads)?;

    bench.docker(&["node", "update", "--availability", "active", &drained])?;
    set_address(bench, &lost, "del", address)?;
    set_address(bench, &heir, "del", address)?;
    bench.lab.heal(&lost)?;
    bench.lab.start(&lost)?;
    wait_until(&format!("{lost} to be Ready"), SETTLE, || {
        let state = bench.docker(&["node", "inspect", &lost, "--format", "{{.Status.State}}"])?;
        Ok((state == "ready").then_some(()))
    })?;
    Ok(())
}

/// Drains a node that has tasks of the downloads, and returns its name when new connections go to other tasks. In the long
/// form all tasks run elsewhere then, which waits for the old ones for a minute, as in Docker.
fn drain_a_backend(bench: &Bench, not: &str, target: SocketAddr) -> anyhow::Result<String> {
    let running = bench.running("held")?;
    let drained = running.iter().map(|task| task.node.clone()).find(|node| node != not);
    let drained = drained.context("all tasks are on one node")?;
    bench.docker(&["node", "update", "--availability", "drain", &drained])?;
    if is_long() {
        bench.wait_running("held", running.len(), |task| task.node != drained)?;
    }
    let n_others = running.iter().filter(|task| task.node != drained).count();
    wait_until("new connections to go to other nodes' tasks", SETTLE, || {
        let answers = bench.ask("client", &[target], 40)?;
        let leaving =
            |task: &&RunningTask| task.node == drained && counts(&answers, "task").contains_key(&*task.name);
        let is_left = !running.iter().any(|task| leaving(&task));
        Ok((is_left && counts(&answers, "task").len() >= n_others).then_some(()))
    })?;
    Ok(drained)
}

/// The whole numbers, not those of every run.
fn is_long() -> bool {
    std::env::var_os("MESH_TEST_LONG").is_some()
}

fn set_address(bench: &Bench, node: &str, verb: &str, address: IpAddr) -> Outcome {
    let host = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let mut words = vec!["addr", verb, &host, "dev", "eth0"];
    if address.is_ipv6() && verb == "add" {
        words.push("nodad");
    }
    let done = bench.lab.exec(node, "ip", &words)?;
    ensure!(done.success(), "{}", done.text());
    Ok(())
}

fn create_downloads(bench: &Bench, replicas: usize, further: &[&str]) -> Outcome {
    let (replicas, publish) = (replicas.to_string(), format!("{DOWNLOADS_PORT}:80"));
    let grace = format!("{GRACE_S}s");
    let mut args = vec!["service", "create", "--quiet", "--no-resolve-image", "--name", "held"];
    args.extend(["--network", "app", "--replicas", &replicas, "--publish", &publish]);
    args.extend(["--env", "TASK={{.Task.Name}}", "--stop-grace-period", &grace]);
    args.extend(further);
    args.extend(["whoami:1", "serve", "--drain", GRACE_S]);
    bench.docker(&args).map(drop)
}

fn targets(bench: &Bench, port: u16) -> Vec<SocketAddr> {
    bench.lab.nodes().iter().map(|n| SocketAddr::new(n.address.into(), port)).collect()
}

/// `n` downloads that have begun, all of them.
fn begin(bench: &Bench, targets: &[SocketAddr], n: usize) -> anyhow::Result<Downloads> {
    let downloads = Downloads::start(&bench.lab, targets, n)?;
    wait_until("all downloads to begin", SETTLE, || Ok((downloads.n_begun() == n as u64).then_some(())))
        .with_context(|| format!("{} have begun", downloads.n_begun()))?;
    Ok(downloads)
}

/// All must be alive still. Removes the service.
fn finish(bench: &Bench, downloads: Downloads) -> Outcome {
    let DownloadsReport { n_started, n_broken, failures, longest_stall, n_bytes, tasks } =
        downloads.stop()?;
    println!(
        "  {n_started} downloads from {} tasks, {n_broken} broken, longest stall {:.1} s, {n_bytes} bytes verified",
        tasks.len(),
        longest_stall.as_secs_f64()
    );
    bench.docker(&["service", "rm", "held"])?;
    ensure!(n_broken == 0, "{failures:#?}");
    Ok(())
}

/// Empties every node's flow cache; returns how many flows were in it.
fn forget_flows(bench: &Bench) -> anyhow::Result<usize> {
    let mut n_forgotten = 0;
    for node in bench.lab.nodes() {
        let mut tables = Tables::open(&PinDir::new(&bench.lab.bpffs_dir(&node.name)?))?;
        let flows = tables.flow_cache.rows()?;
        n_forgotten += flows.len();
        for flow in flows.keys() {
            tables.flow_cache.remove(flow)?;
        }
    }
    Ok(n_forgotten)
}

/// Updates one after the other, with short and with kept connections; `MESH_TEST_LONG` makes them many.
pub fn updates_fail_nothing(bench: &mut Bench) -> Outcome {
    let n_updates = if is_long() { N_UPDATES_LONG } else { N_UPDATES };
    let publish = format!("{UPDATES_PORT}:80");
    let batches = ["--publish", &publish, "--update-parallelism", "5", "--update-monitor", "1s"];
    bench.create_whoami("rolling", N_UPDATED_REPLICAS, &batches)?;
    let targets = targets(bench, UPDATES_PORT);
    let mut total = TrafficReport::default();
    for number in 0..n_updates {
        let version = if number % 2 == 0 { "2" } else { "1" };
        let order = if number % 4 < 2 { "stop-first" } else { "start-first" };
        for report in update_under_load(bench, &targets, version, order)? {
            if report.n_failed > 0 {
                println!("  update {number}: {} failed: {:?}", report.n_failed, report.failures);
            }
            total.n_sent += report.n_sent;
            total.n_failed += report.n_failed;
            total.slowest = total.slowest.max(report.slowest);
        }
    }
    println!(
        "  {n_updates} updates of {N_UPDATED_REPLICAS} replicas, {} requests, {} failed, slowest {:.0} ms",
        total.n_sent,
        total.n_failed,
        total.slowest.as_secs_f64() * 1000.0
    );
    bench.docker(&["service", "rm", "rolling"])?;
    ensure!(total.n_failed == 0, "{} requests failed", total.n_failed);
    Ok(())
}

/// One update; what became of the requests on short and on kept connections.
fn update_under_load(
    bench: &Bench,
    targets: &[SocketAddr],
    version: &str,
    order: &str,
) -> anyhow::Result<[TrafficReport; 2]> {
    let rate_per_s = if is_long() { UPDATE_RATE_PER_S_LONG } else { UPDATE_RATE_PER_S };
    let start = |connections| Traffic::start_with(&bench.lab, targets, rate_per_s, connections);
    let (short, kept) = (start(Connections::Short)?, start(Connections::KeptAlive)?);
    for traffic in [&short, &kept] {
        wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 50).then_some(())))?;
    }
    let image = format!("whoami:{version}");
    let update = ["service", "update", "--detach", "--no-resolve-image", "--update-order", order];
    bench.docker(&[&update[..], &["--image", &image, "rolling"]].concat())?;
    wait_until("the update to be complete", SETTLE, || {
        let format = "{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Image}}";
        let state = bench.docker(&["service", "inspect", "--format", format, "rolling"])?;
        Ok((state == format!("completed {image}")).then_some(()))
    })?;
    let reports = [short.stop()?, kept.stop()?];
    let answers = bench.ask("client", targets, 30)?;
    ensure!(counts(&answers, "version") == [(version, 30)].into(), "{:?}", counts(&answers, "version"));
    Ok(reports)
}
