//! 1,000 simulated nodes with 50 tasks each, held by three real managers: what the leader needs when all is at rest.
//!
//! Nodes beat, gossip is not simulated, tasks have no networks and ports. See [`crate::crowd`].

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench_lab::Lab;
use control_client::Client;
use serde_json::{Value, json};

use super::idle::seconds_of;
use super::memory::resident_of;
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::crowd::{self, Invitation};
use crate::managers::{LAB, Managers, MeshManagers, N_MANAGERS, Nodes as _};

const MEMORY: Metric = Metric {
    name: "Leader of 1,000 simulated nodes with 50 tasks each: resident memory",
    unit: "MB",
    better: Better::Lower,
};
const TIME: Metric = Metric {
    name: "Leader of 1,000 simulated nodes with 50 tasks each: processor time",
    unit: "% of a core",
    better: Better::Lower,
};

const MESH: &str = "meshd";
const MEMORY_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(300.0) }];
const TIME_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(100.0) }];

const N_NODES: u32 = 1_000;
/// Of each service there is one on each node.
const N_TASKS_EACH: u32 = 50;
const MANAGER_PORT: u16 = 2377;
/// What the beginning has left is given back meanwhile.
const REST: Duration = Duration::from_secs(65);
const SAMPLE: Duration = Duration::from_secs(10);
/// How long nodes may take to join, and tasks to run.
const LIMIT: Duration = Duration::from_mins(10);
const LOOK_PERIOD: Duration = Duration::from_secs(2);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let plan = Plan { runs: plan.runs.min(3), ..plan };
    let crowd = Crowd::start();
    let memory = compare(MEMORY, plan, vec![Peer::maybe(MESH, &crowd, Crowd::memory)]);
    let time = compare(TIME, plan, vec![Peer::maybe(MESH, &crowd, Crowd::time)]);
    vec![memory.aiming_at(&MEMORY_GOALS), time.aiming_at(&TIME_GOALS)]
}

/// Managers with their nodes. The nodes' thread ends with the process.
struct Crowd {
    mesh: MeshManagers,
    client: Client,
}

impl Crowd {
    fn start() -> Result<Self> {
        let mesh = MeshManagers::start()?;
        let client = Client::new(mesh.socket(0)?);
        let this = Self { mesh, client };
        let swarm = this.get("/swarm")?;
        let token = swarm["JoinTokens"]["Worker"].as_str().context("no token")?.to_owned();
        let managers = this.mesh.lab().nodes().iter().take(N_MANAGERS);
        let managers = managers.map(|node| SocketAddr::from((node.address, MANAGER_PORT))).collect();
        invite(Invitation { token, managers })?;
        this.fill()?;
        std::thread::sleep(REST);
        Ok(this)
    }

    /// Makes the services, and waits until all tasks run.
    fn fill(&self) -> Result<()> {
        for number in 0..N_TASKS_EACH {
            let service = json!({
                "Name": format!("s{number}"),
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "none:latest"},
                    "Placement": {"Constraints": ["node.role==worker"]},
                },
                "Mode": {"Replicated": {"Replicas": N_NODES}},
            });
            Managers::runtime(&self.mesh).block_on(self.client.post("/services/create", Some(&service)))?;
        }
        let start = Instant::now();
        loop {
            let services = self.get("/services?status=true")?;
            let running = |service: &Value| service["ServiceStatus"]["RunningTasks"].as_u64();
            let n_running: u64 = services.as_array().into_iter().flatten().filter_map(running).sum();
            if n_running >= u64::from(N_NODES * N_TASKS_EACH) {
                return Ok(());
            }
            ensure!(start.elapsed() < LIMIT, "{n_running} tasks run");
            std::thread::sleep(LOOK_PERIOD);
        }
    }

    fn get(&self, path: &str) -> Result<Value> {
        Ok(Managers::runtime(&self.mesh).block_on(self.client.get(path))?)
    }

    /// Megabytes.
    fn memory(&self) -> Result<f64> {
        resident_of(i32::try_from(self.mesh.pid(self.mesh.leader()?)?)?)
    }

    /// Percent of a core.
    fn time(&self) -> Result<f64> {
        let leader = self.mesh.pid(self.mesh.leader()?)?;
        let (start, before) = (Instant::now(), seconds_of(leader)?);
        std::thread::sleep(SAMPLE);
        Ok(100.0 * (seconds_of(leader)? - before) / start.elapsed().as_secs_f64())
    }
}

/// Nodes are where the lab's client is. Returns when all have joined.
fn invite(invitation: Invitation) -> Result<()> {
    let (joined, told) = mpsc::channel();
    let lab = Lab::open(LAB)?;
    std::thread::spawn(move || {
        let nodes = lab.inside("client", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(crowd::run(invitation, N_NODES, joined)))
        });
        if let Err(error) = nodes {
            eprintln!("bench-load: {error:#}");
        }
    });
    told.recv_timeout(LIMIT).context("the nodes have not joined")?
}
