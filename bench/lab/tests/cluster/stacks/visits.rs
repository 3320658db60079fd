//! A page that is a config, passwords that are secrets, a Redis whose configuration is a template with one of them, a
//! network from outside, an agent on every node, and checks of health.

use anyhow::{Result, ensure};
use bench_lab::wait_until;

use super::images;
use super::stack::{Request, Stack, ask, nothing_at, page, pages};
use crate::registry::Registry;
use crate::support::{Bench, Outcome, SETTLE};

const WEB_PORT: u16 = 8088;
const AGENT_PORT: u16 = 9101;
const NETWORK: &str = "edge";
const WEB_PASSWORD: &str = "open sesame";
const PAGE: &str = include_str!("page.html");

pub fn page_of_configs_and_secrets(bench: &mut Bench) -> Outcome {
    let registry = Registry::start(bench)?;
    images::push(bench, &registry, images::VISITS)?;
    let (first, second) = (PAGE.replace("{{title}}", "First"), PAGE.replace("{{title}}", "Second"));
    let files = [
        ("visits.yml", include_str!("visits.yml")),
        ("redis.conf", include_str!("redis.conf")),
        ("page-1.html", &first),
        ("page-2.html", &second),
        ("web_password", WEB_PASSWORD),
        ("redis_password", "only for servers"),
    ];
    let stack = Stack::new(bench, "visits", &files)?;
    let deploy =
        |page| stack.deploy(&["-c", "visits.yml"], &[("REGISTRY", &registry.name()), ("PAGE", page)]);
    ensure!(deploy("1").is_err(), "it was deployed without its network");
    bench.docker(&["network", "create", "-d", "overlay", NETWORK])?;
    deploy("1")?;
    let n_nodes = bench.lab.nodes().len();
    stack.wait_running(&[("web", 2), ("counter", 1), ("agent", n_nodes)])?;
    all_are_healthy(bench)?;
    let last = visits_grow(bench, "First", 0)?;
    the_password_opens(bench)?;
    for node in bench.lab.nodes() {
        let said = page(bench, node, &Request::to(AGENT_PORT))?;
        ensure!(said.trim() == format!("node: {}", node.name), "{} says {said}", node.name);
    }

    // Configs don't change: another page is another config, and what uses it rolls.
    deploy("2")?;
    wait_until("the second page everywhere", SETTLE, || {
        Ok(pages(bench, WEB_PORT)?.iter().all(|page| page.contains("Second")).then_some(()))
    })?;
    visits_grow(bench, "Second", last + 1)?;
    ensure!(stack.n_tasks("counter")? == 1, "the counter was begun anew");
    bench.docker(&["config", "rm", "visits_page_1"])?;
    stack.remove(&[])?;
    nothing_at(bench, WEB_PORT)?;
    nothing_at(bench, AGENT_PORT)?;
    bench.docker(&["network", "rm", NETWORK]).map(drop)
}

/// Nobody but this client counts: through whatever node, each visit is the next number. Gives the last.
fn visits_grow(bench: &Bench, title: &str, least: u64) -> Result<u64> {
    let mut numbers = Vec::new();
    for page in pages(bench, WEB_PORT)? {
        ensure!(page.contains(&format!("<h1>{title}</h1>")), "another page: {page}");
        let (_, rest) = page.split_once("Visit ").unwrap_or_default();
        numbers.push(rest.split(',').next().unwrap_or_default().parse::<u64>()?);
    }
    let grow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(grow && numbers[0] > least, "the visits are {numbers:?}, after {least}");
    Ok(numbers[numbers.len() - 1])
}

fn the_password_opens(bench: &Bench) -> Outcome {
    let right = format!("admin:{WEB_PASSWORD}");
    for node in bench.lab.nodes() {
        for (options, wanted) in [(&[][..], 401), (&["-u", "admin:guess"], 401), (&["-u", &right], 200)] {
            let (status, _) = ask(bench, node, &Request { port: WEB_PORT, path: "/admin", options })?;
            ensure!(status == wanted, "{}: {options:?} gives {status}", node.name);
        }
    }
    Ok(())
}

/// As `docker ps` of their nodes says.
fn all_are_healthy(bench: &Bench) -> Outcome {
    let mut healthy = Vec::new();
    for node in bench.lab.nodes() {
        let format = ["--format", "{{.Names}}"];
        let listed =
            bench.lab.docker(&node.name, &[&["ps", "--filter", "health=healthy"][..], &format].concat())?;
        healthy.extend(listed.lines().filter_map(|name| Some(name.split('.').next()?.to_owned())));
    }
    healthy.sort_unstable();
    ensure!(healthy == ["visits_counter", "visits_web", "visits_web"], "healthy are {healthy:?}");
    Ok(())
}
