//! What is going on with one container, for all who wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_model::TaskId;
use tokio::sync::watch;

use super::restart::Pauses;

/// How far a container is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Made, or ended.
    #[default]
    Idle,
    Running,
    /// It has ended, and is about to be started again.
    Restarting,
    Removing,
    Gone,
}

/// What those who wait see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub phase: Phase,
    /// Runs that were followed by no other, or did not begin.
    pub n_ends: u64,
    /// Of the last run.
    pub code: i32,
}

/// One container.
#[derive(Debug)]
pub(super) struct Life {
    pub id: TaskId,
    seen: watch::Sender<Seen>,
    /// Held while it is started, or its end is dealt with, or it is removed.
    pub turn: tokio::sync::Mutex<()>,
    pauses: Mutex<Pauses>,
    /// Its user starts it again: an end is none to be removed for.
    pub is_kept: AtomicBool,
}

impl Life {
    pub fn new(id: TaskId, seen: Seen) -> Self {
        Self {
            id,
            seen: watch::Sender::new(seen),
            turn: tokio::sync::Mutex::default(),
            pauses: Mutex::default(),
            is_kept: AtomicBool::new(false),
        }
    }

    pub fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    pub fn enter(&self, phase: Phase) {
        self.seen.send_modify(|seen| seen.phase = phase);
    }

    /// A run has ended with this code, and no other follows by itself.
    pub fn end(&self, code: i32, phase: Phase) {
        self.seen.send_modify(|seen| *seen = Seen { phase, n_ends: seen.n_ends + 1, code });
    }

    /// Returns when it is in none of these.
    pub async fn leaves(&self, phases: &[Phase]) {
        // Its sender is this life.
        let _ = self.watch().wait_for(|seen| !phases.contains(&seen.phase)).await;
    }

    pub fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }
}
