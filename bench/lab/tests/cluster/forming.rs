//! Clusters form, services spread, nodes come and go by the operator's will.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use bench_lab::wait_until;

use crate::inspection;
use crate::registry::Registry;
use crate::support::{Bench, Outcome, SETTLE};

/// Replays the moment at which a daemon is killed.
const KILL_SEED: &str = "MESH_KILL_SEED";
/// From the command to the last task that runs, on an idle machine.
const LONGEST_CREATION_MS: u64 = 4000;

pub fn cluster_forms(bench: &mut Bench) -> Outcome {
    let rows = bench.docker(&[
        "node",
        "ls",
        "--format",
        "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}",
    ])?;
    let mut rows: Vec<&str> = rows.lines().map(str::trim_end).collect();
    rows.sort_unstable();
    let managers = rows.iter().filter(|r| r.ends_with("Leader") || r.ends_with("Reachable")).count();
    ensure!(rows.len() == 5 && managers == 3, "node ls shows {rows:?}");
    ensure!(rows.iter().filter(|r| r.ends_with("Leader")).count() == 1, "not one leader: {rows:?}");
    ensure!(rows.iter().all(|r| r.contains(" Ready Active")), "not all ready and active: {rows:?}");
    // Any manager gives the same answer.
    for manager in ["m1", "m2", "m3"] {
        let ids = bench.lab.docker(manager, &["node", "ls", "-q"])?;
        ensure!(ids.lines().count() == 5, "{manager} knows {ids}");
    }
    Ok(())
}

/// Whatever a worker's daemon is doing when it is killed.
pub fn twenty_replicas_converge(bench: &mut Bench) -> Outcome {
    let seed = std::env::var(KILL_SEED).map_or_else(|_| now(), |seed| Ok(seed.parse()?))?;
    let moment = Duration::from_millis(seed % LONGEST_CREATION_MS);
    println!("  {KILL_SEED}={seed}: a worker's daemon is killed after {moment:?}");
    let lab = &bench.lab;
    std::thread::scope(|scope| {
        let killed = scope.spawn(move || {
            std::thread::sleep(moment);
            lab.kill("w1")?;
            lab.start("w1")
        });
        let converged = twenty_replicas(bench);
        killed.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?.and(converged)
    })?;
    inspection::finds_nothing(bench)?;
    bench.docker(&["service", "rm", "twenty"])?;
    Ok(())
}

fn twenty_replicas(bench: &Bench) -> Outcome {
    // Without --quiet and --detach: the CLI's own progress must come to its end.
    let output = bench.docker(&[
        "service",
        "create",
        "--no-resolve-image",
        "--name",
        "twenty",
        "--network",
        "app",
        "--replicas",
        "20",
        "whoami:1",
    ])?;
    ensure!(output.contains("converged"), "the progress ended with: {output}");
    ensure!(bench.running("twenty")?.len() == 20, "not 20 tasks run");
    let mut per_node: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for task in bench.running("twenty")? {
        *per_node.entry(task.node).or_default() += 1;
    }
    ensure!(per_node.values().all(|n| *n == 4), "uneven spread: {per_node:?}");
    Ok(())
}

fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos().into())
}

pub fn drain_and_active(bench: &mut Bench) -> Outcome {
    let node = bench.lab.node("w2")?.name.clone();
    bench.docker(&["node", "update", "--availability", "drain", &node])?;
    let took = bench.wait_running("whoami", 6, |t| t.node != node)?;
    println!("  {node} was empty after {:.1} s", took.as_secs_f64());
    let before = bench.running("whoami")?;
    bench.docker(&["node", "update", "--availability", "active", &node])?;
    wait_until("the node to be active", SETTLE, || {
        let state = bench.docker(&["node", "inspect", &node, "--format", "{{.Spec.Availability}}"])?;
        Ok((state == "active").then_some(()))
    })?;
    // A scheduling decision after it: were tasks to move back, they would have been moved by then.
    bench.docker(&["service", "create", "--quiet", "--no-resolve-image", "--name", "marker", "whoami:1"])?;
    bench.docker(&["service", "rm", "marker"])?;
    ensure!(bench.running("whoami")? == before, "tasks moved when the node became active");
    Ok(())
}

pub fn global_follows_joining_nodes(bench: &mut Bench) -> Outcome {
    bench.docker(&[
        "service",
        "create",
        "--quiet",
        "--no-resolve-image",
        "--name",
        "everywhere",
        "--mode",
        "global",
        "--network",
        "app",
        "whoami:1",
    ])?;
    bench.wait_running("everywhere", 5, |_| true)?;
    let name = bench.lab.add_worker()?;
    bench.import_image(&name)?;
    bench.wait_running("everywhere", 6, |_| true)?;
    let rows = bench.running("everywhere")?;
    ensure!(rows.iter().any(|t| t.node == name), "no task on {name}: {rows:?}");
    bench.docker(&["service", "rm", "everywhere"])?;
    // The new node answers for services that are older than it.
    let address = bench.lab.node(&name)?.address;
    bench.ask("client", &[(address, crate::support::PORT).into()], 20)?;
    Ok(())
}

/// Demoted and promoted without a pause, a manager comes back as one; the leader too, when it has handed over. One that lets itself
/// and another go in one command says what has become of each.
pub fn roles_change_back_and_forth(bench: &mut Bench) -> Outcome {
    let leader = bench.leader()?;
    let managers: Vec<String> = ["m1", "m2", "m3"].map(|name| format!("test-{name}")).into();
    let follower = managers.iter().find(|name| **name != leader).context("one manager only")?;
    for (node, asked) in [(follower, &leader), (&leader, follower)] {
        bench.lab.docker(asked, &["node", "demote", node])?;
        if *node == leader {
            wait_until("another leader", SETTLE, || {
                Ok(bench.lab.leader(asked)?.is_some_and(|now| now != leader).then_some(()))
            })?;
        }
        promote(bench, asked, node)?;
    }
    let leader = bench.leader()?;
    let others: Vec<&str> = managers.iter().map(String::as_str).filter(|name| **name != leader).collect();
    let [other, left] = others[..] else { bail!("not three managers: {others:?}") };
    let both = bench.lab.try_docker(&leader, &["node", "demote", &leader, other])?.text();
    let is_let_go = |name: &str| both.contains(&format!("Manager {name} demoted in the swarm."));
    ensure!(is_let_go(&leader), "{both}");
    // The leader hands over before it goes; its word on the second is true whenever it stopped being a manager.
    ensure!(is_let_go(other) || both.contains("This node is not a swarm manager."), "{both}");
    let role = bench.lab.docker(left, &["node", "inspect", other, "--format", "{{.Spec.Role}}"])?;
    ensure!((role == "worker") == is_let_go(other), "{other} is a {role}: {both}");
    for node in [&leader, other] {
        promote(bench, left, node)?;
    }
    Ok(())
}

/// Promotes a node, and waits until it takes part.
fn promote(bench: &Bench, asked: &str, node: &str) -> Outcome {
    bench.lab.docker(asked, &["node", "promote", node])?;
    let ((), took) = wait_until(&format!("{node} to be a manager again"), SETTLE, || {
        let format = "{{.Spec.Role}} {{if .ManagerStatus}}{{.ManagerStatus.Reachability}}{{end}}";
        let shown = bench.lab.docker(asked, &["node", "inspect", node, "--format", format])?;
        let answers = bench.lab.try_docker(node, &["node", "ls", "-q"])?;
        Ok((shown == "manager reachable" && answers.success()).then_some(()))
    })?;
    println!("  {node} was a manager again {:.1} s after its promotion", took.as_secs_f64());
    bench.lab.docker(node, &["node", "update", "--label-add", "back=yes", node])?;
    Ok(())
}

/// Nodes get the image through `docker service create` alone.
pub fn workers_pull_from_a_registry(bench: &mut Bench) -> Outcome {
    let registry = Registry::start(bench)?;
    let image = format!("{}/whoami:3", registry.name());
    // Push with skopeo from the root file system of the demo's image.
    let layout = registry.scratch().join("layout");
    let layout_name = format!("{}:whoami", layout.display());
    let program = bench.whoami_program();
    bench_lab::run("umoci", &["init", "--layout", &layout.to_string_lossy()])?;
    bench_lab::run("umoci", &["new", "--image", &layout_name])?;
    bench_lab::run("umoci", &["insert", "--image", &layout_name, &program, "/whoami"])?;
    bench_lab::run("umoci", &["config", "--image", &layout_name, "--config.entrypoint", "/whoami"])?;
    let (source, target) = (format!("oci:{layout_name}"), format!("docker://{image}"));
    let copy = ["copy", "--quiet", "--dest-tls-verify=false", &source, &target];
    let pushed = bench.lab.exec("client", "skopeo", &copy)?;
    ensure!(pushed.success(), "not pushed: {}", pushed.text());
    pulled_by_run(bench, &image)?;
    bench.docker(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "pulled",
        "--mode",
        "global",
        "--network",
        "app",
        &image,
    ])?;
    bench.wait_running("pulled", bench.lab.nodes().len(), |_| true)?;
    bench.docker(&["service", "rm", "pulled"])?;
    Ok(())
}

/// By a client that has it pulled for its container.
fn pulled_by_run(bench: &Bench, image: &str) -> Outcome {
    let node = &bench.lab.nodes().last().context("no node")?.name;
    let ran = bench.lab.try_docker(node, &["run", "--rm", image, "help"])?;
    let lines = [
        format!("Unable to find image '{image}' locally"),
        format!("Status: Downloaded newer image for {image}"),
    ];
    ensure!(ran.success() && ran.stdout.starts_with("whoami: says who it is"), "it says {}", ran.text());
    ensure!(lines.iter().all(|line| ran.stderr.contains(line.as_str())), "it says {}", ran.stderr);
    Ok(())
}
