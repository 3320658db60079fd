//! Places in the swarm's networks. The managers know each as a task of this node; its process is one run of a container here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use control_model::TaskId;
use control_model::executor::SandboxPaths;
use control_model::object::NetworkAttachment;
use control_model::standalone::AttachRequest;
use tokio::sync::watch;

/// A place is given, and its sandbox made, in a fraction of a second, unless the node may have no tasks.
const GIVEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Who speaks to the managers. Errors are sentences for users.
#[async_trait]
pub trait Attacher: Send + Sync + 'static {
    async fn attach(&self, request: AttachRequest) -> Result<(), String>;
    /// Gives up a place that no agent may hear of.
    async fn detach(&self, id: TaskId) -> Result<(), String>;
}

/// What the agent has brought of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub paths: SandboxPaths,
    pub attachments: Vec<NetworkAttachment>,
}

/// Those that containers of this node have, or wait for.
#[derive(Debug, Default)]
pub(super) struct Attachments(Mutex<BTreeMap<TaskId, Held>>);

#[derive(Debug)]
struct Held {
    /// Whose it is.
    container: TaskId,
    /// Dropped with the end of the run.
    given: watch::Sender<Option<Given>>,
}

impl Attachments {
    /// `container` has the place with this id, or is about to ask for it.
    pub fn hold(&self, id: TaskId, container: TaskId) {
        self.locked().insert(id, Held { container, given: watch::Sender::new(None) });
    }

    /// The run is over. One that is not held is success.
    pub fn let_go(&self, id: TaskId) {
        self.locked().remove(&id);
    }

    pub fn holder(&self, id: TaskId) -> Option<TaskId> {
        self.locked().get(&id).map(|held| held.container)
    }

    /// Places and their containers.
    pub fn all(&self) -> Vec<(TaskId, TaskId)> {
        self.locked().iter().map(|(id, held)| (*id, held.container)).collect()
    }

    /// The agent brings it. False if nobody waits for it any more.
    pub fn give(&self, id: TaskId, given: Given) -> bool {
        let held = self.locked();
        let Some(held) = held.get(&id) else { return false };
        held.given.send_replace(Some(given));
        true
    }

    /// Returns when it has been brought.
    pub async fn given(&self, id: TaskId) -> Result<Given, String> {
        let mut given = self.watch(id).ok_or("its container has ended")?;
        let brought = async { given.wait_for(Option::is_some).await.ok()?.clone() };
        match tokio::time::timeout(GIVEN_TIMEOUT, brought).await {
            Ok(given) => given.ok_or_else(|| "its container has ended".to_owned()),
            Err(_) => Err(format!(
                "the swarm has given this node no place in it after {} s: is the node active?",
                GIVEN_TIMEOUT.as_secs()
            )),
        }
    }

    /// Returns when the run is over.
    pub async fn over(&self, id: TaskId) {
        let Some(mut given) = self.watch(id) else { return };
        while given.changed().await.is_ok() {}
    }

    fn watch(&self, id: TaskId) -> Option<watch::Receiver<Option<Given>>> {
        self.locked().get(&id).map(|held| held.given.subscribe())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<TaskId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
