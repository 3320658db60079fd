//! Virtual time: what is to happen, in order. Nothing else lets time pass.

use std::collections::BTreeMap;
use std::time::Duration;

/// Events by the time at which they happen; those of the same time in the order in which they were put in.
#[derive(Debug)]
pub struct Queue<E> {
    now: Duration,
    n_put: u64,
    events: BTreeMap<(Duration, u64), E>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { now: Duration::ZERO, n_put: 0, events: BTreeMap::new() }
    }
}

impl<E> Queue<E> {
    /// Time since the simulation began.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// `event` happens so long from now.
    pub fn after(&mut self, span: Duration, event: E) {
        self.n_put += 1;
        self.events.insert((self.now + span, self.n_put), event);
    }

    /// Goes on to the next event, if there is one before `end`; else to `end`.
    pub fn next_before(&mut self, end: Duration) -> Option<E> {
        let first = self.events.first_entry().filter(|entry| entry.key().0 < end);
        let Some(first) = first else {
            self.now = end;
            return None;
        };
        self.now = first.key().0;
        Some(first.remove())
    }
}
