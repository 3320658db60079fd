//! What `meshd` keeps in memory for 1,000 services with 10 tasks each.
//!
//! The tasks wait for a node that is not there: so many would not run on this machine. So this is the manager's part; a
//! node's data plane holds nothing of them.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::{Lab, LabOptions, wait_until};
use control_client::Client;
use serde_json::{Value, json};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};

const METRIC: Metric = Metric { name: "Resident memory", unit: "MB", better: Better::Lower };

const EMPTY: &str = "meshd, one manager, nothing in it";
const FULL: &str = "meshd, 1,000 services of 10 tasks that wait for a node";
const GOALS: [Goal; 1] = [Goal { row: FULL, bound: Bound::Below(60.0) }];

const N_SERVICES: u16 = 1_000;
const N_TASKS: u32 = 10;
/// Name of the lab; beside others.
const LAB: &str = "benchmem";
/// What the last requests left is given back meanwhile: what is kept is measured, not what was in use for an answer.
const REST: Duration = Duration::from_secs(65);
/// How long 10,000 tasks may take to be made.
const LIMIT: Duration = Duration::from_mins(2);

/// Memory changes little from sample to sample: one run.
pub fn measure(plan: Plan) -> Vec<Comparison> {
    let plan = Plan { runs: 1, ..plan };
    let manager = Manager::start();
    let rows = vec![
        Peer::maybe(EMPTY, &manager, Manager::resident),
        Peer::maybe(FULL, &manager, |manager| {
            manager.fill()?;
            manager.resident()
        }),
    ];
    vec![compare(METRIC, plan, rows).aiming_at(&GOALS)]
}

/// A cluster of one.
struct Manager {
    lab: Lab,
    pid: i32,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Manager {
    fn start() -> Result<Self> {
        let meshd = std::env::var_os("MESH_MESHD")
            .context("MESH_MESHD does not name a meshd; use cargo xtask bench")?;
        let options = LabOptions {
            name: LAB.to_owned(),
            managers: 1,
            workers: 0,
            meshd: PathBuf::from(meshd),
            meshd_args: Vec::new(),
            is_ipv6_only: false,
            has_docker: false,
        };
        let lab = Lab::up(&options).inspect_err(|_| {
            if let Ok(half) = Lab::open(LAB) {
                take_down(&half);
            }
        })?;
        let name = lab.nodes()[0].name.clone();
        let found = lab.pid(&name).and_then(|pid| {
            let client = Client::new(&lab.socket(&name)?);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok((pid.context("meshd does not run")?, client, runtime))
        });
        match found {
            Ok((pid, client, runtime)) => Ok(Self { lab, pid, client, runtime }),
            Err(error) => {
                take_down(&lab);
                Err(error)
            }
        }
    }

    fn resident(&self) -> Result<f64> {
        thread::sleep(REST);
        resident_of(self.pid)
    }

    /// Makes all services, and waits until their tasks wait.
    fn fill(&self) -> Result<()> {
        self.widen_ingress()?;
        for number in 0..N_SERVICES {
            let spec = json!({
                "Name": format!("s{number}"),
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "none:latest"},
                    "Placement": {"Constraints": ["node.hostname==none"]},
                },
                "Mode": {"Replicated": {"Replicas": N_TASKS}},
                "EndpointSpec": {
                    "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 10_000 + u32::from(number)}],
                },
            });
            self.runtime.block_on(self.client.post("/services/create", Some(&spec)))?;
        }
        let n_tasks = usize::from(N_SERVICES) * usize::try_from(N_TASKS)?;
        wait_until("all tasks to be made", LIMIT, || {
            let tasks = self.runtime.block_on(self.client.get("/tasks"))?;
            let is_waiting = |task: &&Value| task["Status"]["State"] == "pending";
            let n_waiting = tasks.as_array().map_or(0, |tasks| tasks.iter().filter(is_waiting).count());
            ensure!(n_waiting >= n_tasks, "{n_waiting} of {n_tasks} wait for a node");
            Ok(Some(()))
        })
        .map(drop)
    }
}

impl Manager {
    /// The routing mesh's network has 254 addresses unless another one is made: the services and their tasks need 11,000,
    /// and who has none stays new.
    fn widen_ingress(&self) -> Result<()> {
        let wide = json!({
            "Name": "ingress", "Driver": "overlay", "Ingress": true,
            "IPAM": {"Config": [{"Subnet": "10.64.0.0/16"}]},
        });
        self.runtime.block_on(async {
            self.client.delete("/networks/ingress").await?;
            self.client.post("/networks/create", Some(&wide)).await
        })?;
        Ok(())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        take_down(&self.lab);
    }
}

fn take_down(lab: &Lab) {
    if let Err(error) = lab.down() {
        eprintln!("bench-load: can't take the lab down: {error:#}");
    }
}

/// Megabytes that a process has in memory (`VmRSS`, proc(5)).
pub fn resident_of(process: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kilobytes.context("no VmRSS")? * 1024.0 / 1e6)
}
