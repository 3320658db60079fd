//! Requests that were applied, so that a retried write applies once.

use std::time::Duration;

use control_model::Timestamp;
use control_model::change::RequestId;
use imbl::{OrdSet, Vector};

/// So many are remembered at least …
const REMEMBERED: usize = 4096;
/// … and all for so long, by the log's time.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(20);

/// The newest requests. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    known: OrdSet<RequestId>,
    /// With the log's time.
    order: Vector<(RequestId, Timestamp)>,
}

impl Requests {
    pub fn contains(&self, request: RequestId) -> bool {
        self.known.contains(&request)
    }

    /// By age, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (RequestId, Timestamp)> {
        self.order.iter().copied()
    }

    pub fn note(&mut self, request: RequestId, at: Timestamp) {
        self.known.insert(request);
        self.order.push_back((request, at));
    }

    /// Forgets those that nobody repeats any more: two at most, so that no write pays for a burst before it.
    pub fn forget(&mut self, now: Timestamp) {
        for _ in 0..2 {
            let oldest = self.order.front().filter(|(_, at)| now.since(*at) >= REMEMBERED_FOR);
            let Some((oldest, _)) = oldest.copied().filter(|_| self.order.len() > REMEMBERED) else { return };
            self.known.remove(&oldest);
            self.order.pop_front();
        }
    }
}
