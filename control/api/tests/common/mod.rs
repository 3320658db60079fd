//! A manager in memory: the real store, the real leader loops, an agent that obeys, the real API on a unix socket.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod agent;
pub mod cli;
pub mod engine;
pub mod http;
pub mod node;
pub mod world;

use std::path::PathBuf;
use std::sync::Arc;

use control_api::serve;
use control_store::LocalStore;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::engine::FakeEngine;
use self::node::FakeNode;

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

    /// A worker of somebody's cluster.
    pub async fn worker() -> Self {
        Self::start(FakeNode::worker(), world::store()).await
    }

    /// A node that is in no cluster.
    pub async fn alone() -> Self {
        Self::start(FakeNode::alone(), world::store()).await
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
            serve(&path, served, shutdown).await.expect("the API is served");
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
