//! A page that is a config, passwords that are secrets, a Redis whose configuration is a template with one of them, a
//! network from outside, an agent on every node, and checks of health.

use anyhow::ensure;
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

pub fn configs_and_secrets(bench: &mut Bench) -> Outcome {
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
    visits_are(bench, "First", 1)?;
    the_password_opens(bench)?;
    for node in bench.lab.nodes() {
        let said = page(bench, node, &Request::to(AGENT_PORT))?;
        ensure!(said.trim() == format!("node: {}", node.name), "{} says {said}", node.name);
    }

    // Configs don't change: another page is another config, and what uses it rolls.
    let old = bench.running("visits_web")?;
    deploy("2")?;
    for task in old {
        let filter = format!("name={}.{}", task.name, task.id);
        wait_until("the first page's containers to be gone", SETTLE, || {
            let left = bench.lab.docker(&task.node, &["ps", "-q", "--filter", &filter])?;
            Ok(left.is_empty().then_some(()))
        })?;
    }
    visits_are(bench, "Second", n_nodes + 1)?;
    ensure!(stack.n_tasks("counter")? == 1, "the counter was begun anew");
    // An update that is still looked at may be taken back: until then it holds both pages.
    wait_until("the update to be completed", SETTLE, || {
        let state = ["service", "inspect", "--format", "{{.UpdateStatus.State}}", "visits_web"];
        Ok((bench.docker(&state)? == "completed").then_some(()))
    })?;
    bench.docker(&["config", "rm", "visits_page_1"])?;
    stack.remove(&[])?;
    nothing_at(bench, WEB_PORT)?;
    nothing_at(bench, AGENT_PORT)?;
    bench.docker(&["network", "rm", NETWORK]).map(drop)
}

/// This client is the only one: through whatever node, each visit is the next number.
fn visits_are(bench: &Bench, title: &str, first: usize) -> Outcome {
    for (number, page) in (first..).zip(pages(bench, WEB_PORT)?) {
        let is_next = page.contains(&format!("<p>Visit {number}, by "));
        ensure!(
            is_next && page.contains(&format!("<h1>{title}</h1>")),
            "not {title}, visit {number}: {page}"
        );
    }
    Ok(())
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
