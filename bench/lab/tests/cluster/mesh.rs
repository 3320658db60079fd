//! What the data plane promises, seen from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::support::{Bench, Outcome, PORT, SETTLE, counts};
use anyhow::{Context as _, ensure};
use bench_lab::{Traffic, wait_until};

/// Connections whose peer is compared with the client; so many that chance alone does not reach the tolerance of the
/// spread: its standard deviation is 5 % of a task's share.
const N_CONNECTIONS: usize = 2_000;
/// As many in a long run.
const N_CONNECTIONS_LONG: usize = 100_000;
/// Largest deviation from an even spread.
const SPREAD_TOLERANCE: f64 = 0.25;

pub fn every_node_answers(bench: &mut Bench) -> Outcome {
    let long = std::env::var_os("MESH_TEST_LONG").is_some();
    let n_connections = if long { N_CONNECTIONS_LONG } else { N_CONNECTIONS };
    let targets: Vec<SocketAddr> = bench.targets().into_iter().chain(bench.targets6()).collect();
    let answers = bench.ask("client", &targets, n_connections)?;
    let (client, client6) = (bench.lab.client_address(), bench.lab.client_address6());
    let sees = |to: &SocketAddr| if to.is_ipv4() { IpAddr::V4(client) } else { IpAddr::V6(client6) };
    let seen = targets.iter().cycle().zip(&answers).map(|(to, answer)| (answer.peer(), Some(sees(to))));
    let strangers: Vec<_> = seen.filter(|(peer, client)| peer != client).collect();
    ensure!(strangers.is_empty(), "tasks saw (first) instead of (second): {strangers:?}");
    let by_task = counts(&answers, "task");
    ensure!(by_task.len() == 6 && !by_task.contains_key(""), "tasks that answered: {by_task:?}");
    let even = f64::from(u32::try_from(n_connections)?) / 6.0;
    let worst =
        by_task.values().map(|n| (f64::from(u32::try_from(*n).unwrap_or(u32::MAX)) / even - 1.0).abs());
    let worst = worst.fold(0.0, f64::max);
    println!(
        "  {n_connections} answered at {} addresses; busiest or idlest of 6 tasks is {:.0} % off even; all saw {client} or {client6}",
        targets.len(),
        worst * 100.0
    );
    ensure!(worst <= SPREAD_TOLERANCE, "spread: {by_task:?}");
    Ok(())
}

pub fn nodes_reach_the_mesh(bench: &mut Bench) -> Outcome {
    for node in bench.lab.nodes() {
        let own = IpAddr::V4(node.address);
        for to in [SocketAddr::new(own, PORT), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)] {
            let answers = bench.ask(&node.name, &[to], 24)?;
            ensure!(
                answers.iter().all(|a| a.peer() == Some(own)),
                "{} → {to}: peers {:?}",
                node.name,
                counts(&answers, "peer")
            );
            let n_tasks = counts(&answers, "task").len();
            ensure!(n_tasks >= 3, "{} → {to} reached {n_tasks} tasks only", node.name);
        }
    }
    for node in bench.lab.nodes().iter().filter(|_| bench_lab::has_ipv6()) {
        // Served by IPv4 there.
        for to in [IpAddr::V6(node.address6()), Ipv6Addr::LOCALHOST.into()] {
            let answers = bench.ask(&node.name, &[SocketAddr::new(to, PORT)], 12)?;
            let peers = counts(&answers, "peer");
            ensure!(
                answers.iter().all(|a| a.peer() == Some(node.address.into())),
                "{} → {to}: peers {peers:?}",
                node.name
            );
        }
    }
    // A node reaches the others' ports like any client.
    let from = &bench.lab.nodes()[0];
    let others: Vec<SocketAddr> =
        bench.targets().into_iter().filter(|t| t.ip() != IpAddr::V4(from.address)).collect();
    let answers = bench.ask(&from.name, &others, 40)?;
    ensure!(
        answers.iter().all(|a| a.peer() == Some(from.address.into())),
        "peers {:?}",
        counts(&answers, "peer")
    );
    let own6 = IpAddr::V6(from.address6());
    let others: Vec<SocketAddr> = bench.targets6().into_iter().filter(|t| t.ip() != own6).collect();
    let answers = bench.ask(&from.name, &others, 40)?;
    ensure!(answers.iter().all(|a| a.peer() == Some(own6)), "peers {:?}", counts(&answers, "peer"));
    Ok(())
}

/// A user's own words: `curl` by IPv6, at every node.
pub fn curl_by_ipv6(bench: &mut Bench) -> Outcome {
    if !bench_lab::has_ipv6() {
        println!("  skipped: this kernel has no IPv6");
        return Ok(());
    }
    let client = bench.lab.client_address6();
    for node in bench.lab.nodes() {
        let url = format!("http://[{}]:{PORT}/", node.address6());
        let said = bench.lab.exec("client", "curl", &["-6", "-sS", "--max-time", "5", &url])?;
        ensure!(said.success(), "{url}: {}", said.text());
        ensure!(said.stdout.contains(&format!("peer: [{client}]:")), "{url}: {}", said.stdout);
    }
    Ok(())
}

/// The same, of a service that listens on IPv4 alone: it sees an address that stands for the client, the same on one node.
pub fn curl_by_ipv6_to_ipv4(bench: &mut Bench) -> Outcome {
    const PUBLISHED: u16 = 8098;
    if !bench_lab::has_ipv6() {
        println!("  skipped: this kernel has no IPv6");
        return Ok(());
    }
    let publish = format!("{PUBLISHED}:80");
    bench.create_whoami("ipv4-alone", 1, &["--publish", &publish, "--env", "LISTEN=ipv4"])?;
    let client = bench.lab.client_address();
    let mut seen = std::collections::BTreeSet::new();
    for node in &bench.lab.nodes()[..2] {
        let ask = |how: &str, host: &str| {
            let url = format!("http://{host}:{PUBLISHED}/");
            let said = bench.lab.exec("client", "curl", &[how, "-sS", "--max-time", "5", &url])?;
            ensure!(said.success(), "{url}: {}", said.text());
            let peer = said.stdout.lines().find_map(|line| line.strip_prefix("peer: "));
            let peer: SocketAddr = peer.with_context(|| said.stdout.clone())?.trim().parse()?;
            Ok(peer.ip())
        };
        ensure!(ask("-4", &node.address.to_string())? == IpAddr::V4(client), "by IPv4 it sees the client");
        seen.insert(ask("-6", &format!("[{}]", node.address6()))?);
    }
    let stands_in = |address: &IpAddr| matches!(address, IpAddr::V4(address) if address.octets()[0] == 246);
    ensure!(seen.len() == 1 && seen.iter().all(stands_in), "the task saw {seen:?}");
    bench.docker(&["service", "rm", "ipv4-alone"]).map(drop)
}

pub fn udp_goes_the_same_way(bench: &mut Bench) -> Outcome {
    let args = [
        "service",
        "create",
        "--quiet",
        "--no-resolve-image",
        "--name",
        "echo",
        "--network",
        "app",
        "--replicas",
        "3",
        "--publish",
        "9000:9000/udp",
        "whoami:1",
        "listen-udp",
        "9000",
    ];
    bench.docker(&args)?;
    let all = bench.targets().into_iter().chain(bench.targets6());
    let targets: Vec<SocketAddr> = all.map(|t| SocketAddr::new(t.ip(), 9000)).collect();
    let clients = [bench.lab.client_address().to_string(), bench.lab.client_address6().to_string()];
    let answers = bench.lab.inside("client", || -> anyhow::Result<Vec<String>> {
        let mut answers = Vec::new();
        for (n, target) in targets.iter().cycle().take(50).enumerate() {
            let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            socket.send_to(format!("ping {n}").as_bytes(), target)?;
            let mut buffer = [0; 1500];
            let (length, from) =
                socket.recv_from(&mut buffer).with_context(|| format!("no answer from {target}"))?;
            ensure!(from == *target, "asked {target}, {from} answered");
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let client = &clients[usize::from(target.is_ipv6())];
            ensure!(answer.contains(client.as_str()), "{target}: the task saw another peer: {answer}");
            answers.push(answer);
        }
        Ok(answers)
    })??;
    ensure!(answers.len() == 50, "{} answers", answers.len());
    nodes_ask_by_udp(bench)?;
    bench.docker(&["service", "rm", "echo"])?;
    Ok(())
}

/// The nodes' own processes, with connected sockets of either family; the servers are bound to the wildcard address.
fn nodes_ask_by_udp(bench: &Bench) -> Outcome {
    for node in bench.lab.nodes() {
        let mut targets: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), node.address.into()];
        if bench_lab::has_ipv6() {
            targets.extend([IpAddr::from(Ipv6Addr::LOCALHOST), node.address6().into()]);
        }
        bench.lab.inside(&node.name, || -> Outcome {
            // With twelve sockets at each address, all three tasks are asked.
            for target in targets.iter().cycle().take(12 * targets.len()) {
                let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.set_read_timeout(Some(Duration::from_secs(3)))?;
                socket.connect((*target, 9000))?;
                socket.send(b"ping")?;
                let mut buffer = [0; 1500];
                let n_bytes = socket.recv(&mut buffer);
                let n_bytes = n_bytes.with_context(|| format!("{}: no answer from {target}", node.name))?;
                let answer = String::from_utf8_lossy(&buffer[..n_bytes]);
                let own = node.address.to_string();
                ensure!(
                    answer.contains(&own),
                    "{} → {target}: the task saw another peer: {answer}",
                    node.name
                );
            }
            Ok(())
        })??;
    }
    Ok(())
}

pub fn names_and_virtual_addresses(bench: &mut Bench) -> Outcome {
    bench.create_whoami("asker", 2, &[])?;
    let asker = bench.running("asker")?.into_iter().next().context("no asker runs")?;
    let vip = bench.in_task(&asker, &["resolve", "whoami"])?;
    ensure!(vip.lines().count() == 1 && vip.trim().parse::<Ipv4Addr>().is_ok(), "whoami resolves to {vip:?}");
    let tasks = bench.in_task(&asker, &["resolve", "tasks.whoami"])?;
    ensure!(tasks.lines().count() == 6, "tasks.whoami resolves to {tasks:?}");
    ensure!(!tasks.contains(vip.trim()), "the virtual address is among the tasks'");
    let by_name = bench.in_task(&asker, &["get", "http://whoami/", "-n", "60"])?;
    let answered: std::collections::BTreeSet<&str> =
        by_name.lines().filter(|l| l.starts_with("task: ")).collect();
    ensure!(answered.len() == 6, "the virtual address reached {answered:?}");
    // East-west there is no translation of the source either.
    let own = bench.in_task(&asker, &["resolve", &asker_host(bench, &asker)?])?;
    let peers: Vec<&str> = by_name.lines().filter_map(|l| l.strip_prefix("peer: ")).collect();
    ensure!(peers.iter().all(|p| p.starts_with(own.trim())), "tasks saw {peers:?}, the asker is {own:?}");
    bench.docker(&["service", "rm", "asker"])?;
    Ok(())
}

/// The full name of a task, which resolves to its own address.
fn asker_host(bench: &Bench, task: &crate::support::RunningTask) -> anyhow::Result<String> {
    let names = bench.lab.docker(&task.node, &["ps", "--no-trunc", "--format", "{{.Names}}"])?;
    Ok(names.lines().find(|n| n.ends_with(&task.id)).context("docker ps does not show the task")?.to_owned())
}

pub fn way_out_is_masqueraded(bench: &mut Bench) -> Outcome {
    let task = bench.running("whoami")?.into_iter().next().context("no task runs")?;
    let listen = SocketAddr::new(bench.lab.client_address().into(), 7777);
    let listener = bench.lab.inside("client", || std::net::TcpListener::bind(listen))??;
    let server = std::thread::spawn(move || -> anyhow::Result<IpAddr> {
        let (mut stream, peer) = listener.accept()?;
        read_request(&stream)?;
        std::io::Write::write_all(
            &mut stream,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n",
        )?;
        Ok(peer.ip())
    });
    bench.in_task(&task, &["get", &format!("http://{listen}/")])?;
    let seen = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let node = bench.lab.node(&task.node)?.address;
    ensure!(seen == IpAddr::V4(node), "a server outside saw {seen}, not the node's {node}");
    Ok(())
}

/// `mode=host`: the task's node alone answers, by both families where its kernel forwards IPv6 from single interfaces.
pub fn ports_of_the_node(bench: &mut Bench) -> Outcome {
    const PUBLISHED: u16 = 8099;
    bench.create_whoami("here", 1, &["--publish", &format!("mode=host,published={PUBLISHED},target=80")])?;
    let task = bench.running("here")?.into_iter().next().context("no task runs")?;
    let forwards6 = Path::new("/proc/sys/net/ipv6/conf/all/force_forwarding").exists();
    let (client, client6) = (bench.lab.client_address(), bench.lab.client_address6());
    let families: [(_, IpAddr, bool); 2] = [("-4", client.into(), true), ("-6", client6.into(), forwards6)];
    for node in bench.lab.nodes() {
        for (family, client, answers) in
            families.into_iter().filter(|(_, client, _)| client.is_ipv4() || bench_lab::has_ipv6())
        {
            let address = if client.is_ipv4() { node.address.into() } else { IpAddr::V6(node.address6()) };
            let url = format!("http://{}/", SocketAddr::new(address, PUBLISHED));
            let said = bench.lab.exec("client", "curl", &[family, "-sS", "--max-time", "5", &url])?;
            if node.name != task.node || !answers {
                ensure!(said.text().contains("curl: (7)"), "{url} is not refused: {}", said.text());
                continue;
            }
            let peer = format!("peer: {}", SocketAddr::new(client, 0)).trim_end_matches('0').to_owned();
            ensure!(said.stdout.contains(&peer), "{url}: {}", said.text());
        }
    }
    bench.docker(&["service", "rm", "here"]).map(drop)
}

/// To its end: a connection that is closed with bytes unread is reset, and its answer lost.
fn read_request(stream: &std::net::TcpStream) -> std::io::Result<()> {
    for line in std::io::BufRead::lines(std::io::BufReader::new(stream)) {
        if line?.is_empty() {
            break;
        }
    }
    Ok(())
}

pub fn rolling_update_under_load(bench: &mut Bench) -> Outcome {
    let traffic = Traffic::start(&bench.lab, &bench.targets(), 200)?;
    wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 100).then_some(())))?;
    bench.docker(&["service", "update", "--quiet", "--no-resolve-image", "--image", "whoami:2", "whoami"])?;
    let all_new = |t: &Traffic, before: u64| t.so_far().versions.get("2").copied().unwrap_or(0) > before;
    wait_until("answers of the new version", SETTLE, || Ok(all_new(&traffic, 0).then_some(())))?;
    let report = traffic.stop()?;
    println!(
        "  {} requests at 200/s over the update, {} failed, slowest {:.0} ms; by version {:?}",
        report.n_sent,
        report.n_failed,
        report.slowest.as_secs_f64() * 1000.0,
        report.versions
    );
    for (failure, count) in &report.failures {
        println!("    {count} × {failure}");
    }
    let answers = bench.ask("client", &bench.targets(), 60)?;
    ensure!(
        counts(&answers, "version") == [("2", 60)].into(),
        "after the update: {:?}",
        counts(&answers, "version")
    );
    ensure!(report.n_failed == 0, "{} requests failed", report.n_failed);
    Ok(())
}

/// The other hooks carry the same traffic: XDP on the uplink, and tc by clsact instead of TCX.
pub fn other_hooks_do_the_same(_: &mut Bench) -> Outcome {
    for (args, hook) in [(["--ingress-hook", "xdp"], "xdp"), (["--tc-attach", "clsact"], "clsact")] {
        let mut bench = Bench::with("hooks", (1, 2), &args, false)?;
        let result = carries_the_same(&mut bench, hook);
        if result.is_err() {
            bench.print_diagnosis();
        }
        bench.down()?;
        result.with_context(|| args.join(" "))?;
    }
    Ok(())
}

fn carries_the_same(bench: &mut Bench, hook: &str) -> Outcome {
    let status = bench.meshctl("m1", &["status"])?;
    ensure!(status.contains(hook), "meshctl status shows no {hook} hook:\n{status}");
    every_node_answers(bench)?;
    nodes_reach_the_mesh(bench)?;
    udp_goes_the_same_way(bench)?;
    every_packet_is_accounted_for(bench)
}

pub fn every_packet_is_accounted_for(bench: &mut Bench) -> Outcome {
    for node in bench.lab.nodes() {
        let text = bench.meshctl(&node.name, &["drops"])?;
        if node.name == "test-m1" {
            println!(
                "{}",
                text.trim_end().lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n")
            );
        }
        let counted = uplink_received(bench, &node.name)?;
        let arrived = interface_received(bench, &node.name)?;
        ensure!(
            counted > 0 && counted <= arrived,
            "{}: the uplink's program saw {counted} packets, the interface {arrived}",
            node.name
        );
        // Straight from the pins the same programs are seen.
        let pins = bench.lab.bpffs_dir(&node.name)?.to_string_lossy().into_owned();
        let meshctl = bench.meshctl.to_string_lossy().into_owned();
        bench_lab::run(&meshctl, &["-H", "unix:///nonexistent.sock", "--bpffs-dir", &pins, "drops"])?;
    }
    Ok(())
}

/// Packets that the program on the node's uplink says it saw.
fn uplink_received(bench: &Bench, node: &str) -> anyhow::Result<u64> {
    let report: serde_json::Value = serde_json::from_str(&bench.meshctl(node, &["--json", "drops"])?)?;
    let rows = report["programs"].as_array().context("no programs")?;
    let row = rows.iter().find(|row| row["program"] == "mesh_uplink").context("no mesh_uplink")?;
    row["received"].as_u64().context("no count")
}

/// Packets that the kernel says arrived on the node's uplink: at least as many, since it may merge them (GRO).
fn interface_received(bench: &Bench, node: &str) -> anyhow::Result<u64> {
    let listing = bench.lab.exec(node, "ip", &["-s", "-j", "link", "show", "eth0"])?;
    let links: serde_json::Value = serde_json::from_str(&listing.stdout)?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("no count")
}
