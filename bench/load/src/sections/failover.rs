//! The leader is killed, or stopped in order: how long no write is accepted, and how many calls fail.
//!
//! Killed: a client begins to write at once, and asks the managers in turn until one takes it, giving each call a second.
//! Stopped: a client at each of the others writes one after the other; what counts is the longest time from one accepted
//! write to the next, and what fails is one of their calls: who talks to a manager that stops has to look for another.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, Row, compare};
use crate::managers::{
    DockerManagers, Etcd, Managers, MeshManagers, N_MANAGERS, Write as _, has_ended, signal,
};

const KILLED: Metric =
    Metric { name: "Leader killed, to the next accepted write", unit: "ms", better: Better::Lower };
const STOPPED: Metric = Metric {
    name: "Leader stopped in order: longest time without an accepted write",
    unit: "ms",
    better: Better::Lower,
};
const FAILED: Metric =
    Metric { name: "Leader stopped in order: failed calls", unit: "calls", better: Better::Lower };

const MESH: &str = "meshd";
const ETCD: &str = "etcd";
const DOCKERD: &str = "dockerd";

const KILLED_GOALS: [Goal; 2] =
    [Goal { row: MESH, bound: Bound::Below(500.0) }, Goal { row: MESH, bound: Bound::Worst(1500.0) }];
const STOPPED_GOALS: [Goal; 2] =
    [Goal { row: MESH, bound: Bound::Below(100.0) }, Goal { row: MESH, bound: Bound::Worst(100.0) }];
const FAILED_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Worst(0.0) }];

/// A sample of dockerd's takes half a minute.
const MOST_OF_DOCKERD: usize = 5;
const MOST_OF_ETCD: usize = 20;

/// It is the worst that counts here: so many samples for each one that other tables have.
const MORE_KILLS: u32 = 20;
const MORE_STOPS: u32 = 4;

/// What a client gives a call before it asks another manager.
const CALL_LIMIT: Duration = Duration::from_secs(1);
/// Between a refused call and the next.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// Longest time without an accepted write that is waited for.
const LIMIT: Duration = Duration::from_mins(1);
/// Between the return of a manager and what happens next, and between the first writes and the stop.
const SETTLE: Duration = Duration::from_secs(1);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let (mesh, etcd, dockerd) = (MeshManagers::start(), Etcd::start(), DockerManagers::start());
    let killed = compare(
        KILLED,
        Plan { runs: plan.runs * MORE_KILLS, ..plan },
        vec![
            Peer::maybe(MESH, &mesh, until_written),
            Peer::maybe(ETCD, &etcd, until_written).at_most(MOST_OF_ETCD),
            Peer::maybe(DOCKERD, &dockerd, until_written).at_most(MOST_OF_DOCKERD),
        ],
    );
    let failed = [MESH, ETCD, DOCKERD].map(|name| (name, Failed::default()));
    let [mesh_failed, etcd_failed, dockerd_failed] = &failed;
    let stopped = compare(
        STOPPED,
        Plan { runs: plan.runs * MORE_STOPS, ..plan },
        vec![
            Peer::maybe(MESH, &mesh, |peer| longest_gap(peer, &mesh_failed.1)),
            Peer::maybe(ETCD, &etcd, |peer| longest_gap(peer, &etcd_failed.1)).at_most(MOST_OF_ETCD),
            Peer::maybe(DOCKERD, &dockerd, |peer| longest_gap(peer, &dockerd_failed.1))
                .at_most(MOST_OF_DOCKERD),
        ],
    );
    let rows = failed.into_iter().map(|(name, failed)| Row::new(name, failed.0.into_inner(), None)).collect();
    vec![
        killed.aiming_at(&KILLED_GOALS),
        stopped.aiming_at(&STOPPED_GOALS),
        Comparison { metric: FAILED, rows, goals: FAILED_GOALS.to_vec() },
    ]
}

/// Calls that failed, a figure per sample.
#[derive(Default)]
struct Failed(std::cell::RefCell<Vec<f64>>);

/// Milliseconds from the leader's SIGKILL to the next write that a manager accepts.
fn until_written(managers: &impl Managers) -> Result<f64> {
    std::thread::sleep(SETTLE);
    let leader = managers.leader()?;
    let start = Instant::now();
    signal(managers, leader, Signal::SIGKILL)?;
    let written = managers.runtime().block_on(write_anywhere(managers, leader));
    let taken = start.elapsed();
    managers.revive(leader)?;
    written?;
    Ok(taken.as_secs_f64() * 1e3)
}

/// Asks one manager after the other until one accepts.
async fn write_anywhere(managers: &impl Managers, first: usize) -> Result<()> {
    let start = Instant::now();
    for turn in first.. {
        let call = async { managers.connect(turn % N_MANAGERS).await?.write().await };
        match timeout(CALL_LIMIT, call).await {
            Ok(Ok(())) => break,
            refused => ensure!(start.elapsed() < LIMIT, "no manager accepts a write: {refused:?}"),
        }
        sleep(RETRY_PAUSE).await;
    }
    Ok(())
}

/// Milliseconds of the longest time without an accepted write of a client while the leader ends after SIGTERM.
fn longest_gap(managers: &impl Managers, failed: &Failed) -> Result<f64> {
    std::thread::sleep(SETTLE);
    let leader = managers.leader()?;
    let others: Vec<usize> = (0..N_MANAGERS).filter(|member| *member != leader).collect();
    let is_over = Cell::new(false);
    let stop = async {
        sleep(SETTLE).await;
        let pid = signal(managers, leader, Signal::SIGTERM)?;
        let start = Instant::now();
        while !has_ended(pid) && start.elapsed() < LIMIT {
            sleep(RETRY_PAUSE).await;
        }
        sleep(SETTLE).await;
        is_over.set(true);
        anyhow::Ok(())
    };
    let (stopped, one, other) = managers.runtime().block_on(async {
        tokio::join!(
            stop,
            keep_writing(managers, others[0], &is_over),
            keep_writing(managers, others[1], &is_over)
        )
    });
    managers.revive(leader)?;
    stopped?;
    let (one, other) = (one?, other?);
    failed.0.borrow_mut().push(f64::from(one.n_failed + other.n_failed));
    Ok(one.gap.max(other.gap).as_secs_f64() * 1e3)
}

/// What a client has seen.
struct Seen {
    /// Longest time from an accepted write to the next.
    gap: Duration,
    n_failed: u32,
}

/// Writes one after the other to one manager until it is over and the last one was accepted.
async fn keep_writing(managers: &impl Managers, member: usize, is_over: &Cell<bool>) -> Result<Seen> {
    let mut seen = Seen { gap: Duration::ZERO, n_failed: 0 };
    managers.connect(member).await?.write().await?;
    let mut accepted = Instant::now();
    loop {
        let call = async { managers.connect(member).await?.write().await };
        match timeout(LIMIT, call).await {
            Ok(Ok(())) => {
                seen.gap = seen.gap.max(accepted.elapsed());
                accepted = Instant::now();
                if is_over.get() {
                    return Ok(seen);
                }
            }
            refused => {
                ensure!(accepted.elapsed() < LIMIT, "no write is accepted: {refused:?}");
                seen.n_failed += 1;
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}
