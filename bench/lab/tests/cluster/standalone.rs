//! `docker run` on nodes of a swarm: containers that no service makes, beside the tasks.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_lab::{Captured, request, wait_until};

use crate::support::{Bench, Outcome, PORT, SETTLE};

const PUBLISHED: u16 = 8085;
const NAME: &str = "helloapp";
/// More than any buffer on the way holds.
const INPUT_BYTES: usize = 2 << 20;

pub fn beside_the_swarm(bench: &mut Bench) -> Outcome {
    let node = bench.lab.nodes().last().context("no node")?.name.clone();
    serves(bench, &node)?;
    gives_streams_and_codes(bench, &node)?;
    follows_rules(bench, &node)?;
    ports_are_one_users(bench, &node)?;
    in_a_network_of_the_swarm(bench, &node)?;
    outlives_the_daemon(bench, &node)?;
    bench.lab.docker(&node, &["stop", NAME])?;
    refused(bench, &node)?;
    bench.lab.docker(&node, &["start", NAME])?;
    listens(bench, &node)?;
    bench.lab.docker(&node, &["rm", "-f", NAME])?;
    refused(bench, &node)?;
    let left = bench.lab.docker(&node, &["ps", "-aq", "--filter", &format!("name={NAME}")])?;
    ensure!(left.is_empty(), "{left} is left");
    Ok(())
}

/// Clients, other nodes, and the node itself by its address and by localhost.
fn serves(bench: &Bench, node: &str) -> Outcome {
    let publish = format!("{PUBLISHED}:80");
    let id = bench.lab.docker(node, &["run", "-d", "-p", &publish, "--name", NAME, "whoami:1"])?;
    ensure!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?} is no id");
    let ports = bench.lab.docker(node, &["port", NAME])?;
    ensure!(ports == format!("80/tcp -> 0.0.0.0:{PUBLISHED}"), "its ports are {ports:?}");
    let shown = bench
        .lab
        .docker(node, &["ps", "--filter", &format!("name={NAME}"), "--format", "{{.Ports}} {{.Names}}"])?;
    ensure!(shown == format!("0.0.0.0:{PUBLISHED}->80/tcp {NAME}"), "docker ps shows {shown:?}");
    listens(bench, node)?;
    let other = bench.live_manager()?;
    for from in ["client", &other, node] {
        let host_name = answers(bench, from, node)?;
        ensure!(host_name == id[..12], "{from} got to {host_name}");
    }
    let url = format!("http://localhost:{PUBLISHED}/");
    let said = bench.lab.exec(node, "curl", &["-sS", "--max-time", "5", &url])?;
    ensure!(said.stdout.contains(&format!("hostname: {}", &id[..12])), "{url}: {}", said.text());
    Ok(())
}

/// Who answers at the published port.
fn answers(bench: &Bench, from: &str, node: &str) -> anyhow::Result<String> {
    let to = place(bench, node)?;
    let asked = bench.lab.inside(from, || request(to))?;
    Ok(asked.with_context(|| format!("from {from} at {to}"))?.get("hostname").to_owned())
}

/// A server that was just started listens a moment later.
fn listens(bench: &Bench, node: &str) -> Outcome {
    wait_until("an answer", SETTLE, || Ok(answers(bench, "client", node).ok())).map(drop)
}

fn refused(bench: &Bench, node: &str) -> Outcome {
    let to = place(bench, node)?;
    let asked = || bench.lab.inside("client", || Ok(request(to).is_err().then_some(())))?;
    wait_until("nobody at the port", SETTLE, asked).map(drop)
}

fn place(bench: &Bench, node: &str) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(bench.lab.node(node)?.address.into(), PUBLISHED))
}

fn gives_streams_and_codes(bench: &Bench, node: &str) -> Outcome {
    let run = |words: &[&str]| bench.lab.try_docker(node, &[&["run", "--rm"], words].concat());
    let ended = run(&["whoami:1", "exit", "7"])?;
    ensure!(ended.code == 7, "it ended with {}: {}", ended.code, ended.text());
    let missing = run(&["--entrypoint", "nothing", "whoami:1"])?;
    ensure!(missing.code == 127 && missing.stderr.contains("executable file not found"), "{missing:?}");
    let input: Vec<u8> = (0..INPUT_BYTES).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
    let copied = with_input(bench, node, &["run", "--rm", "-i", "whoami:1", "copy"], input.clone())?;
    ensure!(copied == input, "{} of {INPUT_BYTES} bytes came back", copied.len());
    let reached = run(&["whoami:1", "get", &format!("http://{}:{PORT}/", bench.lab.node(node)?.address)])?;
    ensure!(reached.stdout.contains("task: whoami."), "the mesh says {}", reached.text());
    Ok(())
}

fn with_input(bench: &Bench, node: &str, words: &[&str], input: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let mut client = std::process::Command::new("docker")
        .args(["-H", &format!("unix://{}", bench.lab.socket(node)?.display())])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = client.stdin.take().context("no input")?;
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let output = client.wait_with_output()?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(output.stdout)
}

fn follows_rules(bench: &Bench, node: &str) -> Outcome {
    let begin = Instant::now();
    let run = ["run", "-d", "--name", "fails", "--restart", "on-failure:3", "whoami:1", "exit", "3"];
    bench.lab.docker(node, &run)?;
    let shown = || {
        bench.lab.docker(
            node,
            &["inspect", "--format", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "fails"],
        )
    };
    wait_until("three more runs", SETTLE, || Ok((shown()? == "3 exited 3").then_some(())))?;
    ensure!(begin.elapsed() > Duration::from_millis(700), "without its pauses of 0.1, 0.2 and 0.4 s");
    bench.lab.docker(node, &["rm", "fails"]).map(drop)
}

/// Neither a service's nor another container's.
fn ports_are_one_users(bench: &Bench, node: &str) -> Outcome {
    for number in [PORT, PUBLISHED] {
        let publish = format!("{number}:80");
        let run = bench.lab.try_docker(node, &["run", "-d", "--name", "late", "-p", &publish, "whoami:1"])?;
        let words = format!("Bind for 0.0.0.0:{number} failed: port is already allocated");
        ensure!(run.code == 125 && run.stderr.contains(&words), "{}", run.text());
        bench.lab.docker(node, &["rm", "late"])?;
    }
    bench.lab.docker(node, &["run", "-d", "--name", "late", "-p", "80", "whoami:1"])?;
    let port = bench.lab.docker(node, &["port", "late", "80"])?;
    let number: u16 = port.rsplit(':').next().context("no port")?.parse()?;
    ensure!(number >= 49_153, "{port}");
    bench.lab.docker(node, &["rm", "-f", "late"]).map(drop)
}

/// Services and containers find each other by their names, whatever node they are on, also behind the death of a daemon.
fn in_a_network_of_the_swarm(bench: &Bench, node: &str) -> Outcome {
    const NETWORK: &str = "joinable";
    bench.docker(&["network", "create", "-d", "overlay", "--attachable", NETWORK])?;
    let elsewhere = format!("node.hostname!={node}");
    bench.create_whoami_on(&[NETWORK], ("peer", 1), &["--constraint", &elsewhere])?;
    let peer = bench.running("peer")?.into_iter().next().context("no task runs")?;
    let run = ["run", "-d", "--name", "inside", "--network", NETWORK, "--network-alias", "nick"];
    let id = bench.lab.docker(node, &[&run[..], &["-p", "8086:80", "whoami:1"]].concat())?;
    let host_name = format!("hostname: {}", &id[..12]);
    let asks = |name: &str| bench.in_task(&peer, &["get", &format!("http://{name}/"), "--timeout", "5000"]);
    wait_until("the service to find it", SETTLE, || Ok(asks("inside").ok())).map(drop)?;
    for name in ["inside", "nick", &id[..12]] {
        let answer = asks(name)?;
        ensure!(answer.contains(&host_name), "{name} answers {answer:?}");
    }
    let by_run = ["run", "--rm", "--network", NETWORK, "whoami:1", "get", "http://peer/"];
    let answer = bench.lab.docker(node, &by_run)?;
    ensure!(answer.contains("task: peer.1."), "the service answers {answer:?}");
    let to = SocketAddr::new(bench.lab.node(node)?.address.into(), 8086);
    let answer = bench.lab.inside("client", || request(to))??;
    ensure!(answer.get("hostname") == &id[..12], "its published port leads elsewhere");

    let shown = bench.lab.docker(
        node,
        &["inspect", "--format", "{{.NetworkSettings.Networks.joinable.IPAddress}}", "inside"],
    )?;
    ensure!(asks("inside")?.contains(&format!("local: {shown}:80")), "it is shown at {shown}");
    let listed = bench.docker(&["node", "ps", node, "--format", "{{.Name}}"])?;
    ensure!(!listed.contains("inside"), "its place is shown as a task: {listed}");
    let leader = bench.live_manager()?;
    let refused = bench.lab.try_docker(&leader, &["network", "rm", NETWORK])?;
    ensure!(!refused.success() && refused.stderr.contains("is in use by"), "{}", refused.text());

    bench.lab.kill(node)?;
    ensure!(asks("inside")?.contains(&host_name), "without its daemon");
    bench.lab.start(node)?;
    let ready = ["node", "inspect", "--format", "{{.Status.State}}", node];
    wait_until("the node to be ready", SETTLE, || Ok((bench.docker(&ready)? == "ready").then_some(())))?;
    ensure!(asks("inside")?.contains(&host_name), "behind the death of its daemon");
    bench.lab.docker(node, &["restart", "-t", "1", "inside"])?;
    wait_until("the service to find it again", SETTLE, || Ok(asks("nick").ok())).map(drop)?;

    let closed = bench.lab.try_docker(node, &["run", "--rm", "--network", "app", "whoami:1", "help"])?;
    ensure!(closed.stderr.contains("network app not manually attachable"), "{}", closed.text());
    bench.lab.docker(node, &["rm", "-f", "inside"])?;
    bench.docker(&["service", "rm", "peer"])?;
    wait_until("the network to be free", SETTLE, || {
        Ok(bench.lab.try_docker(&leader, &["network", "rm", NETWORK])?.success().then_some(()))
    })
    .map(drop)
}

/// It serves without its daemon, and the next one takes it over; what had ended meanwhile comes back by its rule, and the
/// agent leaves both alone.
fn outlives_the_daemon(bench: &Bench, node: &str) -> Outcome {
    let run = ["run", "-d", "--name", "always", "--restart", "always", "whoami:1", "count"];
    bench.lab.docker(node, &run)?;
    let pid_of = |name: &str| bench.lab.docker(node, &["inspect", "--format", "{{.State.Pid}}", name]);
    let (pid, killed) = (pid_of(NAME)?, pid_of("always")?);
    bench.lab.kill(node)?;
    bench_lab::run("kill", &["-9", &killed])?;
    answers(bench, "client", node)?;
    bench.lab.start(node)?;
    wait_until("the one that was killed to be back", SETTLE, || {
        let now = pid_of("always")?;
        Ok((now != killed && now != "0").then_some(()))
    })?;
    let ready = ["node", "inspect", "--format", "{{.Status.State}}", node];
    wait_until("the node to be ready", SETTLE, || Ok((bench.docker(&ready)? == "ready").then_some(())))?;
    // A task that comes and goes has the agent remove what is its own.
    let constraint = format!("node.hostname=={node}");
    bench.create_whoami("passing", 1, &["--constraint", &constraint])?;
    bench.docker(&["service", "rm", "passing"])?;
    wait_until("its container to go", SETTLE, || {
        let left = bench.lab.docker(node, &["ps", "-aq", "--filter", "name=passing"])?;
        Ok(left.is_empty().then_some(()))
    })?;
    ensure!(pid_of(NAME)? == pid, "{NAME} has another process");
    answers(bench, "client", node)?;
    let gone: Captured = bench.lab.try_docker(node, &["rm", "-f", "always"])?;
    ensure!(gone.success(), "{}", gone.text());
    Ok(())
}
