//! Runs the leader's loops while this manager leads: events in, changes out.
//!
//! The loops are pure machines, and so is what runs them ([`rounds`]); this is all of their outside world. Losing
//! leadership drops every loop where it stands.

mod rounds;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::Timestamp;
use control_store::{EventReceiver, ProposeError, ReplicatedStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::clock;
use crate::leading::while_leading;
use crate::liveness::table::LivenessTable;
pub use rounds::{Factory, Happened, LeaderLoop, Loops, Make, last_stamp, packed_in_entries};

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
        // A write that was given up may still be in the log: what it decided is not decided again. Once this one is applied, so
        // is whatever this manager wrote before.
        if let Err(error) = self.store.propose_as_leader(self.number, Vec::new()).await {
            return error.into();
        }
        let (state, mut events) = self.store.subscribe();
        let mut acks = self.table.watch_acks();
        acks.mark_changed();
        let now = clock::even_after(last_stamp(&state));
        let factories = self.factories.clone();
        // Of a large state it takes a second, and others have work to do in it.
        let made = tokio::task::spawn_blocking(move || made_at_once(factories, &state, now)).await;
        let mut loops = made.unwrap_or_else(|error| resume_unwind(error.into_panic()));
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
                Err(ProposeError::TooLarge) => loops.too_large(clock::even()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes every loop of `state` on a thread of its own: each looks at all tasks.
pub fn made_at_once(factories: Arc<[Factory]>, state: &State, now: Timestamp) -> Loops {
    let machines = thread::scope(|scope| {
        let made: Vec<_> =
            factories.iter().map(|factory| scope.spawn(move || (factory.make)(state, now))).collect();
        made.into_iter().map(|made| made.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    Loops::of(factories, machines)
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
