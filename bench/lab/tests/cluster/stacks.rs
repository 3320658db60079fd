//! A stack on real nodes: its ports, names and volumes; deployed again, what is the same runs on.

mod images;
mod picture;
mod stack;
pub mod visits;
pub mod voting;
pub mod wordpress;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, SETTLE, counts};

const STACK: &str = "shop";
const VOTE_PORT: u16 = 5000;
const RESULT_PORT: u16 = 5001;
const VOLUME: &str = "shop_db-data";
const SERVICES: [(&str, usize); 4] =
    [("shop_cache", 1), ("shop_db", 1), ("shop_result", 1), ("shop_vote", 2)];

pub fn deployed_changed_and_removed(bench: &mut Bench) -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("shop.yml");
    deploy(bench, &file, "1")?;
    for (service, n_tasks) in SERVICES {
        bench.wait_running(service, n_tasks, |_| true)?;
    }
    let vote = answers(bench, VOTE_PORT, "version")?;
    ensure!(vote == ["1"], "at port {VOTE_PORT} answers {vote:?}");
    let result = answers(bench, RESULT_PORT, "service")?;
    ensure!(result == ["result"], "at port {RESULT_PORT} answers {result:?}");
    names_are_those_of_its_networks(bench)?;

    let db = bench.running("shop_db")?.pop().context("no db")?;
    let label = "label=com.docker.stack.namespace=shop";
    let volumes = bench.lab.docker(&db.node, &["volume", "ls", "-q", "--filter", label])?;
    ensure!(volumes.trim() == VOLUME, "{} has the volumes {volumes:?}", db.node);
    let refused = bench.lab.docker(&db.node, &["volume", "rm", VOLUME]).err().context("it is in use")?;
    ensure!(format!("{refused:#}").contains("volume is in use"), "{refused:#}");

    deploy(bench, &file, "2")?;
    wait_until("the new version to answer alone", SETTLE, || {
        Ok((answers(bench, VOTE_PORT, "version")? == ["2"]).then_some(()))
    })?;
    for service in ["shop_cache", "shop_db", "shop_result"] {
        let history = bench.docker(&["service", "ps", "-q", service])?;
        ensure!(history.lines().count() == 1, "{service} was begun anew: {history:?}");
    }
    bench.docker(&["stack", "rm", STACK])?;
    // Its containers go with its tasks; the volume stays until a user removes it.
    wait_until("the volume to be free", SETTLE, || {
        Ok(bench.lab.docker(&db.node, &["volume", "rm", VOLUME]).ok())
    })?;
    wait_until("its networks to be gone", SETTLE, || {
        let left = bench.docker(&["network", "ls", "-q", "--filter", label])?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    Ok(())
}

/// A task knows who shares a network with it, and nobody else.
fn names_are_those_of_its_networks(bench: &Bench) -> Outcome {
    let vote = bench.running("shop_vote")?.pop().context("no vote")?;
    let container = format!("{}.{}", vote.name, vote.id);
    let resolve =
        |name: &str| bench.lab.docker(&vote.node, &["exec", &container, "/whoami", "resolve", name]);
    ensure!(resolve("cache")?.lines().count() == 1, "cache has no address");
    ensure!(resolve("tasks.vote")?.lines().count() == 2, "vote has not two tasks");
    ensure!(resolve("db").is_err(), "db is of another network");
    Ok(())
}

/// What the tasks behind `port` of all nodes say of `key`, each answer once.
fn answers(bench: &Bench, port: u16, key: &str) -> anyhow::Result<Vec<String>> {
    let targets: Vec<SocketAddr> =
        bench.lab.nodes().iter().map(|node| SocketAddr::new(node.address.into(), port)).collect();
    let answers = bench.ask("client", &targets, 4 * targets.len())?;
    Ok(counts(&answers, key).into_keys().map(str::to_owned).collect())
}

fn deploy(bench: &Bench, file: &Path, version: &str) -> Outcome {
    let text = format!(
        r#"version: "3.8"
services:
  vote:
    image: whoami:1
    environment: {{ VERSION: "{version}", SERVICE: vote }}
    ports: ["{VOTE_PORT}:80"]
    networks: [front]
    depends_on: [cache]
    deploy:
      replicas: 2
      update_config: {{ parallelism: 1, order: start-first }}
  cache:
    image: whoami:1
    networks: [front]
  db:
    image: whoami:1
    volumes: ["db-data:/data"]
    networks: [back]
    deploy: {{ placement: {{ constraints: ["node.role==manager"] }} }}
  result:
    image: whoami:1
    environment: {{ SERVICE: result }}
    ports: ["{RESULT_PORT}:80"]
    networks: [back]
networks: {{ front: , back: }}
volumes: {{ db-data: }}
"#
    );
    std::fs::write(file, text)?;
    bench
        .docker(&["stack", "deploy", "--resolve-image", "never", "-c", &file.to_string_lossy(), STACK])
        .map(drop)
}
