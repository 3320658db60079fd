//! Requests that were applied, so that a retried write applies once.

use std::time::Duration;

use control_model::Timestamp;
use control_model::change::RequestId;
use imbl::{OrdSet, Vector};
use serde::{Deserialize, Serialize};

/// So many are remembered at least …
const REMEMBERED: usize = 4096;
/// … and all for so long, by the log's own time.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(20);
/// From one batch of writes to the next the log's own time goes on by no more than this: a leader with a clock that jumped, or
/// that differs from its predecessor's by hours, makes nobody forget what may still be repeated.
const MAX_STEP: Duration = Duration::from_secs(2);

/// The log's own time: that of the leaders' clocks, without their jumps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTime {
    /// Since the log began.
    now: Timestamp,
    /// What the last leader's clock said last.
    clock: Timestamp,
}

/// The newest requests. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    known: OrdSet<RequestId>,
    /// With the log's own time.
    order: Vector<(RequestId, Timestamp)>,
    time: LogTime,
}

impl Requests {
    /// Requests by age, the oldest first, with the log's own time of each; and what that is now.
    pub fn of_snapshot(order: impl IntoIterator<Item = (RequestId, Timestamp)>, time: LogTime) -> Self {
        let order = Vector::from_iter(order);
        Self { known: order.iter().map(|(request, _)| *request).collect(), order, time }
    }

    pub fn contains(&self, request: RequestId) -> bool {
        self.known.contains(&request)
    }

    /// By age, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (RequestId, Timestamp)> {
        self.order.iter().copied()
    }

    pub fn time(&self) -> LogTime {
        self.time
    }

    /// The leader's clock says `clock`.
    pub fn pass_time(&mut self, clock: Timestamp) {
        let step = clock.since(self.time.clock).min(MAX_STEP);
        self.time = LogTime { now: self.time.now.after(step), clock };
    }

    /// Remembers one more, and forgets what nobody repeats any more: two at most, so that no write pays for a burst before it.
    pub fn note(&mut self, request: RequestId) {
        self.known.insert(request);
        self.order.push_back((request, self.time.now));
        for _ in 0..2 {
            let oldest = self.order.front().filter(|(_, at)| self.time.now.since(*at) >= REMEMBERED_FOR);
            let Some((oldest, _)) = oldest.copied().filter(|_| self.order.len() > REMEMBERED) else { return };
            self.known.remove(&oldest);
            self.order.pop_front();
        }
    }
}
