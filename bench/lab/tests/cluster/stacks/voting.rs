//! The voting app: votes go in through any node, by Redis and a worker into PostgreSQL, and come out through any other.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use bench_lab::{NodeRecord, wait_until};

use super::images;
use super::picture;
use super::stack::{Request, Stack, nothing_at, page, pages};
use crate::registry::Registry;
use crate::support::{Bench, Outcome, SETTLE};

const VOTE_PORT: u16 = 5000;
const RESULT_PORT: u16 = 5001;
const VISUALIZER_PORT: u16 = 8081;
const SERVICES: [(&str, usize); 6] =
    [("redis", 1), ("db", 1), ("vote", 2), ("result", 1), ("worker", 1), ("visualizer", 1)];
/// Which node has the volume with the votes.
const DATA_NODE: &str = "m1";
/// Voters and what they vote for; the last has changed its mind.
const VOTES: [(&str, &str); 8] =
    [("1", "a"), ("2", "b"), ("3", "a"), ("4", "b"), ("5", "a"), ("6", "a"), ("7", "b"), ("7", "a")];

pub fn voting_app(bench: &mut Bench) -> Outcome {
    let data_node = bench.lab.node(DATA_NODE)?.name.clone();
    bench.docker(&["node", "update", "--label-add", "data=votes", &data_node])?;
    let voting = Voting::new(bench)?;
    voting.deploy(&["-c", "voting.yml", "-c", "visualizer.yml"], "before")?;
    voting.stack.wait_running(&SERVICES)?;
    voting.answers_everywhere()?;
    voting.counts_votes()?;
    picture::take_if_asked(bench, VOTE_PORT, RESULT_PORT)?;
    voting.outlives_its_database()?;

    voting.deploy(&["-c", "voting.yml", "--prune"], "after")?;
    voting.everywhere(VOTE_PORT, "Tea or Coffee?")?;
    voting.everywhere(RESULT_PORT, "Tea <small>5</small>")?;
    nothing_at(bench, VISUALIZER_PORT)?;
    for (service, n_tasks) in [("redis", 1), ("db", 2), ("worker", 1)] {
        ensure!(voting.stack.n_tasks(service)? == n_tasks, "{service} was begun anew");
    }
    voting.stack.remove(&["voting_db-data"])?;
    nothing_at(bench, VOTE_PORT)?;
    nothing_at(bench, RESULT_PORT)?;
    bench.docker(&["node", "update", "--label-rm", "data", &data_node])?;
    Ok(())
}

struct Voting<'a> {
    bench: &'a Bench,
    registry: Registry,
    stack: Stack<'a>,
}

impl<'a> Voting<'a> {
    fn new(bench: &'a Bench) -> Result<Self> {
        let registry = Registry::start(bench)?;
        images::push(bench, &registry, images::VOTING)?;
        let files =
            [("voting.yml", include_str!("voting.yml")), ("visualizer.yml", include_str!("visualizer.yml"))];
        Ok(Self { bench, registry, stack: Stack::new(bench, "voting", &files)? })
    }

    /// `version` is that of the two servers with pages.
    fn deploy(&self, options: &[&str], version: &str) -> Outcome {
        let node = self.bench.lab.node(DATA_NODE)?;
        // Each node's daemon has a socket of its own here.
        let socket = self.bench.lab.socket(DATA_NODE)?.to_string_lossy().into_owned();
        let socket = socket.replace(&node.name, "{{.Node.Hostname}}");
        let registry = self.registry.name();
        let variables = [("REGISTRY", registry.as_str()), ("VERSION", version), ("DOCKER_SOCKET", &socket)];
        self.stack.deploy(options, &variables).map(drop)
    }

    /// Every page on every node: both replicas, for a client whose address they see.
    fn answers_everywhere(&self) -> Outcome {
        self.everywhere(RESULT_PORT, "no votes yet")?;
        self.everywhere(VOTE_PORT, "Cats or Dogs?")?;
        let client = format!("answered <code>{}</code>", self.bench.lab.client_address());
        let mut containers = BTreeSet::new();
        // Which one answers is by chance.
        wait_until("both replicas to answer", SETTLE, || {
            for page in pages(self.bench, VOTE_PORT)? {
                ensure!(page.contains(&client), "the client is another: {page}");
                let (_, rest) = page.split_once("Container <code>").context("no container")?;
                containers.extend(rest.split_once('<').map(|(name, _)| name.to_owned()));
            }
            Ok((containers.len() == 2).then_some(()))
        })?;
        ensure!(containers.len() == 2, "of two replicas answer {containers:?}");
        for page in pages(self.bench, VISUALIZER_PORT)? {
            let nodes = self.bench.lab.nodes().iter().map(|node| format!("<h2>{}</h2>", node.name));
            let shown = nodes.chain(["voting_vote.2".to_owned(), "voting_db.1".to_owned()]);
            let missing: Vec<String> = shown.filter(|text| !page.contains(text)).collect();
            ensure!(missing.is_empty(), "the visualizer does not show {missing:?}: {page}");
        }
        Ok(())
    }

    /// Voters vote through one node after the other; every node shows the result.
    fn counts_votes(&self) -> Outcome {
        let nodes = self.bench.lab.nodes();
        for ((voter, vote), node) in VOTES.iter().zip(nodes.iter().cycle()) {
            self.vote(node, voter, vote)?;
        }
        self.everywhere(RESULT_PORT, "7 votes")?;
        // The last was of one who had voted before.
        self.everywhere(RESULT_PORT, "71.4 %")
    }

    /// What is in the database when its container is killed is there in the next; what was voted meanwhile comes too.
    fn outlives_its_database(&self) -> Outcome {
        let service = self.stack.service("db");
        let old = self.bench.running(&service)?.pop().context("no database runs")?;
        self.bench.lab.docker(&old.node, &["kill", &format!("{}.{}", old.name, old.id)])?;
        self.vote(self.bench.lab.node("w1")?, "8", "b")?;
        self.bench.wait_running(&service, 1, |task| task.id != old.id && task.node == old.node)?;
        self.everywhere(RESULT_PORT, "8 votes")
    }

    fn vote(&self, node: &NodeRecord, voter: &str, vote: &str) -> Outcome {
        let (cookie, form) = (format!("voter_id={voter}"), format!("vote={vote}"));
        let options = ["--cookie", &cookie, "--data", &form];
        let page = page(self.bench, node, &Request { options: &options, ..Request::to(VOTE_PORT) })?;
        ensure!(page.contains('✓'), "the vote was not taken: {page}");
        Ok(())
    }

    /// Waits until the page shows this on every node, whoever answers.
    fn everywhere(&self, port: u16, text: &str) -> Outcome {
        let ((), took) = wait_until(&format!("{text:?} at port {port} of every node"), SETTLE, || {
            let shown = [pages(self.bench, port)?, pages(self.bench, port)?].concat();
            Ok(shown.iter().all(|page| page.contains(text)).then_some(()))
        })?;
        println!("  every node showed {text:?} after {:.1} s", took.as_secs_f64());
        Ok(())
    }
}
