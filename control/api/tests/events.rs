//! `docker events` through the real CLI.

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::Daemon;
use common::cli::programs;
use common::engine::container;
use control_api::engine::{ContainerChange, EngineEvent, EngineEventKind, ImageChange};
use control_model::Timestamp;
use control_store::ReplicatedStore as _;

const LOOK_PERIOD: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_mins(1);
const FORMAT: &str = "{{.Type}}|{{.Action}}|{{.Actor.Attributes.name}}";

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp(i64::try_from(since_epoch.as_nanos()).expect("before 2262"))
}

/// What has happened, as far as `options` want it.
async fn past(daemon: &Daemon, program: &str, options: &str) -> Vec<String> {
    let until = format!("{}.{:09}", now().0 / 1_000_000_000, now().0 % 1_000_000_000);
    let line = format!("events --since 1 --until {until} --format {FORMAT} {options}");
    let shown = daemon.docker_by(program, &line, b"").await;
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{program} {line}");
    shown.stdout.lines().map(str::to_owned).collect()
}

/// The same, once there are so many: events are told beside what makes them.
async fn until_there_are(n_lines: usize, daemon: &Daemon, program: &str, options: &str) -> Vec<String> {
    let waiting = async {
        loop {
            let lines = past(daemon, program, options).await;
            if lines.len() >= n_lines {
                return lines;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("they come")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_in_the_swarm_and_on_the_node_is_told() {
    let daemon = Daemon::manager().await;
    daemon
        .prints("service create -d --no-resolve-image --name web --constraint node.hostname==m1 whoami:v1")
        .await;
    daemon.running("web", 1).await;
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    let own = container(&task);
    daemon.engine.containers.lock().expect("no panic").push(own.clone());
    daemon.prints("service scale -d web=3").await;
    std::fs::write(daemon.path("note"), "text").expect("written");
    daemon.prints(&format!("config create note {}", daemon.path("note").display())).await;
    let happens =
        |kind| daemon.engine.events.send(EngineEvent { at: now(), kind }).expect("somebody listens");
    let change = |change| EngineEventKind::Container { change, container: Box::new(own.clone()) };
    happens(EngineEventKind::Image {
        change: ImageChange::Pulled,
        id: "whoami:v1".into(),
        name: "whoami".into(),
    });
    for what in [ContainerChange::Started, ContainerChange::Signalled(15), ContainerChange::Ended] {
        happens(change(what));
    }
    daemon.prints(&format!("exec {} echo x", own.name)).await;
    daemon.prints("service rm web").await;

    for program in programs() {
        let name = &own.name;
        let of = |kind: &str, actions: &[&str], name: &str| -> Vec<String> {
            actions.iter().map(|action| format!("{kind}|{action}|{name}")).collect()
        };
        let told = until_there_are(6, &daemon, program, "--filter type=container").await;
        let actions = ["start", "kill", "die", "exec_create: echo x", "exec_start: echo x", "exec_die"];
        assert_eq!(told, of("container", &actions, name), "{program}");
        let told = until_there_are(1, &daemon, program, "--filter type=service --filter event=remove").await;
        assert_eq!(told, ["service|remove|web"], "{program}");
        assert_eq!(
            past(&daemon, program, "--filter type=service --filter event=create").await,
            ["service|create|web"]
        );
        assert_eq!(past(&daemon, program, "--filter type=config").await, ["config|create|note"]);
        assert_eq!(
            past(&daemon, program, "--filter image=whoami --filter type=image").await,
            ["image|pull|whoami"]
        );
        assert!(
            past(&daemon, program, "--filter scope=swarm")
                .await
                .iter()
                .all(|line| !line.starts_with("container"))
        );
        let signal = "--filter event=kill --filter label=com.docker.swarm.service.id";
        assert_eq!(past(&daemon, program, signal).await, of("container", &["kill"], name), "{program}");
    }
    let until = now().0 / 1_000_000_000 + 1;
    let updates = "--filter type=service --filter event=update --format {{.Actor.Attributes}}";
    let scaled = daemon.prints(&format!("events --since 1 --until {until} {updates}")).await;
    assert!(scaled.contains("replicas.new:3 replicas.old:1"), "{scaled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_can_not_be_are_refused() {
    let daemon = Daemon::alone().await;
    let (status, reply) = daemon.request("GET", "/events?since=20&until=10", b"").await;
    assert_eq!(status, 400);
    assert!(reply.contains("`since` time (20) cannot be after `until` time (10)"), "{reply}");
    let (status, reply) = daemon.request("GET", "/events?since=x", b"").await;
    assert_eq!(status, 400);
    assert!(reply.contains("invalid value for 'since'"), "{reply}");
    assert_eq!(daemon.request("GET", "/events?until=1", b"").await, (200, String::new()));
}
