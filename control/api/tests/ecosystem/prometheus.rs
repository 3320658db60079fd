//! Prometheus' service discovery by `dockerswarm_sd_configs`, of all roles, over the unix socket.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use control_model::object::Slot;
use control_model::{NetworkId, Service, Task, TaskState};
use control_store::{ReplicatedStore as _, State};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::common::Daemon;

/// Debian's.
const PROGRAM: &str = "/usr/bin/prometheus";
/// Longest time for anything here.
const LIMIT: Duration = Duration::from_mins(1);
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// How the log says where it listens.
const LISTENS: &str = "msg=\"Listening on\" address=";

/// A server that discovers and scrapes nothing. It goes with its handle.
struct Prometheus {
    address: SocketAddr,
    log: PathBuf,
    _child: Child,
}

impl Prometheus {
    /// Starts it with these jobs: name, role, filters as YAML.
    async fn start(daemon: &Daemon, jobs: &[(&str, &str, &str)]) -> Self {
        assert!(std::path::Path::new(PROGRAM).exists(), "{PROGRAM} is missing: cargo xtask test installs it");
        let config = daemon.path("prometheus.yml");
        let log = daemon.path("prometheus.log");
        std::fs::write(&config, config_of(daemon, jobs)).expect("written");
        let child = Command::new(PROGRAM)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", daemon.path("prometheus").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .env_clear()
            .current_dir(daemon.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("Prometheus runs");
        let address = eventually(async || {
            let text = std::fs::read_to_string(&log).expect("a log");
            let told = text.split(LISTENS).nth(1).and_then(|rest| rest.split_whitespace().next());
            told.and_then(|address| address.parse().ok()).ok_or(text)
        })
        .await;
        Self { address, log, _child: child }
    }

    /// Waits until `job` has found exactly `expected`: each target as the values of `labels`, with a blank between.
    async fn finds(&self, job: &str, labels: &str, expected: &[impl AsRef<str>]) {
        let expected: BTreeSet<String> = expected.iter().map(|line| line.as_ref().to_owned()).collect();
        eventually(async || {
            let found = self.found(job, labels).await;
            let is_it = found.as_ref().is_some_and(|found| *found == expected);
            if is_it {
                return Ok(());
            }
            let log = std::fs::read_to_string(&self.log).expect("a log");
            Err(format!("{job}: expected {expected:#?}, not {found:#?}\n{log}"))
        })
        .await;
    }

    /// What it has found; nothing while it is not ready to say.
    async fn found(&self, job: &str, labels: &str) -> Option<BTreeSet<String>> {
        let targets = get(self.address, "/api/v1/targets").await?;
        let found =
            targets["data"]["droppedTargets"].as_array()?.iter().map(|target| &target["discoveredLabels"]);
        let of_job = found.filter(|target| target["job"] == job);
        let line = |target: &Value| {
            let words: Vec<_> = labels
                .split_whitespace()
                .map(|label| {
                    let name = if label.starts_with("__") {
                        (*label).into()
                    } else {
                        format!("__meta_dockerswarm_{label}")
                    };
                    target[&name].as_str().unwrap_or("-").to_owned()
                })
                .collect();
            words.join(" ")
        };
        Some(of_job.map(line).collect())
    }
}

/// All targets are dropped once they are found: nothing is scraped.
fn config_of(daemon: &Daemon, jobs: &[(&str, &str, &str)]) -> String {
    let socket = daemon.socket.display();
    let job = |(name, role, filters): &(&str, &str, &str)| {
        format!(
            "- job_name: {name}\n  dockerswarm_sd_configs:\n  - host: unix://{socket}\n    role: {role}\n    \
             port: 9999\n    refresh_interval: 1s\n    filters: {filters}\n  relabel_configs:\n  - action: drop\n    \
             source_labels: [job]\n    regex: .*\n"
        )
    };
    format!("scrape_configs:\n{}", jobs.iter().map(job).collect::<String>())
}

/// Asks until there is an answer; the last complaint is the failure.
async fn eventually<T>(mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(complaint) => assert!(started.elapsed() < LIMIT, "{complaint}"),
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// The reply's JSON, if it is a good one.
async fn get(address: SocketAddr, path: &str) -> Option<Value> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("Host", "prometheus").body(Empty::<Bytes>::new()).ok()?;
    let reply = sender.send_request(request).await.ok()?;
    let bytes = reply.into_body().collect().await.ok()?.to_bytes();
    connection.abort();
    serde_json::from_slice(&bytes).ok()
}

/// A cluster with a service of each kind, one at a time, so that virtual addresses are always the same.
async fn cluster() -> Daemon {
    let daemon = Daemon::manager().await;
    for line in [
        "network create -d overlay --label tier=front --subnet 10.77.0.0/24 app",
        "network create -d overlay --internal --subnet 10.78.0.0/24 back",
        "node update --label-add rack=a7 w1",
        "node update --availability pause w2",
    ] {
        daemon.prints(line).await;
    }
    let web = "--replicas 2 --network app -p 8080:80 -p 8053:53/udp --label team=blue --container-label app.kind=site \
               --hostname shop whoami:v1";
    let db = "--network back --network app --constraint node.hostname==m1 --update-monitor 1s whoami:v1";
    for (name, n_tasks, flags) in [
        ("web", 2, web),
        ("db", 1, db),
        ("agents", 2, "--mode global -p published=9100,target=9100,mode=host whoami:v1"),
        ("direct", 1, "--endpoint-mode dnsrr --network app --constraint node.hostname==w1 whoami:v1"),
    ] {
        daemon.prints(&format!("service create -d --no-resolve-image --name {name} {flags}")).await;
        daemon.running(name, n_tasks).await;
    }
    daemon.prints("service update -d --no-resolve-image --image whoami:v2 db").await;
    daemon.running("db", 1).await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_finds_services_tasks_and_nodes() {
    let daemon = cluster().await;
    let jobs = [
        ("services", "services", "[]"),
        ("tasks", "tasks", "[]"),
        ("nodes", "nodes", "[]"),
        ("blue", "services", "[{name: label, values: [team=blue]}]"),
        ("two", "services", "[{name: name, values: [db, direct]}, {name: mode, values: [replicated]}]"),
        ("new", "tasks", "[{name: service, values: [db]}, {name: desired-state, values: [running]}]"),
        ("workers", "nodes", "[{name: role, values: [worker]}, {name: node.label, values: [rack]}]"),
    ];
    let prometheus = Prometheus::start(&daemon, &jobs).await;
    finds_services(&prometheus).await;
    finds_tasks(&prometheus, &daemon.store.state()).await;
    finds_nodes(&prometheus).await;
    prometheus
        .finds(
            "services",
            "service_name service_id network_name network_id",
            &service_ids(&daemon.store.state()),
        )
        .await;
    prometheus
        .finds("tasks", "task_id task_container_id node_id service_id", &task_ids(&daemon.store.state()))
        .await;

    // It asks again, and follows.
    daemon.prints("service rm web direct agents").await;
    prometheus.finds("services", "service_name", &["db"]).await;
    prometheus.finds("tasks", "service_name", &["db"]).await;
}

async fn finds_services(prometheus: &Prometheus) {
    let labels = "__address__ service_name service_mode service_label_team service_task_container_image \
                  service_task_container_hostname service_endpoint_port_publish_mode service_updating_status \
                  network_name network_scope network_internal network_ingress network_label_tier";
    let web = "web replicated blue whoami:v1 shop ingress -";
    let db = "db replicated - whoami:v2 - - completed";
    let expected = [
        format!("10.0.0.2:8080 {web} ingress swarm false true -"),
        format!("10.77.0.2:8080 {web} app swarm false false front"),
        format!("10.77.0.5:9999 {db} app swarm false false front"),
        format!("10.78.0.2:9999 {db} back swarm true false -"),
    ];
    prometheus.finds("services", labels, &expected).await;
    prometheus.finds("blue", "__address__", &["10.0.0.2:8080", "10.77.0.2:8080"]).await;
    prometheus.finds("two", "__address__", &["10.77.0.5:9999", "10.78.0.2:9999"]).await;
}

async fn finds_tasks(prometheus: &Prometheus, state: &State) {
    let labels = "__address__ service_name task_slot task_state task_desired_state task_port_publish_mode network_name \
                  node_hostname node_label_rack container_label_app_kind";
    let ip = |task: (&str, u64, TaskState), network: &str| address(state, task, network);
    let old = ("db", 1, TaskState::Shutdown);
    let agents = [
        "198.18.0.11:9100 agents 0 running running host - m1 - -".to_owned(),
        "198.18.0.12:9100 agents 0 running running host - w1 a7 -".to_owned(),
    ];
    let new = ["app", "back"].map(|network| {
        let ip = ip(("db", 1, TaskState::Running), network);
        format!("{ip}:9999 db 1 running running - {network} m1 - -")
    });
    let web = [(1, "m1 -"), (2, "w1 a7")].map(|(slot, node)| {
        ["ingress", "app"].map(|network| {
            let ip = ip(("web", slot, TaskState::Running), network);
            format!("{ip}:8080 web {slot} running running ingress {network} {node} site")
        })
    });
    let others = [
        format!("{}:9999 db 1 shutdown shutdown - app m1 - -", ip(old, "app")),
        format!("{}:9999 db 1 shutdown shutdown - back m1 - -", ip(old, "back")),
        format!(
            "{}:9999 direct 1 running running - app w1 a7 -",
            ip(("direct", 1, TaskState::Running), "app")
        ),
    ];
    prometheus.finds("tasks", labels, &[&agents[..], &new, &web.concat(), &others].concat()).await;
    prometheus.finds("new", labels, &new).await;
}

async fn finds_nodes(prometheus: &Prometheus) {
    let labels = "__address__ node_hostname node_role node_availability node_status node_engine_version node_platform_os \
                  node_platform_architecture node_manager_leader node_manager_reachability node_manager_address node_label_rack";
    let worker = "0.1.0 linux x86_64 - - -";
    let nodes = [
        "198.18.0.11:9999 m1 manager active ready 0.1.0 linux x86_64 true reachable 198.18.0.11:2377 -"
            .to_owned(),
        format!("198.18.0.12:9999 w1 worker active ready {worker} a7"),
        format!("198.18.0.13:9999 w2 worker pause ready {worker} -"),
    ];
    prometheus.finds("nodes", labels, &nodes).await;
    prometheus.finds("workers", labels, &nodes[1..2]).await;
}

/// That of the service's task in this slot and state.
fn address(state: &State, (service, slot, at): (&str, u64, TaskState), network: &str) -> IpAddr {
    let service = state.service_by_name(service).expect("made").id;
    let mut tasks = state.tasks_of_service(service);
    let task = tasks.find(|task| task.slot == Slot::Replica(slot) && task.status.state == at).expect("made");
    let mut attached = task.attachments.iter();
    let of_network = |id| state.networks().get(id).is_some_and(|known| known.spec.name == network);
    attached.find(|attachment| of_network(&attachment.network)).expect("attached").address.ip()
}

fn service_ids(state: &State) -> Vec<String> {
    let vips = state.services().iter().flat_map(|service| {
        let endpoint = service.endpoint.iter().flat_map(|endpoint| &endpoint.vips);
        endpoint.map(move |(network, _)| (service, network))
    });
    let line = |(service, network): (&Arc<Service>, &NetworkId)| {
        let name = &state.networks().get(network).expect("known").spec.name;
        format!("{} {} {name} {network}", service.spec.name, service.id)
    };
    vips.map(line).collect()
}

fn task_ids(state: &State) -> Vec<String> {
    let line = |task: &Arc<Task>| {
        let node = task.node.expect("placed");
        let container = task.status.container.as_ref().map_or("-", |container| &container.container_id);
        format!("{} {container} {node} {}", task.id, task.service)
    };
    state.tasks().iter().map(line).collect()
}
