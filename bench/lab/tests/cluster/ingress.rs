//! The routing mesh's own network, removed and made again with other options, as users do who need more addresses.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, PORT, SETTLE, counts};

/// Of the network that is made; the first has room for 65,000 tasks.
const SUBNET: &str = "10.66.0.0/16";
const ADDRESSES: &str = "10.66.";
const MTU: &str = "1280";

pub fn made_anew(_: &mut Bench) -> Outcome {
    let mut bench = Bench::with("ingress", (1, 2), &[], false)?;
    let result = make_anew(&mut bench);
    if result.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    result
}

fn make_anew(bench: &mut Bench) -> Outcome {
    bench.create_whoami("second", 2, &["--publish", "8090:80"])?;
    let refusal = remove_ingress(bench)?.err().context("it went under a published service")?;
    ensure!(refusal.contains("ingress network cannot be removed because service"), "{refusal}");
    bench.ask("client", &bench.targets(), 30)?;

    bench.docker(&["service", "rm", "second"])?;
    bench.docker(&["service", "update", "--quiet", "--publish-rm", &format!("{PORT}:80"), "whoami"])?;
    remove_ingress(bench)?.map_err(anyhow::Error::msg)?;
    let mtu = format!("com.docker.network.driver.mtu={MTU}");
    bench.docker(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--ingress",
        "--subnet",
        SUBNET,
        "--opt",
        &mtu,
        "mesh",
    ])?;
    bench.docker(&["service", "update", "--quiet", "--publish-add", &format!("{PORT}:80"), "whoami"])?;

    let n = bench.running("whoami")?.len();
    let ((), took) = wait_until("every task to be reached", SETTLE, || {
        let answers = bench.ask("client", &bench.targets(), 20 * n)?;
        Ok((counts(&answers, "task").len() == n).then_some(()))
    })?;
    println!("  {n} tasks were reached by all nodes {:.1} s after the update", took.as_secs_f64());
    for task in bench.running("whoami")? {
        let netns = bench.lab.socket(&task.node)?.with_file_name("netns").join(&task.id);
        let netns = format!("--net={}", netns.display());
        let links = bench_lab::run("nsenter", &[&netns, "ip", "-o", "addr"])?;
        let end = links.lines().find(|line| line.contains(ADDRESSES)).context(links.clone())?;
        let name = end.split_whitespace().nth(1).unwrap_or_default();
        let link = bench_lab::run("nsenter", &[&netns, "ip", "-o", "link", "show", "dev", name])?;
        ensure!(link.contains(&format!("mtu {MTU} ")), "{link}");
    }
    Ok(())
}

/// `docker network rm ingress`, answered yes; what it said if it failed.
fn remove_ingress(bench: &Bench) -> anyhow::Result<Result<(), String>> {
    let socket = format!("unix://{}", bench.lab.socket(&bench.live_manager()?)?.display());
    let mut docker = Command::new("docker")
        .args(["-H", &socket, "network", "rm", "ingress"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    docker.stdin.take().context("piped")?.write_all(b"y\n")?;
    let output = docker.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}
