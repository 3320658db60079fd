//! Tasks move to nodes that have room again, where their service wants it.

use std::net::SocketAddr;

use anyhow::ensure;
use bench_lab::{Traffic, wait_until};

use crate::support::{Bench, Outcome, SETTLE};

const PORT: u16 = 8097;
const SERVICE: &str = "moves";

/// A task per node; one node is drained and active again.
pub fn tasks_move_back(bench: &mut Bench) -> Outcome {
    let n_nodes = bench.lab.nodes().len();
    let node = bench.lab.node("w1")?.name.clone();
    let publish = format!("{PORT}:80");
    bench.create_whoami(SERVICE, n_nodes, &["--publish", &publish, "--label", "mesh.rebalance=1"])?;
    bench.create_whoami("stays", n_nodes, &[])?;
    bench.docker(&["node", "update", "--availability", "drain", &node])?;
    for service in [SERVICE, "stays"] {
        bench.wait_running(service, n_nodes, |task| task.node != node)?;
    }
    let targets: Vec<_> =
        bench.lab.nodes().iter().map(|node| SocketAddr::new(node.address.into(), PORT)).collect();
    let traffic = Traffic::start(&bench.lab, &targets, 100)?;
    wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 50).then_some(())))?;
    bench.docker(&["node", "update", "--availability", "active", &node])?;
    let ((), waited) = wait_until("a task on each node", SETTLE, || {
        let mut nodes: Vec<String> = bench.running(SERVICE)?.into_iter().map(|task| task.node).collect();
        nodes.sort();
        nodes.dedup();
        Ok((nodes.len() == n_nodes).then_some(()))
    })?;
    bench.wait_running(SERVICE, n_nodes, |_| true)?;
    let report = traffic.stop()?;
    println!(
        "  even after {:.1} s; {} requests, {} failed",
        waited.as_secs_f64(),
        report.n_sent,
        report.n_failed
    );
    ensure!(report.n_failed == 0, "{:?}", report.failures);
    let stayed = bench.running("stays")?;
    ensure!(stayed.iter().all(|task| task.node != node), "{stayed:?}");
    bench.docker(&["service", "rm", SERVICE, "stays"]).map(drop)
}
