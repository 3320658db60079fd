//! 10,000 replicas: from the request to the last of them assigned to a node, three managers that write through.
//!
//! The workers that they are for are stopped (SIGSTOP) before the request: so many containers would not run on this machine,
//! and until their grace is over stopped nodes are as good as others. dockerd's is made long enough for it. The end is when
//! the leader wrote the last task (`UpdatedAt`), ours as well as dockerd's: to ask for so many tasks again and again would take
//! part in what is measured. That write, of a fifth of the tasks at the most, is then still to be committed.

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

const METRIC: Metric = Metric {
    name: "10,000 replicas, from the request to the write that assigns the last one",
    unit: "s",
    better: Better::Lower,
};

const MESH: &str = "meshd";
const GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(0.6) }];

const N_REPLICAS: usize = 10_000;
const N_WORKERS: usize = 2;
const WORKERS: std::ops::Range<usize> = N_MANAGERS..N_MANAGERS + N_WORKERS;
/// What was made has to go again, which takes longer than what is measured: with dockerd's workers minutes.
const MOST_SAMPLES: usize = 3;
const MOST_OF_DOCKERD: usize = 1;
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
        Peer::maybe("dockerd", &dockerd, until_assigned).at_most(MOST_OF_DOCKERD),
    ];
    vec![compare(METRIC, plan, peers).aiming_at(&GOALS)]
}

/// Seconds. The service is gone afterwards, or it is said that it is not: then no further sample can be taken.
fn until_assigned<C: Managers + Nodes>(cluster: &C) -> Result<f64> {
    let socket = cluster.socket(0)?;
    let runtime = Nodes::runtime(cluster);
    runtime.block_on(be_patient(&socket))?;
    let stopped = Stopped::new(cluster)?;
    let taken = runtime.block_on(create_and_wait(&socket));
    // Nearly all tasks are to go before the workers hear of them: so many containers would be the end of this machine.
    let removed = runtime.block_on(remove(&socket));
    let cleaned = stopped.restart().and(removed).and_then(|()| runtime.block_on(wait_until_clean(&socket)));
    if let Err(error) = cleaned {
        eprintln!("bench-load: what was assigned is not gone: {error:#}");
    }
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

/// The workers, until [`Stopped::restart`].
struct Stopped<'a, C: Nodes>(&'a C);

impl<'a, C: Managers + Nodes> Stopped<'a, C> {
    fn new(cluster: &'a C) -> Result<Self> {
        for worker in WORKERS {
            signal(cluster, worker, Signal::SIGSTOP)?;
        }
        Ok(Self(cluster))
    }

    /// They begin anew, without what has come in for them.
    fn restart(self) -> Result<()> {
        WORKERS.into_iter().try_for_each(|worker| self.0.lose(worker))?;
        WORKERS.into_iter().try_for_each(|worker| self.0.give_back(worker))
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
    let text = task["UpdatedAt"].as_str().context("a task without a time")?;
    Ok(text.parse()?)
}

async fn remove(socket: &Path) -> Result<()> {
    let mut connection = Connection::open(socket).await?;
    connection.call(Method::DELETE, &format!("/services/{NAME}"), None).await.map(drop)
}

/// No task is left, and the workers are back.
async fn wait_until_clean(socket: &Path) -> Result<()> {
    let mut connection = Connection::open(socket).await?;
    let start = Instant::now();
    loop {
        let tasks = connection.call(Method::GET, "/tasks", None).await?;
        let nodes = connection.call(Method::GET, "/nodes", None).await?;
        let mut nodes = nodes.as_array().context("no list of nodes")?.iter();
        let is_empty = tasks.as_array().is_some_and(Vec::is_empty);
        if is_empty && nodes.all(|node| node["Status"]["State"] == "ready") {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "the tasks do not go, or the workers do not come back");
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
