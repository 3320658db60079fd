//! A task that begins gets a part of its share of new connections, which grows to the whole, on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use serde_json::Value;

use crate::support::{Bench, Outcome, SETTLE};

const PORT: u16 = 8098;
/// Long enough for the first steps to be seen on a busy machine.
const LABEL: &str = "mesh.slow-start=30s";
/// Places of 1,000 that one of two tasks has, as exactly as a ring can say it.
const EVEN: std::ops::RangeInclusive<u64> = 480..=520;
const N_REQUESTS: usize = 300;
/// How far so many requests may be from the rings' shares by chance, of 1,000: six standard deviations.
const CHANCE: usize = 175;

/// Of 1,000 places of a ring, how many the second task has: by node and VNI.
type Shares = BTreeMap<(String, u64), u64>;

pub fn tasks_start_slowly(bench: &mut Bench) -> Outcome {
    let label = ["--label", "mesh.slow-start=soon"];
    let refusal = bench.create_whoami("hasty", 1, &label).err().context("a time that is none was taken")?;
    ensure!(format!("{refusal:#}").contains("\"soon\" is no time between 1s and 1h"), "{refusal:#}");

    bench.create_whoami("slow", 1, &["--publish", &format!("{PORT}:80"), "--label", LABEL])?;
    let (first, _) = wait_until("the first task to have its whole weight", SETTLE, || {
        let rings = rings(bench)?.into_iter();
        let first: BTreeSet<String> = rings.flat_map(|ring| ring.places.into_keys()).collect();
        let weights = weights(bench)?;
        let of_first: Vec<u64> = first.iter().filter_map(|address| weights.get(address).copied()).collect();
        Ok((!of_first.is_empty() && of_first.iter().all(|weight| *weight == 100)).then_some(first))
    })?;
    bench.docker(&["service", "scale", "--detach", "slow=2"])?;
    let (cold, _) = wait_until("the second task to be in all rings", SETTLE, || {
        let shares = shares(bench, &first)?;
        Ok(shares.values().all(|share| *share > 0).then_some(shares))
    })?;
    let answers = bench.ask("client", &targets(bench), N_REQUESTS)?;
    let n_second = answers.iter().filter(|answer| answer.get("task").starts_with("slow.2.")).count();
    let mut seen = vec![cold, shares(bench, &first)?];
    check_requests(n_second * 1000 / N_REQUESTS, &seen)?;
    wait_until("the second task to have its share", SETTLE, || {
        let now = shares(bench, &first)?;
        seen.push(now.clone());
        Ok(now.values().all(|share| EVEN.contains(share)).then_some(()))
    })?;
    check(&seen)?;
    bench.docker(&["service", "rm", "slow"])?;
    Ok(())
}

/// What the client got of the second task lies between what the rings said before and after, give or take chance.
fn check_requests(permille: usize, seen: &[Shares]) -> Outcome {
    let all = || seen.iter().flat_map(Shares::values).filter_map(|share| usize::try_from(*share).ok());
    let (least, most) = (all().min().context("no ring")?, all().max().context("no ring")?);
    println!("  {permille} of 1,000 requests to a task with {least} to {most} of 1,000 places");
    let expected = least.saturating_sub(CHANCE)..=most + CHANCE;
    ensure!(expected.contains(&permille), "{permille} of 1,000 requests, expected {expected:?}");
    Ok(())
}

/// Each ring begins below half of an even share, and never takes back what it has given.
fn check(seen: &[Shares]) -> Outcome {
    let first = seen.first().context("no look")?;
    ensure!(first.values().all(|share| *share < EVEN.start() / 2), "the task began with {first:?}");
    for (ring, share) in first {
        let steps: Vec<u64> = seen.iter().filter_map(|shares| shares.get(ring).copied()).collect();
        ensure!(steps.len() == seen.len() && steps.is_sorted(), "{ring:?} began with {share}: {steps:?}");
    }
    let of_one = seen.iter().filter_map(|shares| shares.values().next().copied());
    println!("  steps of one ring of {}: {:?}", first.len(), of_one.collect::<BTreeSet<u64>>());
    Ok(())
}

/// The ring of the service in one network, on one node.
struct Ring {
    node: String,
    vni: u64,
    places: BTreeMap<String, u64>,
}

/// The rings in use on every node.
fn rings(bench: &Bench) -> Result<Vec<Ring>> {
    let all: Value = serde_json::from_str(&bench.meshctl("m1", &["lb", "ring", "slow", "--all", "--json"])?)?;
    let mut rings = Vec::new();
    for node in all.as_array().context("a list of nodes")? {
        for report in node["answer"].as_array().context("an answer of each node")? {
            let in_use =
                report["rings"].as_array().and_then(|rings| rings.first()).context("a ring in use")?;
            let backends = in_use["backends"].as_array().into_iter().flatten();
            let places =
                backends.filter_map(|b| Some((b["address"].as_str()?.to_owned(), b["places"].as_u64()?)));
            rings.push(Ring {
                node: node["hostname"].as_str().context("a name")?.to_owned(),
                vni: report["vni"].as_u64().context("a VNI")?,
                places: places.collect(),
            });
        }
    }
    Ok(rings)
}

/// What others than `first` have.
fn shares(bench: &Bench, first: &BTreeSet<String>) -> Result<Shares> {
    let share = |ring: &Ring| {
        let of_second: u64 =
            ring.places.iter().filter(|(address, _)| !first.contains(*address)).map(|(_, n)| n).sum();
        of_second * 1000 / ring.places.values().sum::<u64>().max(1)
    };
    Ok(rings(bench)?.into_iter().map(|ring| ((ring.node.clone(), ring.vni), share(&ring))).collect())
}

/// Of the endpoints that a manager knows, by address.
fn weights(bench: &Bench) -> Result<BTreeMap<String, u64>> {
    let rows: Value = serde_json::from_str(&bench.meshctl("m1", &["endpoints", "--json"])?)?;
    let rows = rows.as_array().context("a list of endpoints")?.iter();
    Ok(rows.filter_map(|row| Some((row["address"].as_str()?.to_owned(), row["weight"].as_u64()?))).collect())
}

fn targets(bench: &Bench) -> Vec<SocketAddr> {
    bench.lab.nodes().iter().map(|node| SocketAddr::new(node.address.into(), PORT)).collect()
}
