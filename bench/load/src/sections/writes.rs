//! Small writes of 64 clients, spread over three managers: configs of a few bytes, keys of etcd. Each client has a
//! connection, and one write under way.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::managers::{DockerManagers, Etcd, Managers, MeshManagers, N_MANAGERS, Write as _};

const METRIC: Metric = Metric { name: "Accepted writes, 64 clients", unit: "1/s", better: Better::Higher };

const N_CLIENTS: usize = 64;

const MESH: &str = "meshd";
const ETCD: &str = "etcd";
const GOALS: [Goal; 2] = [
    Goal { row: MESH, bound: Bound::Above(8000.0) },
    Goal { row: MESH, bound: Bound::AtLeast { share: 1.0, of: ETCD } },
];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let (mesh, etcd, dockerd) = (MeshManagers::start(), Etcd::start(), DockerManagers::start());
    let seconds = plan.seconds;
    let peers = vec![
        Peer::maybe(MESH, &mesh, |peer| rate(peer, seconds)),
        Peer::maybe(ETCD, &etcd, |peer| rate(peer, seconds)),
        Peer::maybe("dockerd", &dockerd, |peer| rate(peer, seconds)),
    ];
    vec![compare(METRIC, plan, peers).aiming_at(&GOALS)]
}

/// Writes per second. What was written is removed afterwards.
fn rate<M: Managers>(managers: &M, seconds: u32) -> Result<f64>
where
    M::Writer: Send + 'static,
{
    let limit = Duration::from_secs(u64::from(seconds));
    let rate = managers.runtime().block_on(async {
        let mut writers = Vec::new();
        for client in 0..N_CLIENTS {
            writers.push(managers.connect(client % N_MANAGERS).await?);
        }
        let start = Instant::now();
        let mut clients: JoinSet<Result<u32>> = JoinSet::new();
        for mut writer in writers {
            clients.spawn(async move {
                let mut n_written = 0;
                while start.elapsed() < limit {
                    writer.write().await?;
                    n_written += 1;
                }
                Ok(n_written)
            });
        }
        let mut n_written = 0;
        while let Some(client) = clients.join_next().await {
            n_written += client??;
        }
        anyhow::Ok(f64::from(n_written) / start.elapsed().as_secs_f64())
    })?;
    managers.forget()?;
    Ok(rate)
}
