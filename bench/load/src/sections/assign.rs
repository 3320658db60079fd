//! 10,000 replicas: from the request to the last of them assigned to a node, three managers that write through.
//!
//! The workers that they are for are stopped (SIGSTOP) before the request: so many containers would not run on this machine,
//! and until their grace is over stopped nodes are as good as others. dockerd's is made long enough for it. The end is the
//! leader's own stamp of the last task: to ask for so many tasks again and again would take part in what is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::image::{COMMAND, IMAGE};
use crate::managers::{Connection, DockerManagers, Managers, MeshManagers, N_MANAGERS, Nodes, signal};

const METRIC: Metric =
    Metric { name: "10,000 replicas, from the request to all assigned", unit: "s", better: Better::Lower };

const MESH: &str = "meshd";
const GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(0.6) }];

const N_REPLICAS: usize = 10_000;
const N_WORKERS: usize = 2;
/// What was made has to go again, which takes longer than what is measured.
const MOST_SAMPLES: usize = 3;
const NAME: &str = "bench-assign";
/// A minute.
const HEARTBEAT_NS: u64 = 60_000_000_000;
/// Between looks at all tasks.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// How long tasks may take to be assigned, or to be gone.
const LIMIT: Duration = Duration::from_mins(3);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let mesh = MeshManagers::start_with(N_MANAGERS, N_WORKERS);
    let dockerd = DockerManagers::start_with(N_WORKERS);
    let peers = vec![
        Peer::maybe(MESH, &mesh, until_assigned).at_most(MOST_SAMPLES),
        Peer::maybe("dockerd", &dockerd, until_assigned).at_most(MOST_SAMPLES),
    ];
    vec![compare(METRIC, plan, peers).aiming_at(&GOALS)]
}

/// Seconds. The service is gone afterwards.
fn until_assigned<C: Managers + Nodes>(cluster: &C) -> Result<f64> {
    let socket = cluster.socket(0)?;
    let runtime = Nodes::runtime(cluster);
    runtime.block_on(be_patient(&socket))?;
    let stopped = Stopped::new(cluster)?;
    let taken = runtime.block_on(create_and_wait(&socket));
    drop(stopped);
    runtime.block_on(remove(&socket))?;
    taken
}

/// Sets the period of heartbeats, three of which a node may miss.
async fn be_patient(socket: &Path) -> Result<()> {
    let mut connection = Connection::open(socket).await?;
    let swarm = connection.call(Method::GET, "/swarm", None).await?;
    let mut spec = swarm["Spec"].clone();
    spec["Dispatcher"]["HeartbeatPeriod"] = json!(HEARTBEAT_NS);
    let version = &swarm["Version"]["Index"];
    connection.call(Method::POST, &format!("/swarm/update?version={version}"), Some(&spec)).await.map(drop)
}

/// The workers, until this is dropped.
struct Stopped<'a, C: Managers>(&'a C);

impl<'a, C: Managers> Stopped<'a, C> {
    fn new(cluster: &'a C) -> Result<Self> {
        let this = Self(cluster);
        for worker in N_MANAGERS..N_MANAGERS + N_WORKERS {
            signal(cluster, worker, Signal::SIGSTOP)?;
        }
        Ok(this)
    }
}

impl<C: Managers> Drop for Stopped<'_, C> {
    fn drop(&mut self) {
        for worker in N_MANAGERS..N_MANAGERS + N_WORKERS {
            if let Err(error) = signal(self.0, worker, Signal::SIGCONT) {
                eprintln!("bench-load: a worker stays stopped: {error:#}");
            }
        }
    }
}

async fn create_and_wait(socket: &Path) -> Result<f64> {
    let mut connection = Connection::open(socket).await?;
    let (start, began) = (Instant::now(), Timestamp::now());
    connection.call(Method::POST, "/services/create", Some(&service())).await?;
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let tasks = connection.call(Method::GET, "/tasks", None).await?;
        let tasks = tasks.as_array().context("no list of tasks")?;
        let assigned: Vec<&Value> =
            tasks.iter().filter(|task| task["Status"]["State"] == "assigned").collect();
        if assigned.len() >= N_REPLICAS {
            let last = assigned.iter().map(|task| stamp(task)).collect::<Result<Vec<_>>>()?;
            let last = last.into_iter().max().context("no task")?;
            return Ok(last.duration_since(began).as_secs_f64());
        }
        ensure!(start.elapsed() < LIMIT, "{} of {} tasks have a node", assigned.len(), tasks.len());
    }
}

fn stamp(task: &Value) -> Result<Timestamp> {
    let text = task["Status"]["Timestamp"].as_str().context("a task without a time")?;
    Ok(text.parse()?)
}

/// Removes the service, and waits for its tasks to go.
async fn remove(socket: &Path) -> Result<()> {
    let mut connection = Connection::open(socket).await?;
    connection.call(Method::DELETE, &format!("/services/{NAME}"), None).await?;
    let start = Instant::now();
    loop {
        let tasks = connection.call(Method::GET, "/tasks", None).await?;
        if tasks.as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "the tasks do not go");
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

fn service() -> Value {
    json!({
        "Name": NAME,
        "TaskTemplate": {
            "ContainerSpec": {"Image": IMAGE, "Command": COMMAND},
            "Placement": {"Constraints": ["node.role==worker"]},
        },
        "Mode": {"Replicated": {"Replicas": N_REPLICAS}},
    })
}
