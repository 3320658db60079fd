//! `docker kill`, `stop`, `top` and `stats` through the real CLI.

mod common;

use std::time::Duration;

use common::Daemon;
use common::cli::programs;
use common::engine::{N_CPUS, container};
use control_api::engine::Unpacking;
use control_store::ReplicatedStore as _;
use serde_json::{Value, from_str};

/// A manager with a task's container, and its name.
async fn daemon_with_one() -> (Daemon, String) {
    let daemon = Daemon::manager().await;
    daemon
        .prints("service create -d --no-resolve-image --name web --constraint node.hostname==m1 whoami:v1")
        .await;
    daemon.running("web", 1).await;
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    daemon.engine.containers.lock().expect("no panic").push(container(&task));
    (daemon, task.name())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_signalled_and_stopped() {
    for program in programs() {
        let (daemon, name) = daemon_with_one().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await;
        assert_eq!(run(&format!("kill -s SIGHUP {name}")).await.stdout, format!("{name}\n"), "{program}");
        let wrong = run(&format!("kill -s NOTHING {name}")).await;
        assert!(wrong.code != 0 && wrong.stderr.contains("invalid signal: NOTHING"), "{program}: {wrong:?}");
        assert_eq!(run(&format!("stop {name}")).await.stdout, format!("{name}\n"), "{program}");
        assert_eq!(run(&format!("stop {name}")).await.code, 0, "{program}: it is stopped");
        let over = run(&format!("kill {name}")).await;
        let words = format!("annot kill container: {name}: container ");
        assert!(over.code != 0 && over.stderr.contains(&words), "{program}: {over:?}");
        assert!(over.stderr.contains(" is not running"), "{program}: {over:?}");
        let missing = run("kill nothing").await;
        assert!(missing.stderr.contains("No such container: nothing"), "{program}: {missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_has_a_signal_and_a_time() {
    let (daemon, name) = daemon_with_one().await;
    let stop =
        async |words: &str| daemon.request("POST", &format!("/containers/{name}/stop?{words}"), b"").await.0;
    assert_eq!(stop("t=soon").await, 400);
    assert_eq!(stop("signal=SIGINT&t=7").await, 204);
    // What is below nothing is for ever.
    assert_eq!(stop("t=-2").await, 304);
    let seen = daemon.engine.stops.lock().expect("no panic").clone();
    let expected = [(Some("SIGINT".to_owned()), Some(Duration::from_secs(7))), (None, Some(Duration::MAX))];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_does_and_uses_is_shown() {
    for program in programs() {
        let (daemon, name) = daemon_with_one().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await.stdout;
        let top: Vec<String> = run(&format!("top {name}")).await.lines().map(squeezed).collect();
        assert_eq!(top, ["PID CMD", "7 -ef"], "{program}");
        let top = run(&format!("top {name} -o pid,comm")).await;
        assert!(top.contains("-o pid,comm"), "{program}: {top}");
        let format = "{{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.MemPerc}}|{{.NetIO}}|{{.BlockIO}}|{{.PIDs}}";
        let stats = run(&format!("stats --no-stream --format {format}")).await;
        let expected = format!("{name}|{}.00%|2MiB / 8MiB|25.00%|1kB / 2kB|4.1kB / 8.19kB|4\n", 25 * N_CPUS);
        assert_eq!(stats, expected, "{program}");
        // At once: there is nothing yet to compare with.
        let path = format!("/containers/{name}/stats?stream=false&one-shot=true");
        let (status, reply) = daemon.request("GET", &path, b"").await;
        let shown: Value = from_str(&reply).expect("JSON");
        assert_eq!((status, &shown["precpu_stats"]["cpu_usage"]["total_usage"]), (200, &Value::from(0)));
        daemon.engine.containers.lock().expect("no panic")[0].running = false;
        let (_, reply) = daemon.request("GET", &path, b"").await;
        let shown: Value = from_str(&reply).expect("JSON");
        assert_eq!(shown["memory_stats"], serde_json::json!({}), "{program}: it has ended");
    }
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_both_ways() {
    for program in programs() {
        let (daemon, name) = daemon_with_one().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await;
        let to = daemon.path("copied");
        let copied = run(&format!("cp {name}:/etc/motd {}", to.display())).await;
        assert_eq!(copied.code, 0, "{program}: {copied:?}");
        assert_eq!(std::fs::read_to_string(&to).expect("copied"), "hello");
        let missing = run(&format!("cp {name}:/nothing {}", to.display())).await;
        // The older program has words of its own.
        let words = ["Could not find the file /nothing in container ", "No such container:path: "];
        let is_said = words.iter().any(|words| missing.stderr.contains(words));
        assert!(missing.code != 0 && is_said, "{program}: {missing:?}");

        let put = run(&format!("cp -a {} {name}:/etc/motd", to.display())).await;
        assert_eq!(put.code, 0, "{program}: {put:?}");
        let (path, how, archive) = daemon.engine.unpacked.lock().expect("no panic").pop().expect("one came");
        assert_eq!(
            (path.trim_end_matches('/'), how),
            ("/etc", Unpacking { keeps_kinds: true, is_users: true })
        );
        let mut archive = tar::Archive::new(&archive[..]);
        let names: Vec<String> = archive
            .entries()
            .expect("an archive")
            .map(|entry| String::from_utf8_lossy(&entry.expect("whole").path_bytes()).into_owned())
            .collect();
        assert_eq!(names, ["motd"], "{program}");
    }
}
