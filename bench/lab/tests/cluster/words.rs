//! What the real CLI prints, with ids and times masked.

use anyhow::{bail, ensure};
use bench_lab::Role;

use crate::support::{Bench, Outcome};

pub fn inspect_and_lists(bench: &mut Bench) -> Outcome {
    for cli in ["/usr/bin/docker", "/usr/local/bin/docker"] {
        if std::path::Path::new(cli).exists() {
            let version = bench_lab::run(cli, &["--version"])?;
            println!("  {}", version.trim());
            check(bench, cli)?;
        }
    }
    Ok(())
}

fn check(bench: &Bench, cli: &str) -> Outcome {
    let socket = format!("unix://{}", bench.lab.socket(&bench.live_manager()?)?.display());
    let docker = |args: &[&str]| {
        let all: Vec<&str> = ["-H", &socket].iter().chain(args).copied().collect();
        bench_lab::run(cli, &all)
    };
    let pretty = docker(&["service", "inspect", "--pretty", "whoami"])?;
    for line in [
        "Name:\t\twhoami",
        "Service Mode:\tReplicated",
        " Replicas:\t6",
        "UpdateConfig:",
        " Parallelism:\t1",
        " On failure:\tpause",
        " Monitoring Period: 5s",
        " Max failure ratio: 0",
        " Update order:      stop-first",
        "RollbackConfig:",
        "ContainerSpec:",
        " Image:\t\twhoami:1",
        "Networks: app ",
        "Endpoint Mode:\tvip",
        " PublishedPort = 8080",
        "  Protocol = tcp",
        "  TargetPort = 80",
        "  PublishMode = ingress",
    ] {
        ensure!(
            pretty.lines().any(|l| l.trim_end() == line.trim_end()),
            "inspect --pretty lacks {line:?}:\n{pretty}"
        );
    }
    let ls = docker(&["service", "ls"])?;
    let header: Vec<&str> = ls.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(header == ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"], "service ls: {ls}");
    ensure!(ls.contains("6/6") && ls.contains("*:8080->80/tcp"), "service ls: {ls}");
    let ps = docker(&["service", "ps", "whoami"])?;
    ensure!(
        ps.contains("DESIRED STATE") && ps.contains("CURRENT STATE") && ps.contains("whoami.1"),
        "service ps: {ps}"
    );
    let node = docker(&["node", "inspect", "--pretty", "self"])?;
    for part in [
        "Hostname:",
        "Joined at:",
        " State:\t\t\tReady",
        " Availability:",
        "Manager Status:",
        "Raft Status:\t\tReachable",
        "Engine Version:",
    ] {
        ensure!(node.contains(part), "node inspect --pretty lacks {part:?}:\n{node}");
    }
    let network = docker(&[
        "network",
        "inspect",
        "app",
        "--format",
        "{{.Driver}} {{.Scope}} {{(index .IPAM.Config 0).Subnet}}",
    ])?;
    ensure!(network.trim() == "overlay swarm 10.0.1.0/24", "network inspect: {network}");
    let ingress = docker(&[
        "network",
        "inspect",
        "ingress",
        "--format",
        "{{.Ingress}} {{(index .IPAM.Config 0).Subnet}}",
    ])?;
    ensure!(ingress.trim() == "true 10.0.0.0/24", "ingress: {ingress}");
    check_worker(bench, cli, &docker(&NETWORKS)?)
}

/// The cluster's networks, one per line.
const NETWORKS: [&str; 6] = [
    "network",
    "ls",
    "--no-trunc",
    "--filter=driver=overlay",
    "--format",
    "{{.ID}} {{.Name}} {{.Driver}} {{.Scope}}",
];

/// A worker shows the routing mesh's network and those of its tasks, as managers do; the others it does not know.
fn check_worker(bench: &Bench, cli: &str, on_manager: &str) -> Outcome {
    let row = |name: &str| on_manager.lines().find(|line| line.split(' ').nth(1) == Some(name));
    let (Some(ingress), Some(app)) = (row("ingress"), row("app")) else { bail!("network ls: {on_manager}") };
    let with_tasks: Vec<String> = bench.running("whoami")?.into_iter().map(|task| task.node).collect();
    for worker in bench.lab.nodes().iter().filter(|node| node.role == Role::Worker) {
        let socket = format!("unix://{}", bench.lab.socket(&worker.name)?.display());
        let all: Vec<&str> = ["-H", &socket].into_iter().chain(NETWORKS).collect();
        let listed = bench_lab::run(cli, &all)?;
        let mut expected = if with_tasks.contains(&worker.name) { vec![app, ingress] } else { vec![ingress] };
        let mut shown: Vec<&str> = listed.lines().collect();
        expected.sort_unstable();
        shown.sort_unstable();
        ensure!(shown == expected, "network ls on {}: {shown:?}, not {expected:?}", worker.name);
    }
    Ok(())
}
