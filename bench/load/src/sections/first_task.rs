//! From `service create` to its task running: one replica, the image is there. The manager is asked every few milliseconds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::image::{COMMAND, IMAGE};
use crate::managers::{Connection, DockerManagers, MeshManagers, Nodes as _};

const METRIC: Metric =
    Metric { name: "service create, to its first task running", unit: "ms", better: Better::Lower };

const MESH: &str = "meshd";
const GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(250.0) }];

const NAME: &str = "bench-first";
/// How often the manager is asked.
const POLL_PERIOD: Duration = Duration::from_millis(5);
/// How long a task may take to run, or to be gone.
const LIMIT: Duration = Duration::from_mins(1);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let mesh = MeshManagers::start().and_then(|mesh| {
        mesh.import_image()?;
        Ok((mesh.socket(0)?, mesh))
    });
    // Its daemons have the image.
    let dockerd = DockerManagers::start().map(|dockerd| (dockerd.daemon(0).socket(), dockerd));
    let peers = vec![
        Peer::maybe(MESH, &mesh, |(socket, peer)| until_running(socket, peer.runtime())),
        Peer::maybe("dockerd", &dockerd, |(socket, peer): &(PathBuf, DockerManagers)| {
            until_running(socket, peer.runtime())
        }),
    ];
    vec![compare(METRIC, plan, peers).aiming_at(&GOALS)]
}

/// Milliseconds. The service is gone afterwards.
fn until_running(socket: &Path, runtime: &Runtime) -> Result<f64> {
    runtime.block_on(async {
        let mut connection = Connection::open(socket).await?;
        let start = Instant::now();
        let made = connection.call(Method::POST, "/services/create", Some(&service())).await?;
        let id = made["ID"].as_str().context("the service has no id")?;
        wait(&mut connection, id, |tasks| tasks.iter().any(|task| task["Status"]["State"] == "running"))
            .await?;
        let taken = start.elapsed();
        connection.call(Method::DELETE, &format!("/services/{id}"), None).await?;
        wait(&mut connection, id, |tasks: &[&Value]| tasks.is_empty()).await?;
        Ok(taken.as_secs_f64() * 1e3)
    })
}

fn service() -> Value {
    json!({
        "Name": NAME,
        "TaskTemplate": {"ContainerSpec": {"Image": IMAGE, "Command": COMMAND, "StopSignal": "SIGKILL"}},
        "Mode": {"Replicated": {"Replicas": 1}},
    })
}

/// All tasks are asked for, because a filter by a service that is gone is refused.
async fn wait(connection: &mut Connection, service: &str, fact: impl Fn(&[&Value]) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let tasks = connection.call(Method::GET, "/tasks", None).await?;
        let tasks = tasks.as_array().context("no list of tasks")?;
        let own: Vec<&Value> = tasks.iter().filter(|task| task["ServiceID"] == service).collect();
        if fact(&own) {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {own:?}");
        tokio::time::sleep(POLL_PERIOD).await;
    }
}
