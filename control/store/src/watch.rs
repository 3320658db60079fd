//! Who watches a state. A watcher that falls far behind is let go: it begins anew from the state, which costs less
//! than a queue that holds everything that ever happened.

use std::sync::Arc;

use futures::channel::mpsc::{Receiver, Sender, channel};

use crate::event::EventBatch;

/// Batches that wait for one watcher: a leader's loop that writes a change of a million tasks sees all of them when it looks up
/// again. Batches share their objects with the state, so a full queue is some megabytes.
pub const MAX_WAITING_BATCHES: usize = 512;

/// Event batches in order, none lost. Ends, after what was queued, when the watcher was more than
/// [`MAX_WAITING_BATCHES`] behind: subscribe again and begin anew from the state.
pub type EventReceiver = Receiver<Arc<EventBatch>>;

/// The watchers of one state.
#[derive(Debug, Default)]
pub struct Watchers(Vec<Sender<Arc<EventBatch>>>);

impl Watchers {
    /// A new watcher, which receives every batch from now on.
    pub fn add(&mut self) -> EventReceiver {
        // One more place comes with the sender.
        let (sender, receiver) = channel(MAX_WAITING_BATCHES - 1);
        self.0.push(sender);
        receiver
    }

    /// Tells everyone, and lets go who is gone or lags.
    pub fn publish(&mut self, batch: EventBatch) {
        let batch = Arc::new(batch);
        self.0.retain_mut(|watcher| watcher.try_send(batch.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(index: u64) -> EventBatch {
        EventBatch { index, events: Vec::new(), state: Arc::default() }
    }

    fn indexes(receiver: &mut EventReceiver) -> Vec<u64> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(|batch| batch.index).collect()
    }

    #[test]
    fn a_lagging_watcher_gets_what_was_queued_and_its_end_and_others_go_on() {
        let mut watchers = Watchers::default();
        let (mut slow, mut quick) = (watchers.add(), watchers.add());
        let limit = u64::try_from(MAX_WAITING_BATCHES).expect("a small constant");
        for index in 1..=limit + 10 {
            watchers.publish(batch(index));
            assert_eq!(indexes(&mut quick), [index]);
        }
        assert_eq!(indexes(&mut slow), (1..=limit).collect::<Vec<_>>());
        assert!(slow.try_recv().is_err_and(|error| error.is_closed()), "it is told that it missed something");
        assert_eq!(watchers.0.len(), 1);
        drop(quick);
        watchers.publish(batch(limit + 11));
        assert!(watchers.0.is_empty());
    }
}
