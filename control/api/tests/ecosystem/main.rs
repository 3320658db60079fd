//! What others have written against Docker's API, as it is run elsewhere: Prometheus, docker-py, bollard; and the requests
//! of those that can't be run here.

#[path = "../common/mod.rs"]
mod common;

mod dashboards;
mod docker_py;
mod prometheus;
mod rust_client;

use control_api::engine::{Container, MountPoint};
use control_model::{OutputLine, OutputStream, Task, TaskState, Timestamp};
use control_store::ReplicatedStore as _;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use common::Daemon;
use common::engine::container;

/// When every container wrote its two lines.
const WRITTEN_AT: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// A manager with the containers of all tasks that run, as long as the set lives: each has written a line to either stream.
async fn manager_with_containers() -> (Daemon, JoinSet<()>) {
    let daemon = Daemon::manager().await;
    let (store, engine) = (daemon.store.clone(), daemon.engine.clone());
    let (mut state, mut events) = store.subscribe();
    let mut following = JoinSet::new();
    following.spawn(async move {
        loop {
            let running = state.tasks().iter().filter(|task| task.status.state == TaskState::Running);
            let containers: Vec<_> = running.map(|task| with_mounts(task)).collect();
            let written = containers.iter().map(|one| (one.id.clone(), lines(&one.name)));
            *engine.outputs.lock().expect("no panic") = written.collect();
            *engine.containers.lock().expect("no panic") = containers;
            events.next().await.expect("the store lives");
            state = store.state();
        }
    });
    (daemon, following)
}

/// The task's container with the task's volumes.
fn with_mounts(task: &Task) -> Container {
    let mounts = task.spec.container.mounts.iter().map(|mount| MountPoint {
        kind: mount.kind,
        name: mount.source.clone(),
        source: String::new(),
        target: mount.target.clone(),
        read_only: mount.read_only,
    });
    Container { mounts: mounts.collect(), ..container(task) }
}

fn lines(of: &str) -> Vec<OutputLine> {
    let line = |stream, text: String| OutputLine { at: WRITTEN_AT, stream, text: text.into_bytes() };
    vec![
        line(OutputStream::Stdout, format!("{of} begins\n")),
        line(OutputStream::Stderr, format!("{of} complains\n")),
    ]
}
