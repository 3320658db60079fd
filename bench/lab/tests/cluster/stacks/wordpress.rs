//! WordPress and its database, with small servers in their places: what the file says is what they find.

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;

use super::images;
use super::stack::{Request, Stack, ask, nothing_at, pages};
use crate::registry::Registry;
use crate::support::{Bench, Outcome, SETTLE};

const PORT: u16 = 8000;

pub fn with_its_database(bench: &mut Bench) -> Outcome {
    let registry = Registry::start(bench)?;
    images::push(bench, &registry, images::WORDPRESS)?;
    let stack = Stack::new(bench, "blog", &[("wordpress.yml", include_str!("wordpress.yml"))])?;
    let said = stack.deploy(&["-c", "wordpress.yml"], &[("REGISTRY", &registry.name())])?;
    ensure!(said.stderr.contains("Ignoring unsupported options: restart"), "it says {said:?}");
    stack.wait_running(&[("db", 1), ("wordpress", 1)])?;
    wait_until("the blog to reach its database", SETTLE, || Ok(visits(bench)?.first().copied()))?;
    // Each node's page is one visit more: there is one database behind them all.
    let numbers = visits(bench)?;
    ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "the visits are {numbers:?}");

    let wrong =
        ["service", "update", "--quiet", "--env-add", "WORDPRESS_DB_PASSWORD=guess", "blog_wordpress"];
    bench.docker(&wrong)?;
    let denied = "Error establishing a database connection: Access denied for user 'wordpress'";
    for node in bench.lab.nodes() {
        wait_until(&format!("the database to let nobody in through {}", node.name), SETTLE, || {
            let (status, text) = ask(bench, node, &Request::to(PORT))?;
            Ok((status == 503 && text.trim() == denied).then_some(()))
        })?;
    }
    stack.remove(&["blog_db_data"])?;
    nothing_at(bench, PORT)
}

/// The number that each node's page shows, in turn.
fn visits(bench: &Bench) -> Result<Vec<u64>> {
    let number = |page: &String| {
        let (_, rest) = page.split_once("Visit ").context("no number")?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        Ok(digits.parse()?)
    };
    pages(bench, PORT)?.iter().map(number).collect()
}
