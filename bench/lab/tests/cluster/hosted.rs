//! Nodes whose containers are a Docker Engine's: services, stacks and the engine's own containers beside each other.

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;

use crate::mesh;
use crate::stacks::{visits, voting, wordpress};
use crate::support::{Bench, Outcome, SETTLE, counts};

const NAME: &str = "engines";

pub fn by_docker_engines(_: &mut Bench) -> Outcome {
    let mut bench = Bench::with_docker(NAME, (1, 2))?;
    let outcome = run(&mut bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn run(bench: &mut Bench) -> Outcome {
    containers_are_the_engines(bench)?;
    // As an engine leaves a host where it may filter.
    for node in bench.lab.nodes() {
        for rule in ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"] {
            let words: Vec<&str> = rule.split(' ').collect();
            let said = bench.lab.exec(&node.name, "iptables", &words)?;
            ensure!(said.success(), "iptables {rule}: {}", said.text());
        }
    }
    tasks_outlive_the_daemon(bench)?;
    mesh::way_out_is_masqueraded(bench)?;
    mesh::ports_of_the_node(bench)?;
    tasks_end_with_their_engines_containers(bench)?;
    for (name, stack) in [
        ("a stack of the voting app", voting::voting_app as fn(&mut Bench) -> Outcome),
        ("a stack of WordPress and its database", wordpress::with_its_database),
        ("a stack of configs and secrets", visits::configs_and_secrets),
    ] {
        stack(bench).with_context(|| name)?;
        println!("  {name}: as by the daemon's own runtime");
    }
    Ok(())
}

/// Both are shown, of tasks and of users; what holds the tasks' networks is not.
fn containers_are_the_engines(bench: &Bench) -> Outcome {
    bench.wait_running("whoami", 6, |_| true)?;
    let answers = bench.ask("client", &bench.targets(), 120)?;
    ensure!(counts(&answers, "task").len() == 6, "not all tasks answer: {answers:?}");
    let worker = &bench.lab.node("w1")?.name;
    let docker = |args: &[&str]| bench.lab.docker(worker, args);
    let said = docker(&["run", "--rm", "--network", "none", "--name", "own", "whoami:1", "help"]);
    ensure!(said.is_ok(), "{said:?}");
    let shown = docker(&["ps", "-a", "--format", "{{.Names}}"])?;
    let tasks: Vec<_> = bench.running("whoami")?.into_iter().filter(|task| task.node == *worker).collect();
    ensure!(shown.lines().count() == tasks.len(), "it shows {shown}, and has {tasks:?}");
    let task = tasks.first().context("no task on the worker")?;
    let container = format!("{}.{}", task.name, task.id);
    ensure!(shown.lines().any(|name| name == container), "{container} is not among {shown}");
    ensure!(!docker(&["images"])?.contains("mesh-sandbox"), "the sandboxes' image is shown");
    ensure!(docker(&["logs", &container])?.contains("serving"), "no log");
    let resolved = docker(&["exec", &container, "/whoami", "resolve", "whoami"])?;
    ensure!(resolved.lines().count() == 1, "whoami is {resolved}");
    let log = bench.docker(&["service", "logs", "--raw", "whoami"])?;
    ensure!(log.lines().filter(|line| line.contains("serving")).count() == 6, "the service says {log}");
    let networks = bench.docker(&["network", "ls", "--format", "{{.Name}}"])?;
    for name in ["app", "ingress", "host", "none"] {
        ensure!(networks.lines().any(|line| line == name), "{name} is not among {networks}");
    }
    ensure!(docker(&["ps", "-n", "1", "-q"])?.lines().count() == 1, "the last container is not shown");
    let info = docker(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Driver}} {{.ContainersRunning}}"])?;
    ensure!(info == format!("active vfs {}", tasks.len()), "info says {info}");
    Ok(())
}

/// A daemon that is killed finds its tasks again.
fn tasks_outlive_the_daemon(bench: &Bench) -> Outcome {
    let before = bench.running("whoami")?;
    for node in ["w2", "w1", "m1"] {
        bench.lab.kill(node)?;
        bench.lab.start(node)?;
    }
    wait_until("the daemons to take up their tasks", SETTLE, || {
        let answers = bench.ask("client", &bench.targets(), 120)?;
        Ok((bench.running("whoami")? == before && counts(&answers, "task").len() == 6).then_some(()))
    })?;
    Ok(())
}

/// What a user removes from the engine is a task that has ended.
fn tasks_end_with_their_engines_containers(bench: &Bench) -> Outcome {
    let victim = bench.running("whoami")?.into_iter().next().context("no task")?;
    bench.lab.docker(&victim.node, &["rm", "-f", &format!("{}.{}", victim.name, victim.id)])?;
    bench.wait_running("whoami", 6, |task| task.id != victim.id)?;
    let answers: Result<Vec<_>> = bench.ask("client", &bench.targets(), 120);
    ensure!(counts(&answers?, "task").len() == 6, "not all tasks answer");
    Ok(())
}
