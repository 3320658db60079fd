//! From `service create --replicas 20` to the twentieth task running: five nodes, an overlay network, images there.
//!
//! Both clusters get the same service with `--endpoint-mode dnsrr`: Docker's virtual addresses need IPVS, which not
//! every kernel has.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bench_lab::wait_until;
use control_client::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::compare::{Better, Comparison, Metric, Peer, Plan, compare};
use crate::dockerd::{PacketFilter, Size, Swarm};
use crate::image::{COMMAND, IMAGE};
use crate::mesh::{LazyMesh, Mesh, N_MANAGERS, N_NODES};

const METRIC: Metric =
    Metric { name: "service create --replicas 20 to all running", unit: "s", better: Better::Lower };

const N_REPLICAS: usize = 20;

/// Name of the service and of its network.
const NAME: &str = "bench-converge";

/// How long 20 tasks may take.
const LIMIT: Duration = Duration::from_mins(1);

/// How often the daemon is asked: what is measured takes seconds.
const POLL_PERIOD: Duration = Duration::from_millis(20);

/// How long a network may take to be free of its tasks.
const FREE_LIMIT: Duration = Duration::from_secs(30);

pub fn measure(plan: Plan, mesh: &LazyMesh) -> Vec<Comparison> {
    let ours = mesh.get().and_then(Mesh::socket).and_then(|socket| Cluster::new(&socket));
    let swarm = DockerdSwarm::start();
    let peers = vec![
        Peer::maybe("mesh", &ours, Cluster::converge),
        Peer::maybe("dockerd", &swarm, |swarm| swarm.cluster.converge()),
    ];
    vec![compare(METRIC, plan, peers)]
}

/// A cluster with an overlay network, spoken to through one manager. The network goes when this is dropped.
struct Cluster {
    client: Client,
    runtime: Runtime,
    network: String,
}

impl Cluster {
    fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = Client::new(socket);
        let spec = json!({"Name": NAME, "Driver": "overlay"});
        let made = runtime.block_on(client.post("/networks/create", Some(&spec)))?;
        let network = made["Id"].as_str().context("the network has no id")?.to_owned();
        Ok(Self { client, runtime, network })
    }

    /// Seconds from the request to the last task. The service is gone afterwards.
    fn converge(&self) -> Result<f64> {
        let start = Instant::now();
        let made = self.runtime.block_on(self.client.post("/services/create", Some(&self.service())))?;
        let id = made["ID"].as_str().context("the service has no id")?;
        let converged =
            self.wait(id, |tasks| tasks.iter().filter(|task| is_running(task)).count() >= N_REPLICAS);
        let taken = start.elapsed().as_secs_f64();
        self.runtime.block_on(self.client.delete(&format!("/services/{id}")))?;
        let gone = self.wait(id, <[Value]>::is_empty);
        converged.context("tasks don't run")?;
        gone.context("tasks don't go")?;
        Ok(taken)
    }

    fn service(&self) -> Value {
        let container = json!({"Image": IMAGE, "Command": COMMAND, "StopSignal": "SIGKILL"});
        json!({
            "Name": NAME,
            "TaskTemplate": {"ContainerSpec": container, "Networks": [{"Target": self.network}]},
            "Mode": {"Replicated": {"Replicas": N_REPLICAS}},
            "EndpointSpec": {"Mode": "dnsrr"},
        })
    }

    /// All tasks are asked for, because a filter by a service that is gone is refused.
    fn wait(&self, service: &str, fact: impl Fn(&[Value]) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let tasks = self.runtime.block_on(self.client.get("/tasks"))?;
            let mut tasks = tasks.as_array().cloned().unwrap_or_default();
            tasks.retain(|task| task["ServiceID"] == service);
            if fact(&tasks) {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                let states: Vec<&Value> = tasks.iter().map(|task| &task["Status"]).collect();
                anyhow::bail!("not within {LIMIT:?}: {}", serde_json::to_string(&states)?);
            }
            std::thread::sleep(POLL_PERIOD);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let path = format!("/networks/{}", self.network);
        let removed = wait_until("the network to be free", FREE_LIMIT, || {
            Ok(Some(self.runtime.block_on(self.client.delete(&path))?))
        });
        if let Err(error) = removed {
            eprintln!("bench-load: {error:#}");
        }
    }
}

fn is_running(task: &Value) -> bool {
    task["Status"]["State"] == "running"
}

/// Debian's dockerd, as many nodes and managers as the lab has.
struct DockerdSwarm {
    // Dropped in this order.
    cluster: Cluster,
    _swarm: Swarm,
}

impl DockerdSwarm {
    fn start() -> Result<Self> {
        let size = Size { n_managers: N_MANAGERS, n_nodes: N_NODES };
        let swarm = Swarm::start(size, PacketFilter::Untouched)?;
        Ok(Self { cluster: Cluster::new(&swarm.manager().socket())?, _swarm: swarm })
    }
}
