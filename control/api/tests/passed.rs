//! A node whose containers another daemon runs: what passes, what is joined, what is hidden.

mod common;

use common::cli::programs;
use common::{Daemon, engine};
use control_api::ApiVersion;
use control_api::passage::Passage;
use control_model::object::Slot;
use control_model::{ServiceId, Task, TaskId};
use serde_json::Value;

const HIDDEN: &str = "hidden";

/// A daemon with three containers, of which one is hidden, and one that passes what is asked of containers on to it.
async fn pair() -> (Daemon, Daemon) {
    let host = Daemon::alone().await;
    for (n, name) in [(1, "web"), (2, "own"), (3, "sandbox")] {
        let mut task = Task::new(TaskId::from_bits(n), ServiceId::from_bits(9), Slot::Replica(1));
        task.service_name = name.into();
        let mut container = engine::container(&task);
        if name == "sandbox" {
            container.labels.insert(HIDDEN.into(), String::new());
        }
        host.engine.containers.lock().expect("no panic").push(container);
    }
    let passage = Passage::new(&host.socket, ApiVersion(41), |label| label == HIDDEN);
    (Daemon::hosted(passage).await, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_anothers_and_services_are_not() {
    let (daemon, _host) = pair().await;
    for program in programs() {
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!(output.code, 0, "{program} {line}: {output:?}");
            output.stdout.trim_end().to_owned()
        };
        let names = run("ps -a --format {{.Names}}").await;
        assert!(names.contains("web") && names.contains("own") && !names.contains("sandbox"), "{names}");
        assert_eq!(run("ps -n 1 -q").await.lines().count(), 1);
        assert_eq!(run("ps -n 5 -q").await.lines().count(), 2);
        assert_eq!(
            run("info --format {{.Containers}}/{{.Swarm.LocalNodeState}}/{{.Name}}").await,
            "2/active/m1"
        );
        assert_eq!(run("version --format {{.Server.APIVersion}}").await, "1.41");
        assert_eq!(run("network ls --filter name=ingress --format {{.Name}}").await, "ingress");
        assert_eq!(run("service ls -q").await, "");
        let name = run("ps -a --filter name=own --format {{.Names}}").await;
        let cat = daemon.docker_by(program, &format!("exec -i {name} cat"), b"to the end").await;
        assert_eq!((cat.code, cat.stdout.as_str()), (0, "to the end"), "{program}: {cat:?}");
        let unknown = daemon.docker_by(program, "inspect nobody", b"").await;
        assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_other_daemon_containers_are_missed_and_services_are_not() {
    let (daemon, host) = pair().await;
    drop(host);
    let missed = async || daemon.request("GET", "/containers/json", b"").await.0 == 503;
    while !missed().await {
        tokio::task::yield_now().await;
    }
    let (status, message) = daemon.error("GET", "/v1.41/containers/json", "").await;
    assert_eq!(status, 503);
    assert!(message.starts_with("Docker Engine at ") && message.contains(" does not answer: "), "{message}");
    let (status, nodes) = daemon.request("GET", "/nodes", b"").await;
    let nodes: Value = serde_json::from_str(&nodes).expect("JSON");
    assert_eq!((status, nodes.as_array().map(Vec::len)), (200, Some(3)));
}
