//! Direct server return: the node that a client asks sees none of the answers, once the service has the label.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, SETTLE};

const PORT: u16 = 8095;
/// Of one download: so many that the client's packets, which the asked node sees in any case, are few beside them.
const BYTES: u64 = 1 << 20;
/// What they may come to.
const BYTES_OF_CLIENT: u64 = BYTES / 4;
/// Longest wait for a read: the task sends ten times a second.
const READ_LIMIT: Duration = Duration::from_secs(10);

pub fn answers_go_straight(bench: &mut Bench) -> Outcome {
    bench.create_whoami("direct", 1, &["--publish", &format!("{PORT}:80")])?;
    let task = bench.running("direct")?.into_iter().next().context("no task runs")?;
    let asked = bench.lab.nodes().iter().find(|node| node.name != task.node).context("one node")?;
    let (name, to) = (asked.name.clone(), SocketAddr::new(asked.address.into(), PORT));
    let by_tunnel = download(bench, &name, to)?;
    ensure!(
        by_tunnel >= BYTES,
        "{name} got {by_tunnel} bytes only of an answer of {BYTES} that leaves there"
    );

    let refusal = bench.lab.try_docker(
        &bench.live_manager()?,
        &["service", "update", "--quiet", "--label-add", "mesh.dsr=yes", "direct"],
    )?;
    let words = "label mesh.dsr: \"yes\" is neither true nor false";
    ensure!(!refusal.success() && refusal.text().contains(words), "{}", refusal.text());
    for (value, is_direct) in [("true", true), ("false", false)] {
        let label = format!("mesh.dsr={value}");
        bench.docker(&["service", "update", "--quiet", "--label-add", &label, "direct"])?;
        let (n_bytes, took) = wait_until("the answers to go as the label says", SETTLE, || {
            let n_bytes = download(bench, &name, to)?;
            Ok((is_direct == (n_bytes < BYTES_OF_CLIENT)).then_some(n_bytes))
        })?;
        println!(
            "  {label}: {name} got {n_bytes} bytes of {BYTES}, {:.1} s after the update",
            took.as_secs_f64()
        );
        let listed = bench.meshctl(&name, &["lb", "ls"])?;
        let row = listed.lines().find(|line| line.starts_with(&to.to_string())).context(listed.clone())?;
        ensure!(row.contains("ingress, dsr") == is_direct, "{row}");
    }
    let now = bench.running("direct")?;
    ensure!(now == [task], "a label has replaced the task: {now:?}");
    bench.docker(&["service", "rm", "direct"])?;
    Ok(())
}

/// Downloads from outside by `node`, and returns how many bytes came to its uplink meanwhile.
fn download(bench: &Bench, node: &str, to: SocketAddr) -> anyhow::Result<u64> {
    let before = received_bytes(bench, node)?;
    let len = bench.lab.inside("client", || -> anyhow::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&to, READ_LIMIT)?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        write!(stream, "GET /stream?seconds=1&rate={BYTES} HTTP/1.1\r\nHost: {to}\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer.len())
    })??;
    ensure!(u64::try_from(len)? > BYTES, "an answer of {len} bytes");
    Ok(received_bytes(bench, node)? - before)
}

fn received_bytes(bench: &Bench, node: &str) -> anyhow::Result<u64> {
    // The process's own directory would show the namespace of its first thread.
    let text = bench.lab.inside(node, || std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    let count = line.and_then(|line| line.split_whitespace().next()).context("no eth0")?;
    Ok(count.parse()?)
}
