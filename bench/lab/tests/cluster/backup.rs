//! The cluster's machines are lost but for a backup, which is made a cluster of on another machine.

use std::fs;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, PORT, SETTLE};

pub fn restored_elsewhere(_: &mut Bench) -> Outcome {
    let bench = Bench::with("backup", (1, 2), &[], false)?;
    let dir = std::env::temp_dir().join(format!("mesh-backup-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let outcome = lose_and_restore(&bench, &dir);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    fs::remove_dir_all(&dir)?;
    bench.down()?;
    outcome
}

fn lose_and_restore(bench: &Bench, dir: &std::path::Path) -> Outcome {
    let before = identity(bench, "m1")?;
    let (file, words, other) = (dir.join("backup"), dir.join("words"), dir.join("other"));
    fs::write(&words, "correct horse battery staple\n")?;
    fs::write(&other, "correct horse bakery staple\n")?;
    let file = file.to_string_lossy().into_owned();
    let with =
        |words: &std::path::Path| ["--passphrase-file".to_owned(), words.to_string_lossy().into_owned()];
    let [flag, words] = with(&words);
    bench.meshctl("m1", &["backup", &file, &flag, &words])?;
    let sealed = fs::read(&file)?;
    let token = bench.lab.docker("m1", &["swarm", "join-token", "-q", "manager"])?;
    let secret = token.rsplit('-').next().context("a token")?.as_bytes().to_vec();
    ensure!(
        !sealed.windows(secret.len()).any(|window| window == secret),
        "a token can be read in the backup"
    );
    ensure!(bench.meshctl("m1", &["backup", &file, &flag, &words]).is_err(), "it was overwritten");

    // The only manager's machine is gone, and a machine that was a worker begins anew.
    bench.lab.kill("m1")?;
    bench.lab.isolate("m1")?;
    for worker in ["w1", "w2"] {
        bench.lab.docker(worker, &["swarm", "leave", "--force"])?;
    }
    let address = bench.lab.node("w1")?.address.to_string();
    let [_, other] = with(&other);
    let refused = bench.meshctl("w1", &["restore", &file, &flag, &other, "--advertise-addr", &address]);
    let refused = refused.err().context("another passphrase opened it")?.to_string();
    ensure!(refused.contains("the backup can't be opened"), "{refused}");
    bench.meshctl("w1", &["restore", &file, &flag, &words, "--advertise-addr", &address])?;
    ensure!(identity(bench, "w1")? == before, "{:?} was {before:?}", identity(bench, "w1")?);
    let token = bench.lab.docker("w1", &["swarm", "join-token", "-q", "worker"])?;
    bench.lab.docker("w2", &["swarm", "join", "--token", &token, &format!("{address}:2377")])?;
    let targets = [bench.lab.node("w1")?.address, bench.lab.node("w2")?.address].map(|ip| (ip, PORT).into());
    let mut seen = String::new();
    let answered = wait_until("the service to answer with all its tasks", SETTLE, || {
        // Refused where no task runs yet.
        let answers = bench.ask("client", &targets, 60).inspect_err(|error| seen = format!("{error:#}"));
        let Ok(answers) = answers else { return Ok(None) };
        let tasks = crate::support::counts(&answers, "task");
        seen = format!("{tasks:?}");
        Ok((tasks.len() == 6).then_some(answers))
    });
    let shown = || bench.lab.docker("w1", &["service", "ps", "--no-trunc", "whoami"]).unwrap_or_default();
    let (answers, took) = answered.with_context(|| format!("{seen}\n{}", shown()))?;
    println!("  {} answers {:.1} s after the new worker had joined", answers.len(), took.as_secs_f64());
    copied_elsewhere(bench, &before)
}

/// Docker's way: the state directory of a stopped manager, copied to another machine, and `--force-new-cluster` there.
fn copied_elsewhere(bench: &Bench, before: &[String]) -> Outcome {
    bench.lab.stop("w1")?;
    bench.lab.isolate("w1")?;
    let swarm = |node| -> anyhow::Result<String> {
        let log = bench.lab.log_file(node)?;
        let dir = log.parent().context("it is in the state directory")?.join("swarm");
        Ok(dir.to_string_lossy().into_owned())
    };
    fs::remove_dir_all(swarm("m1")?)?;
    bench_lab::run("cp", &["-a", &swarm("w1")?, &swarm("m1")?])?;
    bench.lab.heal("m1")?;
    bench.lab.start("m1")?;
    let address = bench.lab.node("m1")?.address.to_string();
    bench.lab.docker("m1", &["swarm", "init", "--force-new-cluster", "--advertise-addr", &address])?;
    ensure!(identity(bench, "m1")? == before, "{:?} was {before:?}", identity(bench, "m1")?);
    let shown = bench.lab.docker("m1", &["info", "--format", "{{.Swarm.NodeAddr}} {{.Swarm.Managers}}"])?;
    ensure!(shown == format!("{address} 1"), "{shown}");
    bench.lab.docker("m1", &["service", "update", "--detach", "--label-add", "copied=yes", "whoami"])?;
    let targets = [(bench.lab.node("m1")?.address, PORT).into()];
    wait_until("its tasks to answer", SETTLE, || Ok(bench.ask("client", &targets, 20).ok()))?;
    Ok(())
}

/// What a restored cluster has of the old one.
fn identity(bench: &Bench, manager: &str) -> anyhow::Result<Vec<String>> {
    let commands: [&[&str]; 5] = [
        &["info", "--format", "{{.Swarm.NodeID}} {{.Swarm.Cluster.ID}}"],
        &["swarm", "join-token", "-q", "worker"],
        &["swarm", "join-token", "-q", "manager"],
        &["service", "ls", "--format", "{{.ID}} {{.Name}} {{.Ports}}"],
        &["network", "ls", "--format", "{{.ID}} {{.Name}}", "--filter", "driver=overlay"],
    ];
    commands.iter().map(|args| bench.lab.docker(manager, args)).collect()
}
