//! A backend less: from the user's request to the maps that packets read, on every node of 25.
//!
//! A published service goes from two replicas to one. Every node has its frontends, so that every node's ring changes, and
//! rings lose a task before it is signalled: nothing waits for a container. The maps are read straight from their pins, one
//! node after the other; a look takes a fraction of a millisecond.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use control_client::Client;
use dataplane_kernel::inspect;
use serde_json::{Value, json};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::image::{COMMAND, IMAGE};
use crate::managers::{MeshManagers, N_MANAGERS, Nodes as _};

const METRIC: Metric = Metric {
    name: "A backend less, from the request to the maps of 25 nodes",
    unit: "ms",
    better: Better::Lower,
};
const MESH: &str = "meshd";
const N_NODES: usize = 25;

// The 99th percentile of fewer than a hundred samples is the largest.
const GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Worst(150.0) }];

/// Samples for each that was asked for: they are short.
const SAMPLES_PER_RUN: u32 = 10;

const NAME: &str = "bench-everywhere";
const PORT: u16 = 8080;

/// Between looks at a node's maps.
const LOOK_PERIOD: Duration = Duration::from_millis(1);
/// How long a change may take, a container's start included.
const LIMIT: Duration = Duration::from_secs(30);
/// What the change before has set in motion, comes to rest meanwhile.
const SETTLE: Duration = Duration::from_millis(500);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let plan = Plan { runs: plan.runs * SAMPLES_PER_RUN, ..plan };
    let nodes = Watched::start();
    vec![compare(METRIC, plan, vec![Peer::maybe(MESH, &nodes, Watched::remove_one)]).aiming_at(&GOALS)]
}

/// The cluster, with a service of two tasks.
struct Watched {
    client: Client,
    pins: Vec<PathBuf>,
    mesh: MeshManagers,
}

impl Watched {
    fn start() -> Result<Self> {
        let mesh = MeshManagers::start_with(N_MANAGERS, N_NODES - N_MANAGERS)?;
        mesh.import_image()?;
        let lab = mesh.lab();
        let pins: Result<Vec<PathBuf>> = lab.nodes().iter().map(|node| lab.bpffs_dir(&node.name)).collect();
        let this = Self { client: Client::new(mesh.socket(0)?), pins: pins?, mesh };
        this.mesh.runtime().block_on(this.client.post("/services/create", Some(&service(2))))?;
        this.wait_for_backends(2)?;
        Ok(this)
    }

    /// Milliseconds. The service has two tasks again afterwards.
    fn remove_one(&self) -> Result<f64> {
        std::thread::sleep(SETTLE);
        let start = Instant::now();
        self.scale(1)?;
        self.wait_for_backends(1)?;
        let taken = start.elapsed();
        self.scale(2)?;
        self.wait_for_backends(2)?;
        Ok(taken.as_secs_f64() * 1e3)
    }

    fn scale(&self, n_replicas: u64) -> Result<()> {
        self.mesh.runtime().block_on(async {
            let now = self.client.get(&format!("/services/{NAME}")).await?;
            let version = now["Version"]["Index"].as_u64().context("the service has no version")?;
            let path = format!("/services/{NAME}/update?version={version}");
            self.client.post(&path, Some(&service(n_replicas))).await?;
            Ok(())
        })
    }

    /// Returns when every node's ring has so many.
    fn wait_for_backends(&self, n: usize) -> Result<()> {
        let start = Instant::now();
        for pins in &self.pins {
            while n_backends(pins)? != Some(n) {
                ensure!(start.elapsed() < LIMIT, "{} has {:?}, not {n}", pins.display(), n_backends(pins)?);
                std::thread::sleep(LOOK_PERIOD);
            }
        }
        Ok(())
    }
}

/// Of the service's frontend; `None` while there is none.
fn n_backends(pins: &Path) -> Result<Option<usize>> {
    let wanted = format!(":{PORT}/tcp");
    let rows = inspect::load_balancers(pins)?;
    Ok(rows.iter().find(|row| row.frontend.ends_with(&wanted)).map(|row| row.backends.len()))
}

fn service(n_replicas: u64) -> Value {
    let container = json!({"Image": IMAGE, "Command": COMMAND, "StopSignal": "SIGKILL"});
    json!({
        "Name": NAME,
        "TaskTemplate": {"ContainerSpec": container},
        "Mode": {"Replicated": {"Replicas": n_replicas}},
        "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": PORT, "PublishedPort": PORT}]},
    })
}
