//! A backup is made a cluster of on another machine while the old cluster runs: its nodes are told.

use std::fs;
use std::net::SocketAddr;

use anyhow::Context as _;
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, PORT, SETTLE};

/// Where the new cluster is made.
const NEW: &str = "w2";
/// The manager whose backup it is made of, and whose name it goes on in.
const NAMESAKE: &str = "m1";

pub fn old_managers_are_called(_: &mut Bench) -> Outcome {
    let bench = Bench::with("behind", (3, 2), &[], false)?;
    let dir = std::env::temp_dir().join(format!("mesh-behind-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let outcome = restore_beside(&bench, &dir);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    fs::remove_dir_all(&dir)?;
    bench.down()?;
    outcome
}

fn restore_beside(bench: &Bench, dir: &std::path::Path) -> Outcome {
    let (file, words) = (dir.join("backup"), dir.join("words"));
    fs::write(&words, "correct horse battery staple\n")?;
    let (file, words) = (file.to_string_lossy().into_owned(), words.to_string_lossy().into_owned());
    bench.meshctl(NAMESAKE, &["backup", &file, "--passphrase-file", &words])?;
    bench.lab.docker(NEW, &["swarm", "leave"])?;
    let address = bench.lab.node(NEW)?.address.to_string();
    bench.meshctl(NEW, &["restore", &file, "--passphrase-file", &words, "--advertise-addr", &address])?;

    // The managers that are left and the worker, which none but they know the way of, come over.
    let format = "{{.Hostname}} {{.Status}} {{.ManagerStatus}}";
    let mut rows = String::new();
    let ((), took) = wait_until("the old cluster's nodes to be of the new one", SETTLE, || {
        rows = bench.lab.docker(NEW, &["node", "ls", "--format", format])?;
        let is_here = |name: &str| rows.lines().any(|row| row.trim_end() == format!("behind-{name} Ready"));
        let refuses = |node| -> anyhow::Result<bool> {
            let refused = bench.lab.try_docker(node, &["node", "ls"])?;
            Ok(refused.text().contains("This node is not a swarm manager"))
        };
        // What the new manager shows may be of the backup.
        let obeys = |node: &&str| -> anyhow::Result<bool> {
            let format = "{{range .Swarm.RemoteManagers}}{{.Addr}} {{end}}";
            Ok(bench.lab.docker(node, &["info", "--format", format])?.trim() == format!("{address}:2377"))
        };
        for node in ["m2", "m3", "w1"] {
            if !is_here(node) || !obeys(&node)? {
                return Ok(None);
            }
        }
        Ok((refuses("m2")? && refuses("m3")?).then_some(()))
    })
    .with_context(|| rows.clone())?;
    println!("  they were its workers {:.1} s after it was made", took.as_secs_f64());

    // The one whose name is taken can't be of it, and says so.
    let mut said = String::new();
    wait_until("the one whose name was taken to say so", SETTLE, || {
        said = bench.lab.docker(NAMESAKE, &["info", "--format", "{{.Swarm.Error}}"])?;
        Ok((said.contains("in its name") && said.contains(&format!("{address}:2377"))).then_some(()))
    })
    .with_context(|| said.clone())?;
    bench.lab.docker(NAMESAKE, &["swarm", "leave", "--force"])?;
    let token = bench.lab.docker(NEW, &["swarm", "join-token", "-q", "worker"])?;
    bench.lab.docker(NAMESAKE, &["swarm", "join", "--token", &token, &format!("{address}:2377")])?;

    bench.lab.docker(NEW, &["service", "update", "--detach", "--force", "whoami"])?;
    let targets: Vec<SocketAddr> = ["m1", "m2", "m3", "w1", "w2"]
        .into_iter()
        .map(|name| Ok((bench.lab.node(name)?.address, PORT).into()))
        .collect::<anyhow::Result<_>>()?;
    wait_until("the service to answer on every node", SETTLE, || {
        Ok(bench.ask("client", &targets, 50).ok().filter(|answers| answers.len() == 50))
    })?;
    Ok(())
}
