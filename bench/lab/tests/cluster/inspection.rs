//! What `meshctl` shows of other nodes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;
use serde_json::Value;

use crate::support::{Bench, Outcome};

/// Until every kernel holds the newest view: drift is looked for every 30 s.
const CONVERGED: Duration = Duration::from_mins(1);

pub fn of_every_node(bench: &mut Bench) -> Outcome {
    finds_nothing(bench)?;
    let statuses = json(bench, "m2", &["status", "--all"])?;
    let statuses = statuses.as_array().context("a list")?;
    ensure!(statuses.len() == bench.lab.nodes().len(), "statuses of {statuses:?}");
    for command in [
        &["lb", "ls"][..],
        &["lb", "flows"],
        &["endpoints"],
        &["fdb"],
        &["gossip"],
        &["drops"],
        &["hooks"],
        &["dns", "zone"],
    ] {
        let args: Vec<&str> = command.iter().copied().chain(["--node", "test-w1"]).collect();
        bench.meshctl("m2", &args)?;
    }
    wait_until("all nodes hear all others", CONVERGED, || all_are_heard(bench)).map(drop)?;
    let refused = bench.meshctl("w1", &["status", "--all"]).err().context("a worker asks others")?;
    ensure!(format!("{refused:#}").contains("only managers may ask other nodes"), "{refused:#}");
    Ok(())
}

/// Every node's gossip hears all others, and their data paths answer it.
fn all_are_heard(bench: &Bench) -> anyhow::Result<Option<()>> {
    let n_others = bench.lab.nodes().len() - 1;
    let answers = json(bench, "m2", &["gossip", "--all"])?;
    let answers = answers.as_array().context("a list")?;
    let is_heard =
        |member: &Value| member["agent"]["state"] == "alive" && member["path"]["state"] == "answers";
    let hears_all = |answer: &Value| {
        let members = answer["answer"]["members"].as_array();
        members.is_some_and(|members| members.len() == n_others && members.iter().all(is_heard))
    };
    Ok((answers.len() == n_others + 1 && answers.iter().all(hears_all)).then_some(()))
}

/// Every node's kernel holds what the managers want.
pub fn finds_nothing(bench: &Bench) -> Outcome {
    // A manager that holds few sessions itself, and every node.
    let verify = || bench.meshctl("m2", &["verify", "--all"]).map(Some);
    wait_until("verify finds nothing on any node", CONVERGED, verify).map(drop)
}

fn json(bench: &Bench, node: &str, args: &[&str]) -> anyhow::Result<Value> {
    let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&bench.meshctl(node, &all)?).context("JSON")
}
