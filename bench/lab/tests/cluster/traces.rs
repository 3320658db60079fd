//! `meshctl trace` and `meshctl trace --live` agree: over tasks of several nodes, tasks' and virtual addresses, published
//! ports, addresses that nobody has, and a service without tasks, by both families and protocols.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;
use serde_json::Value;

use crate::support::{Bench, Outcome, PORT, RunningTask, SETTLE};

const NETWORK: [&str; 4] = ["--subnet", "10.67.0.0/24", "--subnet", "fd67::/64"];
const PUBLISHED: u16 = 8096;
const UNPUBLISHED: u16 = 8097;
/// Of the network, and of nobody.
const NOBODY: [&str; 4] = ["10.67.0.200", "fd67::c8", "192.0.2.77", "2001:db8::77"];
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// A source port that no trace has had: a flow that is known is told otherwise than one that begins.
struct Ports(u16);

impl Ports {
    fn next(&mut self) -> String {
        self.0 += 1;
        self.0.to_string()
    }
}

pub fn agree_with_packets(bench: &mut Bench) -> Outcome {
    clients_end_in_sandboxes(bench)?;
    bench.docker(&[&["network", "create", "-d", "overlay", "--ipv6"][..], &NETWORK, &["traced"]].concat())?;
    let publish = format!("{PUBLISHED}:80");
    bench.create_whoami_on(&["traced"], ("traced", 3), &["--publish", &publish])?;
    // Without a leg in the ingress network.
    bench.create_whoami_on(&["traced"], ("tracer", 1), &[])?;

    let (traced, tracer) = (bench.running("traced")?, bench.running("tracer")?);
    let mut ports = Ports(44_000);
    let mut n_compared = 0;
    for from in traced.iter().take(2).chain(&tracer) {
        for to in destinations(bench, from)? {
            for protocol in PROTOCOLS {
                compare(bench, from, &to, protocol, &ports.next())?;
                n_compared += 1;
            }
        }
    }
    println!("  {n_compared} packets went where the tables say");

    bench.docker(&["service", "scale", "--detach", "traced=0"])?;
    let from = tracer.first().context("no tracer runs")?;
    for to in names() {
        for protocol in PROTOCOLS {
            wait_until("the trace to be refused", SETTLE, || {
                let told = traced_by_tables(bench, from, &to, protocol, "40000")?;
                Ok(told["ways"][0]["end"]["refused"].is_object().then_some(()))
            })?;
            compare(bench, from, &to, protocol, &ports.next())?;
        }
    }
    bench.docker(&["service", "rm", "traced", "tracer"])?;
    wait_until("the network to go", SETTLE, || {
        Ok(bench.docker(&["network", "rm", "traced"]).is_ok().then_some(()))
    })?;
    Ok(())
}

/// `--to` and what goes with it.
type Destination = Vec<String>;

/// The service's name, by each family.
fn names() -> Vec<Destination> {
    let by_name = vec!["traced:80".to_owned()];
    if !bench_lab::has_ipv6() {
        return vec![by_name];
    }
    vec![by_name.clone(), [by_name, vec!["-6".to_owned()]].concat()]
}

fn destinations(bench: &Bench, from: &RunningTask) -> anyhow::Result<Vec<Destination>> {
    let at = |address: &str, port: u16| match address.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{address}]:{port}"),
        Err(_) => format!("{address}:{port}"),
    };
    let mut sockets = Vec::new();
    for record_type in ["A", "AAAA"] {
        sockets.extend(task_addresses(bench, from, record_type)?.iter().map(|address| at(address, 80)));
    }
    sockets.extend(NOBODY.map(|address| at(address, 80)));
    let (own, others): (Vec<_>, Vec<_>) = bench.lab.nodes().iter().partition(|node| node.name == from.node);
    for node in own.into_iter().chain(others.into_iter().take(1)) {
        for address in [IpAddr::from(node.address), node.address6().into()] {
            sockets.extend([PUBLISHED, UNPUBLISHED].map(|port| at(&address.to_string(), port)));
        }
    }
    sockets.retain(|socket| bench_lab::has_ipv6() || !socket.starts_with('['));
    Ok(names().into_iter().chain(sockets.into_iter().map(|socket| vec![socket])).collect())
}

fn task_addresses(bench: &Bench, from: &RunningTask, record_type: &str) -> anyhow::Result<Vec<String>> {
    let args = ["dns", "query", "--task", &from.id, "tasks.traced", record_type, "--node", &from.node];
    let answers = json(bench, &args)?["answers"].as_array().context("answers")?.clone();
    Ok(answers.iter().filter_map(|answer| answer["data"].as_str().map(str::to_owned)).collect())
}

fn compare(bench: &Bench, from: &RunningTask, to: &Destination, protocol: &str, port: &str) -> Outcome {
    let told = traced_by_tables(bench, from, to, protocol, port)?;
    let went = json(bench, &[&arguments(from, to, protocol, port)[..], &["--live"]].concat())?;
    let (told, went) = (told["ways"].as_array().context("ways")?, &went["ways"][0]);
    let is_told = told.iter().any(|way| hops(way) == hops(went) && way["end"] == went["end"]);
    ensure!(is_told, "{} to {to:?} by {protocol}: told {told:#?}, went {went:#}", from.name);
    Ok(())
}

fn traced_by_tables(
    bench: &Bench,
    from: &RunningTask,
    to: &Destination,
    protocol: &str,
    port: &str,
) -> anyhow::Result<Value> {
    json(bench, &arguments(from, to, protocol, port))
}

fn arguments<'a>(
    from: &'a RunningTask,
    to: &'a Destination,
    protocol: &'a str,
    port: &'a str,
) -> Vec<&'a str> {
    let further = ["--protocol", protocol, "--port", port, "--node", &from.node];
    let to = to.iter().map(String::as_str);
    ["trace", "--from", &from.id, "--to"].into_iter().chain(to).chain(further).collect()
}

fn hops(way: &Value) -> Vec<(&Value, &Value)> {
    let steps = way["steps"].as_array().into_iter().flatten().filter(|step| step["at"] == "program");
    steps.map(|step| (&step["node"], &step["says"])).collect()
}

/// From outside by each node, source ports that lead to several tasks: each way is told to its end.
fn clients_end_in_sandboxes(bench: &Bench) -> Outcome {
    let mut clients = vec![IpAddr::from(bench.lab.client_address())];
    if bench_lab::has_ipv6() {
        clients.push(bench.lab.client_address6().into());
    }
    let to = format!("whoami:{PORT}");
    let (mut n_ways, mut n_tunnels) = (0, 0);
    for (client, node) in clients.iter().flat_map(|client| bench.lab.nodes().iter().map(move |n| (client, n)))
    {
        let from = format!("outside/{client}");
        for port in 40_000..40_008 {
            let port = port.to_string();
            let args = ["trace", "--from", &from, "--to", &to, "--port", &port, "--node", &node.name];
            let trace = json(bench, &args)?;
            let way = &trace["ways"][0];
            let end = &way["end"]["sandbox"];
            let task = end["task"].as_str().unwrap_or_default();
            ensure!(task.starts_with("whoami."), "{client} by {} port {port}: {way}", node.name);
            let is_ipv6 = end["destination"].as_str().is_some_and(|at| at.starts_with('['));
            ensure!(is_ipv6 == client.is_ipv6(), "{client} is led to {end}");
            let steps = way["steps"].as_array().context("steps")?;
            n_tunnels += usize::from(steps.iter().any(|step| step["at"] == "tunnel"));
            n_ways += 1;
        }
    }
    println!("  {n_tunnels} of {n_ways} ways lead over two nodes");
    ensure!(n_tunnels > 0, "no way leads to another node");
    Ok(())
}

/// Asked of a manager, for any node.
fn json(bench: &Bench, args: &[&str]) -> anyhow::Result<Value> {
    let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&bench.meshctl("m1", &all)?).context("JSON")
}
