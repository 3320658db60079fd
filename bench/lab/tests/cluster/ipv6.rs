//! Networks of both families, by the real CLI, a real C library and `curl`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, RunningTask, SETTLE};

const N_REPLICAS: usize = 4;
/// Enough that none of four replicas is left out by chance.
const N_REQUESTS: usize = 60;

pub fn networks_of_both_families(bench: &mut Bench) -> Outcome {
    if !bench_lab::has_ipv6() {
        println!("  skipped: this kernel has no IPv6");
        return Ok(());
    }
    let given = ["--subnet", "10.66.0.0/24", "--subnet", "fd66::/64"];
    bench.docker(&[&["network", "create", "-d", "overlay", "--ipv6"][..], &given, &["both"]].concat())?;
    bench.docker(&["network", "create", "-d", "overlay", "--ipv6", "chosen"])?;
    bench.create_whoami_on(&["both"], ("dual", N_REPLICAS), &[])?;
    // What is published has a leg in the ingress network, whose IPv6 default route leads to no place outside.
    bench.create_whoami_on(&["both", "chosen"], ("guest", 1), &["--publish", "8095:80"])?;

    let guest = bench.running("guest")?.into_iter().next().context("no guest runs")?;
    the_cli_shows_both(bench)?;
    let tasks = names_have_both(bench, &guest)?;
    curl_gets_there(bench, &guest, &tasks)?;
    other_addresses_are_refused(bench, &guest)?;

    bench.docker(&["service", "rm", "dual", "guest"])?;
    for network in ["both", "chosen"] {
        wait_until("the network to go", SETTLE, || {
            Ok(bench.docker(&["network", "rm", network]).is_ok().then_some(()))
        })?;
    }
    Ok(())
}

fn the_cli_shows_both(bench: &Bench) -> Outcome {
    let format = "{{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}}{{end}}";
    let shown = bench.docker(&["network", "inspect", "--format", format, "both"])?;
    ensure!(shown.trim() == "true 10.66.0.0/24 fd66::/64", "network inspect: {shown}");
    let chosen = bench.docker(&["network", "inspect", "--format", format, "chosen"])?;
    ensure!(chosen.contains(" fd") && chosen.contains("/64"), "no subnet was chosen: {chosen}");
    Ok(())
}

/// The service has a virtual address of each family, and each task its own. Returns the tasks' IPv6 addresses.
fn names_have_both(bench: &Bench, guest: &RunningTask) -> anyhow::Result<BTreeSet<Ipv6Addr>> {
    let resolve = |name: &str, database: &str| -> anyhow::Result<BTreeSet<IpAddr>> {
        let said = sandboxed(bench, guest, &format!("getent {database} {name}"))?;
        said.lines().map(|line| Ok(line.split_whitespace().next().unwrap_or_default().parse()?)).collect()
    };
    let virtual_addresses = resolve("dual", "ahosts")?;
    let n_v6 = virtual_addresses.iter().filter(|address| address.is_ipv6()).count();
    ensure!((virtual_addresses.len(), n_v6) == (2, 1), "dual resolves to {virtual_addresses:?}");
    let tasks = resolve("tasks.dual", "ahostsv6")?;
    ensure!(tasks.len() == N_REPLICAS, "tasks.dual resolves to {tasks:?}");
    tasks
        .into_iter()
        .map(|address| match address {
            IpAddr::V6(address) => Ok(address),
            IpAddr::V4(address) => anyhow::bail!("{address} is no IPv6 address"),
        })
        .collect()
}

/// By name to every replica, on every node that has one, and to each by its own address.
fn curl_gets_there(bench: &Bench, guest: &RunningTask, tasks: &BTreeSet<Ipv6Addr>) -> Outcome {
    let script = format!("for n in $(seq {N_REQUESTS}); do curl -6 -sS --max-time 10 http://dual/; done");
    let answers = sandboxed(bench, guest, &script)?;
    let said = |key: &str| -> BTreeSet<String> {
        let values = answers.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        values.map(str::to_owned).collect()
    };
    let (nodes, replicas, peers) = (said("node"), said("task"), said("peer"));
    ensure!(replicas.len() == N_REPLICAS && nodes.len() > 1, "{replicas:?} on {nodes:?} answered");
    ensure!(peers.iter().all(|peer| peer.starts_with("[fd66::")), "tasks saw {peers:?}");
    for address in tasks {
        let url = format!("http://[{address}]/");
        sandboxed(bench, guest, &format!("curl -6 -sS --max-time 10 {url}"))?;
    }
    println!("  {N_REQUESTS} requests by name reached {} tasks on {} nodes", replicas.len(), nodes.len());
    Ok(())
}

/// There is no way out by IPv6: who has another address to try goes on to it, and does not wait for this one.
fn other_addresses_are_refused(bench: &Bench, guest: &RunningTask) -> Outcome {
    const REFUSED: &str = "exit code 7";
    let script = "curl -6 -sS --connect-timeout 20 http://[2001:db8::1]/ 2>&1; echo exit code $?";
    let said = sandboxed(bench, guest, script)?;
    ensure!(said.contains(REFUSED), "{said}");
    Ok(())
}

/// A shell command in a task's network, with the task's own view of names.
pub fn sandboxed(bench: &Bench, task: &RunningTask, script: &str) -> anyhow::Result<String> {
    let netns = bench.lab.socket(&task.node)?.with_file_name("netns").join(&task.id);
    let netns = format!("--net={}", netns.display());
    let names = "mount -t tmpfs tmpfs /mnt && echo nameserver 127.0.0.11 > /mnt/names && \
                 mount --bind /mnt/names /etc/resolv.conf";
    let script = format!("{names} && {script}");
    bench_lab::run("nsenter", &[&netns, "--", "unshare", "--mount", "sh", "-c", &script])
}
