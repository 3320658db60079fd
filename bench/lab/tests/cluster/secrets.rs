//! Secrets and configs of services: what containers see, where the bytes are, and that they go.

use std::fs::read_to_string;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, RunningTask, SETTLE};

const SERVICE: &str = "vault";
/// Found nowhere else.
const BYTES: &str = "m4rk3d-by-the-scenario";
const NEW_BYTES: &str = "m4rk3d-and-rotated";

pub fn files_of_tasks(bench: &mut Bench) -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    bench.docker(&["secret", "create", "key", &file("key", BYTES)?])?;
    let template = file("page", "{{.Service.Name}} on {{.Node.Hostname}} has {{ secret \"key\" }}")?;
    bench.docker(&["config", "create", "--template-driver", "golang", "page", &template])?;
    let worker = bench.lab.nodes().last().context("no node")?.name.clone();
    let constraint = format!("node.hostname=={worker}");
    let files = ["--secret", "key", "--config", "source=page,target=/etc/page,mode=0400"];
    bench.create_whoami(SERVICE, 1, &[&["--constraint", &constraint][..], &files].concat())?;
    let task = bench.running(SERVICE)?.into_iter().next().context("no task runs")?;
    let root = root_of(bench, &task)?;
    ensure!(read_to_string(root.join("run/secrets/key"))? == BYTES, "the secret is another");
    let page = read_to_string(root.join("etc/page"))?;
    ensure!(page == format!("{SERVICE} on {worker} has {BYTES}"), "the config is {page:?}");
    ensure!(std::fs::write(root.join("run/secrets/key"), "").is_err(), "the secret can be written");
    nothing_on_disk(bench)?;
    let in_use = bench.docker(&["secret", "rm", "key"]);
    let text = format!("secret 'key' is in use by the following service: {SERVICE}");
    ensure!(in_use.as_ref().is_err_and(|error| format!("{error:#}").contains(&text)), "{in_use:?}");

    is_rotated(bench, &file("new", NEW_BYTES)?)?;

    bench.docker(&[
        "service",
        "update",
        "--quiet",
        "--secret-rm",
        "key.2",
        "--config-rm",
        "page",
        SERVICE,
    ])?;
    let task = bench.running(SERVICE)?.into_iter().next().context("no task runs")?;
    ensure!(!root_of(bench, &task)?.join("run/secrets/key").exists(), "it was taken away");
    wait_until("the files to go", SETTLE, || {
        Ok((!read_to_string("/proc/self/mountinfo")?.contains(&format!("{worker}/tasks"))).then_some(()))
    })?;
    for args in [
        ["service", "rm", SERVICE],
        ["secret", "rm", "key"],
        ["secret", "rm", "key.2"],
        ["config", "rm", "page"],
    ] {
        bench.docker(&args)?;
    }
    Ok(())
}

/// A new version under the next name, in the file that it had.
fn is_rotated(bench: &Bench, content: &str) -> Outcome {
    let said = bench.meshctl(&bench.live_manager()?, &["secret", "rotate", "key", content])?;
    ensure!(said.contains("key.2 is made") && said.contains(&format!("{SERVICE} rolls")), "it says {said:?}");
    let ((), took) = wait_until("the service to have the new secret", SETTLE, || {
        let task = bench.running(SERVICE)?.into_iter().next();
        let root = task.and_then(|task| root_of(bench, &task).ok());
        let content = root.and_then(|root| read_to_string(root.join("run/secrets/key")).ok());
        Ok((content.as_deref() == Some(NEW_BYTES)).then_some(()))
    })?;
    println!("  a rotated secret was there after {:.1} s", took.as_secs_f64());
    Ok(())
}

/// The root directory that the task's process sees.
fn root_of(bench: &Bench, task: &RunningTask) -> anyhow::Result<PathBuf> {
    let container = format!("{}.{}", task.name, task.id);
    let pid = bench.lab.docker(&task.node, &["inspect", "--format", "{{.State.Pid}}", &container])?;
    Ok(PathBuf::from(format!("/proc/{}/root", pid.trim())))
}

/// Neither a manager's log and snapshots nor a node's files have the bytes in clear.
fn nothing_on_disk(bench: &Bench) -> Outcome {
    for node in bench.lab.nodes() {
        let log = bench.lab.log_file(&node.name)?;
        let state = log.parent().context("a log is in the node's directory")?;
        // Images and overlays are not the cluster's; its own files are looked at byte by byte.
        let found = bench_lab::try_run("grep", &["-rlaF", BYTES, &state.to_string_lossy()])?;
        ensure!(found.stdout.is_empty(), "{}: in clear in {}", node.name, found.stdout);
    }
    Ok(())
}
