//! A manager in memory: the real store, the real leader loops, an agent that obeys, the real API on a unix socket.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod agent;
pub mod certificates;
pub mod cli;
pub mod engine;
pub mod http;
pub mod node;
pub mod standalone;
pub mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control_api::passage::Passage;
use control_api::{Host, serve};
use control_model::TaskState;
use control_store::{LocalStore, ReplicatedStore, State};
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::engine::FakeEngine;
use self::node::FakeNode;

/// Longest time that anything may take here.
const LIMIT: Duration = Duration::from_mins(1);

/// A running daemon. Dropping it stops everything and takes its files away.
pub struct Daemon {
    pub node: Arc<FakeNode>,
    pub store: Arc<LocalStore>,
    pub engine: Arc<FakeEngine>,
    pub socket: PathBuf,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// A manager `m1` with workers `w1` and `w2`.
    pub async fn manager() -> Self {
        let store = world::store();
        let mut daemon = Self::start(FakeNode::manager(store.clone()), store.clone()).await;
        let table = Arc::default();
        let agent = tokio::spawn(agent::obey(store.clone(), Arc::clone(&table)));
        let leader = tokio::spawn(world::lead(store, table));
        daemon.tasks = vec![agent, leader];
        daemon
    }

    /// The same, whose containers another daemon runs.
    pub async fn hosted(passage: Passage) -> Self {
        let store = world::store();
        let mut node = FakeNode::manager(store.clone());
        node.passage = Some(passage);
        Self::start(node, store).await
    }

    /// A worker of somebody's cluster.
    pub async fn worker() -> Self {
        Self::start(FakeNode::worker(), world::store()).await
    }

    /// A node that is in no cluster.
    pub async fn alone() -> Self {
        Self::start(FakeNode::alone(), world::store()).await
    }

    /// The first state for which `holds`, within a bounded time.
    pub async fn until(&self, holds: impl Fn(&State) -> bool) -> Arc<State> {
        let (mut state, mut events) = self.store.subscribe();
        let waiting = async {
            while !holds(&state) {
                events.next().await.expect("the store lives");
                state = self.store.state();
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("it happens in time");
        state
    }

    /// Waits until the service has exactly so many tasks that run and are wanted, and its update is over.
    pub async fn running(&self, service: &str, count: usize) {
        self.until(|state| {
            let Some(service) = state.service_by_name(service) else { return false };
            let wanted = state.tasks_of_service(service.id).filter(|t| t.desired_state <= TaskState::Running);
            let (up, other): (Vec<_>, Vec<_>) = wanted.partition(|t| t.status.state == TaskState::Running);
            let updating = service.update_status.as_ref().is_some_and(|status| status.completed_at.is_none());
            up.len() == count && other.is_empty() && !updating
        })
        .await;
    }

    /// A file of the daemon's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn start(node: FakeNode, store: Arc<LocalStore>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("docker.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let node = Arc::new(node);
        let (path, served) = (socket.clone(), node.clone());
        tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            serve(vec![Host::Socket(path)], served, shutdown).await.expect("the API is served");
        });
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::task::yield_now().await;
        }
        let engine = node.engine.clone();
        Self { node, store, engine, socket, dir, stop: Some(stop), tasks: Vec::new() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}
