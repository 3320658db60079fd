//! Runs the leader's loops while this manager leads: events in, changes out.
//!
//! The loops are pure machines; this is all of their outside world. A refused proposal means that a loop's picture is
//! old: it is made anew of the current state. Losing leadership drops every loop where it stands.

use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::{Change, Timestamp};
use control_store::{Event, EventReceiver, ProposeError, ReplicatedStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::clock;
use crate::leading::while_leading;
use crate::liveness::table::LivenessTable;

/// Changes in one entry: swarmkit's limit for a transaction, and far below the largest entry in bytes.
pub const MAX_CHANGES: usize = 200;
/// How often one loop may answer its own changes within one round: more is a loop that does not settle.
const MAX_REBUILDS: u32 = 8;
/// After a proposal that had no leader to go to.
const RETRY: Duration = Duration::from_millis(200);

/// After so many refusals in a row a loop is made anew once more: nothing else may ever happen that wakes it.
const UNSETTLED_RETRY: Duration = Duration::from_secs(1);

/// Why the loops begin anew.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Write(#[from] ProposeError),
    #[error("events came faster than they were answered")]
    Lagged,
}

/// One of the leader's loops.
pub trait LeaderLoop: Send {
    /// Takes what has changed. `state` is at least as new as `events`.
    fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change>;
    /// When [`LeaderLoop::tick`] wants to be called, if nothing happens before.
    fn next_deadline(&self) -> Option<Timestamp>;
    /// Does what is due by `now`.
    fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change>;
    /// The nodes' data planes have applied something newer.
    fn acknowledged(&mut self, _state: &State, _now: Timestamp) -> Vec<Change> {
        Vec::new()
    }
}

/// Makes a loop of the current state.
pub struct Factory {
    pub name: &'static str,
    pub make: Make,
}

/// Makes a loop of a state.
pub type Make = Box<dyn Fn(&State, Timestamp) -> Box<dyn LeaderLoop> + Send + Sync>;

/// What the loops run over.
pub struct Leader {
    pub store: Arc<dyn ReplicatedStore>,
    pub leadership: watch::Receiver<Leadership>,
    pub table: Arc<LivenessTable>,
    /// In the order in which they answer the same events.
    pub loops: Vec<Factory>,
}

/// One loop in its current life.
struct Running<'a> {
    factory: &'a Factory,
    machine: Box<dyn LeaderLoop>,
    /// The machine's last answer was given up; then it is to be made anew.
    retry_at: Option<Timestamp>,
}

impl Leader {
    /// Leads whenever consensus says so. Ends with consensus.
    pub async fn run(self) {
        let this = &self;
        while_leading(self.leadership.clone(), |term| async move {
            tracing::info!(term, "leading");
            let error = this.lead().await;
            tracing::warn!(%error, "leader loops begin anew");
            tokio::time::sleep(RETRY).await;
        })
        .await;
    }

    /// Runs until a write finds no leader, or events were missed.
    async fn lead(&self) -> Interrupted {
        let (state, mut events) = self.store.subscribe();
        let mut acks = self.table.watch_acks();
        acks.mark_changed();
        let mut loops: Vec<_> = self.loops.iter().map(|factory| Running::new(factory, &state)).collect();
        drop(state);
        for running in &mut loops {
            if let Err(error) = running.step(&*self.store, |m, state| m.tick(state, clock::now())).await {
                return error.into();
            }
        }
        loop {
            let Err(error) = self.round(&mut loops, &mut events, &mut acks).await else { continue };
            return error;
        }
    }

    /// Waits for something to happen, and lets every loop answer.
    async fn round(
        &self,
        loops: &mut [Running<'_>],
        events: &mut EventReceiver,
        acks: &mut watch::Receiver<u64>,
    ) -> Result<(), Interrupted> {
        let deadline = loops.iter().filter_map(Running::next_deadline).min();
        tokio::select! {
            batch = events.next() => {
                let batch = batch.ok_or(Interrupted::Lagged)?;
                let mut happened = batch.events.clone();
                while let Ok(batch) = events.try_recv() {
                    happened.extend_from_slice(&batch.events);
                }
                for running in loops {
                    running.step(&*self.store, |m, state| m.handle(state, &happened, clock::now())).await?;
                }
            }
            _ = acks.changed() => {
                for running in loops {
                    running.step(&*self.store, |m, state| m.acknowledged(state, clock::now())).await?;
                }
            }
            () = sleep_until(deadline) => {
                let now = clock::now();
                for running in loops.iter_mut().filter(|l| l.next_deadline().is_some_and(|at| at <= now)) {
                    running.step(&*self.store, |m, state| m.tick(state, now)).await?;
                }
            }
        }
        Ok(())
    }
}

/// Returns at `deadline` by the wall clock; never without one.
async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

impl<'a> Running<'a> {
    fn new(factory: &'a Factory, state: &State) -> Self {
        Self { factory, machine: (factory.make)(state, clock::now()), retry_at: None }
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        self.machine.next_deadline().into_iter().chain(self.retry_at).min()
    }

    /// A new machine's first answer. `state` holds whatever the old one was to be told.
    fn make_anew(&mut self, state: &State) -> Vec<Change> {
        let now = clock::now();
        self.retry_at = None;
        self.machine = (self.factory.make)(state, now);
        self.machine.tick(state, now)
    }

    /// Lets the machine answer, and writes its answer; a machine whose answer is refused is made anew and asked what
    /// it wants now.
    async fn step(
        &mut self,
        store: &dyn ReplicatedStore,
        ask: impl FnOnce(&mut dyn LeaderLoop, &State) -> Vec<Change>,
    ) -> Result<(), ProposeError> {
        let state = store.state();
        let mut changes =
            if self.retry_at.is_some() { self.make_anew(&state) } else { ask(&mut *self.machine, &state) };
        for _ in 0..MAX_REBUILDS {
            match propose_all(store, changes).await {
                Err(ProposeError::Refused(error)) => {
                    tracing::debug!(name = self.factory.name, %error, "leader loop made anew");
                    changes = self.make_anew(&store.state());
                }
                done => return done,
            }
        }
        tracing::warn!(name = self.factory.name, "leader loop does not settle; it is tried again later");
        self.retry_at = Some(clock::now().after(UNSETTLED_RETRY));
        Ok(())
    }
}

/// Writes in entries of [`MAX_CHANGES`], in order.
async fn propose_all(store: &dyn ReplicatedStore, changes: Vec<Change>) -> Result<(), ProposeError> {
    for chunk in changes.chunks(MAX_CHANGES) {
        store.propose(chunk.to_vec()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
