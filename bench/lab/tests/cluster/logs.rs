//! What tasks write, on whatever node, by `docker service logs` through any manager and `docker logs` on their own node.

use std::collections::BTreeSet;
use std::fs::{File, read_to_string};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use bench_lab::{Role, wait_until};

use crate::support::{Bench, Outcome, SETTLE};

const SERVICE: &str = "count";
/// So many lines take a second and a half.
const N_LINES: u64 = 30;

pub fn of_every_node(bench: &mut Bench) -> Outcome {
    let create = ["service", "create", "--quiet", "--no-resolve-image", "--name", SERVICE];
    let options = ["--replicas", "3", "--replicas-max-per-node", "1", "--stop-grace-period", "1s"];
    bench.docker(&[&create[..], &options, &["whoami:1", "count"]].concat())?;
    let tasks = bench.running(SERVICE)?;
    let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
    let managers = bench.lab.nodes().iter().filter(|node| node.role == Role::Manager);
    for manager in managers {
        let text = bench.lab.docker(&manager.name, &["service", "logs", SERVICE])?;
        ensure!(nodes_of(&text) == nodes, "{} shows {text:?} of tasks on {nodes:?}", manager.name);
    }
    for task in &tasks {
        let container = format!("{}.{}", task.name, task.id);
        let text = bench.lab.docker(&task.node, &["logs", &container])?;
        ensure!(text.starts_with("count 0\ncount 1\n"), "{container} has written {text:?}");
        let words = bench.lab.docker(&task.node, &["exec", &container, "/whoami", "help"])?;
        ensure!(words.starts_with("whoami: says who it is"), "another process in {container} says {words:?}");
    }
    every_line_comes_once(bench)?;
    bench.docker(&["service", "rm", SERVICE]).map(drop)
}

/// Also those that are written while the node's daemon is dead, and of tasks that come.
fn every_line_comes_once(bench: &Bench) -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let manager = bench.live_manager()?;
    let follower = Follower::start(&bench.lab.socket(&manager)?, &log)?;
    let others = bench.running(SERVICE)?.into_iter().map(|task| task.node).filter(|node| *node != manager);
    let away = others.max().context("no task on another node")?;
    let last_of = |node: &str| anyhow::Ok(numbers_of(&read_to_string(&log)?, node).last().copied());
    let reaches = |node: &str, number: u64| {
        wait_until(&format!("line {number} of {node}"), SETTLE, || {
            Ok((last_of(node)?.unwrap_or(0) >= number).then_some(()))
        })
    };
    reaches(&away, N_LINES)?;
    bench.lab.kill(&away)?;
    let killed_at = last_of(&away)?.context("no line")?;
    // As many as it writes while nobody is there to send them.
    let present = nodes_of(&read_to_string(&log)?).into_iter().find(|node| *node != away).map(str::to_owned);
    let present = present.context("no other node")?;
    reaches(&present, last_of(&present)?.unwrap_or(0) + N_LINES)?;
    bench.lab.start(&away)?;
    reaches(&away, killed_at + 2 * N_LINES)?;
    bench.docker(&["service", "scale", "--detach", &format!("{SERVICE}=4")])?;
    wait_until("lines of the fourth task", SETTLE, || {
        Ok((nodes_of(&read_to_string(&log)?).len() == 4).then_some(()))
    })?;
    follower.stop()?;
    let text = read_to_string(&log)?;
    for node in nodes_of(&text) {
        let numbers = numbers_of(&text, node);
        let expected: Vec<u64> = (0..).take(numbers.len()).collect();
        ensure!(numbers == expected, "{node} has written {numbers:?}");
    }
    println!("  {} lines, each once, {} of them while their daemon was dead", text.lines().count(), N_LINES);
    Ok(())
}

/// The nodes that the lines name as theirs: `<task>@<node>    | <line>`.
fn nodes_of(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.split_once('@')?.1.split_whitespace().next()).collect()
}

/// The numbers that the tasks of a node have counted to.
fn numbers_of(text: &str, node: &str) -> Vec<u64> {
    let from = format!("@{node} ");
    // The last line may be on its way.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter(|line| line.contains(&from));
    lines.filter_map(|line| line.split_once("| count ")?.1.parse().ok()).collect()
}

/// `docker service logs --follow`, into a file.
struct Follower(Child);

impl Follower {
    fn start(socket: &Path, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log)?;
        let child = Command::new("docker")
            .args(["-H", &format!("unix://{}", socket.display())])
            .args(["service", "logs", "--follow", SERVICE])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self(child))
    }

    /// It follows for as long as it is let.
    fn stop(mut self) -> Outcome {
        ensure!(self.0.try_wait()?.is_none(), "the follower has ended by itself");
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
