//! What `meshctl` shows of other nodes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;
use serde_json::Value;

use crate::support::{Bench, Outcome, PORT};

/// Until every kernel holds the newest view: drift is looked for every 30 s.
const CONVERGED: Duration = Duration::from_mins(1);

pub fn of_every_node(bench: &mut Bench) -> Outcome {
    // A manager that holds few sessions itself, and every node.
    wait_until("verify finds nothing on any node", CONVERGED, || {
        bench.meshctl("m2", &["verify", "--all"]).map(Some)
    })?;
    let statuses = json(bench, "m2", &["status", "--all"])?;
    let statuses = statuses.as_array().context("a list")?;
    ensure!(statuses.len() == bench.lab.nodes().len(), "statuses of {statuses:?}");
    for command in [
        &["lb", "ls"][..],
        &["lb", "flows"],
        &["endpoints"],
        &["fdb"],
        &["drops"],
        &["hooks"],
        &["dns", "zone"],
    ] {
        let args: Vec<&str> = command.iter().copied().chain(["--node", "test-w1"]).collect();
        bench.meshctl("m2", &args)?;
    }
    let refused = bench.meshctl("w1", &["status", "--all"]).err().context("a worker asks others")?;
    ensure!(format!("{refused:#}").contains("only managers may ask other nodes"), "{refused:#}");
    traces_end_in_sandboxes(bench)?;
    packets_go_where_traces_say(bench)
}

/// From two tasks to the service's virtual address, an empty datagram and a connection each.
fn packets_go_where_traces_say(bench: &mut Bench) -> Outcome {
    for (n, task) in bench.running("whoami")?.iter().take(2).enumerate() {
        for protocol in ["tcp", "udp"] {
            let port = (45_000 + n).to_string();
            let args = ["trace", "--from", &task.id, "--to", "whoami:80", "--port", &port];
            let args: Vec<&str> =
                args.into_iter().chain(["--protocol", protocol, "--node", &task.node]).collect();
            let told = json(bench, "m1", &args)?;
            let live: Vec<&str> = args.iter().copied().chain(["--live"]).collect();
            let went = json(bench, "m1", &live)?;
            let (told, went) = (told["ways"].as_array().context("ways")?, &went["ways"][0]);
            let is_told = told.iter().any(|way| hops(way) == hops(went) && way["end"] == went["end"]);
            ensure!(is_told, "{} by {protocol}: told {told:#?}, went {went:#}", task.node);
        }
    }
    Ok(())
}

fn hops(way: &Value) -> Vec<(&Value, &Value)> {
    let steps = way["steps"].as_array().into_iter().flatten().filter(|step| step["at"] == "program");
    steps.map(|step| (&step["node"], &step["says"])).collect()
}

/// From outside by each node, source ports that lead to several tasks: each way is told to its end.
fn traces_end_in_sandboxes(bench: &mut Bench) -> Outcome {
    let from = format!("outside/{}", bench.lab.client_address());
    let to = format!("whoami:{PORT}");
    let mut n_tunnels = 0;
    for node in bench.lab.nodes() {
        for port in 40_000..40_012 {
            let port = port.to_string();
            let args = ["trace", "--from", &from, "--to", &to, "--port", &port, "--node", &node.name];
            let trace = json(bench, "m1", &args)?;
            let way = &trace["ways"][0];
            let task = way["end"]["sandbox"]["task"].as_str().unwrap_or_default();
            ensure!(task.starts_with("whoami."), "{} port {port}: {way}", node.name);
            let steps = way["steps"].as_array().context("steps")?;
            n_tunnels += usize::from(steps.iter().any(|step| step["at"] == "tunnel"));
        }
    }
    println!("  {n_tunnels} of {} ways lead over two nodes", 12 * bench.lab.nodes().len());
    ensure!(n_tunnels > 0, "no way leads to another node");
    Ok(())
}

fn json(bench: &Bench, node: &str, args: &[&str]) -> anyhow::Result<Value> {
    let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&bench.meshctl(node, &all)?).context("JSON")
}
