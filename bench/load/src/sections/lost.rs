//! A node is gone: its cable is pulled and its daemon killed. How long until no node's load balancer has its task any more,
//! until it shows as down, and until another task runs in its task's place.
//!
//! Three managers and three workers; a published service has a task on two of the workers. A look at all of it takes some
//! milliseconds. dockerd's load balancers need IPVS, which this kernel lacks: only the other two are measured there.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dataplane_kernel::inspect;
use http::Method;
use serde_json::{Value, json};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, Row, compare};
use crate::image::{COMMAND, IMAGE};
use crate::managers::{Connection, DockerManagers, MeshManagers, N_MANAGERS, Nodes};

const REPLACED: Metric =
    Metric { name: "Node gone, to the replacement running", unit: "s", better: Better::Lower };
const DOWN: Metric = Metric { name: "Node gone, to marked down", unit: "s", better: Better::Lower };
const OUT: Metric =
    Metric { name: "Node gone, to out of every load balancer", unit: "s", better: Better::Lower };

const MESH: &str = "meshd";
const DOCKERD: &str = "dockerd";

const REPLACED_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Worst(3.0) }];
const DOWN_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Worst(2.0) }];
const OUT_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Worst(1.5) }];

/// A sample of dockerd's takes a minute.
const MOST_OF_DOCKERD: usize = 3;
const N_WORKERS: usize = 3;
const N_REPLICAS: usize = 2;

const NAME: &str = "bench-lost";
const PORT: u16 = 8080;
const POLL_PERIOD: Duration = Duration::from_millis(10);
/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(2);
/// Between the node's return and the next time.
const SETTLE: Duration = Duration::from_secs(2);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let mesh = MeshManagers::start_with(N_MANAGERS, N_WORKERS).and_then(|mesh| {
        mesh.import_image()?;
        Ok(mesh)
    });
    let dockerd = DockerManagers::start_with(N_WORKERS);
    let times: [RefCell<Times>; 2] = Default::default();
    let replaced = compare(
        REPLACED,
        plan,
        vec![
            Peer::maybe(MESH, &mesh, |mesh| lose_one(mesh, &times[0])),
            Peer::maybe(DOCKERD, &dockerd, |dockerd| lose_one(dockerd, &times[1])).at_most(MOST_OF_DOCKERD),
        ],
    );
    let [ours, theirs] = times.map(RefCell::into_inner);
    let not_there = Some("its load balancers need IPVS, which this kernel lacks".to_owned());
    let down = vec![Row::new(MESH, ours.down, None), Row::new(DOCKERD, theirs.down, None)];
    let out = vec![Row::new(MESH, ours.out, None), Row::new(DOCKERD, Vec::new(), not_there)];
    vec![
        Comparison { metric: OUT, rows: out, goals: OUT_GOALS.to_vec() },
        Comparison { metric: DOWN, rows: down, goals: DOWN_GOALS.to_vec() },
        replaced.aiming_at(&REPLACED_GOALS),
    ]
}

/// Seconds, a figure per sample.
#[derive(Default)]
struct Times {
    out: Vec<f64>,
    down: Vec<f64>,
}

/// Seconds until the replacement runs. The node is back afterwards, and the tasks are spread again.
fn lose_one<N: Nodes>(nodes: &N, times: &RefCell<Times>) -> Result<f64> {
    let mut watch = nodes.runtime().block_on(Watch::begin(nodes.socket(0)?))?;
    let victim = nodes.runtime().block_on(watch.a_node_with_a_task())?;
    let index = (0..N_MANAGERS + N_WORKERS).find(|index| nodes.address(*index) == victim.address);
    let index = index.context("the node has no address of the lab")?;
    let pins = (0..N_MANAGERS + N_WORKERS).filter(|other| *other != index);
    let pins = pins.filter_map(|other| nodes.pins(other).transpose()).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    nodes.lose(index)?;
    let seen = nodes.runtime().block_on(watch.until_replaced(&victim, &pins, start));
    nodes.give_back(index)?;
    nodes.runtime().block_on(watch.until_ready(&victim))?;
    nodes.runtime().block_on(watch.end())?;
    std::thread::sleep(SETTLE);
    let seen = seen?;
    let mut times = times.borrow_mut();
    times.down.push(seen.down.as_secs_f64());
    times.out.push(seen.out.as_secs_f64());
    Ok(seen.replaced.as_secs_f64())
}

/// A node that has a task of the service.
struct Victim {
    id: String,
    address: String,
}

/// Since the node was lost.
struct Seen {
    out: Duration,
    down: Duration,
    replaced: Duration,
}

/// The service, and who asks about it.
struct Watch {
    connection: Connection,
    service: String,
}

impl Watch {
    /// Makes the service, and waits for its tasks.
    async fn begin(socket: PathBuf) -> Result<Self> {
        let mut connection = Connection::open(&socket).await?;
        let made = connection.call(Method::POST, "/services/create", Some(&service())).await?;
        let service = made["ID"].as_str().context("the service has no id")?.to_owned();
        let mut this = Self { connection, service };
        let start = Instant::now();
        while this.running().await?.len() < N_REPLICAS {
            ensure!(start.elapsed() < LIMIT, "the service does not run");
            tokio::time::sleep(POLL_PERIOD).await;
        }
        tokio::time::sleep(SETTLE).await;
        Ok(this)
    }

    /// Ids of the nodes whose tasks run, and shall.
    async fn running(&mut self) -> Result<Vec<String>> {
        let tasks = self.connection.call(Method::GET, "/tasks", None).await?;
        let tasks = tasks.as_array().context("no list of tasks")?;
        let runs = |task: &&Value| {
            task["ServiceID"] == self.service.as_str()
                && task["DesiredState"] == "running"
                && task["Status"]["State"] == "running"
        };
        Ok(tasks.iter().filter(runs).filter_map(|task| Some(task["NodeID"].as_str()?.to_owned())).collect())
    }

    async fn a_node_with_a_task(&mut self) -> Result<Victim> {
        let id = self.running().await?.pop().context("no task runs")?;
        let address = self.node(&id).await?["Status"]["Addr"].as_str().context("no address")?.to_owned();
        Ok(Victim { id, address })
    }

    async fn node(&mut self, id: &str) -> Result<Value> {
        self.connection.call(Method::GET, &format!("/nodes/{id}"), None).await
    }

    async fn until_replaced(&mut self, victim: &Victim, pins: &[PathBuf], start: Instant) -> Result<Seen> {
        let (mut out, mut down, mut replaced) = (None, None, None);
        loop {
            if out.is_none() && none_has_more_than(pins, N_REPLICAS - 1)? {
                out = Some(start.elapsed());
            }
            if down.is_none() && self.node(&victim.id).await?["Status"]["State"] == "down" {
                down = Some(start.elapsed());
            }
            let others = self.running().await?.iter().filter(|node| **node != victim.id).count();
            if replaced.is_none() && others >= N_REPLICAS {
                replaced = Some(start.elapsed());
            }
            if let (Some(out), Some(down), Some(replaced)) = (out, down, replaced) {
                return Ok(Seen { out, down, replaced });
            }
            ensure!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {out:?}, {down:?}, {replaced:?}");
            tokio::time::sleep(POLL_PERIOD).await;
        }
    }

    async fn until_ready(&mut self, victim: &Victim) -> Result<()> {
        let start = Instant::now();
        while self.node(&victim.id).await?["Status"]["State"] != "ready" {
            ensure!(start.elapsed() < LIMIT, "the node does not come back");
            tokio::time::sleep(POLL_PERIOD).await;
        }
        Ok(())
    }

    /// The service goes, and its tasks.
    async fn end(&mut self) -> Result<()> {
        let path = format!("/services/{}", self.service);
        self.connection.call(Method::DELETE, &path, None).await?;
        let start = Instant::now();
        while !self.running().await?.is_empty() {
            ensure!(start.elapsed() < LIMIT, "the tasks do not end");
            tokio::time::sleep(POLL_PERIOD).await;
        }
        Ok(())
    }
}

/// Whether the rings of all these nodes have so few backends. They are looked at together with the tasks, and before the
/// replacement is one of them.
fn none_has_more_than(pins: &[PathBuf], n: usize) -> Result<bool> {
    let wanted = format!(":{PORT}/tcp");
    for pins in pins {
        let rows = inspect::load_balancers(pins)?;
        let row = rows.iter().find(|row| row.frontend.ends_with(&wanted));
        if row.is_some_and(|row| row.backends.len() > n) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn service() -> Value {
    let container = json!({"Image": IMAGE, "Command": COMMAND, "StopSignal": "SIGKILL"});
    json!({
        "Name": NAME,
        "TaskTemplate": {
            "ContainerSpec": container,
            "Placement": {"Constraints": ["node.role==worker"]},
        },
        "Mode": {"Replicated": {"Replicas": N_REPLICAS}},
        "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": PORT, "PublishedPort": PORT}]},
    })
}
