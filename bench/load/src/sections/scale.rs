//! States that are larger than any cluster that runs here, in this process: a snapshot of them, and the first placement of
//! a leader that is new to them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use control_consensus::SnapshotTimes;
use control_manager::leader::{Happened, last_stamp, made_at_once};
use control_manager::liveness::table::LivenessTable;
use control_manager::{clock, loops};
use control_model::TaskState;
use control_model::change::{Change, Object};
use control_store::State;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::synthetic::{Doing, Extent, add_services, apply, nodes, service};

const SNAPSHOT: Metric =
    Metric { name: "Snapshot of 100,000 tasks, simulated", unit: "s", better: Better::Lower };
const WRITTEN: &str = "made, sealed, and written through to the disk";
const READ: &str = "read, opened, and made tables of";
const SNAPSHOT_GOALS: [Goal; 1] = [Goal { row: WRITTEN, bound: Bound::Below(1.0) }];

const TAKEN_OVER: Metric = Metric {
    name: "Leader change to the first placement, simulated: 10,000 nodes, 1,000,000 tasks",
    unit: "s",
    better: Better::Lower,
};
const LOOPS: &str = "the leader's loops, from nothing but the store";
const TAKEN_OVER_GOALS: [Goal; 1] = [Goal { row: LOOPS, bound: Bound::Below(2.0) }];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let many = running(Extent { n_nodes: 1_000, n_services: 1_000, n_tasks_each: 100 });
    let snapshot = compare(
        SNAPSHOT,
        plan,
        vec![Peer::maybe(WRITTEN, &many, until_written), Peer::maybe(READ, &many, until_read)],
    );
    drop(many);
    let extent = Extent { n_nodes: 10_000, n_services: 1_000, n_tasks_each: 1_000 };
    let most = running(extent).and_then(|mut state| {
        // What the leader before was asked for last: the new one makes its task and places it.
        apply(&mut state, vec![Change::Create(Object::Service(Box::new(service(extent.n_services, 1))))])?;
        Ok(state)
    });
    let taken_over = compare(TAKEN_OVER, plan, vec![Peer::maybe(LOOPS, &most, until_placed)]);
    vec![snapshot.aiming_at(&SNAPSHOT_GOALS), taken_over.aiming_at(&TAKEN_OVER_GOALS)]
}

fn running(extent: Extent) -> Result<State> {
    let mut state = State::default();
    apply(&mut state, nodes(extent))?;
    add_services(&mut state, extent, Doing::Run)?;
    Ok(state)
}

/// Seconds.
fn until_written(state: &State) -> Result<f64> {
    Ok(time_snapshot(state)?.written.as_secs_f64())
}

/// Seconds.
fn until_read(state: &State) -> Result<f64> {
    Ok(time_snapshot(state)?.read.as_secs_f64())
}

fn time_snapshot(state: &State) -> Result<SnapshotTimes> {
    // Where daemons have their state.
    let dir = tempfile::tempdir_in("/var/lib")?;
    Ok(SnapshotTimes::take(state, dir.path())?)
}

/// Seconds from a new leader's first look at the state until the write that places a task is applied, as those before it are.
fn until_placed(state: &State) -> Result<f64> {
    let mut state = state.clone();
    let start = Instant::now();
    let factories = loops::all(Arc::new(LivenessTable::default()));
    let now = clock::even_after(last_stamp(&state));
    let mut loops = made_at_once(factories.into(), &state, now);
    let mut happened = Some(Happened::Began);
    while let Some(next) = happened.take() {
        let mut events = Vec::new();
        loops.tell(next);
        while let Some(changes) = loops.next_write(&state, clock::even()) {
            let is_placed = changes.iter().any(places);
            events.extend(apply(&mut state, changes).context(loops.writer())?);
            if is_placed {
                return Ok(start.elapsed().as_secs_f64());
            }
        }
        happened = (!events.is_empty()).then_some(Happened::Events(events));
    }
    bail!("the leader's loops have placed nothing")
}

fn places(change: &Change) -> bool {
    let Change::TaskEdit { edit, .. } = change else { return false };
    edit.status.as_ref().is_some_and(|status| status.state == TaskState::Assigned)
}
