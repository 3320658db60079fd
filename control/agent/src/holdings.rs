//! What the managers have assigned to this node, as a fingerprint: they compare it with what they want.

use control_model::Generation;
use tokio::sync::{mpsc, oneshot};

/// Askers that wait: each costs the worker a pass over its set.
const MAX_ASKERS: usize = 4;

/// A question to the worker; it is dropped unanswered before the first complete set.
pub(crate) type Asker = oneshot::Sender<(Generation, String)>;

/// Asks the worker.
#[derive(Debug, Clone)]
pub struct Holdings(mpsc::Sender<Asker>);

impl Holdings {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Asker>) {
        let (sender, asked) = mpsc::channel(MAX_ASKERS);
        (Self(sender), asked)
    }

    /// How new the assignments are that this node has, and their [`control_rpc::digest`]; `None` if it has none yet.
    pub async fn read(&self) -> Option<(Generation, String)> {
        let (asker, answer) = oneshot::channel();
        self.0.send(asker).await.ok()?;
        answer.await.ok()
    }
}
