//! What a manager needs while nothing happens: memory and processor time of each of three.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::memory::resident_of;
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::managers::{DockerManagers, Managers, MeshManagers, N_MANAGERS};

const MEMORY: Metric = Metric {
    name: "Idle manager, resident memory (the largest of three)",
    unit: "MB",
    better: Better::Lower,
};
const TIME: Metric = Metric {
    name: "Idle manager, processor time (the mean of three)",
    unit: "% of a core",
    better: Better::Lower,
};

const MESH: &str = "meshd";
const DOCKERD: &str = "dockerd";
const MEMORY_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(40.0) }];

/// What the start has left is given back meanwhile: ours every 30 s, by Go's runtime after two minutes at the latest.
const REST: Duration = Duration::from_secs(150);
const SAMPLE: Duration = Duration::from_secs(5);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let (mesh, dockerd) = (MeshManagers::start(), DockerManagers::start());
    std::thread::sleep(REST);
    let memory = vec![Peer::maybe(MESH, &mesh, memory), Peer::maybe(DOCKERD, &dockerd, memory)];
    let memory = compare(MEMORY, plan, memory).aiming_at(&MEMORY_GOALS);
    let time = vec![Peer::maybe(MESH, &mesh, time), Peer::maybe(DOCKERD, &dockerd, time)];
    vec![memory, compare(TIME, plan, time)]
}

fn memory(managers: &impl Managers) -> Result<f64> {
    let mut most = 0.0f64;
    for member in 0..N_MANAGERS {
        most = most.max(resident_of(i32::try_from(managers.pid(member)?)?)?);
    }
    Ok(most)
}

/// Percent of a core.
fn time(managers: &impl Managers) -> Result<f64> {
    let start = Instant::now();
    let before = seconds_of_all(managers)?;
    std::thread::sleep(SAMPLE);
    let used = seconds_of_all(managers)? - before;
    let n_managers = f64::from(u8::try_from(N_MANAGERS)?);
    Ok(100.0 * used / n_managers / start.elapsed().as_secs_f64())
}

fn seconds_of_all(managers: &impl Managers) -> Result<f64> {
    (0..N_MANAGERS).map(|member| seconds_of(managers.pid(member)?)).sum()
}

/// Processor time that a process has used so far (`utime` and `stime`, proc(5): in hundredths of a second).
pub fn seconds_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no command in it")?;
    let times: Vec<f64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(times.iter().sum::<f64>() / 100.0)
}
