//! Runs the leader's loops while this manager leads: events in, changes out.
//!
//! The loops are pure machines, and so is what runs them ([`rounds`]); this is all of their outside world. Losing
//! leadership drops every loop where it stands.

mod rounds;

use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::Timestamp;
use control_store::{EventReceiver, ProposeError, ReplicatedStore};
use futures::StreamExt;
use tokio::sync::watch;

use crate::clock;
use crate::leading::while_leading;
use crate::liveness::table::LivenessTable;
pub use rounds::{Factory, Happened, LeaderLoop, Loops, Make, in_entries, last_stamp};

/// After a proposal that had no leader to go to.
const RETRY: Duration = Duration::from_millis(200);

/// Why the loops begin anew.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Write(#[from] ProposeError),
    #[error("events came faster than they were answered")]
    Lagged,
}

/// What the loops run over.
pub struct Leader {
    pub store: Arc<dyn ReplicatedStore>,
    pub leadership: watch::Receiver<Leadership>,
    pub table: Arc<LivenessTable>,
    /// In the order in which they answer the same events.
    pub loops: Vec<Factory>,
}

impl Leader {
    /// Leads whenever consensus says so. Ends with consensus.
    pub async fn run(self) {
        let Self { store, leadership, table, loops } = self;
        let factories: Arc<[Factory]> = loops.into();
        while_leading(leadership, |term| {
            let term_of = Term { number: term, store: &*store, table: &table, factories: factories.clone() };
            async move {
                tracing::info!(term, "leading");
                let error = term_of.lead().await;
                tracing::warn!(%error, "leader loops begin anew");
                tokio::time::sleep(RETRY).await;
            }
        })
        .await;
    }
}

/// One time of leading.
struct Term<'a> {
    number: u64,
    store: &'a dyn ReplicatedStore,
    table: &'a LivenessTable,
    factories: Arc<[Factory]>,
}

impl Term<'_> {
    /// Runs until a write finds no leader, or events were missed.
    async fn lead(&self) -> Interrupted {
        let (state, mut events) = self.store.subscribe();
        let mut acks = self.table.watch_acks();
        acks.mark_changed();
        let now = clock::even_after(last_stamp(&state));
        let mut loops = Loops::new(self.factories.clone(), &state, now);
        drop(state);
        if let Err(error) = self.answer(&mut loops, Happened::Began).await {
            return error.into();
        }
        loop {
            let Err(error) = self.round(&mut loops, &mut events, &mut acks).await else { continue };
            return error;
        }
    }

    /// Waits for something to happen, and lets every loop answer.
    async fn round(
        &self,
        loops: &mut Loops,
        events: &mut EventReceiver,
        acks: &mut watch::Receiver<u64>,
    ) -> Result<(), Interrupted> {
        let happened = tokio::select! {
            batch = events.next() => {
                let batch = batch.ok_or(Interrupted::Lagged)?;
                let mut happened = batch.events.clone();
                while let Ok(batch) = events.try_recv() {
                    happened.extend_from_slice(&batch.events);
                }
                Happened::Events(happened)
            }
            _ = acks.changed() => Happened::Acknowledged,
            () = sleep_until(loops.next_deadline()) => Happened::Due,
        };
        Ok(self.answer(loops, happened).await?)
    }

    /// Lets every loop answer, and writes the answers.
    async fn answer(&self, loops: &mut Loops, happened: Happened) -> Result<(), ProposeError> {
        loops.tell(happened);
        while let Some(changes) = loops.next_write(&self.store.state(), clock::even()) {
            match self.store.propose_as_leader(self.number, changes).await {
                Ok(_) => {}
                Err(ProposeError::Refused(error)) => {
                    loops.refused(&error, &self.store.state(), clock::even());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns at `deadline` by the clock of the loops, or somewhat before; never without one.
async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::even())).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
